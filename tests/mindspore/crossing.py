"""Runs that one engine begins and the other ends: what a checkpoint holds after half of the steps, and how it goes on.

`python -m tests.mindspore.crossing torch` writes fixtures/ in the environment of the PyTorch engine, `… mindspore` in
that of the other. Tests in both environments hold that it is still what would be written.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import cases
import numpy as np
import tiny_models

from gesso.arrays import Array
from gesso.engines.engine import Engine, Optim
from gesso.formats import tensors

HALF = cases.STEPS // 2
CASES = {
    "lora of all": replace(cases.CASES["lora of all"], optim=Optim(ema=True)),
    "lora, sgd": replace(cases.CASES["lora"], optim=Optim(name="sgd"), lr={"unet": 1e-2}),
}
Saved = dict[str, dict[str, Array]]


def begun(name: str, case: cases.Case, bases: Mapping[str, Path]) -> Engine:
    """The engine `name` after half of the steps."""
    engine = cases.begun(name, case, bases)
    for step in range(HALF):
        cases.take(engine, case, step)
    return engine


def ended(engine: Engine, case: cases.Case) -> Iterator[tuple[str, Array]]:
    """The rest of the steps: loss and gradient norm of each, float64 [steps]; weights and averages at the end."""
    results = [cases.take(engine, case, step) for step in range(HALF, cases.STEPS)]
    yield "loss", np.array([each.loss for each in results])
    yield "norm", np.array([each.grad_norm for each in results])
    for kind in ("weights", "ema"):
        for key, value in engine.read().get(kind, {}).items():
            yield f"end {kind}/{key}", value


def saved(found: Mapping[str, Array]) -> Saved:
    """What `write` takes, of a fixture."""
    state: Saved = {}
    for key, value in found.items():
        kind, _, name = key.partition("/")
        if kind in ("weights", "optimizer", "ema"):
            state.setdefault(kind, {})[name] = np.array(value)
    return state


def place(name: str, maker: str) -> Path:
    return cases.place(name, f"{maker}-half")


def apart(engine: Engine, case: cases.Case, known: Mapping[str, Array]) -> dict[str, float]:
    """How far the rest of the steps is from the fixture's: losses and norms relative, weights and averages absolute."""
    found = dict(ended(engine, case))
    assert found.keys() == {key for key in known if key in ("loss", "norm") or key.startswith("end ")}
    worst = {"loss": 0.0, "norm": 0.0, "weights": 0.0, "ema": 0.0}
    for key, value in found.items():
        kind = key.removeprefix("end ").partition("/")[0]
        difference = np.abs(value - known[key]) / (np.abs(known[key]) if kind in ("loss", "norm") else 1.0)
        worst[kind] = max(worst[kind], float(difference.max()))
    return worst


def main(maker: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bases = {"sd": tiny_models.write(Path(folder), "sd")}
        for name, case in CASES.items():
            engine = begun(maker, case, bases)
            half = {f"{kind}/{key}": value for kind, own in engine.read().items() for key, value in own.items()}
            tensors.save(place(name, maker), {**half, **dict(ended(engine, case))}, {})


if __name__ == "__main__":
    main(sys.argv[1])
