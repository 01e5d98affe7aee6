"""`gesso doctor` and `gesso new`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gesso import cli, doctor, new
from gesso.errors import DataError, Exit, RecipeError
from gesso.gathering import pictures
from gesso.recipe import load


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five pictures without captions in ./photos."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.fromarray(np.full((32, 32, 3), 40 * number, np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    return Path("photos")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_subject_gets_a_recipe_that_loads_and_photos_stay_as_they_are(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(photos)
    assert cli.main(["new", "photos", "--trigger", "sks dog", "--class", "dog", "--out", "my dog.toml"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith('my dog.toml is written for 5 pictures, learnt as "a photo of sks dog".')
    assert "  gesso train 'my dog.toml'\n" in shown
    recipe = load(Path("my dog.toml")).recipe
    assert (recipe.data[0].path, recipe.data[0].prompt, recipe.prior.prompt) == (
        "photos",
        "a photo of sks dog",
        "a photo of a dog",
    )
    assert (recipe.model.base, recipe.train.steps, recipe.train.batch, recipe.out) == ("tiny", 200, 4, "runs/photos")
    assert "each picture is seen about 160 times" in Path("my dog.toml").read_text()
    assert contents(photos) == before
    assert cli.main(["new", "photos", "--out", "my dog.toml"]) == Exit.RECIPE
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["new", "photos", "--out", "my dog.toml", "--force"]) == 0
    assert load(Path("my dog.toml")).recipe.data[0].prompt == "a photo of sks thing"


def test_captions_are_seen_and_a_style_is_asked_for(photos: Path) -> None:
    new.write(new.Wish(photos="photos", kind="style", trigger='in the "old" style', base="owner/name"), Path("s.toml"))
    style = load(Path("s.toml")).recipe
    assert (style.data[0].prompt, style.optim.lr, style.train.steps) == ('a picture in the "old" style', 1e-4, 500)
    for number in range(5):
        Path(f"photos/{number}.txt").write_text(f"a grey square {number}")
    told = new.write(new.Wish(photos="photos"), Path("c.toml"))
    captioned = load(Path("c.toml")).recipe
    assert "each with its caption" in told
    assert (captioned.data[0].prompt, captioned.sample.prompts) == (None, ("a grey square 0", "a grey square 1"))
    Path("photos/0.txt").unlink()
    told = new.write(new.Wish(photos="photos", class_="square"), Path("m.toml"))
    assert '4 with their own caption, the others as "a photo of sks square"' in told
    assert load(Path("m.toml")).recipe.data[0].prompt == "a photo of sks square"


def test_a_fifth_is_held_out_where_enough_pictures_differ_and_checkpoints_are_kept_to_pick_from(photos: Path) -> None:
    new.write(new.Wish(photos="photos"), Path("few.toml"))
    few = load(Path("few.toml")).recipe
    assert (few.validate_.holdout, few.save.keep) == (0.0, 8)
    assert few.save.every * 8 <= few.train.steps
    shades = np.random.default_rng(3).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for number, shade in enumerate(shades):
        Image.fromarray(shade).resize((64, 64), Image.Resampling.NEAREST).save(photos / f"{number}.png")
    new.write(new.Wish(photos="photos"), Path("many.toml"))
    many = load(Path("many.toml")).recipe
    assert (many.validate_.holdout, many.validate_.every) == (0.2, many.save.every)
    assert len(pictures(many)[1]) == 2
    for number in range(12):  # all show the same: none can be spared
        Image.fromarray(shades[0]).resize((64, 64), Image.Resampling.NEAREST).save(photos / f"{number}.png")
    new.write(new.Wish(photos="photos"), Path("same.toml"))
    assert load(Path("same.toml")).recipe.validate_.holdout == 0.0


def test_buckets_are_offered_where_pictures_are_not_square(photos: Path) -> None:
    assert "square" not in new.write(new.Wish(photos="photos"), Path("a.toml"))
    assert "buckets" not in Path("a.toml").read_text()
    for number in (0, 1):
        Image.new("RGB", (60, 40)).save(photos / f"{number}.png")
    Image.new("RGB", (33, 31)).save(photos / "2.png")
    (photos / "3.png").write_bytes(b"nothing")
    assert "2 of them are not square; train.buckets = true keeps" in new.write(
        new.Wish(photos="photos"), Path("b.toml")
    )
    text = Path("b.toml").read_text()
    assert "# buckets = true  # 2 of 5 pictures not square" in text
    Path("b.toml").write_text(text.replace("# buckets = true", "buckets = true"))
    assert load(Path("b.toml")).recipe.train.buckets


def test_wishes_that_cannot_be(photos: Path) -> None:
    with pytest.raises(DataError, match="5 of 5 pictures have no caption"):
        new.write(new.Wish(photos="photos", kind="captioned"), Path("a.toml"))
    with pytest.raises(DataError, match="no such folder"):
        new.write(new.Wish(photos="nowhere"), Path("a.toml"))
    with pytest.raises(RecipeError, match="--class has no effect on a style"):
        new.write(new.Wish(photos="photos", kind="style", class_="dog"), Path("a.toml"))
    with pytest.raises(RecipeError, match="which gesso never writes to"):
        new.write(new.Wish(photos="photos"), photos / "a.toml")
    for number in range(5):
        Path(f"photos/{number}.txt").write_text("a square")
    with pytest.raises(RecipeError, match="--trigger has no effect"):
        new.write(new.Wish(photos="photos", trigger="sks"), Path("a.toml"))
    assert not Path("a.toml").exists()


@pytest.mark.parametrize(
    ("kind", "pictures", "steps"), [("subject", 3, 300), ("subject", 12, 600), ("style", 999, 3000)]
)
def test_steps_follow_the_number_of_pictures(kind: str, pictures: int, steps: int) -> None:
    assert new.PACES[kind].steps(pictures) == steps


def test_doctor_answers_for_scripts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:word@mirror.example")
    code = cli.main(["doctor", "--json"])
    shown = capsys.readouterr().out
    answer = json.loads(shown)
    problems = [each for each in answer["findings"] if each["state"] == "problem"]
    assert (answer["fit"], code) == ((False, Exit.DEVICE) if problems else (True, Exit.DONE))
    assert all(each["fix"] for each in problems)
    assert "cpu" in [device["name"] for device in answer["devices"]]
    assert {"Python", "cpu", "this folder", "cache"} <= {each["about"] for each in answer["findings"]}
    assert "hf_secret" not in shown
    assert "HF_ENDPOINT=https://(not shown)@mirror.example" in shown


def test_libraries_are_held_against_what_gesso_asks_for() -> None:
    assert doctor.library("numpy>=1.26").state == "ok"
    old = doctor.library("numpy<99,>=98.1")
    assert (old.state, old.text.endswith("but must be at least 98.1")) == ("problem", True)
    assert old.fix == f'{Path(sys.executable).name} -m pip install --upgrade "numpy<99,>=98.1"'
    assert doctor.library("numpy<1.0").text.endswith("but must be below 1.0")
    assert doctor.library("no-such-library-of-gesso>=1").text == "is not installed"
    assert doctor.numbers("2.13.0+cpu") == (2, 13, 0) > doctor.numbers("2.9.1")


def test_a_framework_that_does_not_start_is_a_problem_with_a_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").write_text("#!/bin/sh\necho 'ImportError: libcudart.so' >&2\nexit 1\n")
    (tmp_path / "broken").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "broken"))
    findings, devices = doctor._devices()
    assert (devices, findings[0].state) == ([], "problem")
    assert findings[0].text == "PyTorch does not start: ImportError: libcudart.so"
    report = doctor.Report(findings=tuple(findings))
    assert report.exit == Exit.DEVICE
    assert report.text().endswith("1 problem to mend before training.")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    found = doctor._disk("cache", tmp_path / "gesso")
    tmp_path.chmod(0o700)
    assert (found.state, "cannot be written" in found.text) == ("problem", True)


def test_memory_and_the_cache_folder_are_known_here(monkeypatch: pytest.MonkeyPatch) -> None:
    total, free = doctor.memory()
    assert total is None or total > 2**28
    assert total is None or free is None or 0 <= free <= total
    monkeypatch.delenv("GESSO_CACHE")
