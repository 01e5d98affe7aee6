"""What a choice says to people: the checkpoint, why, what the numbers cannot tell, and a table of all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gesso.arrays import Float64
from gesso.pick.choice import COPIES, Choice, Fault, Measured, clearly, finite, held_out, mean_and_error

NAMED = 8
"""Steps that a sentence names one by one."""
FEW = 5
"""Held-out pictures below which Student's t asks for much: of two, 6 standard errors and more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A checkpoint in the table, best first, the base last. None where there was nothing to measure with."""

    step: int
    held_out: float | None
    held_out_error: float | None
    likeness: float | None
    """0: the pictures are as like the training pictures as the base's; 1: as like as real pictures of the same."""
    copies: int | None
    drawn: int
    drift: float | None
    drift_error: float | None
    against: str
    """What speaks against it; "" for the one to keep, and for the base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """`step` is None where no checkpoint can be told from the base. Each sentence ends with its full stop."""

    step: int | None
    sentence: str
    why: tuple[str, ...]
    doubts: tuple[str, ...]
    rows: tuple[Row, ...]


def reasons(choice: Choice, real: float | None, notes: Sequence[str] = ()) -> Reasons:
    """A choice in words. `real`: mean distance of real pictures of the same to the training pictures. `notes`: what
    else there is to doubt, without full stops."""
    kept = choice.kept
    return Reasons(
        step=kept.step if kept else None,
        sentence=f"Keep checkpoint-{kept.step}." if kept else _none(choice),
        why=tuple(_why(choice, kept, real)) if kept else tuple(_nothing(choice)),
        doubts=(*_doubts(choice), *(f"{each}." for each in notes)),
        rows=tuple(_row(each, choice, real) for each in (*choice.ranking, choice.base)),
    )


def likeness(measured: Measured, base: Measured, real: float | None) -> float | None:
    """Where pictures lie between the base's (0) and real ones of the same (1); None where the base is as near."""
    if real is None or not measured.distance or not np.isfinite(measured.distance).all():
        return None
    scale = float(np.mean(base.distance)) - real
    return (float(np.mean(base.distance)) - float(np.mean(measured.distance))) / scale if scale > 0 else None


def _why(choice: Choice, kept: Measured, real: float | None) -> list[str]:
    said = [*_of_loss(choice, kept), *_of_likeness(choice, kept, real)]
    if copying := choice.fallen.get(Fault.COPIES, ()):
        said.append(f"{_steps(copying)} copied training pictures.")
    elif kept.copies and not sum(kept.copies):
        said.append(f"None of the {len(kept.copies)} pictures drawn with it is a copy of a training picture.")
    if equals := [each for each in choice.fallen[Fault.DRIFT] if each in choice.learned]:
        moved = all(_further(each, kept) for each in equals)
        moved_least = "; it has moved least from the base on unrelated prompts" if moved else ""
        said.append(f"{_steps(equals)} would do as well{moved_least}.")
    return said


def _of_loss(choice: Choice, kept: Measured) -> list[str]:
    if not kept.held_out:
        return []
    least = min(filter(finite, choice.ranking), key=lambda each: (float(np.mean(each.held_out)), each is not kept))
    told = f"Its held-out loss is {_with_error(kept.held_out)}, the base's {_with_error(choice.base.held_out)}"
    if least is not kept:
        told += f"; the least, {np.mean(least.held_out):.4g} at step {least.step}, "
        if least in choice.fallen.get(Fault.COPIES, ()):
            told += "is that of a checkpoint that copies"
        elif least in choice.equals[Fault.HELD_OUT]:
            told += "is hardly less"
        else:
            told += "is less in the mean, but not picture by picture"
    elif len(choice.ranking) > 1:
        told += "; it is the least of all checkpoints"
    return [f"{told}.", *_sides(choice, kept)]


def _sides(choice: Choice, kept: Measured) -> list[str]:
    """What did worse before and after the one that is kept."""
    worse = [each for each in choice.fallen[Fault.HELD_OUT] if _worse(each, kept)]
    early = [each for each in worse if _early(each, choice)]
    late = [each for each in worse if each not in early]
    said = [f"{_steps(early)} had learned less."] if early else []
    if late:
        by_heart = ": those shown were learned by heart" if clearly(*_losses(choice.base, kept)) else ""
        said.append(f"{_steps(late)} did worse on held-out pictures{by_heart}.")
    return said


def _early(measured: Measured, choice: Choice) -> bool:
    """Whether it lies on the way from the base to the one that is kept."""
    kept, base = choice.kept, float(np.mean(choice.base.held_out))
    return kept is not None and measured.step < kept.step and float(np.mean(measured.held_out)) <= base


def _of_likeness(choice: Choice, kept: Measured, real: float | None) -> list[str]:
    if not kept.distance:
        return []
    mine, share = float(np.mean(kept.distance)), likeness(kept, choice.base, real)
    if mine >= float(np.mean(choice.base.distance)):
        return ["Its pictures are no more like the training pictures than the base's."]
    others = [each for each in choice.ranking if each is not kept and finite(each)]
    if all(float(np.mean(each.distance)) > mine for each in others):
        said = ["Its pictures are the likest to the training pictures."]
    elif kept in choice.equals.get(Fault.DISTANCE, ()):
        said = ["Of those left, none draws pictures that are clearly more like the training pictures."]
    else:
        said = []
    they = "They" if said else "Its pictures"
    return [*said, f"{they} are {100 * share:.0f} % of the way from the base's to real ones."] if share else said


def _none(choice: Choice) -> str:
    if not any(map(finite, choice.ranking)):
        return "No checkpoint is of use: their numbers are not finite."
    if choice.fallen.get(Fault.COPIES):
        return "No checkpoint can be told from the base, except by copying."
    return "No checkpoint can be told from the base."


def _nothing(choice: Choice) -> list[str]:
    base, whole = choice.base, [each for each in choice.ranking if finite(each)]
    if not whole:
        return ["Train again with a smaller optim.lr, or with train.precision fp32."]
    said, more = [], True
    if copying := choice.fallen.get(Fault.COPIES, ()):
        said.append(f"{_steps(copying)} copied training pictures.")
        more = False
    honest = [each for each in whole if each not in copying]
    if base.held_out and len(base.held_out) > 1 and all(clearly(*_losses(each, base)) for each in honest):
        said.append("On held-out pictures all are clearly worse than the base. Lower optim.lr, or save earlier.")
        more = False
    elif base.held_out:
        best = min(honest, key=lambda each: float(np.mean(each.held_out)))
        what = "is no clear difference" if len(base.held_out) > 1 else "one picture cannot show"
        said.append(
            f"The least held-out loss is {_with_error(best.held_out)}, at step {best.step}; the base's is "
            f"{_with_error(base.held_out)}, which {what}."
        )
    if base.distance:
        said.append("The pictures that they draw are not clearly more like the training pictures than the base's.")
    if more and (base.distance or len(base.held_out) > 1):
        said.append("Train for longer, or with a larger optim.lr.")
    if more and len(base.held_out) in range(2, FEW):
        said.append(f"{len(base.held_out)} held-out pictures tell great differences only: hold out more.")
    return said


def _doubts(choice: Choice) -> list[str]:
    held, kept = len(choice.base.held_out), choice.kept
    said = []
    if not held:
        said.append(
            "No pictures were held out, so the loss cannot tell learning from learning by heart: the choice rests on "
            "the drawn pictures alone. Hold some out with validate.holdout or validate.path."
        )
    if held == 1:
        said.append("One held-out picture has no error bar: what suits it need not suit others. Hold out several.")
    if sum(choice.base.copies) >= COPIES:
        said.append(
            f"{sum(choice.base.copies)} of the {len(choice.base.copies)} pictures that the base draws are as near to "
            "your pictures as copies, without having learned from them: what is called a copy here may be none."
        )
    if len(choice.ranking) == 1:
        said.append("There is but one checkpoint to choose from: save.every and save.keep make more of them.")
    return [*said, *_doubts_of(kept, choice)] if kept else said


def _doubts_of(kept: Measured, choice: Choice) -> list[str]:
    """What there is to doubt about the one that is kept."""
    said = []
    if len(kept.held_out) > 1:
        honest = [each for each in choice.ranking if finite(each) and each not in choice.fallen.get(Fault.COPIES, ())]
        alike = [each for each in honest if each is kept or not _worse(each, kept)]
        if len(alike) > 1:
            steps = _steps(alike, first=False)
            said.append(f"{len(kept.held_out)} held-out pictures do not clearly tell {steps} apart by their loss.")
        if all(clearly(*_losses(each, choice.base)) for each in choice.ranking if finite(each)):
            said.append(
                "Every checkpoint is clearly worse than the base on held-out pictures: save earlier, or lower optim.lr."
            )
        elif clearly(*_losses(kept, choice.base)):
            said.append("It is clearly worse than the base on held-out pictures: only its pictures speak for it.")
        elif kept in choice.learned and not clearly(*_losses(choice.base, kept)):
            said.append("Its held-out loss cannot be told from the base's; only its pictures show that it has learned.")
    if kept not in choice.learned:
        said.append(
            f"By itself it cannot be told from the base, as {_steps(choice.learned, first=False)} can: hold out more "
            "pictures."
        )
    if len(choice.ranking) > 1 and kept.step == max(each.step for each in choice.ranking):
        said.append("It is the last checkpoint: training for longer may still be better.")
    if copies := sum(kept.copies):
        are = "is a copy" if copies == 1 else "are copies"
        said.append(f"{copies} of the {len(kept.copies)} pictures drawn with it {are}.")
    return said


def _worse(one: Measured, kept: Measured) -> bool:
    """Whether its held-out loss is greater, and not by chance; of one picture, any difference counts."""
    return clearly(*_losses(one, kept)) if len(kept.held_out) > 1 else one.held_out > kept.held_out


def _further(one: Measured, other: Measured) -> bool:
    """Whether it has moved further from the base. New words alone change nothing in prompts without them."""
    return bool(one.drift) and float(np.mean(one.drift)) > float(np.mean(other.drift))


def _losses(greater: Measured, smaller: Measured) -> tuple[Float64, Float64]:
    return held_out(greater), held_out(smaller)


def _row(measured: Measured, choice: Choice, real: float | None) -> Row:
    loss, error = mean_and_error(measured.held_out) if measured.held_out else (math.nan, math.nan)
    drift, drift_error = mean_and_error(measured.drift) if measured.drift else (math.nan, math.nan)
    return Row(
        step=measured.step,
        held_out=_known(loss),
        held_out_error=_known(error),
        likeness=likeness(measured, choice.base, real),
        copies=sum(measured.copies) if measured.copies else None,
        drawn=len(measured.distance),
        drift=_known(drift),
        drift_error=_known(drift_error),
        against=_against(measured, choice),
    )


def _against(measured: Measured, choice: Choice) -> str:
    fault = next((fault for fault, fallen in choice.fallen.items() if measured in fallen), None)
    if fault is Fault.HELD_OUT:
        if choice.kept is not None and not _worse(measured, choice.kept):
            return "greater loss, but not clearly"
        return "has learned less" if _early(measured, choice) else "worse on held-out pictures"
    if fault is Fault.DRIFT:
        if measured not in choice.learned:
            return "not clearly better than the base"
        further = choice.kept is not None and _further(measured, choice.kept)
        return "as good, but further from the base" if further else "as good"
    words = {
        Fault.BROKEN: "its numbers are not finite",
        Fault.COPIES: "draws copies",
        Fault.DISTANCE: "less like the training pictures",
    }
    return words[fault] if fault else ""


def _steps(found: Sequence[Measured], *, first: bool = True) -> str:
    """ "Steps 10, 20 and 30"; of many, "9 of the steps from 10 to 120"."""
    steps = sorted(each.step for each in found)
    if len(steps) > NAMED:
        return f"{len(steps)} of the steps from {steps[0]} to {steps[-1]}"
    word = ("Step" if first else "step") + ("s" if len(steps) > 1 else "")
    if len(steps) == 1:
        return f"{word} {steps[0]}"
    return f"{word} {', '.join(map(str, steps[:-1]))} and {steps[-1]}"


def _with_error(values: Sequence[float]) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:.4g} ± {error:.2g}" if math.isfinite(error) else f"{mean:.4g}"


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
