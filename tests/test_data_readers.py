"""Readers change when pictures are read, and nothing else."""

from __future__ import annotations

import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from data_parts import Averages, batches, dataset, made, picture, quiet, same

from gesso.data.cache import Store
from gesso.data.dataset import Dataset
from gesso.data.readers import in_order, number
from gesso.errors import DataError


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gesso-")]


def data(tmp_path: Path, readers: int, crop: str = "random", **keys: object) -> tuple[Dataset, Averages]:
    encoder = Averages()
    records = made(tmp_path / "p", instances=7, classes=3)
    found = dataset(records, tmp_path / f"c-{readers}", encoder, crop=crop, flip=True, readers=readers, **keys)
    found.prepare(quiet)
    return found, encoder


@pytest.mark.parametrize("crop", ["random", "center"])
def test_order_and_bits_are_those_of_any_number_of_readers(tmp_path: Path, crop: str) -> None:
    direct = batches(data(tmp_path, 9, crop)[0])
    straight = [direct.step(step) for step in range(12)]
    for readers in (1, 2, 4, 8):
        found, encoder = data(tmp_path, readers, crop)
        before = encoder.pictures
        found.store.memory_bytes = 0
        ahead = list(batches(found).prefetch(0, 12))
        assert all(same(one, other) for one, other in zip(ahead, straight, strict=True))
        assert encoder.largest == 1, "the model is asked for one picture at a time"
        assert encoder.pictures - before == (12 * 6 if crop == "random" else 0)
        assert found.pictures.ahead == {}
        assert threads() == []


def test_the_model_is_asked_in_order_by_one_thread(tmp_path: Path) -> None:
    class Noting(Averages):
        def encode_images(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            asked.append((threading.current_thread().name, pixels.tobytes()))
            return super().encode_images(pixels)

    records = made(tmp_path / "p")
    orders = []
    for readers in (1, 4):
        asked: list[tuple[str, bytes]] = []
        found = dataset(records, tmp_path / "c", Noting(), crop="random", readers=readers)
        list(batches(found).prefetch(0, 10))
        assert len({name for name, _ in asked}) == 1
        orders.append([pixels for _, pixels in asked])
    assert orders[0] == orders[1]


@pytest.mark.parametrize("readers", [1, 4])
def test_prepare_encodes_the_same_in_the_same_order(tmp_path: Path, readers: int) -> None:
    records = made(tmp_path / "p", instances=9)
    picture(tmp_path / "p" / "again.png", 3)  # the same picture as the fourth, under another name
    records.append(type(records[0])(path=tmp_path / "p" / "again.png", captions=("x",), group="instance", weight=1.0))
    encoder = Averages()
    done = dataset(records, tmp_path / "c", encoder, readers=readers, width=24).prepare(quiet)
    assert (done.encoded, encoder.pictures) == (9, 9)
    for broken in (2, 6):
        records[broken].path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="2 of 10 pictures cannot be used") as caught:
        dataset(records, tmp_path / "d", readers=readers).prepare(quiet)
    assert str(caught.value).index("instance-2") < str(caught.value).index("instance-6")
    assert threads() == []


def test_preparing_holds_no_more_latents_than_the_store_may(tmp_path: Path) -> None:
    class Large(Averages):
        def encode_images(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            mean = np.full((1, 4, 128, 128), pixels.mean(), dtype=np.float32)
            return mean, np.zeros_like(mean)

    records = made(tmp_path / "p", instances=120)
    for _ in ("new", "kept"):
        store = Store(tmp_path / "c", memory_bytes=2**20)
        found = dataset(records, tmp_path / "c", Large(), store=store, readers=2)
        tracemalloc.start()
        found.prepare(quiet)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        store.close()
        assert peak < 6 * 2**20
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.pack")) > 60 * 2**20


@pytest.mark.parametrize("readers", [1, 8])
def test_an_error_is_raised_at_the_step_it_belongs_to(tmp_path: Path, readers: int) -> None:
    found, _ = data(tmp_path, readers)
    source = batches(found, batch=1)
    victim = source.plan.step(4)[0].row
    found.records[victim].path.unlink()
    first = next(step for step in range(9) if victim in [slot.row for slot in source.plan.step(step)])
    iterator = source.prefetch(0, 20)
    for _ in range(first):
        next(iterator)
    with pytest.raises(DataError, match="cannot be read"):
        next(iterator)
    assert threads() == []


def test_closing_ends_the_threads(tmp_path: Path) -> None:
    found, _ = data(tmp_path, 3)
    iterator = batches(found).prefetch(0, 10**9)
    next(iterator)
    assert len(threads()) == 4
    iterator.close()
    assert threads() == []
    assert found.pictures.ahead == {}


def test_work_is_done_ahead_by_several_and_answered_in_order() -> None:
    together = threading.Barrier(3, timeout=20)

    def work(item: int) -> int:
        if item < 3:
            together.wait()  # three are at work at once, or this fails
        time.sleep(0.001 * (item % 3))
        if item == 5:
            raise ValueError("five")
        return item * item

    answers = []
    for item, future in in_order(work, range(9), 3):
        answers.append((item, "five" if future.exception() else future.result()))
    assert answers == [(item, "five" if item == 5 else item * item) for item in range(9)]
    begun: list[int] = []
    some = in_order(begun.append, range(1000), 2)
    assert next(some)[0] == 0
    some.close()
    assert len(begun) <= 4
    assert threads() == []
    assert number(5) == 5
    assert 1 <= number(0) <= 8
