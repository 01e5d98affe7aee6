"""A run that PyTorch began ends on MindSpore as PyTorch would have ended it; the reverse is in tests/."""

from __future__ import annotations

from pathlib import Path

import crossing
import numpy as np
import pytest

from gesso.formats import tensors


@pytest.mark.parametrize("name", list(crossing.CASES))
def test_what_pytorch_began_goes_on(name: str, bases: dict[str, Path]) -> None:
    case, known = crossing.CASES[name], tensors.load(crossing.place(name, "torch"))
    engine = crossing.cases.begun("mindspore", case, bases)
    engine.write(crossing.saved(known))
    apart = crossing.apart(engine, case, known)
    assert apart["loss"] < 1e-4
    assert apart["norm"] < 1e-3
    assert max(apart["weights"], apart["ema"]) < 2e-3


def test_the_fixture_is_what_mindspore_leaves(bases: dict[str, Path]) -> None:
    name = "lora, sgd"
    known = crossing.saved(tensors.load(crossing.place(name, "mindspore")))
    found = crossing.begun("mindspore", crossing.CASES[name], bases).read()
    assert found.keys() == known.keys()
    for kind, own in known.items():
        assert found[kind].keys() == own.keys()
        assert all(np.abs(found[kind][key] - value).max() < 1e-4 for key, value in own.items())
