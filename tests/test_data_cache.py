"""The store on disk: whole entries or none, whoever else uses the folder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_parts import same

from gesso.data.cache import Store, key
from gesso.errors import StorageError


def entry(folder: Path) -> Path:
    (path,) = folder.glob("??/*.safetensors")
    return path


def test_arrays_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1], "a": np.array([1, 2**60]), "s": np.float32(3)}
    name = key(kind="test", number="1")
    Store(tmp_path).put(name, arrays)
    found = Store(tmp_path).get(name)
    assert found is not None
    assert same(found, {k: np.asarray(v) for k, v in arrays.items()})
    assert entry(tmp_path).parent.name == name[:2]
    assert Store(tmp_path).get(key(kind="test", number="2")) is None


def test_a_file_damaged_anywhere_counts_as_absent_and_is_made_anew(tmp_path: Path) -> None:
    name, arrays = key(kind="test"), {"x": np.arange(8, dtype=np.float32)}
    Store(tmp_path).put(name, arrays)
    path = entry(tmp_path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        found = Store(tmp_path).get(name)
        assert found is None or same(found, arrays)
        path.write_bytes(whole[:at])
        assert Store(tmp_path).get(name) is None
    Store(tmp_path).put(name, arrays)
    assert path.read_bytes() == whole


def test_what_is_held_in_memory_is_bounded_and_cannot_be_changed(tmp_path: Path) -> None:
    store = Store(tmp_path, memory_bytes=1000)
    for number in range(10):
        store.put(key(n=str(number)), {"x": np.full(100, number, dtype=np.float32)})
    store.put(key(n="0"), {"x": np.full(100, 0, dtype=np.float32)})
    shutil.rmtree(tmp_path)
    assert [number for number in range(10) if store.get(key(n=str(number)))] == [0, 9]
    held = store.get(key(n="9"))
    assert held is not None
    with pytest.raises(ValueError, match="read-only"):
        held["x"][0] = 5
    mine = np.zeros(3, dtype=np.float32)
    Store(tmp_path).put(key(n="mine"), {"x": mine})
    mine[0] = 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_a_storage_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StorageError, match="could not be written") as caught:
            Store(tmp_path).put(key(n="1"), {"x": np.zeros(3)})
    assert os.strerror(code) in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def write_many(folder: str) -> None:
    for number in range(40):
        Store(Path(folder)).put(key(n=str(number % 4)), {"x": np.full(5000, number % 4, dtype=np.float32)})


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_many, args=(str(tmp_path),)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        for number in range(4):
            found = Store(tmp_path).get(key(n=str(number)))
            assert found is None or (found["x"] == number).all()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 4
