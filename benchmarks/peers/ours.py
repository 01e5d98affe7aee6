"""Runs `gesso train RECIPE` in this process and notes when each step began: `python ours.py RECIPE NOTES [DRAWS]`.

With DRAWS it keeps all that gesso drew as well. The file (.npz) gets, for S steps of B rows, "eps" and "posterior"
float32 [S, B, C, H, W], "timesteps" and "ids" int64 [S, B], and "weights/<name>", what is trained as it was before the
first step.
"""

from __future__ import annotations

import json
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gesso.cli import main as gesso
from gesso.data import batches

ENGINES = {"torch": "gesso.engines.torch.engine", "mindspore": "gesso.engines.mindspore.executor"}


class Notes:
    """When each step began, by the clock and in this process's processor time."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.cpu: list[float] = []

    def listen(self, kind: Any) -> None:
        step = kind.step

        def noted(engine: Any, micro: Any, **rest: Any) -> Any:
            self.times.append(time.perf_counter())
            self.cpu.append(time.process_time())
            return step(engine, micro, **rest)

        kind.step = noted


class Draws:
    """Listens at three places: where the posterior's noise is drawn, where training begins, where a step is taken."""

    def __init__(self) -> None:
        self.steps: dict[str, list[np.ndarray]] = {name: [] for name in ("eps", "posterior", "timesteps", "ids")}
        self.weights: dict[str, np.ndarray] = {}

    def listen(self, kind: Any) -> None:
        normals, attach, step = batches.normals, kind.attach, kind.step

        def noted_normals(seed: int, stream: str, *rest: Any) -> np.ndarray:
            found = normals(seed, stream, *rest)
            if stream == "posterior":
                self.steps["posterior"].append(found)
            return found

        def noted_attach(engine: Any, *arguments: Any, **rest: Any) -> Any:
            found = attach(engine, *arguments, **rest)
            self.weights = {f"weights/{name}": value.copy() for name, value in engine.read()["weights"].items()}
            return found

        def noted_step(engine: Any, micro: Any, **rest: Any) -> Any:
            rows, coefficients = zip(*micro, strict=True)
            self.steps["eps"].append(np.concatenate([batch.eps_in for batch in rows]))
            self.steps["ids"].append(np.concatenate([batch.ids for batch in rows]))
            self.steps["timesteps"].append(np.concatenate([c.c_noise for c in coefficients]).astype(np.int64))
            return step(engine, micro, **rest)

        batches.normals, kind.attach, kind.step = noted_normals, noted_attach, noted_step

    def write(self, path: Path) -> None:
        steps = {name: np.stack(found) for name, found in self.steps.items()}
        np.savez(path, **steps, **self.weights)


def main() -> int:
    recipe, path, *to = sys.argv[1:]
    notes, draws = Notes(), Draws()
    engine = tomllib.loads(Path(recipe).read_text(encoding="utf-8")).get("engine", "torch")
    kind = import_module(ENGINES[engine]).Engine
    notes.listen(kind)
    if to:
        draws.listen(kind)
    code = gesso(["train", recipe])
    if code == 0:
        Path(path).write_text(json.dumps(vars(notes)), encoding="utf-8")
        if to:
            draws.write(Path(to[0]))
    return code


if __name__ == "__main__":
    sys.exit(main())
