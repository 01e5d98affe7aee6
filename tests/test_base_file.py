"""A training that starts from a model in one file: a folder is made of it once, and kept by its content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from test_formats_convert import read as bits_of

from gesso import base_file, models
from gesso.cli import main
from gesso.data.cache import MODELS, care, default_folder
from gesso.errors import Exit, RecipeError, StorageError
from gesso.formats import parts, single_file
from gesso.formats.convert import Request, convert

NAMES = ("model.safetensors", "model.ckpt", "torch.ckpt")


def single(blank: Path, folder: Path, name: str) -> Path:
    """The model in one file: LDM's layout, MindSpore's, or LDM's in PyTorch's own form."""
    if name != "torch.ckpt":
        convert(Request(source=blank, target=folder / name))
        return folder / name
    family, own = parts.read(blank)
    packed = single_file.pack(own, family).items()
    torch.save({"state_dict": {key: torch.from_numpy(np.array(each.read())) for key, each in packed}}, folder / name)
    return folder / name


@pytest.mark.parametrize("name", NAMES)
def test_a_file_becomes_the_folder_that_it_came_from(blank: Path, tmp_path: Path, name: str) -> None:
    source = models.resolve(str(single(blank, tmp_path, name)), like=str(blank))
    assert source.folder.parent == default_folder() / MODELS
    assert bits_of(source.folder) == bits_of(blank)
    assert models.whole(source) is source
    assert models.read_json(source.folder / "model_index.json") == models.read_json(blank / "model_index.json")


def test_it_is_made_once_and_anew_for_another_content(blank: Path, tmp_path: Path) -> None:
    path = single(blank, tmp_path, "model.safetensors")
    said: list[str] = []
    first = base_file.unpacked(path, blank, lambda what, done, total: said.append(what)).stat().st_ino
    assert any("making a folder" in each for each in said)
    assert base_file.unpacked(path, blank).stat().st_ino == first
    moved = shutil.copy(path, tmp_path / "moved.safetensors")
    assert base_file.unpacked(Path(moved), blank).stat().st_ino == first
    like = tmp_path / "like"
    shutil.copytree(blank, like)
    scheduler = like / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    other = base_file.unpacked(path, like)
    assert other.stat().st_ino != first
    assert models.read_json(other / "scheduler" / "scheduler_config.json")["prediction_type"] == "v_prediction"


def test_a_folder_without_weights_lends_all_else(blank: Path, tmp_path: Path) -> None:
    path = single(blank, tmp_path, "model.safetensors")
    like = tmp_path / "like"
    shutil.copytree(blank, like, ignore=shutil.ignore_patterns("*.safetensors"))
    assert bits_of(models.resolve(str(path), like=str(like)).folder) == bits_of(blank)


def test_what_cannot_be_is_said(blank: Path, blank_xl: Path, tmp_path: Path) -> None:
    path = single(blank, tmp_path, "model.safetensors")
    with pytest.raises(RecipeError, match="is a Stable Diffusion 1 in one file") as told:
        models.resolve(str(path))
    assert "model.like" in told.value.todo
    with pytest.raises(RecipeError, match=r"holds a Stable Diffusion 1, and model\.like is a SDXL"):
        models.resolve(str(path), like=str(blank_xl))
    with pytest.raises(RecipeError, match="there is no file"):
        models.resolve("models/none.safetensors")  # and no host is asked for it
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match="cut off"):
        models.resolve(str(path), like=str(blank))
    assert not any((default_folder() / MODELS).glob("*/model_index.json"))


def test_a_run_starts_from_a_file_and_is_drawn_with_again(
    blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = single(blank, tmp_path, "model.safetensors")
    (tmp_path / "dog").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 100, 50)).save(tmp_path / "dog" / f"{number}.png")
    losses = []
    for name, base in (("file", {"base": path, "like": blank}), ("folder", {"base": blank})):
        flags = [word for key, value in base.items() for word in (f"--model.{key}", str(value))]
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text('[[data]]\npath = "dog"\nprompt = "a dog"\n[train]\nsteps = 2\nbatch = 1\n')
        out = ["--out", str(tmp_path / name), "--train.device", "cpu", "--train.precision", "fp32"]
        assert main(["train", str(recipe), "--data.0.path", str(tmp_path / "dog"), *out, *flags]) == Exit.DONE
        events = [json.loads(line) for line in (tmp_path / name / "events.jsonl").read_text().splitlines()]
        losses.append([event["loss"] for event in events if event.get("event") == "stepped" or "loss" in event])
    assert losses[0] == losses[1] != []
    source = models.resolve(str(tmp_path / "file"))
    assert source.lora is not None
    assert source.folder.parent == default_folder() / MODELS


def test_it_is_idle_for_a_folder(blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'[model]\nbase = "{blank}"\nlike = "{blank}"\n[[data]]\npath = "."\nprompt = "x"\n')
    assert main(["train", str(recipe), "--dry-run"]) == Exit.RECIPE
    assert "model.like is for a base in one file" in capsys.readouterr().err


def test_the_cache_counts_and_clears_it(blank: Path, tmp_path: Path) -> None:
    models.resolve(str(single(blank, tmp_path, "model.safetensors")), like=str(blank))
    whole = sum(path.stat().st_size for path in (default_folder() / MODELS).rglob("*") if path.is_file())
    assert care.size(default_folder()) >= whole > 1 << 20
    assert main(["cache", "--clear"]) == Exit.DONE
    assert not (default_folder() / MODELS).exists()


def test_a_hub_id_lends_without_its_weights(blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub of the Hub's download, which keeps to the patterns."""

    def download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: object) -> str:
        assert name == "owner/base"
        files = [path.relative_to(blank).as_posix() for path in blank.rglob("*") if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (tmp_path / "hub" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(blank / file, tmp_path / "hub" / file)
        return str(tmp_path / "hub")

    path = single(blank, tmp_path, "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert bits_of(models.resolve(str(path), like="owner/base").folder) == bits_of(blank)
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
    assert list((tmp_path / "hub").glob("tokenizer/*"))
