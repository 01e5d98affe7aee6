"""A training run, told as events. The only control flow there is: it decides when, and asks others to do."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from gesso.data.batch import Batch
from gesso.data.batches import Batches
from gesso.engines.engine import Engine, Metrics, SampleRequest, StepResult
from gesso.errors import DeviceError, NumbersError
from gesso.events import Event, Finished, Paused, Sample, Sampled, Saved, Started, Stepped, Validated, Warned
from gesso.keys import generator
from gesso.objective.coefficients import Coefficients
from gesso.rates import Course, ema_decay, rates
from gesso.storage import FullError

RETRY_SECONDS = 20.0
"""Between two attempts to save on a full disk."""
PATIENCE = 5
"""Steps in a row whose gradient may be not finite before the run gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """When something happens: at step 0, every `steps` steps (0: never in between), and at the end."""

    steps: int
    at_start: bool = True
    active: bool = True

    def due(self, step: int, last: int) -> bool:
        if not self.active:
            return False
        if step in (0, last):
            return step == last or self.at_start
        return bool(self.steps) and step % self.steps == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything the loop needs, made by run.py."""

    started: Started
    engine: Engine
    batches: Batches
    courses: Mapping[str, Course]
    """The learning rate of each group of what learns."""
    steps: int
    seed: int
    micro_batch: int
    ema: float = 0.0
    averaged: bool = False
    """Averaged weights are what is measured, drawn and shipped."""
    start: int = 0
    held_out: Sequence[tuple[Batch, Coefficients]] = ()
    samples: Sequence[SampleRequest] = ()
    validate_when: Every = field(default_factory=lambda: Every(steps=0, active=False))
    sample_when: Every = field(default_factory=lambda: Every(steps=0, active=False))
    save_when: Every = field(default_factory=lambda: Every(steps=0, at_start=False))
    keep_samples: Callable[[int, Sequence[SampleRequest], Sequence[np.ndarray]], list[Sample]]
    """Write the pictures of a step; returns what was written."""
    save: Callable[[int], Saved]
    """Publish a checkpoint of a step."""
    finish: Callable[[], list[str]]
    """Write the result; returns its files."""
    stop: Callable[[], str]
    """Why the run should stop now, or ""."""
    wait_when_full: bool = False
    sleep: Callable[[float], None] = time.sleep


def train(plan: Plan) -> Iterator[Event]:
    """Run from `plan.start` to `plan.steps`; the run goes through the body once more than it has steps."""
    began = time.monotonic()
    yield plan.started
    pending = _Pending(plan)
    batches = plan.batches.prefetch(plan.start, plan.steps)
    with closing(batches):
        for step in range(plan.start, plan.steps + 1):
            # What is due at a boundary was already done by the run that saved this step.
            resumed = step == plan.start and plan.started.resumed
            if not resumed:
                if _boundary(plan, step):
                    yield from pending.read_all()
                if plan.validate_when.due(step, plan.steps):
                    yield validate(plan, step)
                if plan.sample_when.due(step, plan.steps):
                    yield draw(plan, step)
                    yield from said(plan, step)
                if plan.save_when.due(step, plan.steps) and step > 0:
                    yield from save(plan, step)
            if step == plan.steps:
                break
            if reason := plan.stop():
                yield from pending.read_all()
                if not (plan.save_when.due(step, plan.steps) or resumed) and step > 0:
                    yield from save(plan, step)
                yield Paused(step=step, reason=reason)
                return

            pieces = next(batches)
            pending.add(step, plan.engine.step(
                [part for piece in pieces for part in split(*piece, plan.micro_batch)],
                lr=rates(plan.courses, step),
                ema_decay=ema_decay(step, plan.ema),
                key=int(generator(plan.seed, "dropout", step).integers(2**31)),
            ))  # fmt: skip
            yield from pending.read_ripe()
    yield Finished(step=plan.steps, seconds=time.monotonic() - began, files=plan.finish())


def split(batch: Batch, coefficients: Coefficients, size: int) -> list[tuple[Batch, Coefficients]]:
    """The batch in micro-batches of at most `size` rows (0: whole)."""
    size = size or len(batch)
    starts = range(0, len(batch), size)
    return [(batch.rows(at, at + size), coefficients.rows(at, at + size)) for at in starts]


def validate(plan: Plan, step: int) -> Validated:
    """Held-out loss: the mean over pictures of each picture's mean over timesteps, with its standard error."""
    errors: dict[int, list[float]] = {}
    levels: dict[int, list[float]] = {}
    for batch, coefficients in plan.held_out:
        found = plan.engine.evaluate(batch, coefficients, ema=plan.averaged)
        timesteps = plan.batches.objective.timesteps_of(coefficients.c_noise)
        for row, timestep, error in zip(batch.ids, timesteps, found, strict=True):
            errors.setdefault(int(row), []).append(float(error))
            levels.setdefault(int(timestep), []).append(float(error))
    by_picture = [float(np.mean(errors[row])) for row in sorted(errors)]
    loss, error = _mean(by_picture)
    by_level = {timestep: _mean(found) for timestep, found in sorted(levels.items())}
    return Validated(
        step=step,
        loss=loss,
        error=error,
        pictures=len(errors),
        by_timestep={timestep: mean for timestep, (mean, _) in by_level.items()},
        error_by_timestep={timestep: error for timestep, (_, error) in by_level.items()},
        by_picture=by_picture,
    )


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean over pictures and its standard error, 0 where there is but one."""
    found = np.array(values)
    return float(found.mean()), float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else 0.0


def draw(plan: Plan, step: int) -> Sampled | Warned:
    """Draw the run's samples. Pictures that cannot be drawn are no reason to lose the training."""
    began = time.monotonic()
    try:
        pictures = plan.engine.sample(plan.samples, ema=plan.averaged)
    except (DeviceError, NumbersError) as error:
        return Warned(step=step, message=f"no samples at step {step}: {error.what}")
    samples = plan.keep_samples(step, plan.samples, pictures)
    return Sampled(step=step, samples=samples, seconds=time.monotonic() - began)


def said(plan: Plan, step: int) -> Iterator[Warned]:
    """What the engine has to say since it was last asked."""
    while plan.engine.notes:
        yield Warned(step=step, message=plan.engine.notes.pop(0))


def save(plan: Plan, step: int) -> Iterator[Event]:
    """Publish a checkpoint; where the recipe says so, wait for room on a full disk instead of ending the run."""
    while True:
        try:
            yield plan.save(step)
            return
        except FullError as error:
            if not plan.wait_when_full or plan.stop():
                raise
            yield Warned(step=step, message=f"{error.what}; waiting for room (Ctrl-C stops the run)")
            plan.sleep(RETRY_SECONDS)


def _boundary(plan: Plan, step: int) -> bool:
    return any(when.due(step, plan.steps) for when in (plan.validate_when, plan.sample_when, plan.save_when))


class _Pending:
    """Steps whose numbers have not been read yet, so that the device never waits for the host."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.waiting = plan, deque[tuple[int, StepResult]]()
        self.bad, self.last = 0, time.monotonic()

    def add(self, step: int, result: StepResult) -> None:
        self.waiting.append((step, result))

    def read_ripe(self) -> Iterator[Stepped]:
        while len(self.waiting) > self.plan.engine.lag:
            yield self._read()

    def read_all(self) -> Iterator[Stepped]:
        while self.waiting:
            yield self._read()

    def _read(self) -> Stepped:
        step, result = self.waiting.popleft()
        metrics: Metrics = result.read()
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        bad = (metrics.skipped or not np.isfinite(metrics.loss)) and not metrics.searching
        self.bad = self.bad + 1 if bad else 0
        if self.bad >= min(PATIENCE, self.plan.steps):  # a run of fewer steps would end without having learned
            broken = "set train.precision to fp32; if it is already, the base's weights are broken: fetch them again"
            raise NumbersError(
                f"the loss or its gradient was not finite in {self.bad} step{'s' * (self.bad > 1)} in a row, "
                f"the last of them step {step + 1}",
                todo=broken
                if self.bad == step + 1
                else "lower optim.lr, or set train.precision to bf16 or fp32; the last checkpoint is untouched",
            )
        each = rates(self.plan.courses, step)
        return Stepped(
            step=step + 1,
            loss=metrics.loss,
            lr=next(iter(each.values())),
            rates=each if len(self.plan.courses) > 1 else {},
            grad_norm=metrics.grad_norm,
            seconds=seconds,
            skipped=metrics.skipped,
        )
