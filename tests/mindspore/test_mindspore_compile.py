"""Steps without graphs (`[mindspore] compile = false`) are those of PyTorch too; and what graphs must not do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cases
import mindspore as ms
import numpy as np
import pytest

from gesso.engines.engine import Adapter
from gesso.engines.mindspore.executor import Engine
from gesso.engines.mindspore.forward import _added, _kept
from gesso.errors import RecipeError
from gesso.keys import generator
from gesso.schema import MindSporeEngine

SLOW = pytest.mark.slow
EAGER, GRAPHS = MindSporeEngine(compile=False), MindSporeEngine(compile=True)
CASES = [
    "lora of all",  # in turns, whose gradients are added up
    "full, adam",
    "words and lora",
    "teacher of lora",  # which switches the adapters off for a moment
    pytest.param("huber and dream", marks=SLOW),
    pytest.param("full, sgd", marks=SLOW),
    pytest.param("sd2 v", marks=SLOW),
    pytest.param("xl full", marks=SLOW),
]


@pytest.mark.parametrize("name", CASES)
def test_twenty_eager_steps_are_those_of_pytorch(name: str, bases: dict[str, Path]) -> None:
    known = json.loads(cases.place(name, "json").read_text(encoding="utf-8"))
    numbers, _ = cases.run("mindspore", cases.CASES[name], bases, EAGER)
    assert numbers["loss"] == pytest.approx(known["loss"], rel=1e-4)
    assert numbers["norm"] == pytest.approx(known["norm"], rel=1e-3)
    assert numbers["errors"] == pytest.approx(known["errors"], rel=1e-4)


@pytest.mark.parametrize("name", ["huber and dream", "lora of all"])
def test_a_graph_is_made_once(name: str, bases: dict[str, Path]) -> None:
    """And not anew for each step's numbers, nor after held-out pictures or samples."""
    case = replace(cases.CASES[name], targets=cases.LINEAR)
    engine = cases.begun("mindspore", case, bases, GRAPHS)
    assert isinstance(engine, Engine)
    for step in range(3):
        cases.take(engine, case, step)
        engine.evaluate(*cases.made(engine, case, step))
        engine.sample([cases.REQUEST])
    graphs = [*engine._gradients.values(), *engine.optimizer._moves.values()]
    assert len(graphs) == 2
    assert all(len(graph.compile_cache) == 1 for graph in graphs)


def test_an_adapter_that_drops_is_no_graph(bases: dict[str, Path]) -> None:
    engine = cases.loaded("mindspore", "sd", bases["sd"], GRAPHS)
    with pytest.raises(RecipeError, match="dropout"):
        engine.attach(Adapter(rank=2, alpha=2.0, targets=cases.LINEAR, dropout=0.1), cases.Optim())


def test_the_norm_of_many_numbers_does_not_drift(bases: dict[str, Path]) -> None:
    """The tiny models would not show it: a sum of millions of squares, each added to a single float32."""
    cases.loaded("mindspore", "sd", bases["sd"])  # the device is chosen before anything is computed
    gradient = generator(4, "gradient").standard_normal(4_000_000, dtype=np.float32)
    place = ms.Parameter(ms.Tensor(np.zeros_like(gradient)), name="sum", requires_grad=False)
    exact = np.square(gradient, dtype=np.float64).sum()
    assert float(_kept(place, ms.Tensor(gradient)).asnumpy()) == pytest.approx(exact, rel=1e-6)
    assert float(_added(place, ms.Tensor(gradient)).asnumpy()) == pytest.approx(4 * exact, rel=1e-6)
