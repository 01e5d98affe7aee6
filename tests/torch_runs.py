"""Small runs on the PyTorch engine, what they load and encode, and plain diffusers to compare them with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from runs import recipe
from safetensors.numpy import load_file, save_file

from gesso.arrays import Array, Picture
from gesso.data.batch import Batch
from gesso.engines.torch.engine import Engine
from gesso.engines.torch.models import Models
from gesso.generate import Request, generate
from gesso.objective.coefficients import Coefficients
from gesso.recipe import load
from gesso.run import train

PROMPT = "a thing on a red background"
STEPS, GUIDANCE = 3, 4.0
LORA = {"kind": "lora", "rank": 3, "alpha": 5.0}
FULL = {"kind": "none"}


def torch_recipe(folder: Path, base: Path, **tables: Mapping[str, Any] | str | int) -> Path:
    """A run of 6 steps of 2 pictures on PyTorch that draws one prompt."""
    given: dict[str, Any] = {
        "train": {"steps": 6, "batch": 2, "device": "cpu"},
        "sample": {"prompts": [PROMPT], "seeds": [7], "steps": STEPS, "guidance": GUIDANCE},
        "optim": {"lr": 1e-2},
    }
    for name, table in tables.items():
        given[name] = {**given.get(name, {}), **table} if isinstance(table, Mapping) else table
    return recipe(folder, base, engine="torch", **given)


def go(path: Path, *flags: str | Path) -> int:
    """`gesso train` in this process."""
    return int(train(load(path, [str(flag) for flag in flags])))


def pixels(path: Path) -> Picture:
    return np.asarray(Image.open(path).convert("RGB"))


def plain(folder: Path) -> Any:
    """The pipeline as any user of diffusers loads it."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, seed: int = 7, side: int = 64) -> Picture:
    """PROMPT by plain diffusers with the settings of the runs."""
    picture = pipe(
        PROMPT,
        width=side,
        height=side,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    return np.asarray(picture)


def again(model: Path, out: Path) -> Any:
    """What `gesso generate` draws with the settings of the runs."""
    request = Request(model=str(model), prompts=(PROMPT,), out=out, seeds=(7,), steps=STEPS, guidance=GUIDANCE)
    return pixels(generate(request)[0])


def copy_with(base: Path, to: Path, **scheduler: object) -> Path:
    """The pipeline folder `base` with another scheduler configuration."""
    shutil.copytree(base, to)
    path = to / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **scheduler}))
    return to


def disturb(file: Path, part: str) -> None:
    """Change the first weight whose name holds `part`."""
    arrays = load_file(file)
    name = sorted(name for name in arrays if part in name)[0]
    arrays[name] = arrays[name] * np.float32(1.01) + np.float32(1e-3)
    save_file(arrays, file, metadata={"format": "pt"})


@dataclass
class Seen:
    """What a run asked of the engine."""

    loaded: list[str] = field(default_factory=list)
    pixels: list[Array] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    steps: list[list[tuple[Batch, Coefficients]]] = field(default_factory=list)
    measured: list[tuple[Batch, Coefficients, Array]] = field(default_factory=list)

    @property
    def encoded(self) -> tuple[int, int]:
        """Pictures and captions that were encoded."""
        return len(self.pixels), len(self.captions)


def watch(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Note down from now on what runs in this process do; they do it all the same."""
    seen = Seen()
    read, images, text, step, evaluate = (
        Models._load, Engine.encode_images, Engine.encode_text, Engine.step, Engine.evaluate,
    )  # fmt: skip

    def _load(self: Models, name: str, dtype: torch.dtype) -> Any:
        seen.loaded.append(name)
        return read(self, name, dtype)

    def encode_images(self: Engine, values: Array) -> Any:
        seen.pixels.extend(values)
        return images(self, values)

    def encode_text(self: Engine, captions: Sequence[str]) -> Any:
        seen.captions.extend(captions)
        return text(self, captions)

    def _step(self: Engine, micro: Any, **options: Any) -> Any:
        seen.steps.append(list(micro))
        return step(self, micro, **options)

    def _evaluate(self: Engine, batch: Batch, coefficients: Coefficients, *, ema: bool = False) -> Any:
        found = evaluate(self, batch, coefficients, ema=ema)
        seen.measured.append((batch, coefficients, found))
        return found

    monkeypatch.setattr(Models, "_load", _load)
    monkeypatch.setattr(Engine, "encode_images", encode_images)
    monkeypatch.setattr(Engine, "encode_text", encode_text)
    monkeypatch.setattr(Engine, "step", _step)
    monkeypatch.setattr(Engine, "evaluate", _evaluate)
    return seen
