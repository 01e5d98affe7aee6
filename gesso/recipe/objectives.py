"""What the keys of [objective] demand of one another. What they demand of a model is said by gesso/objective."""

from __future__ import annotations

from collections.abc import Iterator

from gesso.recipe.keys import Problem
from gesso.recipe.methods import Switch
from gesso.schema import Recipe

GAMMA = ("min_snr", "soft_min_snr", "p2")
FAVOURING = ("earlier", "later", "range")
"""Distributions over timesteps that draw some of them `times_multiplier` times as often."""
BOUNDED = ("range", "only")


def broken(recipe: Recipe) -> Iterator[Problem]:
    """Choices that contradict each other."""
    yield from _targets(recipe)
    yield from _times(recipe)


def _targets(recipe: Recipe) -> Iterator[Problem]:
    it = recipe.objective
    if it.zero_snr and it.prediction == "epsilon":
        yield Problem(
            text='epsilon cannot be predicted at zero terminal SNR; set objective.prediction = "v_prediction"',
            keys=("objective.prediction", "objective.zero_snr"),
        )
    if it.edm_style and it.weighting != "uniform":
        yield Problem(
            text=f'objective.weighting = "{it.weighting}" and objective.edm_style each weigh the noise levels, the '
            "latter by 1/sigma²; leave one of the two out",
            keys=("objective.weighting", "objective.edm_style"),
        )
    if it.edm_style and it.zero_snr:
        yield Problem(
            text="objective.edm_style has no finite sigma at zero terminal SNR; leave it or objective.zero_snr out",
            keys=("objective.edm_style", "objective.zero_snr"),
        )
    if it.dream and it.prediction not in ("auto", "epsilon"):
        yield Problem(
            text=f'objective.dream corrects noise that the network predicts, but objective.prediction is "'
            f'{it.prediction}"; leave one of the two out',
            keys=("objective.dream", "objective.prediction"),
        )
    elif it.dream and it.edm_style:
        yield Problem(
            text="objective.dream is for the usual noise, not that of objective.edm_style; leave one of the two out",
            keys=("objective.dream", "objective.edm_style"),
        )


def _times(recipe: Recipe) -> Iterator[Problem]:
    it = recipe.objective
    bounds = ("objective.times_begin", "objective.times_end")
    if it.times in BOUNDED and it.times_begin >= it.times_end:
        yield Problem(
            text=f"objective.times_begin is {it.times_begin}, but must be below times_end, which is {it.times_end}",
            keys=bounds,
        )
    if it.times in FAVOURING and it.times_multiplier == 1.0:
        yield Problem(
            text=f'objective.times = "{it.times}" has no effect while objective.times_multiplier is 1; '
            "3 draws the favoured timesteps three times as often",
            keys=("objective.times", "objective.times_multiplier"),
        )
    elif it.times in BOUNDED and (it.times_begin, it.times_end) == (0, 1000):
        yield Problem(
            text=f'objective.times = "{it.times}" leaves nothing out from times_begin 0 to times_end 1000; '
            "set one of them",
            keys=("objective.times", *bounds),
        )
    elif it.times in ("earlier", "later") and it.times_portion == 1.0:
        yield Problem(
            text=f'objective.times = "{it.times}" leaves nothing out while objective.times_portion is 1',
            keys=("objective.times", "objective.times_portion"),
        )
    if it.times == "mode" and it.times_scale == 0.0:
        yield Problem(
            text='objective.times = "mode" has no effect while objective.times_scale is 0',
            keys=("objective.times", "objective.times_scale"),
        )


def switches(recipe: Recipe) -> Iterator[Switch]:
    """Keys that act with some choices only."""
    it = recipe.objective
    reason = f'with objective.weighting = "{it.weighting}"'
    yield ("objective.gamma",), it.weighting in GAMMA, reason, "objective.weighting"
    reason = f'with objective.times = "{it.times}"'
    for names, active in (
        (("times_multiplier",), it.times in FAVOURING),
        (("times_portion",), it.times in ("earlier", "later")),
        (("times_begin", "times_end"), it.times in BOUNDED),
        (("times_mean", "times_std"), it.times == "logit_normal"),
        (("times_scale",), it.times == "mode"),
    ):
        yield tuple(f"objective.{name}" for name in names), active, reason, "objective.times"
    reason = f'with objective.loss = "{it.loss}"'
    yield ("objective.huber_c", "objective.huber_schedule"), it.loss != "l2", reason, "objective.loss"
    turns = it.loss == "l2" or it.huber_c < 1.0
    yield ("objective.huber_schedule",), turns, "with objective.huber_c = 1", "objective.huber_c"
    for name, strength in (
        ("dream_detail", "dream"),
        ("noise_offset_random", "noise_offset"),
        ("pyramid_levels", "pyramid_noise"),
        ("input_perturbation_random", "input_perturbation"),
    ):
        yield (
            (f"objective.{name}",),
            bool(getattr(it, strength)),
            f"without objective.{strength}",
            f"objective.{strength}",
        )
