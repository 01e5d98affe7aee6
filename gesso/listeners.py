"""Everyone who hears of a run's events."""

from __future__ import annotations

from pathlib import Path

from gesso.events import Event, Tracker
from gesso.schema import Track
from gesso.trackers.console import Console
from gesso.trackers.jsonl import Jsonl


class Listeners:
    """events.jsonl always; the console and TensorBoard as the recipe says."""

    def __init__(self, out: Path, track: Track) -> None:
        self.console = Console(track.console)
        self.trackers: list[Tracker] = [Jsonl(out / "events.jsonl"), self.console]
        if track.tensorboard:
            from gesso.trackers.tensorboard import Tensorboard

            self.trackers.append(Tensorboard(out / "logs", out))

    def __enter__(self) -> Listeners:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.trackers:
            tracker.close()

    def handle(self, event: Event) -> None:
        for tracker in self.trackers:
            tracker.handle(event)

    def progress(self, what: str, done: int, total: int) -> None:
        """Work that comes before the first step."""
        self.console.progress(what, done, total)

    def say(self, text: str) -> None:
        """A last word to the person, under the console's own lines."""
        self.console.say(text)
