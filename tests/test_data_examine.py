"""A folder in which everything is wrong is reported completely, nothing else is, and nothing in it changes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import check_parts
import pytest
from check_parts import SIDE, Plant, Planted

from gesso.data.examine.everything import Examined, examine
from gesso.schema import DataTable


def planted(folder: Path, *plants: Plant) -> Planted:
    at = Planted(folder)
    for plant in plants:
        plant(at)
    return at


def state(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, target of every link, and the times of both."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else ""
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[repr(path)] = f"{content} {status.st_mtime_ns} {status.st_mode} {status.st_size}"
    return found


def words(captions: Sequence[str]) -> tuple[list[int], int]:
    """A word is a token."""
    return [len(caption.split()) + 2 for caption in captions], 77


def examined(folder: Path, **keys: object) -> Examined:
    table = DataTable.model_validate({"path": str(folder), **keys})
    return examine([("data", table)], side=(SIDE, SIDE), count=words)


def agrees(found: Examined, at: Planted) -> None:
    """Each planted thing is reported where and as it should be, once, and nothing else is."""
    said: dict[tuple[str, str], tuple[str, str]] = {}
    extra = []
    for each in found.findings:
        about = (check_parts.shown_name(each.where, at.folder), each.kind)
        if about in said:
            extra.append(f"again {each.level} {each.kind} {each}")
        said[about] = (each.level, str(each))
        assert each.todo or each.level == "note", each
    extra += [f"{about}: {said[about]}" for about in said.keys() - at.expected.keys()]
    missing = [f"{about}: {at.expected[about]}" for about in at.expected.keys() - said.keys()]
    assert (missing, extra) == ([], [])
    for about, (level, what) in at.expected.items():
        assert said[about][0] == level, said[about]
        assert what in said[about][1], said[about]


def test_forty_planted_defects_are_reported_and_nothing_else(tmp_path: Path) -> None:
    at = planted(
        tmp_path / "photos",
        check_parts.good,
        check_parts.pictures,
        check_parts.likeness,
        check_parts.captions,
        check_parts.files,
    )
    before = state(at.folder)
    found = examined(at.folder, masks=True, format="folder")
    assert len(at.expected) >= 40
    agrees(found, at)
    assert state(at.folder) == before
    assert len(found.seen) < found.places


def test_every_wrong_row_of_a_list_is_named(tmp_path: Path) -> None:
    at = planted(tmp_path / "photos", check_parts.rows)
    agrees(examined(at.folder), at)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="an administrator may read everything")
def test_files_without_permission_are_named(tmp_path: Path) -> None:
    at = planted(tmp_path / "photos", check_parts.good, check_parts.unreadable)
    agrees(examined(at.folder), at)


def test_a_folder_with_nothing_wrong_is_silent(tmp_path: Path) -> None:
    at = planted(tmp_path / "photos", check_parts.good)
    found = examined(at.folder)
    assert found.findings == []
    assert len(found.records["data"]) == found.places == len(found.seen) == 20


def test_with_a_prompt_missing_captions_stop_nothing(tmp_path: Path) -> None:
    at = planted(tmp_path / "photos", check_parts.good, check_parts.captions)
    found = examined(at.folder, prompt="a photo of sks robot")
    kinds = Counter((each.level, each.kind) for each in found.findings)
    assert kinds["error", "missing"] == 0
    assert kinds["warning", "missing"] == 2
    assert kinds["note", "missing"] == 1


def test_a_folder_among_kohyas_that_is_none_is_named(tmp_path: Path) -> None:
    at = Planted(tmp_path / "photos")
    for number, name in enumerate(("10_sks dog/a.jpg", "1_cat/b.jpg", "holiday/c.jpg")):
        at.put(name, check_parts.saved(check_parts.scene(number)), None)
    (found,) = examined(at.folder).findings
    assert (found.level, found.kind) == ("error", "missing")
    assert "rename holiday to" in found.todo
    (at.folder / "holiday").rename(at.folder / "3_holiday")
    assert examined(at.folder).findings == []
    assert len(examined(at.folder).records["data"]) == 14


def test_what_pictures_without_a_caption_are_learned_under_is_said(tmp_path: Path) -> None:
    at = Planted(tmp_path / "photos")
    for number, caption in enumerate(("sks dog in the snow", None, None)):
        at.put(f"10_sks dog/{number}.jpg", check_parts.saved(at.fresh()), caption)
    (found,) = examined(at.folder).findings
    assert (found.level, found.kind) == ("note", "missing")
    assert found.what == '2 of 3 pictures have no caption of their own; they are learned under "sks dog"'


def test_what_is_transparent_is_said_with_the_colour_behind_it(tmp_path: Path) -> None:
    check_parts.Image.new("RGBA", (64, 64), (255, 0, 0, 90)).save(tmp_path / "a.png")
    data = DataTable(path=str(tmp_path), prompt="a", background="black")
    (found,) = [each.what for each in examine([("data", data)]).findings if "transparent" in each.what]
    assert found.endswith("and will be black")
