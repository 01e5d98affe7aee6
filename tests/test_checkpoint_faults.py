"""A save that is killed, refused or out of room, at every place where that can happen.

The first two tests leave out the flushes, which only cost time there: strace's tests make them, and
tests/test_checkpoint.py checks their order.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import SAVES, Killed, faulty, save, sound

from gesso.checkpoint import Checkpoints
from gesso.errors import StorageError
from gesso.storage import FullError


@pytest.mark.parametrize("which", SAVES)
def test_killed_at_every_call_old_or_new_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    step, allowed = SAVES[which]
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    save(tmp_path / "start", 10, 1.0)
    shutil.copytree(tmp_path / "start", tmp_path / "clean")
    with faulty(0, Killed, dead=True) as calls:
        save(tmp_path / "clean", step, 2.0)
    assert len(calls) > 30
    for at in range(1, len(calls) + 1):
        out = tmp_path / str(at)
        shutil.copytree(tmp_path / "start", out)
        with pytest.raises(Killed), faulty(at, Killed, dead=True):
            save(out, step, 2.0)
        sound(out, allowed)


@pytest.mark.parametrize("which", SAVES)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_refused_at_every_call_old_or_new_remains_without_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, code: int
) -> None:
    step, allowed = SAVES[which]
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    save(tmp_path / "start", 10, 1.0)
    shutil.copytree(tmp_path / "start", tmp_path / "clean")
    with faulty(0, Killed, dead=False) as calls:
        save(tmp_path / "clean", step, 2.0)
    for at, call in enumerate(calls, start=1):
        out = tmp_path / str(at)
        shutil.copytree(tmp_path / "start", out)
        refusal = _refusal(out, step, at, code)
        if refusal is None:
            assert call.startswith("mkdir")  # of a folder that was there already
        else:
            assert isinstance(refusal, FullError) == (code == errno.ENOSPC)
            assert f"checkpoint-{step}" in str(refusal)
        if call.startswith("write"):
            assert [name for name in os.listdir(out) if name.startswith(".")] == []
        sound(out, allowed)


def _refusal(out: Path, step: int, at: int, code: int) -> StorageError | None:
    try:
        with faulty(at, lambda: OSError(code, os.strerror(code)), dead=False):
            save(out, step, 2.0)
    except StorageError as error:
        return error
    return None


STRACED = """
import os, sys
from pathlib import Path
import numpy as np
from gesso.checkpoint import Checkpoints
root, call, points = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
spare = os.open(root / "spare", os.O_RDWR)
idle = {"write": lambda: os.write(spare, b"x"), "fsync": lambda: os.fsync(spare),
        "rename": lambda: os.rename(root / "spare", root / "spare"), "mkdir": lambda: make()}
def make():
    try:
        os.mkdir(root)
    except FileExistsError:
        return root
codes = []
for point in range(points):
    child = os.fork()
    if child == 0:
        for _ in range(points - 1 - point):
            idle[call]()
        files = {"weights.safetensors": {"unet.a": np.full((4, 3), 2.0, np.float32), "unet.b": np.arange(5.0)},
                 "unet/config.json": lambda path: path.write_text('{"value": 2.0}')}
        Checkpoints(root / str(point), 1).save(int(sys.argv[4]), files, {"recipe": {"seed": 7}})
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
Path(sys.argv[5]).touch() if all(code == -9 for code in codes) else sys.exit(f"{codes}")
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not on this machine")
@pytest.mark.parametrize("which", SAVES)
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
def test_sigkill_inside_every_system_call(tmp_path: Path, call: str, which: str) -> None:
    """The kernel's own SIGKILL at the n-th call of a kind, for every n of a save.

    strace counts calls from a child's start and kills at a fixed one; child n makes so many idle calls before that it
    is the save's n-th call which dies. One process imports gesso and forks all children.
    """
    step, allowed = SAVES[which]
    save(tmp_path / "start", 10, 1.0)
    shutil.copytree(tmp_path / "start", tmp_path / "clean")
    with faulty(0, Killed, dead=True) as calls:
        save(tmp_path / "clean", step, 2.0)
    names = ("rename", "replace") if call == "rename" else (call,)
    points = sum(made.split()[0] in names for made in calls) + (
        call == "write"
    )  # Path.write_text does not use os.write
    assert points >= 2
    (tmp_path / "spare").touch()
    for point in range(points):
        shutil.copytree(tmp_path / "start", tmp_path / str(point))
    kind = f"/^{call}(at2?)?$"  # newer processors have only renameat2 and mkdirat
    inject = ["-e", f"inject={kind}:signal=KILL:when={points}"]
    script = [sys.executable, "-c", STRACED, str(tmp_path), call, str(points), str(step), str(tmp_path / "done")]
    trace = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={kind}", *inject]
    done = subprocess.run([*trace, *script], capture_output=True, text=True, timeout=120)
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("this machine does not let a process be traced")
    assert (tmp_path / "done").exists(), done.stderr
    for point in range(points):
        sound(tmp_path / str(point), allowed)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from gesso.checkpoint import Checkpoints
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Checkpoints(Path(sys.argv[1]), 1).save(20, {"w.safetensors": {"a": np.zeros(100_000, np.float32)}}, {})
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no file sizes")
def test_a_file_size_limit_of_the_system_keeps_the_older_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10, 1.0)
    before = sorted(os.listdir(tmp_path))
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("FullError")
    assert "checkpoint-20 needs 1.4 MB" in done.stdout
    assert sorted(os.listdir(tmp_path)) == before
    sound(tmp_path, {(10, 1.0)})


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        out = disk / "run"
        save(out, 10, 1.0)
        big = np.zeros(1_000_000, np.float32)
        with pytest.raises(FullError, match=r"checkpoint-20 needs 5\.0 MB, .* are free"):
            Checkpoints(out, 1).save(20, {"w.safetensors": {"a": big}}, {})

        def fill(path: Path) -> None:  # size not known beforehand: the disk itself refuses
            path.write_bytes(big.tobytes())

        with pytest.raises(FullError, match="no room on the disk: checkpoint-20"):
            Checkpoints(out, 1).save(20, {"w.bin": fill}, {})
        assert sorted(os.listdir(out)) == ["checkpoint-10", "latest"]
        sound(out, {(10, 1.0)})
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageError, match="read-only"):
            save(out, 100, 1.0)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
