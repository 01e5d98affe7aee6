"""Looking after a cache: what is unused goes, what is in use stays, what is damaged is found."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from data_parts import same
from test_data_cache import COUNT, entry, files, fill, name, process, there

from gesso.data.cache import Store, care, packs
from gesso.errors import StorageError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The day, which the test may move."""
    day = [packs.today()]
    monkeypatch.setattr(packs, "today", lambda: day[0])
    return day


def use(folder: Path, *numbers: int) -> None:
    store = Store(folder, 0)
    for number in numbers:
        assert store.get(name(number)) is not None
    store.close()


def test_what_was_not_used_for_so_many_days_goes(tmp_path: Path, clock: list[int]) -> None:
    fill(tmp_path)
    clock[0] += 10
    use(tmp_path, 3, 7)
    clock[0] += 20
    assert care.collect(tmp_path, keep_days=30).removed == 0
    done = care.collect(tmp_path, keep_days=29)
    assert (done.removed, done.kept) == (COUNT - 2, 2)
    assert done.after < done.before
    assert there(tmp_path) == [3, 7]
    clock[0] += 1
    assert care.collect(tmp_path, keep_days=20).removed == 0, "there has used them since"
    clock[0] += 21
    assert care.collect(tmp_path, keep_days=20).removed == 2
    assert care.facts(tmp_path) == []
    assert [path.name for path in (tmp_path / "packs").iterdir()] == []


def test_what_was_used_longest_ago_goes_above_a_size(tmp_path: Path, clock: list[int]) -> None:
    fill(tmp_path)
    for number in range(COUNT):
        clock[0] += 1
        use(tmp_path, (5 * number) % COUNT)
    last = [(5 * number) % COUNT for number in range(COUNT)][-4:]
    clock[0] += 1
    room = 4 * (files(tmp_path)[0].stat().st_size // COUNT + care.BESIDE) + packs.INDEX_BYTES
    done = care.collect(tmp_path, max_bytes=room)
    assert (done.removed, done.kept) == (COUNT - 4, 4)
    assert done.after <= room
    assert there(tmp_path) == sorted(last)


def test_stamps_go_along_when_packs_are_put_together(tmp_path: Path, clock: list[int]) -> None:
    stores = [Store(tmp_path, 0) for _ in range(3)]
    for number in range(COUNT):
        stores[number % 3].put(name(number), entry(number))
    for store in stores:
        store.close()
    assert len(files(tmp_path)) == 3
    clock[0] += 5
    use(tmp_path, 1, 2, 3)
    clock[0] += 5
    done = care.collect(tmp_path)
    assert (done.removed, done.twice, done.kept, len(files(tmp_path))) == (0, 0, COUNT, 1)
    assert care.collect(tmp_path, keep_days=6).kept == 3
    assert there(tmp_path) == [1, 2, 3]


def test_copies_of_the_same_entry_go(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        fill(folder)
    shutil.copytree(tmp_path / "b" / "packs", tmp_path / "a" / "packs", dirs_exist_ok=True)
    done = care.collect(tmp_path / "a", keep_days=1)
    assert (done.twice, done.kept) == (COUNT, COUNT)
    assert there(tmp_path / "a") == list(range(COUNT))


def test_verify_drops_what_is_damaged_and_only_that(tmp_path: Path) -> None:
    fill(tmp_path)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    size = len(whole) // COUNT
    harmed = bytearray(whole)
    for number, at in ((2, 5), (5, 300), (9, size - 400)):  # a header, values, values
        harmed[number * size + at] ^= 1
    path.write_bytes(harmed)
    told: list[tuple[str, int, int]] = []
    done = care.collect(tmp_path, verify=True, progress=lambda *said: told.append(said))
    assert (done.damaged, done.kept, done.removed) == (3, COUNT - 3, 0)
    assert told[COUNT - 1] == ("entries", COUNT, COUNT)
    assert there(tmp_path) == [number for number in range(COUNT) if number not in (2, 5, 9)]
    assert care.collect(tmp_path, verify=True).damaged == 0
    fill(tmp_path)
    assert there(tmp_path) == list(range(COUNT))


def test_what_is_no_entry_is_given_back(tmp_path: Path) -> None:
    fill(tmp_path)
    (path,) = files(tmp_path)
    size = path.stat().st_size
    files(tmp_path, ".index")[0].unlink()
    with path.open("ab") as file:
        file.write(b"\xaa" * 5000)
    assert care.collect(tmp_path, keep_days=1).kept == COUNT
    assert files(tmp_path)[0].stat().st_size == size
    assert there(tmp_path) == list(range(COUNT))


def test_what_a_living_process_has_used_since_it_began_stays(tmp_path: Path, clock: list[int]) -> None:
    fill(tmp_path)
    clock[0] += 40
    reader = Store(tmp_path, 0)
    assert same(reader.get(name(4)), entry(4))
    os.utime(next((tmp_path / "users").iterdir()), (packs.SECONDS_A_DAY * clock[0],) * 2)
    clock[0] += 40
    done = care.collect(tmp_path, keep_days=1, max_bytes=0)
    assert (done.kept, done.removed) == (1, COUNT - 1)
    # Its pack has been written anew; what is open can still be read, what was there alone cannot.
    assert same(reader.get(name(4)), entry(4))
    reader.close()
    assert [number for number in range(COUNT) if reader.get(name(number))] == [4]
    reader.close()
    assert list((tmp_path / "users").iterdir()) == []
    clock[0] += 40
    assert care.collect(tmp_path, keep_days=1).kept == 0


def test_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    fill(tmp_path)
    writer = process(tmp_path, 50, 10_000, 0.01)
    assert writer.stdout is not None
    writer.stdout.read(10)
    assert care.collect(tmp_path, keep_days=1).busy == 1
    with pytest.raises(StorageError, match="1 running process uses this cache"):
        care.clear(tmp_path)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    packs_folder = tmp_path / "packs"
    gone = "0123456789abcdef"
    left = [packs_folder / each for each in (f".{gone}.index.tmp-0123abcd", f"{gone}.index", f"{gone}.lock")]
    earlier = tmp_path / "ab"
    earlier.mkdir()
    left += [earlier / f".{name(1)}.77.0011aabb.part"]
    others = [packs_folder / f".{gone}.index.tmp-ffffffff", packs_folder / ".mine.part"]
    for path in [*left, *others]:
        path.write_bytes(b"x")
    hours = time.time() - 2 * care.OLD_SECONDS
    for path in [*left, others[1]]:
        os.utime(path, (hours, hours))
    done = care.collect(tmp_path, keep_days=1)
    assert (done.swept, done.busy) == (len(left), 0)
    assert list((tmp_path / "users").iterdir()) == []
    assert all(path.exists() for path in others), "one may be in use, the other is not the cache's"
    assert there(tmp_path) == list(range(COUNT))


def test_clear_removes_the_cache_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / f"ab{'0' * 62}.safetensors").write_bytes(b"as earlier versions kept them")
    model = tmp_path / "models" / name(1) / "unet"
    model.mkdir(parents=True)
    (model / "config.json").write_bytes(b"{}" * 5000)
    mine = [tmp_path / "cd" / "a.safetensors", tmp_path / "packs" / "mine.pack.txt", tmp_path / "notes"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    assert care.size(tmp_path) == care.clear(tmp_path) > 30_000
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)
    assert care.clear(tmp_path / "nowhere") == 0


def test_a_full_disk_ends_a_collection_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    for folder in (tmp_path / "a", tmp_path / "b"):
        fill(folder)
    shutil.copytree(tmp_path / "b" / "packs", tmp_path / "a" / "packs", dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match="No space left"):
            care.collect(tmp_path / "a")
    assert there(tmp_path / "a") == list(range(COUNT))
    assert care.collect(tmp_path / "a").kept == COUNT
