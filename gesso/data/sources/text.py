"""Caption text from bytes: UTF-8, UTF-16 with its mark, or what the recipe names. Never a guess."""

from __future__ import annotations

import codecs
from pathlib import Path

from gesso.errors import DataError, RecipeError


def check_encoding(encoding: str) -> None:
    """Raise RecipeError where `encoding` (unless empty) is not a text encoding that Python knows."""
    try:
        "x".encode(encoding or "utf-8")
    except LookupError as error:
        raise RecipeError(
            f'data.encoding = "{encoding}" is not a known text encoding',
            todo='"cp1252", "gbk" and "shift_jis" are usual',
        ) from error


def read(path: Path, where: str, encoding: str = "") -> str:
    """The text of a file, without its byte-order mark. `where` names the file in messages.

    A byte-order mark decides; then UTF-8 is tried; then `encoding`, where given.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=where, todo="check its permissions") from error
    return decoded(data, where, encoding)


def decoded(data: bytes, where: str, encoding: str = "") -> str:
    """The text in `data`, as `read` gives it of a file."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decode(data, "utf-16", where)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return _decode(data, encoding or "utf-8", where)


def clean(text: str, where: str) -> str:
    """The caption without the white space around it. Raises DataError for what no tokenizer can take."""
    if "\0" in text:
        raise DataError(
            f"the caption holds a NUL character (number {text.index(chr(0))})",
            where=where,
            todo="remove it; UTF-16 text without a byte-order mark also looks like this: save it as UTF-8",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the caption holds half a character (a lone surrogate, number {error.start})",
            where=where,
            todo="remove it",
        ) from error
    return text.strip()


def _decode(data: bytes, encoding: str, where: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"the text is not {encoding.upper()}: byte {error.start} is 0x{data[error.start]:02x} ({error.reason})",
            where=where,
            todo='save the file as UTF-8, or name its encoding, such as data.encoding = "cp1252"',
        ) from error
