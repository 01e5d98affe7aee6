"""Where a run stands, from its events: what every live view shows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from gesso.events import Event, Finished, Paused, Sampled, Saved, Started, Stepped, Validated

PAST = 0.95
"""Share of the past in the smoothed loss and in the pace: about the last 20 steps count."""


@dataclass(slots=True)
class Average:
    """An exponential moving average, unbiased from its first value on (Kingma & Ba 2015, section 3)."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> None:
        """Take in one more value; one that is not finite says nothing about the mean."""
        if math.isfinite(value):
            self.total = PAST * self.total + (1 - PAST) * value
            self.weight = PAST * self.weight + (1 - PAST)

    @property
    def value(self) -> float:
        """NaN before the first value."""
        return self.total / self.weight if self.weight else math.nan


@dataclass(slots=True, kw_only=True)
class Status:
    """The latest of everything. Losses are mean squared errors; NaN and "" stand for not yet known."""

    run: str = ""
    what: str = ""
    state: str = "waiting"
    """waiting, running, paused or finished."""
    step: int = 0
    steps: int = 0
    lr: float = math.nan
    held_out: float = math.nan
    held_out_error: float = math.nan
    checkpoint: str = ""
    samples: str = ""
    """Folder of the newest samples, relative to the run folder."""
    skipped: int = 0
    stepped: int = 0
    """Steps since the start of the process."""
    smoothed: Average = field(default_factory=Average)
    seconds: Average = field(default_factory=Average)

    def take(self, event: Event) -> None:
        """Bring the status up to date with one more event."""
        self.step = max(self.step, event.step) if not isinstance(event, Started) else event.step
        match event:
            case Started():
                self.run, self.what, self.steps, self.state = event.run, event.what, event.steps, "running"
            case Stepped():
                self.lr = event.lr
                self.skipped += event.skipped
                self.smoothed.add(event.loss)
                if self.stepped == 1:  # the first compiles, or fills caches, and says nothing of the others
                    self.seconds = Average()
                self.stepped += 1
                self.seconds.add(event.seconds)
            case Validated():
                self.held_out, self.held_out_error = event.loss, event.error
            case Sampled() if event.samples:
                self.samples = str(PurePosixPath(event.samples[0].file).parent)
            case Saved():
                self.checkpoint = event.folder
            case Paused() | Finished():
                self.state = event.name
            case _:
                pass

    @property
    def loss(self) -> float:
        """The smoothed training loss."""
        return self.smoothed.value

    @property
    def pace(self) -> float:
        """Steps per second, lately; NaN before the first step."""
        return 1.0 / self.seconds.value if self.seconds.value > 0 else math.nan

    @property
    def left(self) -> float:
        """Seconds to the end at this pace, pictures and checkpoints on the way included."""
        return max(self.steps - self.step, 0) * self.seconds.value


def duration(seconds: float) -> str:
    """A time span for people: "0.25 s", "8 s", "2 min 05 s", "3 h 20 min", "2 d 4 h"; "?" when not known."""
    if not math.isfinite(seconds):
        return "?"
    if 0 <= seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(max(seconds, 0.0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: int) -> str:
    """Bytes for people, in decimal units: "850 B", "3.2 MB"."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
