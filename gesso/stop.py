"""Stopping on request: the step in hand is finished, a checkpoint is saved, and the run ends as resumable."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGUSR1"):
    NAMES[signal.SIGUSR1] = "SIGUSR1"
NOTED = b"gesso: stopping after this step; once more to stop now\n"


class Stop:
    """Notes the first SIGINT, SIGTERM or SIGUSR1 and says so; each further one raises KeyboardInterrupt at once.

    An exception, whatever the signal was: the stack unwinds, and locks and half-written files are cleared away. Only
    Python's main thread can take signals; entered in another one, this does nothing.
    """

    def __init__(self) -> None:
        self.reason = ""
        """What asked for the stop; "" as long as nothing did."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in NAMES:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None is a handler that was not set from Python, and cannot be set back from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def check(self) -> None:
        """Raise KeyboardInterrupt if a stop was asked for: for work that has nothing to finish and nothing to save."""
        if self.reason:
            raise KeyboardInterrupt(self.reason)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = NAMES[signal.Signals(number)]
        if self.reason:
            raise KeyboardInterrupt(name)
        self.reason = name
        # Past Python's own buffers, which the interrupted line may be writing to. Nobody may be there to read.
        with suppress(OSError):
            os.write(2, b"\n" + NOTED if os.isatty(2) else NOTED)
