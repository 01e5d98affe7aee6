"""What a pickle names, without loading it.

A pickle is a program: loading one can run anything. Here its instructions are only listed (pickletools), never carried
out, from at most LARGEST bytes. PyTorch's files are zip archives with one pickle, or a pickle alone.
"""

from __future__ import annotations

import io
import lzma
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any, cast

from gesso.errors import StorageError

LARGEST = 32 << 20
"""Bytes of the pickle in an archive at most; that of a whole Stable Diffusion has under one million."""
MOST_STEPS = 1 << 20
"""Instructions of a pickle that are followed; that of a whole Stable Diffusion has under 100 thousand."""
_MOST_NAMES = 1000
_HARMLESS = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\.(Float|Half|BFloat16|Double|Long|Int|Short|Char|Byte|Bool)Storage|torch\.Size"
    r"|torch\.storage\.(Untyped|Typed)Storage|torch\.(bfloat16|float16|float32|float64|int64|int32|uint8|bool)"
    r"|collections\.OrderedDict|numpy\.(core|_core)\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)"
    r"|numpy\.(dtype|ndarray)|_codecs\.encode|torch\.nn\.modules\.container\.ParameterDict|(__builtin__|builtins)\.set"
)
"""What PyTorch and numpy need to put tensors and arrays together."""
HIDDEN = "a name that the file hides"
_IN_A_FILE = 5
"""PyTorch's older files are so many pickles, one after another, before the tensors' bytes."""
TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING")
PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
GETS = ("GET", "BINGET", "LONG_BINGET")
BROKEN_ZIP = (
    zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, LookupError, OSError, struct.error,
    zlib.error, lzma.LZMAError,
)  # fmt: skip


def looks_like(head: bytes) -> bool:
    """Whether a file that begins so is a pickle of protocol 2 or later, or a zip archive."""
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def is_old(path: Path) -> bool:
    """Whether a file is a pickle of protocol 0 or 1, which no mark at its beginning tells: its instructions do."""
    with path.open("rb") as opened:
        if opened.read(1) not in (b"(", b"c", b"}", b"]"):
            return False
        try:
            with mmap(opened.fileno(), 0, access=ACCESS_READ) as whole, quiet():
                return sum(1 for _ in steps(whole)) > 1
        except ValueError:
            return False


def named(path: Path) -> list[str]:
    """What the pickles in a file would import, "module.name" each, in order.

    Raises StorageError for an archive without a pickle, and for one that is damaged or too long.
    """
    with path.open("rb") as opened:
        if opened.read(4) != b"PK\x03\x04":
            # Mapped, because a read of the length that a pickle claims would first make that much memory.
            with mmap(opened.fileno(), 0, access=ACCESS_READ) as whole:
                return listed(whole, path)
    return list(dict.fromkeys(name for raw in _from_zip(path) for name in listed(io.BytesIO(raw), path)))


def unusual(names: list[str]) -> list[str]:
    """Those of the names that tensors do not need: a reason not to load the file anywhere."""
    return sorted({name for name in names if not _HARMLESS.fullmatch(name)})


def steps(whole: IO[bytes] | mmap) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    """The instructions of one pickle; ValueError where it is damaged, or has more than MOST_STEPS."""
    for number, step in enumerate(pickletools.genops(cast("IO[bytes]", whole))):
        if number >= MOST_STEPS:
            raise ValueError(f"it has over {MOST_STEPS} instructions")
        yield step


def listed(whole: io.BytesIO | mmap, path: Path) -> list[str]:
    """What the pickles at the beginning of `whole` would import."""
    found: dict[str, None] = {}
    try:
        with quiet():
            for number in range(_IN_A_FILE):
                at = whole.tell()
                if number and whole.read(1) != b"\x80":
                    break
                whole.seek(at)
                for name in _imports(whole):
                    found[name] = None
                    if len(found) >= _MOST_NAMES:
                        return list(found)
    except ValueError as error:
        raise StorageError(f"this pickle is cut off or damaged: {error}", where=str(path)) from error
    return list(found)


@contextmanager
def quiet() -> Iterator[None]:
    """pickletools warns of texts with odd escapes, which say nothing to a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _imports(whole: io.BytesIO | mmap) -> Iterator[str]:
    """The names of one pickle's imports.

    A name that is put together from two texts on the stack is only believed where both were put there just before;
    any other way of finding it is one that PyTorch does not write.
    """
    memo: dict[int, str] = {}
    texts: list[str] = []
    for code, argument, _ in steps(whole):
        if code.name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else ""
        elif code.name in PUTS:
            memo[int(str(argument))] = texts[-1] if texts else ""
        elif code.name in TEXTS:
            texts.append(str(argument))
        elif code.name in GETS:
            texts.append(memo.get(int(str(argument)), ""))
        else:
            if code.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".", 1)
            elif code.name == "STACK_GLOBAL":
                yield ".".join(texts[-2:]) if len(texts) > 1 and all(texts[-2:]) else HIDDEN
            elif code.name in ("EXT1", "EXT2", "EXT4"):
                yield HIDDEN
            texts = []


def _from_zip(path: Path) -> list[bytes]:
    """All pickles in the archive: which of them another reader would load is not known here."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [one for one in archive.infolist() if one.filename.endswith(".pkl")]
            if not any(one.filename.rpartition("/")[2] == "data.pkl" for one in inside):
                raise StorageError(
                    "this is a zip archive, but not one of PyTorch's: it has no data.pkl", where=str(path)
                )
            large = sum(one.file_size for one in inside)
            if large > LARGEST:
                raise StorageError(f"its pickle has {large} bytes, a whole model's under a million", where=str(path))
            names = [one.filename for one in archive.infolist()]
            twice = next((name for name, count in Counter(names).items() if count > 1), None)
            if twice is not None:
                raise StorageError(f'the name "{twice}" is in this archive twice', where=str(path))
            return [archive.read(one) for one in inside]
    except BROKEN_ZIP as error:
        raise StorageError(f"this zip archive is cut off or damaged: {error}", where=str(path)) from error
