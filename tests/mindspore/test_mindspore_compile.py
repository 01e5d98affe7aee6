"""`[mindspore] compile`: steps by a graph are those of PyTorch, as steps without one are."""

from __future__ import annotations

import json
from pathlib import Path

import cases
import pytest

from gesso.schema import MindSporeEngine

SLOW = pytest.mark.slow
CASES = [
    "teacher of lora",  # which switches the adapters off for a moment
    pytest.param("lora of the rest", marks=SLOW),
    pytest.param("full", marks=SLOW),
    pytest.param("sd2 v", marks=SLOW),
    pytest.param("xl full", marks=SLOW),
]


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_of_a_graph_are_those_of_pytorch(name: str, bases: dict[str, Path]) -> None:
    known = json.loads(cases.place(name, "json").read_text(encoding="utf-8"))
    numbers, _ = cases.run("mindspore", cases.CASES[name], bases, MindSporeEngine(compile=True))
    assert numbers["loss"] == pytest.approx(known["loss"], rel=1e-4)
    assert numbers["norm"] == pytest.approx(known["norm"], rel=1e-3)
    assert numbers["errors"] == pytest.approx(known["errors"], rel=1e-4)
