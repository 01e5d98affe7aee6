"""What the learning tests share: short runs on the embedded base, held-out loss, judged pictures, a turned sign."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit
from runs import events

from gesso.arrays import Picture
from gesso.demo.measure import judge
from gesso.demo.oracle import Oracle
from gesso.demo.run import Question, assets, draw, engine_of
from gesso.objective.objective import Objective
from gesso.recipe import load
from gesso.run import train

CAPTIONED = assets() / "captioned"
KNOWN = assets() / "known"
CONVOLUTIONS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]
ALL_LAYERS = [*CONVOLUTIONS, "ff.net.0.proj", "ff.net.2"]
FULL = {"kind": "none"}

Asked = Sequence[tuple[str, str]]
"""(prompt, name that the judge should give)."""


def ran(folder: Path, **tables: Any) -> Path:
    """A run of 60 steps of 4 pictures of the owl, the robot, the unicorn and the aubergine; its folder.

    A quarter of the pictures is held out. `tables` are recipe tables, merged into these; a list stands for itself.
    """
    whole: dict[str, Any] = {
        "out": str(folder / "out"),
        "seed": 3,
        "model": {"base": "tiny"},
        "data": [{"path": str(CAPTIONED)}],
        "train": {"steps": 60, "batch": 4, "device": "cpu"},
        "validate": {"holdout": 0.25, "timesteps": 5},
        "track": {"console": "none", "tensorboard": False},
    }
    for name, table in copy.deepcopy(tables).items():
        whole[name] = {**whole.get(name, {}), **table} if isinstance(table, Mapping) else table
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.toml"
    path.write_text(tomlkit.dumps(whole), encoding="utf-8")
    assert train(load(path)) == 0
    return folder / "out"


def held_out(out: Path) -> tuple[float, float]:
    """Held-out loss at fixed noise and timesteps before and after a run."""
    losses = [event["loss"] for event in events(out, "validated")]
    return losses[0], losses[-1]


def drawn(model: Path | str, prompts: Sequence[str]) -> list[Picture]:
    """A picture of each prompt, with the seeds 1000, 1001, … and the steps and guidance of the demos."""
    return draw(engine_of(str(model)), Question(what="", asked=tuple((prompt, "") for prompt in prompts)))


def names(pictures: Sequence[Picture]) -> list[str]:
    """What the judge sees in each picture."""
    return [found.name for found in judge(Oracle(), pictures)]


def right(model: Path | str, asked: Asked) -> int:
    """How many of the pictures that a model draws show what was asked for."""
    found = names(drawn(model, [prompt for prompt, _ in asked]))
    return sum(one == name for one, (_, name) in zip(found, asked, strict=True))


def saturation(pictures: Sequence[Picture]) -> float:
    """Mean over all pixels of the largest minus the smallest of the three channels, from 0 to 255."""
    values = np.stack(pictures).astype(np.float64)
    return float((values.max(axis=-1) - values.min(axis=-1)).mean())


def turn_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on runs aim at the noise with its sign turned."""
    true = Objective.at
    monkeypatch.setattr(Objective, "at", lambda self, t: replace(true(self, t), q=-true(self, t).q))
