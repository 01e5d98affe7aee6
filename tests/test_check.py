"""`gesso check`: one report on the terminal, as a page and as JSON, an exit code, and nothing changed."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import check_parts
import pytest
from runs import pictures, recipe
from test_data_examine import planted, state

from gesso import cli
from gesso.errors import Exit


def checked(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[str, Any]]:
    """The exit code, and the answer to a script."""
    code = cli.main(["check", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def good(tmp_path: Path, linear: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose pictures are all right."""
    monkeypatch.chdir(tmp_path)
    check_parts.good(check_parts.Planted(tmp_path / "pictures"))
    return recipe(tmp_path, linear, adapter={"targets": ["linear"]}, train={"resolution": 64, "steps": 30})


def test_a_good_recipe_ends_with_0_and_says_what_will_be_done(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(good)]) == Exit.DONE
    said = capsys.readouterr().out
    assert "20 pictures can be trained on, and nothing is wrong with them." in said
    assert re.search(r"An epoch +5 steps\n", said)
    assert re.search(r"The run +30 steps, 6 epochs\n", said)
    assert re.search(r"Captions +20 from a text file beside\n", said)
    for name in ("Trainable", "A checkpoint", "Run folder", "Cache", "Time"):
        assert f"  {name}" in said
    assert "not measured" in said
    assert said.endswith("page: check.html\n")


def test_a_planted_folder_ends_with_3_and_only_the_page_is_written(
    tmp_path: Path, linear: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = planted(
        tmp_path / "pictures", check_parts.good, check_parts.pictures, check_parts.captions, check_parts.likeness
    )
    path = recipe(tmp_path, linear, adapter={"targets": ["linear"]}, train={"resolution": 64})
    place = tmp_path / "reports"
    place.mkdir()
    monkeypatch.chdir(place)
    before = state(tmp_path)
    assert cli.main(["check", str(path)]) == Exit.DATA
    after = state(tmp_path)
    assert [name for name in after if name not in before] == [repr(place / "check.html")]
    assert {name: after[name] for name in before if name != repr(place)} == {
        name: value for name, value in before.items() if name != repr(place)
    }
    said, page = capsys.readouterr().out, (place / "check.html").read_text()
    assert "Training would not start: " in said
    assert said.index("STOP") < said.index("look") < said.index("note") < said.index("Pictures   ")
    for name, _ in at.expected:
        assert name in page, name
    assert "<b>in bold</b>" not in page
    assert "&lt;b&gt;in bold&lt;/b&gt;" in page


def test_the_page_needs_nothing_and_shows_the_pictures(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = checked(capsys, good, "--html=pages/mine.html")
    page = Path(answer["page"]).read_text()
    assert (code, answer["page"]) == (0, "pages/mine.html")
    assert page.count("<figure>") == 20
    assert "sks robot, scene 101 of the garden" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import", page)
    assert "default-src 'none'" in unescape(page)
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 640px" in page


def test_json_says_everything(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (good.parent / "pictures" / "good-3.txt").unlink()
    code, answer = checked(capsys, good, "--no-html")
    assert (code, answer["exit"], answer["page"]) == (3, 3, None)
    (found,) = answer["findings"]
    assert (found["level"], found["kind"]) == ("error", "missing")
    assert found["where"].endswith("pictures/good-3.jpg")
    assert found["pictures"] == [found["where"]]
    assert answer["facts"]["An epoch"] == "4.75 steps"
    assert {"trainable", "checkpoint_bytes", "out_bytes", "cache_bytes"} <= answer["forecast"].keys()
    assert not list(Path().glob("*.html"))


def test_a_folder_is_enough(
    tmp_path: Path, linear: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos", 5, captions=False)
    flags = ["--engine", "reference", "--model.base", str(linear), "--adapter.targets", "linear", "--train.batch", "2"]
    code, answer = checked(capsys, "photos", "--no-html", *flags)
    assert code == Exit.DATA
    (found,) = answer["findings"]
    assert (found["kind"], len(found["pictures"])) == ("missing", 5)
    assert "none of the 5 pictures has a caption" in found["what"]
    code, answer = checked(capsys, "photos", "--no-html", "--prompt", "a photo of sks dog", *flags)
    assert code == Exit.DONE
    assert answer["findings"] == []
    assert answer["facts"]["An epoch"] == "2.5 steps"
    assert checked(capsys, "photos", "--no-html", "--prompt=a photo of sks dog", *flags)[0] == Exit.DONE
    monkeypatch.chdir(tmp_path / "photos")
    assert cli.main(["check", ".", "--prompt", "a dog", *flags]) == Exit.DONE
    assert "no page is written among the pictures" in capsys.readouterr().out
    assert not list(Path().glob("*.html"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which recipe, or which pictures?"),
        (["a.toml", "b.toml"], "one recipe or folder is looked at at a time"),
        (["recipe.toml", "--html"], "--html needs the name of a file"),
        (["recipe.toml", "--html", "pictures/check.html"], "the page would lie among the pictures"),
        (["recipe.toml", "--html", "recipe.toml"], "there is something else in this place"),
        (["recipe.toml", "--train.step", "5"], "train.step"),
        (["nope.toml"], "there is no such recipe"),
    ],
)
def test_a_wrong_command_line_is_said(
    words: list[str], said: str, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", *words]) == Exit.RECIPE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.base", "no such model"], "there is no model"),
        (["--adapter.targets", "nothing"], "matches no layer"),
        (["--data.path", "nowhere"], "there is no such folder"),
        (["--validate.path", "nowhere"], "there is no such folder"),
        (["--validate.holdout", "0.001"], "validate.holdout"),
        (["--train.epochs", "1", "--optim.warmup", "50"], "optim.warmup"),
    ],
)
def test_what_the_run_would_refuse_is_a_finding(
    flags: list[str], said: str, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = checked(capsys, good, "--no-html", *flags)
    assert code == Exit.DATA
    assert any(said in each["what"] for each in answer["findings"] if each["level"] == "error"), answer["findings"]


def test_a_model_of_the_hub_is_not_fetched(
    good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a host was asked")

    monkeypatch.setattr("gesso.models.from_hub", refused)
    code, answer = checked(capsys, good, "--no-html", "--model.base", "owner/not-here")
    assert code == Exit.DONE
    assert [(each["level"], each["kind"]) for each in answer["findings"]] == [("note", "plan")]
    assert answer["forecast"] == {}


def test_sizes_are_those_of_the_buckets(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = check_parts.scene(900, (256, 96))
    (good.parent / "pictures" / "wide.jpg").write_bytes(check_parts.saved(wide))
    (good.parent / "pictures" / "wide.txt").write_text("sks robot, far and wide")
    _, square = checked(capsys, good, "--no-html")
    assert [each["kind"] for each in square["findings"]] == ["wide"]
    code, answer = checked(capsys, good, "--train.buckets", "--html", "check.html")
    assert (code, answer["findings"]) == (0, [])
    assert sum(bucket["rows"] for bucket in answer["buckets"]) == 21
    assert len(answer["buckets"]) > 1
    page = Path("check.html").read_text()
    assert all(f"{width} × {height}" in page for width, height in (bucket["size"] for bucket in answer["buckets"]))


def test_the_same_picture_may_not_be_learned_and_measured_with(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = good.parent / "held"
    held.mkdir()
    for name in ("good-1.jpg", "good-1.txt"):
        (held / name).write_bytes((good.parent / "pictures" / name).read_bytes())
    code, answer = checked(capsys, good, "--no-html", "--validate.path", held)
    assert code == Exit.DONE
    assert ["held out to measure with" in each["what"] for each in answer["findings"]] == [True]


def test_a_run_folder_can_be_looked_at(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(good), "--train.steps", "6"]) == Exit.DONE
    capsys.readouterr()
    code, answer = checked(capsys, good.parent / "out", "--no-html")
    assert code == Exit.DONE
    assert answer["facts"]["The run"] == "6 steps, 1.2 epochs"
    assert answer["forecast"]["seconds_a_step"] > 0


def test_a_disk_that_is_too_small_stops_a_run_before_it_begins(
    good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("gesso.forecast.disk.free_bytes", lambda _: 1000)
        assert cli.main(["train", str(good)]) == Exit.STORAGE
        assert "a checkpoint and the result need" in capsys.readouterr().err
        assert not list((good.parent / "out").glob("checkpoint-*"))
        code, answer = checked(capsys, good, "--no-html")
        assert code == Exit.DATA
        assert "a checkpoint and the result need" in answer["findings"][0]["what"]
        patch.setattr("gesso.forecast.disk.free_bytes", lambda _: 1_055_000)
        assert cli.main(["train", str(good), "--save.every", "3", "--save.keep", "9", "--seed", "4"]) == Exit.DONE
    warned = [json.loads(line) for line in (good.parent / "out" / "events.jsonl").read_text().splitlines()]
    assert any("the run may write up to" in each.get("message", "") for each in warned)
