"""Pipeline folders that mindone has saved: MindSpore's names in the text encoders, which no other library finds."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import pictures

from gesso import cli
from gesso.engines.torch.engine import create
from gesso.errors import Exit, RecipeError
from gesso.families import find
from gesso.formats import tensors
from gesso.schema import TorchEngine

LEGACY = "text_model."
NORM = {"weight": "gamma", "bias": "beta"}


def theirs(name: str) -> str:
    """As mindone 0.5 saves a text encoder's weight."""
    module, _, last = name.rpartition(".")
    if module.endswith("_embedding"):
        return f"{module}.embedding_table"
    return f"{module}.{NORM[last]}" if "layer_norm" in module else name


def text_encoder(folder: Path) -> Path:
    return next((folder / "text_encoder").glob("*.safetensors"))


@pytest.fixture
def saved(tmp_path: Path, blank: Path) -> Path:
    """The pipeline `blank` as mindone would have saved it."""
    folder = shutil.copytree(blank, tmp_path / "saved")
    path = text_encoder(folder)
    tensors.save(path, {theirs(name): value for name, value in tensors.load(path).items()}, {"format": "np"})
    return folder


def test_it_is_refused_with_the_way_out(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "pictures")
    asked = ["--model.base", str(saved), "--data.path", str(tmp_path / "pictures"), "--out", str(tmp_path / "out")]
    assert cli.main(["train", *asked]) == Exit.RECIPE
    said = capsys.readouterr().err
    assert "the model's text_encoder has MindSpore's names, such as " in said
    assert f"gesso convert {saved} --to NEW" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["new", "new.safetensors"])
def test_converted_it_is_the_model_it_was(saved: Path, blank: Path, tmp_path: Path, target: str) -> None:
    assert cli.main(["convert", str(saved), "--to", str(tmp_path / target)]) == Exit.DONE
    assert cli.main(["convert", str(blank), "--to", str(tmp_path / f"known-{target}")]) == Exit.DONE
    paths = [tmp_path / target, tmp_path / f"known-{target}"]
    found, known = (tensors.load(path if path.is_file() else text_encoder(path)) for path in paths)
    assert found.keys() == known.keys()
    assert all(np.array_equal(found[name], value) for name, value in known.items())


def test_weights_that_are_missing_are_not_made_up(blank: Path, tmp_path: Path) -> None:
    """diffusers and transformers go on with random ones, and say so in a log alone."""
    for part, prefix in (("text_encoder", ""), ("vae", "decoder."), ("unet", "mid_block.")):
        folder = shutil.copytree(blank, tmp_path / part)
        path = next((folder / part).glob("*.safetensors"))
        arrays = tensors.load(path)
        lost = next(name for name in arrays if name.startswith(prefix) and name.endswith("weight"))
        tensors.save(path, {name: value for name, value in arrays.items() if name != lost}, {"format": "pt"})
        engine = create(TorchEngine(), device="cpu", precision="fp32")
        engine.load(folder, find("StableDiffusionPipeline"))
        with pytest.raises(RecipeError, match=f"the model's {part} lacks {re.escape(lost.removeprefix(LEGACY))}\n"):
            engine.models.get(part)
