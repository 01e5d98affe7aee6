"""What a run came to, in words that claim no more than its numbers carry."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gesso.arrays import Float64
from gesso.report.curve import Losses
from gesso.report.reading import Run
from gesso.trackers import jsonl
from gesso.trackers.status import duration


@dataclass(frozen=True, slots=True)
class Outcome:
    """One sentence, and whether the losses show learning (None: they cannot tell)."""

    sentence: str
    good: bool | None


def losses(run: Run) -> Losses:
    """The loss series of a run."""
    steps, train = jsonl.series(run.events, "stepped", "loss")
    checked, held_out = jsonl.series(run.events, "validated", "loss")
    _, errors = jsonl.series(run.events, "validated", "error")
    whole = errors if len(errors) == len(checked) else np.full(len(checked), math.nan)
    return Losses(steps=steps, train=train, checked=checked, held_out=held_out, errors=whole)


def outcome(found: Losses) -> Outcome:
    """Held-out losses where there are two, for they compare like with like; else the training loss."""
    held = np.isfinite(found.held_out)
    if held.sum() >= 2:
        return _held_out(found.checked[held], found.held_out[held], found.errors[held])
    train = found.train[np.isfinite(found.train)]
    if len(train) < 10:
        return Outcome("There are too few steps yet to tell whether it learned.", None)
    part = max(len(train) // 5, 5)
    (first, first_error), (last, last_error) = _mean(train[:part]), _mean(train[-part:])
    if first - last > 2 * math.hypot(first_error, last_error):
        return Outcome(f"The training loss fell from {first:.3g} to {last:.3g}.", True)
    return Outcome(
        f"The training loss shows no clear fall ({first:.3g} at first, {last:.3g} at last); each step draws other "
        "noise, so a short run often cannot show one. The pictures tell more.",
        None,
    )


def state(run: Run) -> str:
    """Where the run stands: finished, paused or still going, with its steps and its time."""
    last = run.last.get("event")
    total = int(run.latest("started").get("steps", 0))
    step = max((int(event.get("step") or 0) for event in run.events), default=0)
    if last == "finished":
        took = run.seconds
        return f"Finished {step:,} steps" + (f" in {duration(took)}." if took is not None else ".")
    if last == "paused":
        reason = run.last.get("reason", "")
        return f"Paused at step {step:,} of {total:,}" + (f": {reason}." if reason else ".")
    return f"Not finished: step {step:,} of {total:,} when this page was written." if last else "Not started yet."


def _held_out(steps: np.ndarray, values: Float64, errors: Float64) -> Outcome:
    first, last, best = float(values[0]), float(values[-1]), int(np.argmin(values))
    error = float(np.nan_to_num(errors[-1]))
    if abs(last - first) < error:
        told = f"{first:.4g} before, {last:.4g} after, with a standard error of {error:.2g}"
        return Outcome(f"The loss on held-out pictures stayed about the same: {told}.", None)
    if last >= first:
        sentence = f"The held-out loss did not fall ({first:.3g} before, {last:.3g} after)"
        lowest = f"; it was lowest, {values[best]:.3g}, at step {steps[best]:,}." if 0 < best < len(values) - 1 else "."
        return Outcome(sentence + lowest, False)
    sentence = f"The loss on held-out pictures fell from {first:.3g} to {last:.3g}, by {100 * (1 - last / first):.0f} %"
    if last - values[best] > error:
        return Outcome(f"{sentence}, but was lower, {values[best]:.3g}, at step {steps[best]:,}.", True)
    return Outcome(f"{sentence}.", True)


def _mean(values: Float64) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
