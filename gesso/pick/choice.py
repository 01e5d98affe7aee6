"""Which checkpoint to keep: a decision on numbers alone, that knows when the numbers cannot tell.

Checkpoints are measured on the same pictures with the same noise, and draw the same prompts with the same seeds, so
that their differences are paired: what makes a picture hard for one makes it hard for all. Losses are compared as
ratios, or the hardest picture would decide. Of the checkpoints there fall out, one after the other,

1. those that draw copies of training pictures,
2. those whose held-out loss is more than a standard error above the least (the median of those of all differences);
   where nothing is held out, those whose pictures are, in the same way, further from the training pictures,

and of those that are left and can be told from the base, the one stays that has moved least from it (where that was
not measured, the one with the least held-out loss). Where only others can, training has taught something, and the one
with the least held-out loss stays. That is the rule of one standard error (Breiman, Friedman, Olshen & Stone 1984,
section 3.4.3): among what can hardly be told apart, the simpler. It errs towards the early; less than a standard error
errs further, towards the late (docs/log.md). Beside held-out losses, likeness decides nothing: it goes on growing while
the pictures are learned by heart, and took the choice up to three checkpoints too far.

What is called clear is clear by Student's t of the paired differences (one side, 5 %). Whether checkpoints can be told
from the base is asked of all of them, and the 5 % are shared among these questions (Bonferroni): of ten that have
learned nothing, one alone would often seem to have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.special import stdtrit

from gesso.arrays import Float64

CHANCE = 0.05
"""How often a difference that is none may pass for one."""
LEAST = 1e-12
"""A loss that is taken for none, which has no logarithm."""
COPIES = 2
"""Copies among the drawn pictures from which a checkpoint is held to copy: one may be chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was found out about the weights of one step; step 0 is the base. Each tuple has the same length at every
    step, and is empty where there was nothing to measure with."""

    step: int
    held_out: tuple[float, ...] = ()
    """Loss of each held-out picture: mean squared error, mean over noise levels."""
    distance: tuple[float, ...] = ()
    """Of each drawn picture to the training picture that is most like it (likeness.py)."""
    copies: tuple[bool, ...] = ()
    """Whether each drawn picture is nearly one of the training pictures; () where nothing shows what is near."""
    drift: tuple[float, ...] = ()
    """For each unrelated prompt, the mean squared difference between the answers of these weights and the base's."""


Series = Callable[[Measured], Float64]


class Fault(Enum):
    """Why a checkpoint falls out, the worst last."""

    DRIFT = 1
    DISTANCE = 2
    HELD_OUT = 3
    COPIES = 4
    BROKEN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was decided. `kept` is the one to keep; None where none that does not copy can be told from the base."""

    base: Measured
    kept: Measured | None
    fallen: Mapping[Fault, tuple[Measured, ...]]
    """Those that fell out, best first, by what they fell out for."""
    best: Mapping[Fault, Measured]
    """What those that fell out for their loss or distance were held against: the least of those left by then."""
    equals: Mapping[Fault, tuple[Measured, ...]]
    """Those among which loss or distance does not decide, by rising step."""
    learned: tuple[Measured, ...]
    """Those that do not copy (or all, where all do) and can be told from the base."""

    @property
    def ranking(self) -> list[Measured]:
        """All checkpoints, best first."""
        first = [self.kept] if self.kept else []
        return first + [each for fault in Fault for each in self.fallen.get(fault, ())]


def choose(base: Measured, checkpoints: Sequence[Measured]) -> Choice:
    """Of `checkpoints`, in any order and each of a step of its own, the one to keep."""
    fallen: dict[Fault, tuple[Measured, ...]] = {}
    best: dict[Fault, Measured] = {}
    equals: dict[Fault, tuple[Measured, ...]] = {}
    by_step = sorted(checkpoints, key=lambda each: each.step)  # where numbers are equal, the earlier goes first
    left, fallen[Fault.BROKEN] = _parted(by_step, lambda each: not finite(each), lambda each: each.step)
    honest, copying = _parted(left, lambda each: sum(each.copies) >= COPIES, lambda each: sum(each.copies))
    if honest:  # where all of them copy, the other numbers decide
        left, fallen[Fault.COPIES] = honest, copying
    learned = _learned(base, left)
    for fault, of in SERIES.items():
        if left and len(of(base)) and not best:
            best[fault] = min(left, key=_by_mean(of))
            left, fallen[fault] = _as_good(left, best[fault], of)
            equals[fault] = left
    fallen[Fault.DRIFT] = tuple(sorted(left, key=lambda each: (_mean(each.drift), _mean(held_out(each)))))
    kept = next((each for each in fallen[Fault.DRIFT] if each in learned), None)
    if learned and kept is None:
        kept = min(left, key=_by_mean(held_out))
    others = {fault: tuple(each for each in gone if each is not kept) for fault, gone in fallen.items()}
    return Choice(base=base, kept=kept, fallen=others, best=best, equals=equals, learned=learned)


def _learned(base: Measured, checkpoints: Sequence[Measured]) -> tuple[Measured, ...]:
    """Those that can be told from the base: by a smaller held-out loss, or by pictures more like those shown."""
    told = [of for of in SERIES.values() if len(of(base)) > 1]
    chance = CHANCE / max(len(told) * len(checkpoints), 1)
    return tuple(each for each in checkpoints if any(clearly(of(base), of(each), chance=chance) for of in told))


def held_out(measured: Measured) -> Float64:
    """Logarithms of the losses: their differences are ratios."""
    return np.log(np.maximum(measured.held_out, LEAST))


def distance(measured: Measured) -> Float64:
    return np.asarray(measured.distance, dtype=np.float64)


SERIES: Mapping[Fault, Series] = {Fault.HELD_OUT: held_out, Fault.DISTANCE: distance}
"""What decides, the first of them that was measured: the smaller, the better."""


def _as_good(left: Sequence[Measured], best: Measured, of: Series) -> tuple[tuple[Measured, ...], tuple[Measured, ...]]:
    """Those within a standard error of the best, and those that are not."""
    behind = {each.step: mean_and_error(of(each) - of(best)) for each in left if each is not best}
    # One error for all of them: by its own, a checkpoint that does well here and badly there would stay the longer.
    errors = [error for _, error in behind.values() if np.isfinite(error)]
    allowed = float(np.median(errors)) if errors else 0.0
    return _parted(left, lambda each: each is not best and behind[each.step][0] > allowed, _by_mean(of))


def _by_mean(of: Series) -> Callable[[Measured], float]:
    return lambda each: _mean(of(each))


def _mean(values: Sequence[float] | Float64) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def finite(measured: Measured) -> bool:
    return bool(np.isfinite([*measured.held_out, *measured.distance, *measured.drift]).all())


def mean_and_error(values: Sequence[float] | Float64) -> tuple[float, float]:
    """The mean and its standard error, which one value alone does not have (nan)."""
    found = np.asarray(values, dtype=np.float64)
    return float(found.mean()), float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else float("nan")


def clearly(greater: Float64, smaller: Float64, *, chance: float = CHANCE) -> bool:
    """Whether paired values are greater, and not by chance. One pair shows nothing."""
    if len(greater) < 2:
        return False
    mean, error = mean_and_error(greater - smaller)
    return bool(mean > 0 and mean > stdtrit(len(greater) - 1, 1 - chance) * error)


def _parted(
    measured: Sequence[Measured], falls: Callable[[Measured], bool], order: Callable[[Measured], float]
) -> tuple[tuple[Measured, ...], tuple[Measured, ...]]:
    """Those that stay, and those that fall out in the given order."""
    gone = [each for each in measured if falls(each)]
    return tuple(each for each in measured if each not in gone), tuple(sorted(gone, key=order))
