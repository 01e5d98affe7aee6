"""A corpus of hostile files: each is named, none crashes or hangs, none is changed, nothing is written elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import hostile_parts
import pytest
from check_parts import saved, scene
from test_data_examine import examined, state

from gesso.data.examine.everything import Examined

SECONDS = 2.0
"""No file may take longer; measured in processor time, for the machine may be busy with something else."""


def named(found: Examined) -> set[str]:
    """The files that something is said of, and not only that they look like others."""
    said = [each for each in found.findings if each.kind not in ("same", "alike", "contradiction", "flat")]
    return {Path(each.where.partition(" row")[0]).name.partition(":")[0] for each in said}


def examined_in_time(folder: Path, files: int, **keys: object) -> Examined:
    before, began = state(folder.parent), time.process_time()
    found = examined(folder, **keys)
    assert time.process_time() - began < SECONDS * max(files, 1)
    assert state(folder.parent) == before
    return found


def test_the_corpus_is_large() -> None:
    pictures = sum(len(make()) for make in hostile_parts.PICTURES)
    rest = (hostile_parts.captions(), hostile_parts.lists(), hostile_parts.archives())
    assert pictures >= 60
    assert pictures + sum(map(len, rest)) >= 120


@pytest.mark.parametrize("make", hostile_parts.PICTURES, ids=lambda make: make.__name__)
def test_every_hostile_picture_is_named(make: Callable[[], dict[str, bytes]], tmp_path: Path) -> None:
    files = make()
    hostile_parts.put(tmp_path / "photos", files)
    found = examined_in_time(tmp_path / "photos", len(files))
    silent = [name for number, name in enumerate(files) if f"{number:03d}-{name}" not in named(found)]
    assert silent == []
    assert all(each.todo or each.level == "note" for each in found.findings)


@pytest.mark.parametrize("make", hostile_parts.PICTURES, ids=lambda make: make.__name__)
def test_no_hostile_picture_is_slow(make: Callable[[], dict[str, bytes]], tmp_path: Path) -> None:
    from gesso.data.examine.pictures import look

    for name, data in make().items():
        path = tmp_path / name
        path.write_bytes(data)
        began = time.process_time()
        look(path, (64, 64))
        assert time.process_time() - began < SECONDS, name


def test_every_hostile_caption_is_named(tmp_path: Path) -> None:
    folder, captions = tmp_path / "photos", hostile_parts.captions()
    folder.mkdir()
    for number, (name, data) in enumerate(captions.items()):
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".jpg").write_bytes(saved(scene(number)))
    found = examined_in_time(folder, len(captions))
    assert set(captions) - named(found) == set()


@pytest.mark.parametrize("name", hostile_parts.lists())
def test_every_hostile_list_is_named(name: str, tmp_path: Path) -> None:
    file, data = hostile_parts.lists()[name]
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(saved(scene(0), "PNG"))
    (folder / file).write_bytes(data)
    found = examined_in_time(folder, 1)
    assert [each for each in found.level("error") if file in each.where], found.findings
    assert all("/etc/passwd" not in str(place) for place in found.seen)


@pytest.mark.parametrize("name", hostile_parts.archives())
def test_every_hostile_archive_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(hostile_parts.archives()[name])
    before, began = state(tmp_path), time.process_time()
    found = examined(path)
    assert time.process_time() - began < SECONDS
    assert [each for each in found.level("error") if name in each.where], found.findings
    assert state(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="there are no such files")
def test_pipes_and_devices_are_named_and_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(saved(scene(0)))
    (folder / "good.txt").write_text("a dog")
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.bin")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "said.jpg").write_bytes(saved(scene(1)))
    os.mkfifo(folder / "said.txt")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    with (folder / "sparse.tif").open("wb") as file:
        file.truncate(5 * 10**9)
    found = examined(folder)
    assert {"pipe.jpg", "pipe.bin", "zero.png", "said.txt", "loop.jpg", "sparse.tif"} <= named(found)
    assert len(found.seen) == 2
