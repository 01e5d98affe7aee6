"""The two engines prove each other: 20 steps of each method on the same weights, samples, noise and timesteps.

What PyTorch's did is in fixtures/, which make_fixtures.py writes and tests/test_mindspore_fixtures.py holds true.
"""

from __future__ import annotations

import json
from pathlib import Path

import cases
import numpy as np
import pytest
import tiny_models

from gesso.engines.mindspore.noise import Noise
from gesso.formats import adapter, lora, tensors
from gesso.schema import MindSporeEngine


@pytest.mark.parametrize("name", list(cases.CASES))
def test_twenty_steps_are_those_of_pytorch(name: str, bases: dict[str, Path]) -> None:
    known = json.loads(cases.place(name, "json").read_text(encoding="utf-8"))
    numbers, weights = cases.run("mindspore", cases.CASES[name], bases, MindSporeEngine(compile=True))
    assert numbers["loss"] == pytest.approx(known["loss"], rel=1e-4)
    assert numbers["norm"] == pytest.approx(known["norm"], rel=1e-3)
    assert numbers["errors"] == pytest.approx(known["errors"], rel=1e-4)
    assert numbers["sizes"].keys() == known["sizes"].keys()
    for key, size in known["sizes"].items():
        assert numbers["sizes"][key] == pytest.approx(size, rel=1e-3, abs=1e-4), key
    if weights:
        for key, value in tensors.load(cases.place(name, "safetensors")).items():
            assert np.abs(weights[key] - value).max() < 2e-3, key
    if name in cases.EXCHANGED:
        left, _ = lora.read(cases.place(name, "mindspore-lora"))
        ours = adapter.renamed(left, weights)
        assert all(np.abs(weights[key] - value).max() < 1e-4 for key, value in ours.items())


@pytest.mark.parametrize("family", ["sd", "sd2", "xl"])
def test_encoders_and_pipelines_answer_as_pytorchs_do(family: str, bases: dict[str, Path]) -> None:
    known = tensors.load(cases.place(family, "answers"))
    found = cases.answers("mindspore", family, bases[family])
    assert found.keys() == known.keys()
    for key, value in known.items():
        if key.startswith("picture"):
            apart = np.abs(found[key].astype(int) - value.astype(int))
            assert apart.max() <= 1, key
            assert (apart > 0).mean() < 0.01, key
        elif key.startswith("tokens"):
            assert np.array_equal(found[key], value), key
        else:
            assert np.abs(found[key] - value).max() < 2e-5 * max(1.0, float(np.abs(value).max())), key


@pytest.mark.parametrize("maker", ["torch", "mindspore"])
@pytest.mark.parametrize("name", cases.EXCHANGED)
def test_gesso_and_mindone_draw_the_makers_picture(name: str, maker: str, bases: dict[str, Path]) -> None:
    """Of an adapter in a file: whoever trained it, whoever reads it."""
    from mindone import diffusers

    family, file = cases.CASES[name].family, cases.place(name, f"{maker}-lora")
    known = tensors.load(cases.place(name, f"{maker}-picture"))["picture"].astype(int)
    assert np.abs(cases.with_lora("mindspore", family, bases[family], file).astype(int) - known).max() <= 1
    pipe = getattr(diffusers, tiny_models.PIPELINES[family]).from_pretrained(str(bases[family]))
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    assert np.abs(cases.plainly(pipe, Noise(cases.REQUEST.seed)) - known).max() <= 1
