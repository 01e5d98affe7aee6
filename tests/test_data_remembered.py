"""A file's SHA-256 is remembered while nothing about the file has changed, and read anew when anything has."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from gesso.data import remembered
from gesso.data.cache import Store


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file whose bytes are read from now on."""
    seen: list[Path] = []
    plain = remembered.fingerprint

    def noted(path: Path) -> str:
        seen.append(path)
        return plain(path)

    monkeypatch.setattr(remembered, "fingerprint", noted)
    monkeypatch.setattr(remembered, "SETTLED_NS", -1)
    return seen


def true(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_unchanged_file_is_read_once_even_by_the_next_process(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    for _ in range(3):
        assert remembered.sha256(path, Store(tmp_path / "cache")) == true(path)
    assert len(read) == 1


def test_a_change_that_keeps_size_and_mtime_is_seen(tmp_path: Path, read: list[Path]) -> None:
    path, store = tmp_path / "weights", Store(tmp_path / "cache")
    path.write_bytes(b"one")
    before = path.stat()
    first = remembered.sha256(path, store)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert remembered.sha256(path, store) == true(path) != first


def test_a_file_put_in_its_place_is_seen(tmp_path: Path, read: list[Path]) -> None:
    path, other, store = tmp_path / "weights", tmp_path / "other", Store(tmp_path / "cache")
    path.write_bytes(b"one")
    other.write_bytes(b"two")
    first = remembered.sha256(path, store)
    os.replace(other, path)
    assert remembered.sha256(path, store) == true(path) != first


def test_a_file_that_changed_just_now_is_not_remembered(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "SETTLED_NS", 60_000_000_000)
    path, store = tmp_path / "weights", Store(tmp_path / "cache")
    path.write_bytes(b"one")
    assert remembered.sha256(path, store) == remembered.sha256(path, store) == true(path)
    assert len(read) == 2
