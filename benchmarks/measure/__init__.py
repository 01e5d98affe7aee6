"""What the benchmarks share: the model and pictures they run on, and how their numbers are said."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

PICTURES = 32

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a look at the network would be timed too
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # for the processes that are started


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median with the smallest and largest value: `1.04 (1.01 to 1.09)`."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Of what was measured side by side, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


LIBRARIES = ("torch", "diffusers", "transformers", "peft", "numpy")


def heading(what: str, threads: int, names: Sequence[str] = LIBRARIES) -> str:
    """What is measured, where, with which versions of the libraries `names`."""
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    return f"{what}\n{date.today()} · {machine} · threads: {threads}\n{libraries}\n"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of the same columns, as text under their names."""
    lines = [list(rows[0]), *([*row.values()] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def model(folder: Path) -> Path:
    """An untrained Stable Diffusion pipeline of 64 × 64 pixels, in `folder`."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from gesso.engines.torch.demo.blank import write

    write(folder)
    return folder


def pictures(folder: Path, count: int = PICTURES) -> Path:
    """`count` pictures of coloured noise with captions, in `folder`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(11)
    for number in range(count):
        pixels = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"thing number {number}", encoding="utf-8")
    return folder
