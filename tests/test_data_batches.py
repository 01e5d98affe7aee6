"""What each step sees is a function of the step."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_parts import batches, dataset, made, quiet, same

from gesso.data.batches import held_out
from gesso.data.dataset import Dataset
from gesso.data.plan import Slot
from gesso.errors import DataError
from gesso.objective.coefficients import mix
from gesso.objective.noise import Noise
from gesso.objective.objective import Objective
from gesso.objective.weightings import Weighting


def ready(tmp_path: Path, classes: int = 3, **keys: object) -> Dataset:
    data = dataset(made(tmp_path / "p", classes=classes), tmp_path / "c", flip=True, caption_dropout=0.2, **keys)
    data.prepare(quiet)
    return data


def test_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    data = ready(tmp_path)
    straight = [batches(data).step(step) for step in range(8)]
    fresh = dataset(data.records, tmp_path / "other", flip=True, caption_dropout=0.2)
    for step in (7, 0, 3, 3):
        assert same(batches(fresh).step(step), straight[step])
    ((batch, coefficients),) = straight[0]
    assert {v.dtype for v in (batch.x0, batch.eps_in, batch.eps_target, batch.weight)} == {np.dtype(np.float32)}
    assert (batch.x0.shape, len(coefficients), batch.mask) == ((6, 3, 4, 4), 6, None)
    assert not same(straight[0], straight[1])


def test_a_row_has_the_same_numbers_in_a_batch_of_any_size(tmp_path: Path) -> None:
    data = ready(tmp_path, classes=0)
    ((whole, coefficients),) = batches(data, batch=10).step(0)
    for step in range(5):
        ((part, its),) = batches(data, batch=2).step(step)
        rows = whole.rows(2 * step, 2 * step + 2)
        assert same(replace(part, weight=rows.weight), rows)
        assert same(its, coefficients.rows(2 * step, 2 * step + 2))
        assert np.allclose(part.weight, rows.weight * 5)


def test_class_rows_come_last_and_count_plainly(tmp_path: Path) -> None:
    data = ready(tmp_path)
    objective = Objective(weighting=Weighting(name="min_snr"))
    ((batch, coefficients),) = batches(data, objective=objective, prior_weight=0.5).step(1)
    records = [data.records[row] for row in batch.ids]
    assert [r.group for r in records] == ["instance"] * 3 + ["class"] * 3
    expected = [r.weight * (1.0 if r.group == "instance" else 0.5) / 3 for r in records]
    assert np.allclose(batch.weight, expected)
    assert (coefficients.w[3:] == 1).all()
    timesteps = coefficients.c_noise.astype(np.int64)
    assert same(coefficients.rows(0, 3), objective.at(timesteps[:3]))
    ((_, unweighted),) = batches(data, prior_weight=0.5).step(1)
    assert same(unweighted.c_noise, coefficients.c_noise)


def test_latents_are_sampled_shifted_and_scaled(tmp_path: Path) -> None:
    data = ready(tmp_path, classes=0)
    ((plain, _),) = batches(data, batch=5, scale=1.0).step(0)
    ((shifted, _),) = batches(data, batch=5, scale=0.5, shift=0.25).step(0)
    assert np.allclose(shifted.x0, (plain.x0 - 0.25) * 0.5, atol=1e-7)
    slots = batches(data, batch=5).plan.step(0)
    mean, _ = data.latents(slots)
    noise = (plain.x0 - mean) / np.exp(-2.0)
    assert abs(noise.mean()) < 0.2
    assert abs(noise.std() - 1) < 0.15
    assert abs(np.corrcoef(noise.ravel(), plain.eps_in.ravel())[0, 1]) < 0.25


def test_noise_policies_reach_the_batch(tmp_path: Path) -> None:
    data = ready(tmp_path)
    ((batch, coefficients),) = batches(data, objective=Objective(noise=Noise(perturbation=0.1))).step(0)
    assert not np.array_equal(batch.eps_in, batch.eps_target)
    ((plain, _),) = batches(data).step(0)
    assert same(batch.eps_target, plain.eps_target)
    assert mix(coefficients, batch.x0, batch.eps_in).shape == batch.x0.shape


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("gesso-batches")]


def test_prefetched_batches_equal_direct_ones(tmp_path: Path) -> None:
    source = batches(ready(tmp_path))
    ahead = list(source.prefetch(2, 9))
    assert len(ahead) == 7
    assert all(same(got, source.step(step)) for got, step in zip(ahead, range(2, 9), strict=True))
    assert list(source.prefetch(4, 4)) == []
    assert workers() == []


def test_the_thread_ends_with_its_iterator(tmp_path: Path) -> None:
    iterator = batches(ready(tmp_path)).prefetch(0, 10**9)
    next(iterator)
    assert len(workers()) == 1
    iterator.close()  # type: ignore[attr-defined]
    assert workers() == []


def test_an_error_is_raised_at_the_step_it_belongs_to(tmp_path: Path) -> None:
    data = dataset(made(tmp_path / "p"), tmp_path / "c", crop="random")
    data.prepare(quiet)
    source = batches(data, batch=1)
    victim = source.plan.step(3)[0].row
    data.records[victim].path.unlink()
    iterator = source.prefetch(0, 10)
    assert [next(iterator)[0][0].ids.tolist() for _ in range(3)] == [[source.plan.step(s)[0].row] for s in range(3)]
    with pytest.raises(DataError, match="cannot be read"):
        next(iterator)
    assert workers() == []


def test_held_out_batches_are_fixed_and_cover_the_schedule(tmp_path: Path) -> None:
    data = dataset(made(tmp_path / "p"), tmp_path / "c")
    objective = Objective(weighting=Weighting(name="min_snr"), noise=Noise(offset=0.5, perturbation=0.5))

    def steps(batch: int) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
        made_ = held_out(data, objective=objective, scale=0.5, shift=0.1, seed=1, timesteps=4, batch=batch)
        assert all(len(b) <= batch and (c.w == 1).all() and same(b.eps_in, b.eps_target) for b, c in made_)
        rows = ((b, c, i) for b, c in made_ for i in range(len(b)))
        return sorted(
            ((int(b.ids[i]), int(c.c_noise[i]), b.x0[i], b.eps_in[i]) for b, c, i in rows), key=lambda row: row[:2]
        )

    small, large = steps(2), steps(5)
    assert [row[:2] for row in large] == [(row, level) for row in range(5) for level in (125, 375, 625, 875)]
    assert all(same(a, b) for a, b in zip(small, large, strict=True))
    mean, _ = data.latents([Slot(3, 0)])
    row = next(row for row in large if row[0] == 3)
    assert same(row[2], (mean[0] - np.float32(0.1)) * np.float32(0.5))
    assert not np.array_equal(large[0][3], large[-1][3])
    first, _ = held_out(data, objective=objective, scale=1.0, seed=1, timesteps=1, batch=5)[0]
    assert same(dict(first.cond), data.condition([f"{n} a" for n in range(5)]))


def test_sources_are_left_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    records = made(folder, classes=3)

    def state() -> dict[str, tuple[str, int]]:
        files = sorted(folder.rglob("*"))
        return {f.name: (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}

    before = state()
    for crop in ("center", "random"):
        data = dataset(records, tmp_path / "c", flip=True, crop=crop)
        data.prepare(quiet)
        list(batches(data).prefetch(0, 5))
        data.lock()
    assert state() == before
    assert len(before) == 8
