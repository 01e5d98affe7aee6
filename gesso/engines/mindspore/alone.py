"""One thread in MindSpore at a time: it ends the process where a picture is encoded in one while another one trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
BUSY = RLock()
"""Held by whoever works with MindSpore, of all engines of the process; a verb may call another."""


def alone(verb: Callable[P, T]) -> Callable[P, T]:
    """The verb, which waits until no other thread is in one."""

    @wraps(verb)
    def waiting(*given: P.args, **named: P.kwargs) -> T:
        with BUSY:
            return verb(*given, **named)

    return waiting
