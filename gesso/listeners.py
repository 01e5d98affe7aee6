"""Everyone who hears of a run's events."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gesso.errors import GessoError
from gesso.events import Event, Tracker
from gesso.schema import Track
from gesso.stop import Stop
from gesso.storage import guard
from gesso.trackers.console import Console
from gesso.trackers.jsonl import Jsonl


def check_track(track: Track) -> None:
    """RecipeError where a tracker that the recipe names cannot be told: its library or a login is missing."""
    if track.wandb:
        from gesso.trackers import wandb

        wandb.check(track.wandb)


class Listeners:
    """events.jsonl and run.log always; the console, TensorBoard and Weights & Biases as the recipe says.

    With `stop`, the work before the first step ends where it next tells of its progress after a stop was asked for.
    `recipe` is what Weights & Biases shows of how the run was made.
    """

    def __init__(
        self,
        out: Path,
        track: Track,
        stop: Stop | None = None,
        recipe: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.stop = stop
        with guard(out, what="run.log"):
            self._file = (out / "run.log").open("a", encoding="utf-8", buffering=1)
        self.consoles = [Console(track.console), Console("lines", stream=self._file)]
        self.trackers: list[Tracker] = [Jsonl(out / "events.jsonl"), *self.consoles]
        if track.tensorboard:
            from gesso.trackers.tensorboard import Tensorboard

            self.trackers.append(Tensorboard(out / "logs", out))
        if track.wandb:
            from gesso.trackers.wandb import Wandb

            try:
                told = Wandb(track.wandb, out, recipe)
            except GessoError:
                self.__exit__()
                raise
            self.trackers.append(told)
            self.say(f"Weights & Biases: {told.page}")

    def __enter__(self) -> Listeners:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.trackers:
            tracker.close()
        with suppress(OSError):  # a full disk cannot take the last line; the run has said so elsewhere
            self._file.close()

    def handle(self, event: Event) -> None:
        for tracker in self.trackers:
            tracker.handle(event)

    def progress(self, what: str, done: int, total: int) -> None:
        """Work that comes before the first step. Raises KeyboardInterrupt where a stop was asked for."""
        for console in self.consoles:
            console.progress(what, done, total)
        if self.stop is not None:
            self.stop.check()

    def say(self, text: str) -> None:
        """A last word to the person, under the console's own lines."""
        for console in self.consoles:
            console.say(text)
