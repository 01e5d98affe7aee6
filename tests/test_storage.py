"""Files that exist whole or not at all, the run folder's lock, and what a full or forbidden disk says."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gesso.errors import Exit, LockedError, StorageError
from gesso.storage import (
    FullError,
    RunLock,
    Sink,
    amount,
    copy,
    free_bytes,
    fsync_tree,
    guard,
    hidden,
    probe,
    publish,
    replacing,
    require,
    sweep,
    write_bytes,
    write_json,
)

HOLDER = """
import sys, time
from pathlib import Path
from gesso.storage import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_is_told_of_the_first_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError) as told, RunLock(tmp_path):
            pass
        assert told.value.exit == Exit.LOCKED
        assert f"process {holder.pid} on " in str(told.value)
        assert "started 2" in str(told.value)
        assert "--out" in str(told.value)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock.json").exists()


def test_lock_of_a_holder_that_has_not_signed_is_still_a_lock(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / ".lock.json").write_text("{")
        with pytest.raises(LockedError, match="another run"), RunLock(tmp_path):
            pass


def test_replacing_keeps_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def half(sink: Sink) -> None:
        sink.write(b"ne")
        assert path.read_bytes() == b"old"
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"), replacing(path) as sink:
        half(sink)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    with replacing(path) as sink:
        sink.write(memoryview(b"new "))
        sink.write(b"content")
    assert path.read_bytes() == b"new content"


def test_short_writes_of_the_system_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data)[:3]))
    write_bytes(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a", b"a")
        (tmp_path / "a").chmod(0o600)
        copy(tmp_path / "a", tmp_path / "b")
    finally:
        os.umask(before)
    assert (tmp_path / "b").stat().st_mode & 0o777 == mode


def test_publish_replaces_a_folder_whole(tmp_path: Path) -> None:
    final = tmp_path / "part"
    for text in ("first", "second"):
        temporary = hidden(final)
        temporary.mkdir()
        (temporary / "file").write_text(text)
        fsync_tree(temporary)
        publish(temporary, final)
        assert (final / "file").read_text() == text
        assert os.listdir(tmp_path) == ["part"]


def test_publish_puts_the_old_folder_back_when_the_new_cannot_take_its_place(tmp_path: Path) -> None:
    final = tmp_path / "part"
    final.mkdir()
    with pytest.raises(FileNotFoundError):
        publish(hidden(final), final)
    assert os.listdir(tmp_path) == ["part"]


def test_sweep_settles_only_what_gesso_left(tmp_path: Path) -> None:
    own = [".checkpoint-3.tmp-0123abcd", ".latest.tmp-00000000"]
    foreign = [
        ".checkpoint-3.tmp-mine",
        ".checkpoint-3.tmp-0123abcdef",
        "checkpoint-final",
        ".hidden",
        "x.tmp-0123abcd",
    ]
    (tmp_path / own[0] / "unet").mkdir(parents=True)
    (tmp_path / own[1]).write_text("half")
    for name in foreign:
        (tmp_path / name).mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keep").write_text("me")
    (tmp_path / ".link.tmp-0123abcd").symlink_to(elsewhere)
    (tmp_path / ".checkpoint-7.old-0123abcd").mkdir()
    (tmp_path / ".checkpoint-8.old-0123abcd").mkdir()
    (tmp_path / "checkpoint-8").mkdir()

    said = sweep(tmp_path)

    assert sorted(os.listdir(tmp_path)) == sorted(
        [*foreign, "elsewhere", ".link.tmp-0123abcd", "checkpoint-7", "checkpoint-8"]
    )
    assert (elsewhere / "keep").read_text() == "me"
    assert len(said) == 4
    assert any("checkpoint-3 was incomplete" in line for line in said)
    assert any("checkpoint-7 was being replaced" in line and "back in its place" in line for line in said)
    assert sweep(tmp_path) == []
    assert sweep(tmp_path / "missing") == []


def test_probe_makes_the_folder_and_leaves_nothing(tmp_path: Path) -> None:
    probe(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_probe_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written") as told:
        probe(tmp_path / "file" / "run")
    assert told.value.exit == Exit.STORAGE

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StorageError, match="not supported"):
        probe(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="the super-user may write anywhere")
def test_probe_names_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission denied"):
        probe(tmp_path / "run")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no room on the disk: checkpoint-4 needs 3.0 MB"),
        (errno.EDQUOT, "no room on the disk"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_guard_turns_the_systems_refusals_into_sentences(tmp_path: Path, code: int, words: str) -> None:
    with pytest.raises(StorageError) as told, guard(tmp_path, what="checkpoint-4", needed=3_000_000):
        raise OSError(code, os.strerror(code))
    assert words in str(told.value)
    assert str(tmp_path) in str(told.value)
    assert "What to do" in str(told.value)


def test_require_compares_needed_with_free(tmp_path: Path) -> None:
    free = free_bytes(tmp_path / "not" / "yet" / "there")
    assert free > 0
    require(tmp_path, 1, what="a file")
    with pytest.raises(FullError) as told:
        require(tmp_path, 2 * free + 10**9, what="checkpoint-9")
    assert told.value.needed == 2 * free + 10**9
    assert told.value.free > 0
    assert "checkpoint-9 needs" in str(told.value)
    assert "are free" in str(told.value)


def test_amounts_are_for_people() -> None:
    assert [amount(n) for n in (0, 999, 1_000, 3_440_000, 12_100_000_000)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "3.4 MB",
        "12.1 GB",
    ]


def test_json_is_the_same_whatever_the_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "é"})
    write_json(tmp_path / "b", {"a": "é", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == {"a": "é", "b": 1}
