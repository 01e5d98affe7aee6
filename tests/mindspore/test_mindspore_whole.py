"""Whole models of either engine in both, in plain diffusers and in mindone; needs PyTorch's environment too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import cases
import numpy as np
import pytest
from test_mindspore_run import written

from gesso import cli
from gesso.formats import tensors
from gesso.recipe import load
from gesso.run import train

ROOT = Path(__file__).parent.parent.parent
PYTORCH = ROOT / ".venv" / "bin" / "python"
"""As `make test` sets it up."""
TABLES = {"adapter": {"kind": "none"}, "model": {"train": ["unet", "text_encoder"]}, "optim": {"lr": 1e-3}}


def pytorch(*words: str | Path) -> None:
    """whole.py in the other environment."""
    script = Path(__file__).parent / "whole.py"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([PYTORCH, script, *words], env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(not PYTORCH.exists(), reason="the environment of the PyTorch engine is not set up")
@pytest.mark.parametrize("maker", ["torch", "mindspore"])
def test_everyone_draws_one_picture_from_a_whole_model(maker: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    from mindone.diffusers import StableDiffusionPipeline

    from gesso.engines.mindspore.noise import Noise

    recipe = written(tmp_path, bases["sd"], engine=maker, **TABLES)
    if maker == "torch":
        pytorch("train", recipe)
    else:
        assert train(load(recipe)) == 0
    out = tmp_path / "out"
    pytorch("draw", out, tmp_path / "drawn.safetensors")
    pictures = {name: np.array(value) for name, value in tensors.load(tmp_path / "drawn.safetensors").items()}
    pictures["mindspore"] = cases.loaded("mindspore", "sd", out).sample([cases.REQUEST])[0].astype(np.int64)
    pictures["mindone"] = cases.plainly(StableDiffusionPipeline.from_pretrained(str(out)), Noise(cases.REQUEST.seed))
    # Through MindSpore's own file and back.
    assert cli.main(["convert", str(out), "--to", str(tmp_path / "whole.ckpt")]) == 0
    back = ["convert", str(tmp_path / "whole.ckpt"), "--to", str(tmp_path / "back"), "--like", str(bases["sd"])]
    assert cli.main(back) == 0
    pictures["ckpt"] = cases.loaded("mindspore", "sd", tmp_path / "back").sample([cases.REQUEST])[0].astype(np.int64)
    for name, picture in pictures.items():
        assert np.abs(picture - pictures["gesso"]).max() <= 1, name
    before = cases.loaded("mindspore", "sd", bases["sd"]).sample([cases.REQUEST])[0].astype(np.int64)
    assert np.abs(before - pictures["gesso"]).max() > 5
