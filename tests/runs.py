"""Small runs for tests: pictures, recipes, and the command line in a process of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit
from PIL import Image


def pictures(folder: Path, count: int = 5, *, side: int = 48, captions: bool = True) -> Path:
    """`count` pictures of coloured noise, a caption beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    for number in range(count):
        colour = rng.integers(0, 256, 3)
        pixels = np.clip(colour + rng.normal(0, 20, (side, side + 8 * number, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(f"thing number {number}", encoding="utf-8")
    return folder


def recipe(folder: Path, base: Path, **tables: Mapping[str, Any] | str | int) -> Path:
    """recipe.toml in `folder` for a run into `folder`/out on `folder`/pictures."""
    whole: dict[str, Any] = {
        "engine": "reference",
        "out": str(folder / "out"),
        "seed": 3,
        "model": {"base": str(base)},
        "adapter": {"kind": "lora", "rank": 2},
        "data": [{"path": str(folder / "pictures")}],
        "train": {"steps": 12, "batch": 4},
        "optim": {"lr": 0.01},
        "save": {"every": 4},
        "track": {"tensorboard": False, "console": "none"},
    }
    for name, table in tables.items():
        key = name.rstrip("_")
        whole[key] = {**whole.get(key, {}), **table} if isinstance(table, Mapping) else table
    if whole["adapter"]["kind"] in ("none", "ti"):  # the rank of an adapter that is not there is refused
        whole["adapter"].pop("rank", None)
    path = folder / "recipe.toml"
    path.write_text(tomlkit.dumps(whole), encoding="utf-8")
    return path


def gesso(*arguments: str | Path, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
    """`gesso …` in a process of its own."""
    command = [sys.executable, "-m", "gesso", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    """The same, left running."""
    command = [sys.executable, "-m", "gesso", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def events(out: Path, name: str = "") -> list[dict[str, Any]]:
    lines = (out / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if not name or event["event"] == name]


def hashes(folder: Path, pattern: str = "**/*.safetensors") -> dict[str, str]:
    """SHA-256 of the files of a folder by relative name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
