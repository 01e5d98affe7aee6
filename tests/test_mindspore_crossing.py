"""A run that MindSpore began ends on PyTorch as it would have ended there, from what MindSpore has left in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gesso.formats import tensors

HERE = Path(__file__).parent / "mindspore"
NAMES = ("lora of all", "lora, sgd")


@pytest.fixture(scope="module")
def crossing() -> Iterator[Any]:
    sys.path.insert(0, str(HERE))
    yield import_module("crossing")
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def bases(crossing: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"sd": crossing.tiny_models.write(tmp_path_factory.mktemp("sd"), "sd")}


@pytest.mark.parametrize("name", NAMES)
def test_what_mindspore_began_goes_on(name: str, crossing: Any, bases: dict[str, Path]) -> None:
    case, known = crossing.CASES[name], tensors.load(crossing.place(name, "mindspore"))
    engine = crossing.cases.begun("torch", case, bases)
    engine.write(crossing.saved(known))
    apart = crossing.apart(engine, case, known)
    assert apart["loss"] < 1e-4
    assert apart["norm"] < 1e-3
    assert max(apart["weights"], apart["ema"]) < 2e-3


def test_the_fixture_is_what_pytorch_leaves(crossing: Any, bases: dict[str, Path]) -> None:
    assert tuple(crossing.CASES) == NAMES
    for name in NAMES:
        known = crossing.saved(tensors.load(crossing.place(name, "torch")))
        found = crossing.begun("torch", crossing.CASES[name], bases).read()
        assert found.keys() == known.keys()
        for kind, own in known.items():
            assert found[kind].keys() == own.keys()
            assert all(np.abs(found[kind][key] - value).max() < 1e-4 for key, value in own.items())
