"""Threads that read, decode and crop pictures before they are wanted.

Pillow, hashing and reading let other threads work meanwhile. Everything a reader does is a function of what it is asked
for, and its answers are taken in the order in which they were asked for: the number of readers changes no bit and no
order. The model is never asked from here.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from gesso.data.encoded import Pictures, Wanted

MOST = 8
"""Readers that are taken without being asked for, at most."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def number(readers: int) -> int:
    """How many readers there are: as many as the recipe says, or for 0 one for each of this process's processors."""
    if readers:
        return readers
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(mine, MOST)


def in_order(
    work: Callable[[Item], Answer], items: Iterable[Item], readers: int
) -> Generator[tuple[Item, Future[Answer]]]:
    """Each item with what `work` answers or raises for it, in the order of `items`, worked out ahead.

    At most one answer more than there are readers waits to be taken. Closing the iterator ends the threads.
    """
    pool = ThreadPoolExecutor(number(readers), thread_name_prefix="gesso-readers")
    waiting: deque[tuple[Item, Future[Answer]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > number(readers):
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Readers:
    """Reads for `pictures` what coming steps will ask it for."""

    def __init__(self, pictures: Pictures, readers: int) -> None:
        self._pictures = pictures
        self._pool = ThreadPoolExecutor(number(readers), thread_name_prefix="gesso-readers")

    def expect(self, wanted: Iterable[Wanted]) -> None:
        """Begin to read what is not in memory. What goes wrong is raised where it is asked for."""
        ahead = self._pictures.ahead
        for one in wanted:
            if one not in ahead and not self._pictures.at_hand(*one):
                ahead[one] = self._pool.submit(self._pictures.read, *one)

    def close(self) -> None:
        """End the threads; nobody may be waiting for an answer."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pictures.ahead.clear()
