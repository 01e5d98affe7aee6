"""The choice of a checkpoint as a decision on numbers: planted series, hit rates, and what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gesso.arrays import Int64
from gesso.keys import generator
from gesso.pick.choice import Choice, Fault, Measured, choose
from gesso.pick.reasons import Reasons, reasons

STEPS = range(50, 501, 50)
PICTURES, DRAWN = 6, 16


def series(
    losses: Sequence[float],
    distances: Sequence[float] = (),
    *,
    seed: int = 0,
    noise: float = 0.004,
    pictures: int = PICTURES,
) -> tuple[Measured, list[Measured]]:
    """The base and checkpoints with the given mean losses and distances, the base's first, and noise on every picture.

    Pictures differ among themselves far more than checkpoints do, as they really are: only pairing shows anything.
    """
    rng = generator(seed, "planted series")
    hard, look = rng.normal(1.0, 0.25, pictures), rng.normal(0.0, 0.05, DRAWN)
    made = [
        Measured(
            step=step,
            held_out=tuple(loss * hard + rng.normal(0.0, noise, pictures)),
            distance=tuple(distances[at] + look + rng.normal(0.0, 0.01, DRAWN)) if distances else (),
            copies=(False,) * DRAWN if distances else (),
            drift=tuple(rng.normal(0.001 * step, 0.0001, 12)) if step else (0.0,) * 12,
        )
        for at, (step, loss) in enumerate(zip((0, *STEPS), losses, strict=True))
    ]
    return made[0], made[1:]


def bowl(best: int) -> list[float]:
    """Held-out losses that fall until checkpoint `best` (from 0) and rise after it, the base's first."""
    falling = [0.12 - 0.075 * math.sqrt((at + 1) / (best + 1)) for at in range(best + 1)]
    rising = [0.045 + 0.008 * (at + 1) for at in range(len(STEPS) - best - 1)]
    return [0.12, *falling, *rising]


@pytest.mark.parametrize("best", [0, 2, 5, 8])
def test_over_trained_series_are_picked_within_one_checkpoint_of_the_best(best: int) -> None:
    wanted, off = STEPS[best], []
    for seed in range(200):
        # Pictures grow more like those shown long after the loss has turned: that alone must not decide.
        base, checkpoints = series(bowl(best), np.linspace(0.9, 0.5, 11).tolist(), seed=seed)
        found = choose(base, checkpoints).kept
        assert found is not None
        off.append((found.step - wanted) // 50)
    assert np.mean(np.abs(off) <= 1) >= 0.97, np.unique(off, return_counts=True)


def test_an_under_trained_series_ends_in_its_last_checkpoint_which_is_said() -> None:
    losses = np.linspace(0.12, 0.06, 11).tolist()
    hits = 0
    for seed in range(200):
        choice = choose(*series(losses, np.linspace(0.9, 0.7, 11).tolist(), seed=seed))
        assert choice.kept is not None
        hits += choice.kept.step >= STEPS[-2]
    assert hits >= 194
    choice = choose(*series(losses, np.linspace(0.9, 0.7, 11).tolist(), noise=0.0))
    assert choice.kept is not None
    assert choice.kept.step == STEPS[-1]
    assert any("training for longer" in each for each in reasons(choice, 0.4).doubts)


def copying(checkpoints: Sequence[Measured], *, since: int) -> list[Measured]:
    """The checkpoints, of which those from number `since` draw more and more copies."""
    counts = [max(at - since + 2, 0) if at >= since else 0 for at in range(len(checkpoints))]
    return [
        replace(each, copies=tuple(number < count for number in range(DRAWN)))
        for each, count in zip(checkpoints, counts, strict=True)
    ]


def looks() -> list[float]:
    """Distances that go on falling whatever the losses do, the base's first."""
    return np.linspace(0.9, 0.5, len(STEPS) + 1).tolist()


def told(choice: Choice) -> Reasons:
    """The reasons, which every choice has: whole sentences, each checkpoint once, and numbers that JSON can hold."""
    said = reasons(choice, 0.4)
    assert all(each.endswith(".") and "nan" not in each for each in (said.sentence, *said.why, *said.doubts)), said
    assert [row.step for row in said.rows][-1] == 0
    json.dumps(asdict(said), allow_nan=False)
    return said


@pytest.mark.parametrize(("pictures", "share"), [(1, 0.9), (2, 0.88), (3, 0.9), (4, 0.95)])
def test_few_held_out_pictures_hit_less_often_and_how_often_is_known(pictures: int, share: float) -> None:
    for best in (2, 5, 8):
        assert np.mean(np.abs(missed(best, pictures)) <= 1) >= share, best


@pytest.mark.parametrize("pictures", [2, 3, 6])
def test_what_cannot_be_told_errs_towards_the_early(pictures: int) -> None:
    """With thrice the noise the best is missed more often, but what is learned by heart is not chosen for it."""
    for best in (2, 5, 8):
        off = missed(best, pictures, noise=0.012)
        assert np.mean(off > 1) <= 0.05, best
        assert np.mean(np.abs(off) <= 2) >= 0.6, best


def missed(best: int, pictures: int, noise: float = 0.004) -> Int64:
    """How many checkpoints after the best each of 200 choices lies."""
    found = [
        choose(*series(bowl(best), looks(), seed=seed, pictures=pictures, noise=noise)).kept for seed in range(200)
    ]
    assert all(found)
    return np.array([(each.step - STEPS[best]) // 50 for each in found if each])


@pytest.mark.parametrize("pictures", [1, 2, 6])
def test_of_checkpoints_that_have_learned_nothing_hardly_ever_one_is_kept(pictures: int) -> None:
    """Twenty questions at 5 % each would find something in most series of noise."""
    none = 0
    for seed in range(300):
        choice = choose(*series([0.12] * 11, [0.9] * 11, seed=seed, pictures=pictures))
        none += choice.kept is None
        told(choice)
    assert none / 300 >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize("since", [4, 7])
def test_copied_series_end_before_the_copies(since: int) -> None:
    for seed in range(50):
        base, checkpoints = series(np.linspace(0.12, 0.05, 11).tolist(), looks(), seed=seed)
        choice = choose(base, copying(checkpoints, since=since))
        assert choice.kept is not None
        assert STEPS[since] - 100 <= choice.kept.step < STEPS[since]
        assert {each.step for each in choice.fallen[Fault.COPIES]} == set(STEPS[since:])
        said = told(choice)
        assert any(each.endswith("copied training pictures.") for each in said.why)
        assert {row.against for row in said.rows if row.copies and row.copies >= 2} == {"draws copies"}


def test_where_all_copy_the_other_numbers_decide_and_it_is_said() -> None:
    base, checkpoints = series(bowl(5), looks(), noise=0.0)
    choice = choose(base, copying(checkpoints, since=0))
    assert choice.kept is not None
    assert abs(choice.kept.step - STEPS[5]) <= 50
    assert any("pictures drawn with it are copies" in each for each in told(choice).doubts)


def test_copies_of_the_base_itself_show_that_nearness_tells_little() -> None:
    base, checkpoints = series(bowl(5), looks())
    base = replace(base, copies=(True,) * 3 + (False,) * (DRAWN - 3))
    assert any(
        each.startswith("3 of the 16 pictures that the base draws") for each in told(choose(base, checkpoints)).doubts
    )


def test_where_only_copies_are_better_than_the_base_none_is_kept_and_why() -> None:
    base, checkpoints = series([0.12] * 6 + [0.06] * 5, [0.9] * 6 + [0.5] * 5, seed=1)
    choice = choose(base, copying(checkpoints, since=5))
    said = told(choice)
    assert choice.kept is None
    assert said.sentence == "No checkpoint can be told from the base, except by copying."
    assert not any("Train for longer" in each for each in said.why)


def test_without_held_out_pictures_the_drawn_ones_decide_until_they_are_copies() -> None:
    for seed in range(50):
        base, checkpoints = series(bowl(5), looks(), seed=seed)
        checkpoints = [replace(each, held_out=()) for each in copying(checkpoints, since=7)]
        choice = choose(replace(base, held_out=()), checkpoints)
        assert choice.kept is not None
        assert choice.kept.step == STEPS[6]
        said = told(choice)
        assert any(each.startswith("No pictures were held out") for each in said.doubts)
        assert all(row.held_out is None for row in said.rows)


def test_of_losses_alone_the_least_is_kept_and_nothing_is_said_of_pictures_or_of_drift() -> None:
    base, checkpoints = series(bowl(5))
    choice = choose(replace(base, drift=()), [replace(each, drift=()) for each in checkpoints])
    assert choice.kept is not None
    assert choice.kept.step == STEPS[5]
    said = told(choice)
    assert "drift" not in str(said.why)
    assert "pictures are" not in " ".join(said.why)
    assert not any("moved" in each or "base on unrelated" in each for each in said.why)
    assert not any("further from the base" in row.against for row in said.rows)
    worst = told(choose(base, [replace(each, held_out=base.held_out, drift=()) for each in checkpoints]))
    assert worst.step is None
    assert not any("draw" in each for each in worst.why)


def test_one_held_out_picture_shows_no_errors_and_is_doubted() -> None:
    base, checkpoints = series(bowl(5), looks(), pictures=1)
    said = told(choose(base, checkpoints))
    assert any(each.startswith("One held-out picture has no error bar") for each in said.doubts)
    assert all(row.held_out_error is None for row in said.rows)
    base, checkpoints = series(bowl(5), pictures=1)  # and alone it shows nothing
    said = told(choose(base, checkpoints))
    assert said.step is None
    assert "which one picture cannot show" in said.why[0]
    assert not any("Train for longer" in each for each in said.why)


def test_a_base_that_is_better_is_said_to_be() -> None:
    rising = [0.05, *np.linspace(0.06, 0.12, 10)]
    base, checkpoints = series(rising, looks())
    said = told(choose(base, checkpoints))
    assert said.step is not None  # its pictures are clearly more like those shown
    assert any(each.startswith("Every checkpoint is clearly worse than the base") for each in said.doubts)
    base, checkpoints = series(rising, [0.9] * 11)
    said = told(choose(base, checkpoints))
    assert said.step is None
    assert any("all are clearly worse than the base" in each for each in said.why)
    assert not any("Train for longer" in each for each in said.why)


def test_equal_checkpoints_are_told_from_the_base_but_not_from_one_another() -> None:
    base, checkpoints = series([0.12] + [0.06] * 10, noise=0.0)
    checkpoints = [replace(checkpoints[0], step=step, drift=()) for step in STEPS]
    choice = choose(replace(base, drift=()), checkpoints)
    said = told(choice)
    assert said.step == STEPS[0]
    assert any("do not clearly tell 10 of the steps from 50 to 500 apart" in each for each in said.doubts)
    assert any("would do as well" in each for each in said.why)
    none = choose(base, [replace(base, step=step) for step in STEPS])
    assert told(none).sentence == "No checkpoint can be told from the base."
    assert len(none.ranking) == len(STEPS)


def test_one_checkpoint_and_losses_of_nothing() -> None:
    base, checkpoints = series(bowl(5))
    said = told(choose(base, checkpoints[5:6]))
    assert said.step == STEPS[5]
    assert any(each.startswith("There is but one checkpoint") for each in said.doubts)
    assert not any("last checkpoint" in each for each in said.doubts)
    nothing = (0.0,) * PICTURES
    perfect = [replace(each, held_out=nothing) for each in checkpoints]
    assert told(choose(base, perfect)).step == STEPS[0]
    assert told(choose(replace(base, held_out=nothing), perfect)).step is None


def test_numbers_that_are_not_finite_fall_out_and_break_nothing() -> None:
    base, checkpoints = series(bowl(5), looks())
    broken = [replace(each, held_out=(math.nan,), distance=(), copies=(), drift=()) for each in checkpoints]
    choice = choose(base, [*checkpoints[:6], *broken[6:]])
    assert choice.kept == choose(base, checkpoints[:6]).kept
    assert {row.against for row in told(choice).rows if row.step > STEPS[5]} == {"its numbers are not finite"}
    all_broken = told(choose(base, broken))
    assert all_broken.step is None
    assert all_broken.sentence == "No checkpoint is of use: their numbers are not finite."


@st.composite
def any_series(draw: st.DrawFn) -> tuple[Measured, list[Measured]]:
    """A base and up to eight checkpoints, of which anything may have been measured, or nothing."""
    held, drawn, drift = draw(st.integers(0, 4)), draw(st.sampled_from([0, 2, 5])), draw(st.sampled_from([0, 3]))
    number = st.floats(1e-6, 1e3)

    def numbers(count: int) -> tuple[float, ...]:
        return tuple(draw(st.lists(number, min_size=count, max_size=count)))

    steps = [0, *sorted(draw(st.sets(st.integers(1, 100), min_size=1, max_size=8)))]
    made = [
        Measured(
            step=step,
            held_out=numbers(held),
            distance=numbers(drawn),
            copies=tuple(draw(st.lists(st.booleans(), min_size=drawn, max_size=drawn))),
            drift=numbers(drift),
        )
        for step in steps
    ]
    return made[0], made[1:]


@given(made=any_series(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_was_measured(made: tuple[Measured, list[Measured]], data: st.DataObject) -> None:
    base, checkpoints = made
    choice = choose(base, checkpoints)
    steps = [each.step for each in choice.ranking]
    assert sorted(steps) == [each.step for each in checkpoints]
    assert choice.kept is None or choice.kept.step == steps[0]
    told(choice)
    # The order in which they come does not matter.
    assert choose(base, data.draw(st.permutations(checkpoints))) == choice
    # Nor does it matter in what units losses are, as far as numbers have digits for them.
    doubled = [replace(each, held_out=tuple(4.0 * loss for loss in each.held_out)) for each in (base, *checkpoints)]
    other = choose(doubled[0], doubled[1:])
    assert (other.kept and other.kept.step) == (choice.kept and choice.kept.step)


@given(made=any_series())
@settings(max_examples=60, deadline=None)
def test_one_that_copies_or_is_broken_changes_nothing_among_the_others(made: tuple[Measured, list[Measured]]) -> None:
    base, checkpoints = made
    honest = [replace(each, copies=(False,) * len(each.copies)) for each in checkpoints]
    kept = choose(base, honest).kept
    if base.copies:
        copy = replace(honest[0], step=1000, held_out=tuple(loss / 10 for loss in base.held_out))
        copy = replace(copy, copies=(True,) * len(base.copies))
        assert choose(base, [*honest, copy]).kept == kept
    assert choose(base, [*honest, Measured(step=1000, held_out=(math.inf,))]).kept == kept
