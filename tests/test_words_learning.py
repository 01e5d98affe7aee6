"""Textual inversion learns on the embedded model, and a run that is broken on purpose does not pass.

The lesson is fair for textual inversion, which can only point at what a model can draw already: "<thing>", which begins
as noise, is learned from six pictures of cats whose captions do not say cat.

Measured on 2026-11-21 with seed 3, one vector, 60 steps of 4 pictures at a learning rate of 5e-3, on a CPU:

    as it should be             0 of 8 pictures show cats, then 8 of 8    loss 0.0419 → 0.0291
    learning rate 1e-9          0 of 8, then 0 of 8                       loss 0.0419 → 0.0419
    sign of the noise turned    0 of 8, then 0 of 8                       loss 0.0419 → 0.0364
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tomlkit
from runs import events
from torch_runs import pixels

from gesso.demo.measure import judge, share
from gesso.demo.oracle import Oracle
from gesso.generate import Request, generate
from gesso.objective.objective import Objective
from gesso.recipe import load
from gesso.run import train

LEARNED_FROM = ("blue", "green", "white", "yellow", "pink", "black")
ASKED = ("red", "blue", "grey", "white", "purple", "green", "orange", "yellow")
STEPS, GUIDANCE = 15, 4.0


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of cats, as the model draws them, with captions of "<thing>"."""
    folder = tmp_path_factory.mktemp("cats")
    prompts = tuple(f"a cat on a {ground} background" for ground in LEARNED_FROM)
    drawn = generate(Request(model="tiny", prompts=prompts, out=folder, seeds=(5,), steps=STEPS, guidance=GUIDANCE))
    assert share(judge(Oracle(), [pixels(file) for file in drawn]), "cat") == 1.0
    for file, ground in zip(drawn, LEARNED_FROM, strict=True):
        file.with_suffix(".txt").write_text(f"a <thing> on a {ground} background", encoding="utf-8")
    return folder


def taught(folder: Path, cats: Path, *flags: str) -> tuple[list[float], list[float]]:
    """(share of cats among eight pictures of "a <thing>", loss at fixed noise), each before and after 60 steps."""
    recipe = {
        "out": str(folder / "out"),
        "seed": 3,
        "model": {"base": "tiny"},
        "adapter": {"kind": "ti"},
        "tokens": [{"name": "<thing>"}],
        "data": [{"path": str(cats)}],
        "train": {"steps": 60, "batch": 4},
        "optim": {"token_lr": 5e-3},
        "sample": {
            "prompts": [f"a <thing> on a {ground} background" for ground in ASKED],
            "seeds": [1000],
            "steps": STEPS,
            "guidance": GUIDANCE,
        },
        "validate": {"path": str(cats), "timesteps": 5},
        "track": {"console": "none", "tensorboard": False},
    }
    path = folder / "recipe.toml"
    path.write_text(tomlkit.dumps(recipe), encoding="utf-8")
    assert train(load(path, flags)) == 0
    oracle, shares = Oracle(), []
    for step in (0, 60):
        files = sorted((folder / "out" / "samples" / f"step-{step}").glob("*.png"))
        assert len(files) == len(ASKED)
        shares.append(share(judge(oracle, [pixels(file) for file in files]), "cat"))
    return shares, [event["loss"] for event in events(folder / "out", "validated")]


def test_a_word_learns_what_it_stands_for(tmp_path: Path, cats: Path) -> None:
    shares, losses = taught(tmp_path, cats)
    assert shares[0] <= 0.25
    assert shares[1] >= 0.75
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.slow
def test_a_word_that_rests_learns_nothing(tmp_path: Path, cats: Path) -> None:
    shares, losses = taught(tmp_path, cats, "--optim.token_lr", "1e-9")
    assert shares[1] <= 0.25
    assert losses[1] > 0.99 * losses[0]


@pytest.mark.slow
def test_a_word_that_is_taught_the_wrong_way_learns_something_else(
    tmp_path: Path, cats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sign of the noise turned in the target."""
    right = Objective.at
    monkeypatch.setattr(Objective, "at", lambda self, t: replace(right(self, t), q=-right(self, t).q))
    shares, losses = taught(tmp_path, cats)
    assert shares[1] <= 0.25
    assert losses[1] > 0.8 * losses[0]
