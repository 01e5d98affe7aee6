"""`gesso caption`: what is captioned, what is written where, and that nothing is done twice or written over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from caption_parts import MAKERS, pictures, tagger
from runs import gesso

from gesso import captioning
from gesso.captioning import Asked, Request, caption
from gesso.captioning.files import BESIDE, LISTS
from gesso.cli import main
from gesso.data import images
from gesso.data.captions import Style
from gesso.data.sources import read
from gesso.errors import DataError, RecipeError
from gesso.schema import DataTable

pytest.importorskip("onnx", reason="the quick captioner of these tests is a tagger made with onnx")
pytest.importorskip("onnxruntime", reason="pip install 'gesso[tagger]'")

COUNT = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tagger(tmp_path_factory.mktemp("model") / "wd")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return pictures(tmp_path / "photos", COUNT)


def asked(photos: Path, model: Path, **keys: Any) -> Request:
    usual = Asked(device="cpu", general=0.0, character=0.0)
    return Request(folder=str(photos), model=str(model), batch=2, asked=usual, **keys)


def quiet(*_: object) -> None:
    pass


def said(folder: Path) -> dict[str, str]:
    """What the readers of a run take for the captions of a folder."""
    records = read(DataTable(path=str(folder)))
    return {record.path.relative_to(folder).as_posix(): record.captions[0] for record in records}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", [*BESIDE, *LISTS])
def test_every_form_is_read_back_the_same(form: str, photos: Path, model: Path) -> None:
    before = files(photos)
    done = caption(asked(photos, model, form=form, words=Style(trigger="sks", suffix=", photo")), quiet)
    assert (done.written, done.kept, done.failed) == (COUNT, 0, ())
    found = said(photos)
    assert len(found) == COUNT
    assert all(each.startswith("sks, ") and each.endswith(", photo") for each in found.values())
    assert len(set(found.values())) > 1
    after = files(photos)
    assert {name: after[name] for name in before} == before
    again = caption(asked(photos, model, form=form, words=Style(trigger="other")), quiet)
    assert (again.written, again.kept) == (0, COUNT)
    assert files(photos) == after


def test_what_has_a_caption_keeps_it(photos: Path, model: Path) -> None:
    (photos / "0.txt").write_text("my own words")
    (photos / "metadata.csv").write_text("file_name,text\nb/2.png,a listed one\n")
    (photos / "1.txt").write_text("")
    before = files(photos)
    done = caption(asked(photos, model), quiet)
    assert (done.written, done.kept) == (COUNT - 3, 3)
    assert done.notes == ("1 caption file(s) are empty and stay so; delete them to have them written",)
    after = files(photos)
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == ["3.txt", "4.txt", "6.txt", "b/5.txt"]


def test_a_list_of_somebody_else_is_refused(photos: Path, model: Path) -> None:
    (photos / "image_captions.json").write_text('{"0.png": "mine"}')
    before = files(photos)
    with pytest.raises(DataError, match=r"image_captions\.json is there already"):
        caption(asked(photos, model, form="image_captions.json"), quiet)
    assert {name: data for name, data in files(photos).items() if not name.endswith(".lock")} == before
    (photos / "image_captions.json").unlink()
    caption(asked(photos, model, form="image_captions.json"), quiet)
    (photos / "image_captions.json").write_text('{"0.png": "edited"}')
    with pytest.raises(DataError, match="was changed since gesso wrote it"):
        caption(asked(photos, model, form="image_captions.json"), quiet)
    assert (photos / "image_captions.json").read_text() == '{"0.png": "edited"}'


def test_a_finished_list_takes_up_new_pictures(photos: Path, model: Path) -> None:
    caption(asked(photos, model, form="metadata.jsonl", limit=4), quiet)
    assert len((photos / "metadata.jsonl").read_text().splitlines()) == 4
    done = caption(asked(photos, model, form="metadata.jsonl"), quiet)
    assert (done.written, done.kept) == (COUNT - 4, 4)
    assert len(said(photos)) == COUNT
    (photos / "0.png").unlink()
    assert caption(asked(photos, model, form="metadata.jsonl"), quiet).kept == COUNT - 1
    assert len(said(photos)) == COUNT - 1
    (photos / "metadata.jsonl").unlink()
    assert caption(asked(photos, model, form="metadata.jsonl"), quiet).written == COUNT - 1


class Kill(BaseException):
    """As good as a process that ends between two batches."""


@pytest.mark.parametrize("form", ["txt", "metadata.jsonl", "image_captions.json"])
def test_a_killed_one_goes_on_where_it_was(
    form: str, photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pictures(tmp_path / "whole", COUNT)
    caption(asked(whole, model, form=form), quiet)

    def die(_: str, done: int, total: int) -> None:
        if done == 4:
            raise Kill

    with pytest.raises(Kill):
        caption(asked(photos, model, form=form), die)
    assert not (photos / form).exists()
    if form != "txt":  # the line in which it was killed
        with (photos / f".{form}.gesso").open("ab") as file:
            file.write(b'{"file_name": "6.pn')
        with pytest.raises(RecipeError, match=r"begun with other settings: trigger was None and is 'sks'"):
            caption(asked(photos, model, form=form, words=Style(trigger="sks")), quiet)
    looked: list[int] = []
    create = captioning.create

    def counted(ready: captioning.Prepared) -> Any:
        looked.append(len(ready.pictures))
        return create(ready)

    monkeypatch.setattr(captioning, "create", counted)
    done = caption(asked(photos, model, form=form), quiet)
    assert (looked, done.written, done.kept) == ([COUNT - 4], COUNT - 4, 4)
    mine, theirs = files(photos), files(whole)
    assert mine == theirs


def test_a_real_kill_loses_nothing(photos: Path, model: Path) -> None:
    """SIGKILL in the middle: what was on the disk stays, the rest follows, no picture is in the list twice."""
    many = pictures(photos, 60)
    command = [sys.executable, "-m", "gesso", "caption", str(many), "--model", str(model), "--general", "0",
               "--batch", "1", "--to", "metadata.jsonl"]  # fmt: skip
    journal = many / ".metadata.jsonl.gesso"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 5):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (many / "metadata.jsonl").exists()
    before = journal.read_bytes()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert journal.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    names = [json.loads(line)["file_name"] for line in (many / "metadata.jsonl").read_text().splitlines()]
    assert names == sorted({path.relative_to(many).as_posix() for path in many.rglob("*.png")})


def test_broken_pictures_are_named_and_the_rest_is_written(photos: Path, model: Path) -> None:
    (photos / "0.png").write_bytes(b"<html>")
    (photos / "zero.jpg").write_bytes(b"")
    done = gesso("caption", photos, "--model", model, "--general", "0", "--json")
    assert done.returncode == 3
    answer = json.loads(done.stdout)
    assert answer["written"] == COUNT - 1
    assert [line.partition(":")[0] for line in answer["failed"]] == [str(photos / "0.png"), str(photos / "zero.jpg")]
    assert str(photos / "zero.jpg") in done.stderr
    assert not (photos / "0.txt").exists()


def test_a_picture_that_nothing_is_said_of_is_named(photos: Path, model: Path) -> None:
    request = Request(folder=str(photos), model=str(model), asked=Asked(device="cpu", general=1.0, character=1.0))
    done = caption(request, quiet)
    assert done.written == 0
    assert len(done.failed) == COUNT
    assert done.failed[0] == f"{photos / '0.png'}: the model said nothing"
    assert not list(photos.rglob("*.txt"))


def test_captions_may_go_elsewhere(photos: Path, model: Path, tmp_path: Path) -> None:
    """Above the pictures, names lead down to them, as S1's script had its list beside the folder of pictures."""
    before = files(photos)
    caption(asked(photos, model, form="image_captions.json", out=tmp_path), quiet)
    names = list(json.loads((tmp_path / "image_captions.json").read_text()))
    assert names == sorted(f"photos/{path.relative_to(photos).as_posix()}" for path in photos.rglob("*.png"))
    assert {name.removeprefix("photos/"): each for name, each in said(tmp_path).items()}.keys() == before.keys()
    caption(asked(photos, model, out=tmp_path / "elsewhere"), quiet)
    assert sorted(path.name for path in (tmp_path / "elsewhere").rglob("*.txt")) == [f"{n}.txt" for n in range(COUNT)]
    assert files(photos) == before


def test_what_appears_while_the_model_looks_stays(photos: Path, model: Path) -> None:
    def meanwhile(_: str, done: int, total: int) -> None:
        if not done:
            (photos / "1.txt").write_text("mine")
            (photos / "image_captions.json").write_text("mine")

    done = caption(asked(photos, model), meanwhile)
    assert (done.written, done.notes) == (COUNT - 1, (f"{photos / '1.txt'} appeared meanwhile and stays as it is",))
    assert (photos / "1.txt").read_text() == "mine"
    for path in (*photos.rglob("*.txt"), photos / "image_captions.json"):
        path.unlink()
    with pytest.raises(DataError, match="is there already"):
        caption(asked(photos, model, form="image_captions.json"), meanwhile)
    assert (photos / "image_captions.json").read_text() == "mine"


def test_two_pictures_of_one_stem_have_one_caption_file(photos: Path, model: Path) -> None:
    (photos / "0.jpg").write_bytes((photos / "0.png").read_bytes())
    done = caption(asked(photos, model), quiet)
    assert done.written == COUNT
    assert len(said(photos)) == COUNT + 1


def test_what_cannot_be_is_said_before_anything_is_written(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(photos)
    for flags, word in (
        (("--to", "metadata.txt"), "--to"),
        (("--batch", "0"), "--batch"),
        (("--general", "2"), "--general"),
        (("--temperature", "-1"), "--temperature"),
        (("--temperature", "1", "--beams", "2"), "--beams"),
        (("--prompt", "what is it"), "--prompt"),
        (("--seed", "1"), "--seed"),
        (("--model", "nobody"), "no captioner"),
        (("--model", tmp_path), "config.json"),
    ):
        assert main(["caption", str(photos), "--model", str(model), *map(str, flags)]) == 2
        assert word in capsys.readouterr().err
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    assert main(["caption", str(photos), "--model", str(tmp_path / "clip")]) == 2
    assert "of the kind clip" in capsys.readouterr().err
    assert main(["caption", str(tmp_path / "none"), "--model", str(model), "--to", "img_txt.csv"]) == 3
    assert not (tmp_path / "none").exists()
    capsys.readouterr()
    assert main(["caption", str(tmp_path / "clip"), "--model", str(model)]) == 3
    assert "no picture" in capsys.readouterr().err
    assert main(["caption", str(photos), "--model", str(model), "--dry-run"]) == 0
    assert capsys.readouterr().out.strip() == f"{COUNT} pictures would be captioned by WD tagger; 0 are already"
    assert files(photos) == before


def test_a_model_of_the_hub_is_taken_from_its_cache(photos: Path, model: Path, tmp_path: Path) -> None:
    """As the Hub's library keeps it, with no host asked."""
    repository = tmp_path / "hub" / "models--me--tagger"
    (repository / "snapshots").mkdir(parents=True)
    shutil.copytree(model, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    given = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = gesso("caption", photos, "--model", "me/tagger", "--general", "0", "--to", "metadata.jsonl", env=given)
    assert done.returncode == 0, done.stderr
    assert len(said(photos)) == COUNT
    assert (
        json.loads((photos / ".metadata.jsonl.gesso").read_text().splitlines()[0])["settings"]["model"] == "me/tagger"
    )
    done = gesso("caption", photos, "--model", "me/other", env=given)
    assert done.returncode == 6
    assert "no copy is on this machine" in done.stderr


@pytest.mark.parametrize("kind", ["blip", "florence2", "qwen2_vl"])
def test_what_a_model_says_is_what_stands_beside_the_picture(kind: str, photos: Path, tmp_path: Path) -> None:
    model = MAKERS[kind](tmp_path / kind)
    asked = Asked(device="cpu", tokens=6, beams=2)
    request = Request(folder=str(photos), model=str(model), batch=3, asked=asked, words=Style(prefix="a picture: "))
    done = caption(request, quiet)
    paths = [photos / name for name in sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))]
    alone = captioning.create(captioning.outline(request))
    expected = [captioning.worded(alone.caption([images.load(path)])[0], request.words) for path in paths]
    found = [path.with_suffix(".txt") for path in paths]
    assert [path.read_text().rstrip("\n") if path.exists() else "" for path in found] == expected
    assert done.written + len(done.failed) == COUNT
    assert len(set(expected)) > 2


def test_an_answer_becomes_one_line_without_control_characters() -> None:
    assert captioning.worded(" a dog\x12\non\ta\0 beach\x1b ", Style(trigger="sks")) == "sks, a dog on a beach"
    assert captioning.worded("\x12\n ", Style(trigger="sks")) == ""


def test_captions_that_cannot_be_read_are_named_and_not_written_over(photos: Path, model: Path) -> None:
    bad = next(iter(photos.glob("*.png"))).with_suffix(".txt")
    bad.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not UTF-8") as told:
        caption(Request(folder=str(photos), model=str(model)), quiet)
    assert "gesso check" in told.value.todo
    assert [path.name for path in photos.rglob("*.txt")] == [bad.name]
    assert bad.read_bytes() == b"caf\xe9"
    with pytest.raises(DataError, match="no such folder"):
        caption(Request(folder=str(photos / "none"), model=str(model)), quiet)
