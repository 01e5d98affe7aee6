"""Stopping on request: the step in hand is finished, a checkpoint is saved, and the run ends as resumable."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGUSR1"):
    NAMES[signal.SIGUSR1] = "SIGUSR1"


class Stop:
    """Notes the first SIGINT, SIGTERM or SIGUSR1; a second one ends the process the usual way."""

    def __init__(self) -> None:
        self.reason = ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        for number in NAMES:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = NAMES[signal.Signals(number)]
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
