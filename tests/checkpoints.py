"""A small checkpoint to save and to look at, and faults to save it under."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gesso.checkpoint import Checkpoint, Checkpoints
from gesso.storage import sweep

CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")
"""What a save asks of the system; each may be the last."""


class Killed(BaseException):
    """The process died here; nothing that it does afterwards happens."""


def content(value: float) -> dict[str, Any]:
    return {
        "weights.safetensors": {"unet.a": np.full((4, 3), value, np.float32), "unet.b": np.arange(5.0)},
        "unet/config.json": lambda path: path.write_text(json.dumps({"value": value})),
    }


def save(out: Path, step: int, value: float, keep: int = 1) -> Path:
    return Checkpoints(out, keep).save(step, content(value), {"recipe": {"seed": 7}})


def value_of(checkpoint: Checkpoint) -> float:
    value = float(checkpoint.arrays("weights.safetensors")["unet.a"][0, 0])
    assert json.loads((checkpoint.folder / "unet/config.json").read_text()) == {"value": value}
    return value


@contextmanager
def faulty(at: int, fault: Callable[[], BaseException], *, dead: bool) -> Iterator[list[str]]:
    """The system's calls fail with `fault` at call number `at`, and if `dead` ever after; gives the calls made.

    A write that dies has written half, as a kill may.
    """
    made: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not (args[1] & os.O_CREAT):
                return real(*args, **options)
            made.append(f"{name} {args[0]}")
            if len(made) == at or (dead and len(made) > at > 0):
                if name == "write" and len(made) == at:
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise fault()
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        yield made


def sound(out: Path, allowed: set[tuple[int, float]]) -> None:
    """What must hold after any fault: a verified checkpoint, old or new; a clean folder after a sweep; a next save."""
    checkpoint, _ = Checkpoints(out, 1).newest()
    assert checkpoint is not None
    assert (checkpoint.step, value_of(checkpoint)) in allowed
    sweep(out)
    assert [name for name in os.listdir(out) if name.startswith(".")] == []
    checkpoint, _ = Checkpoints(out, 1).newest()
    assert checkpoint is not None
    assert (checkpoint.step, value_of(checkpoint)) in allowed
    save(out, 90, 9.0)
    checkpoint, skipped = Checkpoints(out, 1).newest()
    assert checkpoint is not None
    assert (checkpoint.step, value_of(checkpoint), skipped) == (90, 9.0, [])


SAVES = {"next": (20, {(10, 1.0), (20, 2.0)}), "again": (10, {(10, 1.0), (10, 2.0)})}
