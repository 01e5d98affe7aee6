"""What can stop a run, and the exit code that says so to a script.

Every message a user can see is written here or raised as one of these: what happened, where, and what to do.
"""

from __future__ import annotations

import re
from enum import IntEnum

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Exit(IntEnum):
    """Process exit codes (docs/architecture.md lists them for users)."""

    DONE = 0
    RECIPE = 2
    DATA = 3
    DEVICE = 4
    STORAGE = 5
    NETWORK = 6
    NUMBERS = 7
    LOCKED = 8
    STOPPED = 75


def printable(text: str) -> str:
    """Text for a terminal: control characters, which a file's names may hold, are escaped; lines and tabs stay."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class GessoError(Exception):
    """An error with a place and a remedy; `str()` is the whole message for the user."""

    exit = Exit.RECIPE

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what, self.where, self.todo = what, where, todo
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what if not self.where else f"{self.where}: {self.what}"]
        if self.todo:
            lines.append(f"  What to do: {self.todo}")
        return printable("\n".join(lines))


class RecipeError(GessoError):
    """A recipe, flag or command line that cannot be carried out."""

    exit = Exit.RECIPE


class DataError(GessoError):
    """Pictures or captions that cannot be used."""

    exit = Exit.DATA


class DeviceError(GessoError):
    """A device that is missing, unsuitable or out of memory."""

    exit = Exit.DEVICE


class StorageError(GessoError):
    """A disk that is full, read-only, or holds something damaged."""

    exit = Exit.STORAGE


class NetworkError(GessoError):
    """A host the user named that cannot be reached or refuses."""

    exit = Exit.NETWORK


class NumbersError(GessoError):
    """Training that no longer produces finite numbers."""

    exit = Exit.NUMBERS


class LockedError(GessoError):
    """A run folder that another process is using."""

    exit = Exit.LOCKED
