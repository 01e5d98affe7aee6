"""What a run tells its listeners. An event is yielded only once its fact is true.

Order of a run::

    Started
      (Validated)? (Sampled)? (Saved)?          at step 0, then
      [ Stepped  (Validated)? (Sampled)? (Saved)? ]*
      Warned anywhere
    Paused | Finished

The JSON form of an event is `{"event": "stepped", "time": …, **fields}`: snake_case, one object a line.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that has happened, at an optimiser step (0: before training)."""

    step: int = 0

    @property
    def name(self) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def as_json(self) -> dict[str, Any]:
        def plain(value: Any) -> Any:
            if isinstance(value, Path):
                return value.as_posix()
            if isinstance(value, dict):
                return {str(k): plain(v) for k, v in value.items()}
            return [plain(v) for v in value] if isinstance(value, list | tuple) else value

        return {"event": self.name, **plain(asdict(self))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """The model is loaded and the data is ready; `step` is where training starts (> 0 when resumed)."""

    run: str
    steps: int
    batch: int
    pictures: int
    class_pictures: int = 0
    encoded: int = 0
    """Pictures and captions that were encoded for this run."""
    from_cache: int = 0
    """Those that were found encoded."""
    trainable: int = 0
    """Trainable parameters."""
    what: str = ""
    """One line for people: what is trained, on what, on which device, in which precision."""
    resumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped(Event):
    """One optimiser step was taken; `step` counts it. `loss` is the weighted training loss of the global batch."""

    loss: float
    lr: float
    grad_norm: float
    seconds: float
    """Wall time since the previous step ended."""
    rates: dict[str, float] = field(default_factory=dict)
    """The learning rate of each group, that learns, where a run has several; `lr` is the first."""
    skipped: bool = False
    """True when the gradient was not finite and the weights were left as they were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated(Event):
    """Held-out loss at fixed noise and timesteps, unweighted, with the standard error over pictures."""

    loss: float
    error: float
    pictures: int
    by_timestep: dict[int, float] = field(default_factory=dict)
    error_by_timestep: dict[int, float] = field(default_factory=dict)
    by_picture: list[float] = field(default_factory=list)
    """Each held-out picture's loss, by its row: what two measurements share, their difference does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture drawn during the run; `file` is relative to the run folder."""

    prompt: str
    seed: int
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Event):
    samples: list[Sample]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(Event):
    """A checkpoint was published; `folder` is relative to the run folder."""

    folder: str
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(Event):
    """The run stopped before its end, on request; starting it again goes on from `step`."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Event):
    seconds: float
    files: list[str]
    """What to use, relative to the run folder."""


class Tracker(Protocol):
    """A listener. `handle` must not raise for what it cannot show; `close` is always called."""

    def handle(self, event: Event) -> None: ...

    def close(self) -> None: ...
