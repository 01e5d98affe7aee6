"""Pictures keep their shape: the sizes, the order of the steps, and what a step learns from."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_parts import Averages, dataset, picture, quiet, same
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import events, gesso, hashes, recipe
from test_engine_contract import LORA, create

from gesso.data import sizes
from gesso.data.batch import Batch
from gesso.data.batches import Batches, held_out
from gesso.data.buckets import Buckets, lines, said, table, usual
from gesso.data.images import load
from gesso.data.plan import Plan, Slot, by_group
from gesso.data.record import Record
from gesso.engines.engine import Engine
from gesso.errors import RecipeError
from gesso.families import sdxl
from gesso.loop import split
from gesso.objective.coefficients import Coefficients
from gesso.objective.objective import Objective
from gesso.recipe import load as read
from gesso.run import train

SHAPES = [
    (48, 48),
    (96, 48),
    (40, 80),
    (64, 64),
    (100, 44),
    (50, 52),
    (130, 60),
    (36, 90),
    (70, 70),
    (51, 100),
    (96, 46),
]
SMALL = usual(32)


def records(folder: Path, shapes: list[tuple[int, int]], group: str = "instance") -> list[Record]:
    return [
        Record(path=picture(folder / f"{group}{n}.png", n, shape), captions=(f"{n} a",), group=group)
        for n, shape in enumerate(shapes)
    ]


def mixed(folder: Path, batch: int = 4, classes: int = 0, **keys: object) -> Batches:
    rows = [*records(folder / "p", SHAPES), *records(folder / "q", SHAPES[:classes], "class")]
    data = dataset(rows, folder / "c", buckets=SMALL, **keys)
    data.prepare(quiet)
    plan = Plan(seed=7, rows=by_group(rows), batch=batch, sizes=data.all_sizes())
    return Batches(plan=plan, dataset=data, objective=Objective(), scale=0.5)


def paired(source: Batches, number: int) -> list[tuple[Slot, Batch, Coefficients]]:
    """The slots of a step, each with what the step holds of it."""
    slots = sorted(source.plan.step(number), key=lambda slot: source.dataset.size(slot.row))
    pieces = sorted(source.step(number), key=lambda piece: source.dataset.size(int(piece[0].ids[0])))
    rows = [(batch.rows(at, at + 1), c.rows(at, at + 1)) for batch, c in pieces for at in range(len(batch))]
    return [(slot, *row) for slot, row in zip(slots, rows, strict=True)]


# ---------------------------------------------------------------- sizes


def test_the_usual_sizes_are_those_of_kohyas_scripts() -> None:
    wide = [(512, 512), (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256)]
    assert usual(512).sizes == tuple(sorted({*wide, *((height, width) for width, height in wide)}))
    assert usual(512) == Buckets(resolution=512)
    large = usual(1024)
    assert (large.step, large.smallest, large.largest) == (64, 512, 2048)
    assert {(1024, 1024), (1152, 896), (1216, 832), (1344, 768), (1536, 640)} <= set(large.sizes)  # SDXL's own
    assert max(max(size) for size in Buckets(resolution=1024, largest=1024).sizes) == 1024


@given(st.sampled_from([64, 256, 512, 640, 1000, 1024]), st.integers(8, 9000), st.integers(8, 9000), st.booleans())
def test_a_size_is_on_the_grid_and_has_the_nearest_shape(side: int, width: int, height: int, enlarge: bool) -> None:
    buckets = usual(side, enlarge=enlarge)
    size = buckets.size(width, height)
    assert size[0] % buckets.step == size[1] % buckets.step == 0
    assert min(size) >= buckets.step
    if enlarge:
        assert size in buckets.sizes
        assert size[0] * size[1] <= side**2
        off = abs(size[0] / size[1] - width / height)
        assert off == min(abs(w / h - width / height) for w, h in buckets.sizes)
    elif min(width, height) >= buckets.step and width * height <= side**2:
        assert (width - buckets.step, height - buckets.step) < size <= (width, height)


PICTURES = [(4000, 3000), (3000, 4000), (6000, 4000), (1920, 1080), (640, 480), (300, 200), (5000, 1000), (901, 899)]


@pytest.mark.parametrize(
    ("side", "enlarge", "found"),
    [
        (512, True, "576x448 448x576 640x384 640x384 576x448 640x384 1024x256 512x512"),
        (1024, True, "1152x896 896x1152 1216x832 1344x768 1152x896 1216x832 2048x512 1024x1024"),
        (512, False, "512x384 384x512 576x384 640x384 512x384 256x192 960x192 448x448"),
        (1024, False, "1088x832 832x1088 1216x832 1344x768 640x448 256x192 2240x448 896x896"),
    ],
)
def test_pictures_get_the_sizes_that_kohyas_scripts_give_them(side: int, enlarge: bool, found: str) -> None:
    """What sd-scripts say for bucket_reso_steps = 64, and 256 to 1024 or 512 to 2048 pixels."""
    buckets = usual(side, enlarge=enlarge)
    assert " ".join("x".join(map(str, buckets.size(*pixels))) for pixels in PICTURES) == found


def test_a_picture_of_a_listed_size_keeps_it() -> None:
    buckets = usual(512)
    assert all(buckets.size(*size) == size for size in buckets.sizes)


def test_small_pictures_keep_their_size_where_none_is_enlarged() -> None:
    buckets = usual(512, enlarge=False)
    assert buckets.size(300, 200) == (256, 192)
    assert buckets.size(6000, 4000) == (576, 384)
    assert buckets.size(20, 300) == (64, 256)  # no side can be less than a step


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"smallest": 100}, "bucket_min is 100, but must be a multiple of the buckets' step, 64"),
        ({"largest": 1000}, "bucket_max is 1000"),
        ({"smallest": 576}, "leaves no room for the resolution, 512"),
        ({"largest": 448}, "leaves no room for the resolution, 512"),
        ({"step": 1024}, "bucket_step is 1024"),
    ],
)
def test_what_does_not_fit_together_is_said(given: dict[str, int], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        usual(512, **given)


# ---------------------------------------------------------------- order


def ordered(kinds: list[int], batch: int, seed: int = 1) -> Plan:
    return Plan(
        seed=seed, rows={"instance": tuple(range(len(kinds)))}, batch=batch, sizes=[(kind, 8) for kind in kinds]
    )


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 2**20))
def test_every_row_once_an_epoch_and_as_many_steps_of_one_size_as_can_be(
    kinds: list[int], batch: int, seed: int
) -> None:
    plan, count, epochs = ordered(kinds, batch, seed), len(kinds), 4
    slots = [slot for step in range(-(-count * epochs // batch)) for slot in plan.step(step)][: count * epochs]
    assert Counter(slots) == Counter(Slot(row, epoch) for row in range(count) for epoch in range(epochs))
    assert [slot.epoch for slot in slots] == sorted(slot.epoch for slot in slots)
    for epoch in range(epochs):
        # Whole steps within the epoch: nobody could fill more of them with one size, but for one that the ends open.
        first, last = -(-epoch * count // batch), (epoch + 1) * count // batch
        pure = sum(len({kinds[slot.row] for slot in plan.step(step)}) == 1 for step in range(first, last))
        most = sum(found // batch for found in Counter(kinds).values())
        assert min(most, max(last - first, 0)) - (count % batch > 0) <= pure


def test_with_whole_buckets_every_step_is_of_one_size_and_their_order_is_drawn() -> None:
    plan = ordered([0] * 8 + [1] * 12 + [2] * 4, 4)
    seen = [tuple({plan.sizes[slot.row][0] for slot in plan.step(step)}) for step in range(600)]
    assert all(len(kinds) == 1 for kinds in seen)
    epochs = [tuple(seen[at : at + 6]) for at in range(0, 600, 6)]
    assert {Counter(epoch)[(1,)] for epoch in epochs} == {3}
    assert len(set(epochs)) > 30


def test_mixed_steps_lie_anywhere_and_hold_anybody() -> None:
    kinds = [0] * 10 + [1] * 10  # of 4 a step: two and two left over, which make one mixed step of five
    plan = ordered(kinds, 4)
    where, who = Counter(), Counter()
    for epoch in range(400):
        for step in range(5):
            slots = plan.step(epoch * 5 + step)
            if len({kinds[slot.row] for slot in slots}) > 1:
                where[step] += 1
                who.update(slot.row for slot in slots)
    assert sum(where.values()) == 400
    assert all(50 < where[step] < 110 for step in range(5))
    assert all(45 < who[row] < 115 for row in range(20))


def test_one_size_changes_nothing() -> None:
    plain = Plan(seed=1, rows={"instance": tuple(range(11))}, batch=4)
    assert [ordered([3] * 11, 4).step(step) for step in range(20)] == [plain.step(step) for step in range(20)]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(1, 5))
def test_a_step_is_the_same_whatever_was_asked_before(steps: list[int], batch: int) -> None:
    kinds = [0, 1, 1, 0, 2, 0, 1]
    plan = ordered(kinds, batch)
    for step in steps:
        assert plan.step(step) == ordered(kinds, batch).step(step)


# ---------------------------------------------------------------- what a step learns from


def test_a_step_is_its_pieces_and_each_row_is_what_it_is_alone(tmp_path: Path) -> None:
    source = mixed(tmp_path, classes=5, flip=True)
    data = source.dataset
    pieces = Counter()
    for number in range(8):
        step, slots = source.step(number), source.plan.step(number)
        assert sorted(int(row) for batch, _ in step for row in batch.ids) == sorted(slot.row for slot in slots)
        assert len({batch.x0.shape for batch, _ in step}) == len(step)
        assert math.isclose(sum(float(batch.weight.sum()) for batch, _ in step), 2.0, rel_tol=1e-6)
        for batch, c in step:
            assert len(batch) == len(c)
            width, height = data.size(int(batch.ids[0]))
            assert batch.x0.shape[2:] == (height // 8, width // 8)
            groups = [data.records[row].group for row in batch.ids]
            assert groups == sorted(groups, reverse=True)
        pieces[len(step)] += 1
    assert len(pieces) > 1
    # The same rows in the same epochs, one a step.
    alone = replace(
        source, plan=replace(source.plan, batch=1, rows={"instance": source.plan.rows["instance"]}, sizes=())
    )
    for number in range(3):
        for slot, batch, c in paired(source, number):
            if data.records[slot.row].group == "class":
                continue
            at = next(k for k in range(slot.epoch * 11, slot.epoch * 11 + 11) if alone.plan.step(k) == [slot])
            ((single, its),) = alone.step(at)
            assert same(replace(batch, weight=single.weight), single)
            assert same(c, its)


def test_prefetched_steps_and_another_start_are_the_same(tmp_path: Path) -> None:
    source = mixed(tmp_path, crop="random", flip=True)
    straight = [source.step(step) for step in range(8)]
    assert all(same(got, straight[3 + at]) for at, got in enumerate(source.prefetch(3, 8)))
    again = mixed(tmp_path, crop="random", flip=True)
    assert same(again.step(5), straight[5])


@pytest.mark.parametrize("crop", ["center", "random"])
def test_time_ids_follow_the_size_of_each_row(tmp_path: Path, crop: str) -> None:
    source = mixed(tmp_path, crop=crop, flip=True, geometry=sdxl.geometry)
    for number in range(6):
        for slot, batch, _ in paired(source, number):
            transform, (width, height) = source.dataset.transform(slot), SHAPES[slot.row]
            left, top = transform.corner(width, height)
            size = SMALL.size(width, height)
            assert batch.cond["time_ids"].tolist() == [[height, width, top, left, size[1], size[0]]]
            assert (transform.side_width, transform.side_height) == size


def test_held_out_pictures_are_measured_at_their_own_sizes(tmp_path: Path) -> None:
    data = dataset(records(tmp_path / "p", SHAPES), tmp_path / "c", buckets=SMALL)
    data.prepare(quiet)
    found = held_out(data, objective=Objective(), scale=0.5, seed=1, timesteps=3, batch=4)
    rows = Counter(int(row) for batch, _ in found for row in batch.ids)
    assert rows == dict.fromkeys(range(len(SHAPES)), 3)
    for batch, _ in found:
        assert {data.size(int(row)) for row in batch.ids} == {(batch.x0.shape[3] * 8, batch.x0.shape[2] * 8)}


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_the_loss_and_its_gradient_do_not_depend_on_the_pieces(
    tmp_path: Path, blank: Path, linear: Path, name: str
) -> None:
    """A step in one piece for each size, or every row by itself: one global batch, and the same weights after it."""
    side = 32 if name == "reference" else 64

    def trained(micro: int) -> list[float]:
        engine = create(name, blank, adapter=LORA)
        data = dataset(
            records(tmp_path / "p", SHAPES), tmp_path / "c", Encoders(engine), width=side, height=side,
            buckets=usual(side),
        )  # fmt: skip
        data.prepare(quiet)
        plan = Plan(seed=7, rows=by_group(data.records), batch=4, sizes=data.all_sizes())
        source = Batches(plan=plan, dataset=data, objective=Objective(), scale=0.5)
        losses, most = [], 0
        for number in range(4):
            pieces = source.step(number)
            most = max(most, len(pieces))
            parts = [part for piece in pieces for part in split(*piece, micro)]
            losses.append(engine.step(parts, lr={"unet": 1e-2}, ema_decay=0.0, key=1).read().loss)
        assert most > 1
        return losses

    assert np.allclose(trained(0), trained(1), rtol=1e-5)


class Encoders(Averages):
    """An engine's encoders as the data side asks for them."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.encode_images, self.encode_text = engine.encode_images, engine.encode_text  # type: ignore[assignment,method-assign]


# ---------------------------------------------------------------- the table


def test_the_table_names_everybody() -> None:
    wholes = dict(enumerate(SHAPES))
    rows = [*range(11), 0, 1]  # two pictures twice
    found = table(SMALL, rows, wholes, 4)
    assert sum(bucket.rows for bucket in found) == 13
    assert sum(bucket.pictures for bucket in found) == 11
    square = next(bucket for bucket in found if bucket.size == (32, 32))
    assert (square.pictures, square.rows, square.enlarged, square.mixed) == (4, 5, 0, 1)
    assert [bucket.rows for bucket in found] == sorted((bucket.rows for bucket in found), reverse=True)
    (tiny,) = table(SMALL, [0], {0: (30, 60)}, 1)
    assert (tiny.size, tiny.enlarged, tiny.mixed) == ((24, 40), 0, 0)
    assert tiny.cut == pytest.approx(1 - (30 / 60) / (24 / 40))
    (small,) = table(SMALL, [0], {0: (20, 20)}, 1)
    assert small.enlarged == 1
    assert "1 enlarged" in lines([small])[0]
    assert "13 pictures an epoch in steps of 4" in said(found, 4)
    assert f"{sum(bucket.mixed for bucket in found)} of 13 share steps" in said(found, 4)
    assert "a larger train.bucket_step" in said(table(SMALL, rows, wholes, 8), 8)
    assert said([square], 4).endswith("32 × 32 (5)")
    assert said([replace(square, mixed=0), small], 1).endswith("every step holds one size")
    assert len(lines(found)) == len(found)


# ---------------------------------------------------------------- sizes from headers


def moved_behind(png: bytes, kind: bytes) -> bytes:
    """The PNG with its chunk `kind` behind the pixels."""
    at = png.index(kind) - 4
    chunk = png[at : at + int.from_bytes(png[at : at + 4]) + 12]
    without = png.replace(chunk, b"")
    end = without.index(b"IEND") - 4
    return without[:end] + chunk + without[end:]


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_size_from_the_headers_is_that_of_the_decoded_picture(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a"
    Image.new("RGB", (24, 16), "red").save(path, kind, exif=exif)
    assert sizes.size(path) == load(path).shape[1::-1]
    if kind == "PNG" and orientation > 1:
        path.write_bytes(moved_behind(path.read_bytes(), b"eXIf"))
        assert sizes.size(path) == load(path).shape[1::-1]


def test_a_size_takes_no_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (24, 16), "red").save(path)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"IDAT") + 4])
    assert sizes.size(path) == (24, 16)


# ---------------------------------------------------------------- runs


def shapes(folder: Path) -> Path:
    for number, shape in enumerate(SHAPES):
        picture(folder / f"{number}.png", number, shape)
    return folder


def test_a_run_with_buckets_says_its_table_and_resumes_exactly(tmp_path: Path, linear: Path) -> None:
    ends = {}
    for name, stops in (("straight", [9]), ("resumed", [4, 9])):
        folder = tmp_path / name
        shapes(folder / "pictures")
        path = recipe(
            folder, linear, data=[{"path": str(folder / "pictures"), "prompt": "a thing"}],
            train={"batch": 4, "buckets": True, "flip": True, "crop": "random"}, validate={"holdout": 0.2, "every": 4},
        )  # fmt: skip
        for stop in stops:
            done = gesso("train", path, "--train.steps", str(stop))
            assert done.returncode == 0, done.stderr
        ends[name] = hashes(folder / "out", "*.safetensors")
    assert ends["straight"] == ends["resumed"]
    (note,) = [
        event["message"] for event in events(tmp_path / "straight/out", "warned") if "buckets:" in event["message"]
    ]
    assert "9 pictures an epoch in steps of 4" in note
    refused = gesso("train", tmp_path / "straight/recipe.toml", "--train.buckets", "false", "--train.steps", "10")
    assert refused.returncode == 2
    assert "train.buckets was true and is now false" in refused.stderr


def test_a_dry_run_prints_the_table(tmp_path: Path, linear: Path) -> None:
    shapes(tmp_path / "pictures")
    path = recipe(tmp_path, linear, data=[{"path": str(tmp_path / "pictures"), "prompt": "a thing"}])
    done = gesso("train", path, "--dry-run", "--train.buckets")
    assert done.returncode == 0, done.stderr
    found = table(SMALL, range(len(SHAPES)), dict(enumerate(SHAPES)), 4)
    printed = [line.removeprefix("buckets   ") for line in done.stdout.splitlines() if line.startswith("buckets")]
    assert printed == lines(found)
    wrong = gesso("train", path, "--dry-run", "--train.buckets", "--train.bucket-min", "64")
    assert wrong.returncode == 2
    assert "bucket_min is 64" in wrong.stderr


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--train.bucket-step", "8"], "train.bucket_step has no effect without train.buckets"),
        (["--train.bucket-enlarge", "false"], "train.bucket_enlarge has no effect without train.buckets"),
        (
            ["--train.buckets", "--train.bucket-enlarge", "false", "--train.bucket-min", "8"],
            "train.bucket_min has no effect without train.bucket_enlarge",
        ),
    ],
)
def test_idle_keys_are_refused(tmp_path: Path, linear: Path, flags: list[str], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        read(recipe(tmp_path, linear), flags)


def test_interpolation_and_background_of_a_recipe_reach_the_weights(tmp_path: Path, linear: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(2).integers(0, 256, (3, 50, 60, 4), dtype=np.uint8)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{number}.png")
    ends = set()
    for background, interpolation in (("white", "lanczos"), ("#102030", "lanczos"), ("white", "bilinear")):
        path = recipe(
            tmp_path, linear, out=str(tmp_path / f"{background}-{interpolation}"),
            data=[{"path": str(folder), "prompt": "a thing", "background": background}],
            train={"steps": 2, "batch": 3, "interpolation": interpolation},
        )  # fmt: skip
        assert train(read(path)) == 0
        ends |= set(hashes(tmp_path / f"{background}-{interpolation}", "*.safetensors").values())
    assert len(ends) == 3
    with pytest.raises(RecipeError, match="background"):
        read(recipe(tmp_path, linear, data=[{"path": str(folder), "background": "puce"}]))
