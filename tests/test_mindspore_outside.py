"""What can be seen of the MindSpore engine without MindSpore: refusals, versions, noise, and its fixtures' truth."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import pictures, recipe

from gesso import cli, doctor
from gesso.engines.mindspore import versions
from gesso.engines.mindspore.noise import Noise
from gesso.errors import DeviceError, Exit
from gesso.formats import tensors
from gesso.schema import Recipe
from gesso.settings import compiled

HERE = Path(__file__).parent / "mindspore"


@pytest.fixture(scope="module")
def parts() -> Iterator[Any]:
    """tests/mindspore/cases.py and tiny_models.py, which the other environment's tests stand on."""
    sys.path.insert(0, str(HERE))
    yield import_module("cases"), import_module("tiny_models")
    sys.path.remove(str(HERE))


@pytest.mark.parametrize("seed", [0, 7, 2**33 + 5])
@pytest.mark.parametrize("size", [(1, 4, 8, 8), (1, 4, 9, 7), (1, 3, 5, 7)])
def test_the_noise_is_pytorchs(seed: int, size: tuple[int, ...]) -> None:
    theirs, ours = torch.Generator("cpu").manual_seed(seed), Noise(seed)
    for _ in range(3):
        assert np.abs(ours.standard_normal(size) - torch.randn(size, generator=theirs).numpy()).max() < 1e-6


def test_versions_are_told_in_one_sentence() -> None:
    def here(name: str) -> str:
        known = {"mindspore": "2.10.0", "numpy": "2.4.6", "transformers": "4.57.1", "huggingface-hub": "0.36.2"}
        if name not in known:
            raise PackageNotFoundError(name)
        return known[name]

    assert versions.problem(here) == (
        'engine = "mindspore": mindone is not installed; numpy is 2.4.6, but must be at least 1.26 and below 2: '
        "MindSpore is built for numpy 1 and dies at random with numpy 2"
    )
    good = {"mindspore": "2.10.0", "mindone": "0.5.0", "numpy": "1.26.4", "transformers": "4.57.1"}
    good["huggingface-hub"] = "0.36.2"
    assert versions.problem(good.__getitem__) is None
    mixed = versions.problem({**good, "huggingface-hub": "2.4.0"}.__getitem__)
    assert str(mixed).startswith('engine = "mindspore": huggingface-hub is 2.4.0, but must be at least')
    with pytest.raises(DeviceError, match="mindspore is not installed"):
        versions.check()


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"adapter": {"kind": "loha"}}, 'adapter.kind = "loha"; it has lora, ti and none'),
        ({"adapter": {"kind": "dora"}}, 'adapter.kind = "dora"'),
        ({"optim": {"name": "adamw_8bit"}}, 'optim.name = "adamw_8bit"; it has adamw, adam and sgd'),
        ({"train": {"device": "cuda"}}, 'train.device = "cuda"; it has auto, cpu and npu'),
        ({"torch": {"compile": True}}, 'torch.compile has no effect with engine = "mindspore"'),
        (
            {"mindspore": {"compile": True}, "adapter": {"dropout": 0.1}},
            "one graph for all steps, and dropout is drawn",
        ),
        (
            {"mindspore": {"compile": True}, "train": {"gradient_checkpointing": True}},
            "saves no memory in a graph; leave out",
        ),
    ],
)
def test_what_it_does_not_have_is_said_at_the_start(
    tmp_path: Path, blank: Path, capsys: pytest.CaptureFixture[str], tables: dict[str, Any], said: str
) -> None:
    pictures(tmp_path / "pictures")
    path = recipe(tmp_path, blank, engine="mindspore", **tables)
    assert cli.main(["train", str(path)]) == Exit.RECIPE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tables", "graphs"),
    [
        ({}, True),
        ({"mindspore": {"compile": False}}, False),
        ({"adapter": {"dropout": 0.1}}, False),
        ({"rules": [{"match": "to_q", "dropout": 0.1}]}, False),
        ({"train": {"buckets": True}}, False),
        ({"train": {"buckets": True}, "mindspore": {"compile": True}}, True),
        ({"train": {"gradient_checkpointing": True}}, False),
        ({"train": {"caption_chunks": 3}}, False),
        ({"engine": "torch"}, False),
        ({"engine": "torch", "torch": {"compile": True}}, True),
    ],
)
def test_steps_are_compiled_unless_something_speaks_against_it(tables: dict[str, Any], graphs: bool) -> None:
    assert compiled(Recipe.model_validate({"engine": "mindspore", **tables})) is graphs


def test_without_mindspore_a_run_ends_with_one_sentence(
    tmp_path: Path, blank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "pictures")
    path = recipe(tmp_path, blank, engine="mindspore")
    assert cli.main(["train", str(path)]) == Exit.DEVICE
    assert 'engine = "mindspore": mindspore is not installed' in capsys.readouterr().err


def test_the_doctor_says_what_is_missing_and_what_goes_with_what() -> None:
    found = doctor.examine("mindspore")
    assert found.exit == Exit.DEVICE
    said = {each.about: each for each in found.findings}
    assert said["mindspore"].text == "is not installed"
    assert "pip install -r constraints-mindspore.txt" in said["mindspore"].fix
    assert "MindSpore 2.7.1 with CANN 8.3.RC1" in said["Ascend"].text
    assert "torch" not in said


def test_the_tiny_models_are_whole(parts: Any, tmp_path: Path) -> None:
    """diffusers and transformers find every weight that they want, and no other."""
    import diffusers
    import transformers

    _, tiny_models = parts
    for family in tiny_models.PIPELINES:
        folder = tiny_models.write(tmp_path / family, family)
        for part, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
            _, told = kind.from_pretrained(folder / part, output_loading_info=True)
            assert not any(told.values()), (family, part, told)
        for part in [name for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()]:
            kind = transformers.CLIPTextModel if part == "text_encoder" else transformers.CLIPTextModelWithProjection
            _, told = kind.from_pretrained(folder / part, output_loading_info=True)
            assert not any(told.values()), (family, part, told)


@pytest.mark.parametrize("name", ["lora of all", "huber and dream", "xl words"])
def test_the_fixtures_are_what_pytorch_does(parts: Any, name: str, tmp_path: Path) -> None:
    cases, tiny_models = parts
    family = cases.CASES[name].family
    bases = {family: tiny_models.write(tmp_path / family, family)}
    numbers, weights = cases.run("torch", cases.CASES[name], bases)
    known = json.loads(cases.place(name, "json").read_text(encoding="utf-8"))
    assert numbers["loss"] == pytest.approx(known["loss"], rel=1e-5)
    assert numbers["norm"] == pytest.approx(known["norm"], rel=1e-4)
    for key, value in tensors.load(cases.place(name, "safetensors")).items():
        assert np.abs(weights[key] - value).max() < 1e-4, key


def test_the_slower_fixtures_are_whole(parts: Any) -> None:
    """Every case has its files, of the length that it says."""
    cases, _ = parts
    for name, case in cases.CASES.items():
        known = json.loads(cases.place(name, "json").read_text(encoding="utf-8"))
        assert len(known["loss"]) == len(known["norm"]) == case.steps
        assert cases.place(name, "safetensors").is_file() == bool(case.targets or case.tokens)


@pytest.mark.parametrize("name", ["lora of all", "xl lora of all"])
def test_gesso_and_diffusers_draw_mindspores_picture(parts: Any, name: str, tmp_path: Path) -> None:
    """Of an adapter that the MindSpore engine has trained."""
    import diffusers

    cases, tiny_models = parts
    family, file = cases.CASES[name].family, cases.place(name, "mindspore-lora")
    base = tiny_models.write(tmp_path / family, family)
    known = tensors.load(cases.place(name, "mindspore-picture"))["picture"].astype(int)
    assert np.abs(cases.with_lora("torch", family, base, file).astype(int) - known).max() <= 1
    pipe = getattr(diffusers, tiny_models.PIPELINES[family]).from_pretrained(base)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    assert np.abs(cases.plainly(pipe, torch.Generator("cpu").manual_seed(cases.REQUEST.seed)) - known).max() <= 1
