"""Reads a pickle in a process of its own, which can do next to nothing: what `gesso convert --unsafe-pickle` means.

The process (old_pickles.py) calls nothing that the pickle names. Around that it has limits of memory, time, open files
and bytes written, an empty environment, a network of its own with nothing in it where the system allows that, and a
folder of its own to write one file to.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from gesso.errors import StorageError
from gesso.formats import stored

SECONDS = 600
_MEMORY = 2 << 30
"""Bytes besides three times the file's own."""
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
"""CLONE_NEWUSER and CLONE_NEWNET of Linux."""


def read(path: Path, folder: Path) -> Path:
    """A safetensors file in `folder` with the tensors of the pickle at `path`.

    Raises StorageError with what the process says, or where a limit ended it.
    """
    target = folder / f"{path.stem}.safetensors"
    size = path.stat().st_size
    command = [sys.executable, "-I", "-m", "gesso.formats.old_pickles", str(path.resolve()), str(target.resolve())]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            cwd=folder,
            env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            preexec_fn=(lambda: limit(size)) if sys.platform != "win32" else None,
        )
    except subprocess.TimeoutExpired as error:
        raise StorageError(f"reading this pickle took more than {SECONDS} s", where=str(path)) from error
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        raise StorageError(why[0], where=str(path), todo="fetch the model as safetensors")
    stored.open_safetensors(target)
    return target


def limit(size: int) -> None:
    """Take from this process what reading a pickle of `size` bytes does not need; called between fork and start."""
    import resource

    for what, most in (
        (resource.RLIMIT_AS, _MEMORY + 3 * size),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, 2 * size + (1 << 20)),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]  # which may be less already, and cannot be raised
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))
    with suppress(OSError, AttributeError):  # not every system has it, and containers may forbid it
        ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK)
