"""One body, every engine: what the Protocol promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gesso.arrays import Array
from gesso.data.batch import Batch
from gesso.engines.engine import Adapter, Engine, Optim, SampleRequest
from gesso.engines.reference.model import write as linear
from gesso.errors import StorageError
from gesso.families import find
from gesso.objective.coefficients import Coefficients
from gesso.objective.objective import Objective
from gesso.schema import TorchEngine

LORA = Adapter(rank=2, alpha=4, targets={"unet": ("to_q", "conv1")})
FAMILY = find("StableDiffusionPipeline")


def create(
    name: str, blank: Path, *, adapter: Adapter | None, parts: tuple[str, ...] = ("unet",), **more: Any
) -> Engine:
    from importlib import import_module

    options = {"device": "cpu", "precision": "fp32", **more}
    optim = options.pop("optim", Optim(ema=True))
    engine: Engine = import_module(f"gesso.engines.{name}.engine").create(TorchEngine(), **options)
    engine.load(
        linear(blank.parent / "linear") if name == "reference" else blank,
        FAMILY,
        parts=parts if adapter is None else (),
    )
    engine.attach(adapter, optim)
    return engine


@pytest.fixture(params=["reference", "torch"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[LORA, None], ids=["lora", "full"])
def adapter(request: pytest.FixtureRequest) -> Adapter | None:
    return request.param  # type: ignore[no-any-return]


def rows(engine: Engine, count: int = 4, *, tokens: bool = False) -> tuple[Batch, Coefficients]:
    rng = np.random.default_rng(5)
    captions = ["a cat", "an apple on a red background", "", "a toy"][:count]
    x0, eps = rng.standard_normal((2, count, 4, 16, 16)).astype(np.float32)
    batch = Batch(
        x0=x0,
        eps_in=eps,
        eps_target=eps,
        cond=engine.tokens(captions) if tokens else engine.encode_text(captions),
        weight=np.full(count, 1 / count, dtype=np.float32),
        ids=np.arange(count),
    )
    return batch, Objective().at(np.array([10, 300, 600, 990])[:count])


def weights(engine: Engine) -> dict[str, Array]:
    return dict(engine.read()["weights"])


def take(engine: Engine, batch: Batch, c: Coefficients, size: int = 4, steps: int = 1) -> list[float]:
    parts = [(batch.rows(at, at + size), c.rows(at, at + size)) for at in range(0, len(batch), size)]
    return [engine.step(parts, lr={"unet": 1e-3}, ema_decay=0.5, key=step).read().loss for step in range(steps)]


def test_a_step_moves_what_is_trained_and_learns(name: str, adapter: Adapter | None, blank: Path) -> None:
    engine = create(name, blank, adapter=adapter)
    before = weights(engine)
    losses = take(engine, *rows(engine), steps=2)
    after = weights(engine)
    assert losses[1] < losses[0]
    # A LoRA's first step moves B alone, since B starts at zero; the second moves A too.
    assert [key for key in before if np.array_equal(before[key], after[key])] == []
    assert all(value.dtype == np.float32 for value in after.values())


def test_micro_batches_make_no_difference(name: str, adapter: Adapter | None, blank: Path) -> None:
    results = []
    for size in (4, 2, 1):
        engine = create(name, blank, adapter=adapter)
        loss = take(engine, *rows(engine), size=size)[0]
        moment = {k: v for k, v in engine.read()["optimizer"].items() if k.startswith(("exp_avg/", "m/"))}
        results.append((loss, moment))
    (loss, moment), *others = results
    scale = max(float(np.abs(value).max()) for value in moment.values())
    for other_loss, other in others:
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert max(float(np.abs(other[k] - moment[k]).max()) for k in moment) < 1e-5 * scale


def test_weight_is_each_rows_share(name: str, blank: Path) -> None:
    engine = create(name, blank, adapter=None)
    batch, c = rows(engine)
    errors = engine.evaluate(batch, c)
    share = np.array([0.1, 0.0, 2.0, 0.5], dtype=np.float32)
    weighted = replace(batch, weight=share)
    doubled = replace(c, w=np.full(4, 2.0))
    loss = take(engine, weighted, doubled)[0]
    assert loss == pytest.approx(float((2 * share * errors).sum()), rel=1e-5)


def test_a_mask_hides_what_it_covers(name: str, blank: Path) -> None:
    engine = create(name, blank, adapter=None)
    batch, c = rows(engine)
    mask = np.zeros((4, 1, 16, 16), dtype=np.float32)
    assert take(engine, replace(batch, mask=mask), c)[0] == 0.0


def test_read_and_write_carry_everything(name: str, adapter: Adapter | None, blank: Path) -> None:
    """Three steps straight equal one step, a new engine, and two more: bit for bit."""
    straight = create(name, blank, adapter=adapter)
    batch, c = rows(straight)
    for key in range(3):
        straight.step([(batch, c)], lr={"unet": 1e-3}, ema_decay=0.9, key=key).read()
    first = create(name, blank, adapter=adapter)
    first.step([(batch, c)], lr={"unet": 1e-3}, ema_decay=0.9, key=0).read()
    saved = first.read()
    first.step([(batch, c)], lr={"unet": 1e-3}, ema_decay=0.9, key=9).read()  # what was read must not change with it
    second = create(name, blank, adapter=adapter)
    second.write(saved)
    for key in (1, 2):
        second.step([(batch, c)], lr={"unet": 1e-3}, ema_decay=0.9, key=key).read()
    one, other = straight.read(), second.read()
    assert one.keys() == other.keys()
    for file in one:
        assert one[file].keys() == other[file].keys()
        for key_ in one[file]:
            assert np.array_equal(one[file][key_], other[file][key_]), (file, key_)


def test_foreign_weights_are_refused(name: str, blank: Path) -> None:
    engine = create(name, blank, adapter=LORA)
    with pytest.raises(StorageError, match="do not fit"):
        engine.write({"weights": {"unet.other": np.zeros(1)}, "ema": {}, "optimizer": {}})


def test_a_step_without_finite_gradient_changes_nothing(name: str, adapter: Adapter | None, blank: Path) -> None:
    engine = create(name, blank, adapter=adapter)
    batch, c = rows(engine)
    take(engine, batch, c)
    before = engine.read()
    poisoned = replace(batch, x0=np.full_like(batch.x0, np.nan))
    metrics = engine.step([(poisoned, c)], lr={"unet": 1e-3}, ema_decay=0.5, key=1).read()
    assert metrics.skipped
    after = engine.read()
    for file in ("weights", "optimizer"):
        assert all(np.array_equal(before[file][key], after[file][key]) for key in before[file])


def test_clipping_clips(name: str, blank: Path) -> None:
    moments = []
    for clip in (0.0, 0.01):
        engine = create(name, blank, adapter=None, optim=Optim(clip=clip))
        batch, c = rows(engine)
        norm = engine.step([(batch, c)], lr={"unet": 1e-3}, ema_decay=0.0, key=0).read().grad_norm
        first = [v for k, v in engine.read()["optimizer"].items() if k.startswith(("exp_avg/", "m/"))]
        moments.append(np.sqrt(sum(np.square(v, dtype=np.float64).sum() for v in first)))
    assert norm > 0.01
    # The first moment after one step is (1 − beta1) times the clipped gradient.
    assert moments[0] == pytest.approx(0.1 * norm, rel=1e-4)
    assert moments[1] == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_averages_follow_the_weights(name: str, blank: Path) -> None:
    engine = create(name, blank, adapter=None)
    start = weights(engine)
    batch, c = rows(engine)
    engine.step([(batch, c)], lr={"unet": 1e-3}, ema_decay=0.75, key=0).read()
    live, average = engine.read()["weights"], engine.read()["ema"]
    for key in start:
        assert average[key] == pytest.approx(0.75 * start[key] + 0.25 * live[key], abs=1e-6)


def test_evaluating_and_sampling_leave_no_trace(name: str, adapter: Adapter | None, blank: Path) -> None:
    engine = create(name, blank, adapter=adapter)
    batch, c = rows(engine)
    before = engine.read()
    first = engine.evaluate(batch, c)
    request = SampleRequest(prompt="a cat", seed=3, width=64, height=64, steps=2)
    pictures = engine.sample([request, replace(request, seed=4)], ema=True)
    assert [picture.shape for picture in pictures] == [(64, 64, 3)] * 2
    assert pictures[0].dtype == np.uint8
    assert np.array_equal(engine.sample([request])[0], pictures[0])
    assert np.array_equal(engine.evaluate(batch, c), first)
    after = engine.read()
    assert all(np.array_equal(before["weights"][key], after["weights"][key]) for key in before["weights"])


def test_a_batch_is_encoded_row_by_row(name: str, blank: Path) -> None:
    engine = create(name, blank, adapter=None)
    rng = np.random.default_rng(1)
    pixels = rng.uniform(-1, 1, (3, 3, 64, 64)).astype(np.float32)
    mean, logvar = engine.encode_images(pixels)
    assert mean.dtype == logvar.dtype == np.float32
    alone, _ = engine.encode_images(pixels[1:2])
    assert mean[1] == pytest.approx(alone[0], abs=1e-5)
    both = engine.encode_text(["a cat", "a dog"])
    single = engine.encode_text(["a dog"])
    assert all(both[key][1] == pytest.approx(single[key][0], abs=1e-5) for key in both)
    counts, limit = engine.token_counts(["a cat", "a cat on a red background"])
    assert counts[0] < counts[1] <= limit
