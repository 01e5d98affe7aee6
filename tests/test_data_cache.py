"""The store on disk: whole entries or none, whatever happens to its files and whoever else uses them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_parts import same

from gesso.data.cache import OVERHEAD, Store, key, packs, shelf
from gesso.errors import StorageError

COUNT = 12
WORK = """
import os, sys, time
from pathlib import Path
import numpy as np
from gesso.data.cache import packs
from gesso.data.cache import Store, key
folder, first, stop, wait = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
store = Store(folder, 0)
for number in range(first, stop):
    store.put(key(n=str(number)), {"x": np.full(500, number, dtype=np.float32), "n": np.array([number])})
    os.write(1, f"{number} ".encode())
    time.sleep(wait)
"""


def entry(number: int) -> dict[str, np.ndarray]:
    return {"x": np.full(500, number, dtype=np.float32), "n": np.array([number])}


def name(number: int) -> str:
    return key(n=str(number))


def fill(folder: Path, numbers: range = range(COUNT)) -> None:
    store = Store(folder)
    for number in numbers:
        store.put(name(number), entry(number))
    store.close()


def there(folder: Path, numbers: range = range(COUNT)) -> list[int]:
    """Which entries a new process would find; each of them is as it was stored."""
    store = Store(folder, 0)
    found = {number: arrays for number in numbers if (arrays := store.get(name(number))) is not None}
    assert all(same(arrays, entry(number)) for number, arrays in found.items())
    return list(found)


def files(folder: Path, ending: str = ".pack") -> list[Path]:
    return sorted((folder / "packs").glob(f"*{ending}"))


def process(folder: Path, first: int, stop: int, wait: float = 0.0) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WORK, str(folder), str(first), str(stop), str(wait)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_arrays_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1], "a": np.array([1, 2**60]), "s": np.float32(3)}
    Store(tmp_path).put(name(1), arrays)
    found = Store(tmp_path).get(name(1))
    assert found is not None
    assert same(found, {k: np.asarray(v) for k, v in arrays.items()})
    assert Store(tmp_path).known(name(1))
    assert Store(tmp_path).get(name(2)) is None
    assert not Store(tmp_path).known(name(2))


def test_many_entries_are_one_file_and_later_processes_go_on_with_it(tmp_path: Path) -> None:
    for number in range(COUNT):
        fill(tmp_path, range(number, number + 1))
    assert len(files(tmp_path)) == 1
    assert there(tmp_path) == list(range(COUNT))
    assert {path.suffix for path in (tmp_path / "packs").iterdir()} == {".pack", ".index", ".lock"}


def test_a_full_pack_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_BYTES", 8000)
    monkeypatch.setattr(shelf, "OPEN_PACKS", 2)
    fill(tmp_path)
    assert len(files(tmp_path)) == 3
    assert there(tmp_path) == list(range(COUNT))
    fill(tmp_path, range(COUNT, COUNT + 2))
    assert there(tmp_path, range(COUNT + 2)) == list(range(COUNT + 2))


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    fill(tmp_path)
    before = files(tmp_path)[0].read_bytes()
    fill(tmp_path)
    assert [path.read_bytes() for path in files(tmp_path)] == [before]


def test_a_flipped_bit_costs_its_own_entry_wherever_it_is(tmp_path: Path) -> None:
    fill(tmp_path, range(3))
    (path,), (index,) = files(tmp_path), files(tmp_path, ".index")
    whole, size = path.read_bytes(), len(path.read_bytes()) // 3
    sealed = index.read_bytes()
    for at in range(size, 2 * size, 41):
        for data in (sealed, b""):
            index.write_bytes(data)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            # The last bytes of an entry only fill it up.
            assert there(tmp_path, range(3)) in ([0, 2], [0, 1, 2][: 3 if at >= 2 * size - packs.ALIGN else 0])
    path.write_bytes(whole[:size] + bytes(size) + whole[2 * size :])
    assert there(tmp_path, range(3)) == [0, 2]
    fill(tmp_path, range(3))
    assert there(tmp_path, range(3)) == [0, 1, 2]
    assert len(path.read_bytes()) == 4 * size


@pytest.mark.parametrize("indexed", [True, False])
def test_of_a_truncated_pack_the_whole_entries_are_left(tmp_path: Path, indexed: bool) -> None:
    fill(tmp_path, range(3))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    size = len(whole) // 3
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        if not indexed:
            files(tmp_path, ".index")[0].write_bytes(b"")
        left = there(tmp_path, range(3))
        assert left in (list(range(cut // size)), list(range((cut + packs.ALIGN) // size)))
    path.write_bytes(whole[: 2 * size + 200])
    fill(tmp_path, range(3))  # behind the last whole entry
    assert there(tmp_path, range(3)) == [0, 1, 2]
    assert path.read_bytes() == whole


def damaged(at: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:at] + b"\xff" + path.read_bytes()[at + 1 :])


@pytest.mark.parametrize(
    "harm",
    [Path.unlink, damaged(3), damaged(20), damaged(80), damaged(-1), lambda path: path.write_bytes(b"gesso")],
    ids=["missing", "magic", "count", "row", "end", "truncated"],
)
def test_an_index_that_is_not_whole_is_done_without(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    fill(tmp_path)
    harm(files(tmp_path, ".index")[0])
    assert there(tmp_path) == list(range(COUNT))
    fill(tmp_path, range(COUNT, COUNT + 1))
    assert there(tmp_path, range(COUNT + 1)) == list(range(COUNT + 1))


def test_a_missing_pack_costs_what_was_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_BYTES", 8000)
    fill(tmp_path)
    store = Store(tmp_path, 0)
    assert store.known(name(0))
    next(path for path in files(tmp_path) if bytes.fromhex(name(0)) in path.read_bytes()).unlink()
    left = there(tmp_path)
    assert 0 < len(left) < COUNT
    store.close()
    assert [number for number in range(COUNT) if store.get(name(number))] == left
    for number in range(COUNT):
        store.put(name(number), entry(number))
    assert there(tmp_path) == list(range(COUNT))


def test_what_is_held_in_memory_is_bounded_and_cannot_be_changed(tmp_path: Path) -> None:
    store = Store(tmp_path, memory_bytes=2 * (400 + OVERHEAD))
    for number in range(10):
        store.put(name(number), {"x": np.full(100, number, dtype=np.float32)})
    store.put(name(0), {"x": np.full(100, 0, dtype=np.float32)})
    store.close()
    shutil.rmtree(tmp_path)
    assert [number for number in range(10) if store.get(name(number))] == [0, 9]
    held = store.get(name(9))
    assert held is not None
    with pytest.raises(ValueError, match="read-only"):
        held["x"][0] = 5
    mine = np.zeros(3, dtype=np.float32)
    Store(tmp_path).put(key(n="mine"), {"x": mine})
    mine[0] = 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_is_a_storage_error_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(number: int, data: memoryview, offset: int) -> int:
        if len(data) > 1000:
            return write(number, data[:1000], offset)
        raise OSError(code, os.strerror(code))

    fill(tmp_path, range(2))
    before = files(tmp_path)[0].read_bytes()
    write = os.pwrite
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match="could not be written") as caught:
            store.put(name(2), entry(2))
    assert os.strerror(code) in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert [path.read_bytes() for path in files(tmp_path)] == [before]
    store.put(name(2), entry(2))
    assert there(tmp_path, range(4)) == [0, 1, 2]


def test_a_file_size_limit_in_the_middle_of_an_entry(tmp_path: Path) -> None:
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n" + WORK
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path), "0", "9", "0"], capture_output=True, text=True, check=False
    )
    assert "the cache could not be written (File too large)" in done.stderr
    assert done.stdout.split() == ["0", "1", "2", "3"]
    assert there(tmp_path) == [0, 1, 2, 3]


def test_a_killed_writer_leaves_every_entry_that_it_finished(tmp_path: Path) -> None:
    writer = process(tmp_path, 0, 10_000)
    assert writer.stdout is not None
    said = "".join(writer.stdout.read(1) for _ in range(1000))
    writer.send_signal(signal.SIGKILL)
    finished = range(int((said + writer.stdout.read()).split()[-1]) + 1)
    writer.stdout.close()
    writer.wait()
    assert len(finished) >= 100
    assert files(tmp_path, ".index") == []
    with files(tmp_path)[0].open("ab") as file:  # and what it was at when it died
        file.write(packs.encode(bytes.fromhex(name(77_777)), bytes(5000), 9)[:700])
    assert there(tmp_path, finished) == list(finished)
    fill(tmp_path, range(20_000, 20_003))
    assert len(files(tmp_path)) == 1
    assert there(tmp_path, range(20_000, 20_003)) == [20_000, 20_001, 20_002]
    assert there(tmp_path, finished) == list(finished)


def test_several_processes_write_the_same_keys_at_once(tmp_path: Path) -> None:
    writers = [process(tmp_path, 0, 300) for _ in range(3)]
    while any(writer.poll() is None for writer in writers):
        there(tmp_path, range(0, 300, 50))
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert 1 <= len(files(tmp_path)) <= 3
    assert there(tmp_path, range(300)) == list(range(300))


def test_what_another_process_adds_is_seen_without_opening_the_store_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get(name(5)) is None
    writer = process(tmp_path, 0, 10, 0.01)
    assert len(writer.communicate()[0].split()) == 10
    assert [number for number in range(10) if store.get(name(number))] == list(range(10))


def test_of_two_copies_a_damaged_one_does_no_harm(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        fill(folder)
    for ending in (".pack", ".index"):
        shutil.copy(files(tmp_path / "b", ending)[0], tmp_path / "a" / "packs")
    for path in files(tmp_path / "a"):
        whole = path.read_bytes()
        path.write_bytes(whole[:300] + b"\xff" + whole[301:])
        assert there(tmp_path / "a") == list(range(COUNT))
        path.write_bytes(whole)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything may be written by this user")
def test_a_folder_that_may_only_be_read_is_read(tmp_path: Path) -> None:
    fill(tmp_path)
    try:
        for path in [tmp_path, *tmp_path.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        assert there(tmp_path) == list(range(COUNT))
        with pytest.raises(StorageError, match="Permission denied"):
            Store(tmp_path).put(name(99), entry(99))
    finally:
        for path in [tmp_path, *tmp_path.rglob("*")]:
            path.chmod(0o755)


def test_a_disk_that_refuses_every_write_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a read-only mount does, for a user who may do anything."""
    fill(tmp_path)
    opened, made = os.open, os.mkdir

    def refused(path: Path | str, flags: int, *rest: int, **keys: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path).startswith(str(tmp_path)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest, **keys)

    def no_folder(path: Path | str, *rest: int, **keys: int) -> None:
        if str(path).startswith(str(tmp_path)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        made(path, *rest, **keys)

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(os, "mkdir", no_folder)
    monkeypatch.setattr(packs, "today", lambda: 40_000)
    assert there(tmp_path) == list(range(COUNT))
    with pytest.raises(StorageError, match="Read-only file system"):
        Store(tmp_path).put(name(99), entry(99))


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no second file system")
def test_a_cache_on_another_file_system_and_moved_to_one(tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"gesso-test-{os.getpid()}"
    try:
        fill(other)
        assert there(other) == list(range(COUNT))
        shutil.copytree(other, tmp_path / "moved")
        assert there(tmp_path / "moved") == list(range(COUNT))
    finally:
        shutil.rmtree(other, ignore_errors=True)


def test_without_positioned_reading_and_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "pwrite")
    fill(tmp_path)
    assert there(tmp_path) == list(range(COUNT))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_writes_a_pack_of_its_own(tmp_path: Path) -> None:
    forked = WORK.replace("for number", "store.put(key(n='77'), {'x': np.zeros(3)})\nchild = os.fork()\nfor number")
    arguments = [sys.executable, "-c", forked, str(tmp_path), "0", "50", "0.001"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert sorted(map(int, done.stdout.split())) == sorted([*range(50), *range(50)])
    assert there(tmp_path, range(50)) == list(range(50))
    assert len(files(tmp_path)) == 2
