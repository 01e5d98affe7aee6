"""The order of the data is arithmetic."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gesso.data.plan import Plan, Slot
from gesso.errors import DataError


@given(st.integers(0, 2**32), st.integers(1, 13), st.integers(1, 9), st.integers(1, 4))
def test_every_row_once_an_epoch_whatever_the_batch(seed: int, rows: int, batch: int, epochs: int) -> None:
    plan = Plan(seed=seed, rows={"instance": tuple(range(100, 100 + rows))}, batch=batch)
    steps = -(-rows * epochs // batch)
    slots = [slot for step in range(steps) for slot in plan.step(step)][: rows * epochs]
    assert Counter(slots) == Counter(Slot(100 + row, epoch) for row in range(rows) for epoch in range(epochs))
    assert [slot.epoch for slot in slots] == sorted(slot.epoch for slot in slots)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(1, 9))
def test_a_step_is_the_same_whatever_was_asked_before(steps: list[int], batch: int) -> None:
    rows = {"instance": tuple(range(7)), "class": tuple(range(7, 12))}
    plan = Plan(seed=3, rows=rows, batch=batch)
    for step in steps:
        assert plan.step(step) == Plan(seed=3, rows=rows, batch=batch).step(step)
        assert [slot.row < 7 for slot in plan.step(step)] == [True] * batch + [False] * batch


def test_the_batch_only_cuts_one_and_the_same_stream() -> None:
    rows = {"instance": tuple(range(10))}
    streams = [
        [slot for step in range(60 // batch) for slot in Plan(seed=1, rows=rows, batch=batch).step(step)]
        for batch in (1, 2, 3, 5, 60)
    ]
    assert all(stream == streams[0] for stream in streams)


def test_epochs_groups_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, group: str, epoch: int) -> list[int]:
        plan = Plan(seed=seed, rows={"instance": tuple(range(20)), "class": tuple(range(20))}, batch=20)
        half = slice(0, 20) if group == "instance" else slice(20, 40)
        return [slot.row for slot in plan.step(epoch)[half]]

    orders = [order(1, "instance", 0), order(1, "instance", 1), order(2, "instance", 0), order(1, "class", 0)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_a_far_step_costs_no_more_than_a_near_one() -> None:
    plan = Plan(seed=1, rows={"instance": tuple(range(1000))}, batch=4)
    before = time.perf_counter()
    assert plan.step(10**12)[0].epoch == 4 * 10**9
    assert time.perf_counter() - before < 0.5


def test_a_plan_without_pictures_or_with_strange_groups_is_refused() -> None:
    with pytest.raises(DataError, match="no picture to learn from"):
        Plan(seed=0, rows={"class": (1,)}, batch=1)
    with pytest.raises(DataError, match="'style' is not known"):
        Plan(seed=0, rows={"instance": (0,), "style": (1,)}, batch=1)
