"""Nothing is encoded twice, nothing broken goes unnoticed, nothing stale is used."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_parts import Averages, batches, dataset, made, picture, prepared, quiet, same
from PIL import Image

from gesso.arrays import Float32
from gesso.data.dataset import Prepared
from gesso.data.images import Decoded, Transform, apply, decode, load
from gesso.data.plan import Slot
from gesso.data.sources import read
from gesso.errors import DataError, NumbersError
from gesso.schema import DataTable


def test_a_second_run_encodes_nothing(tmp_path: Path) -> None:
    records, encoder = made(tmp_path / "p"), Averages()
    first = prepared(records * 2, tmp_path / "c", encoder, flip=True, caption_dropout=0.1)
    assert first == Prepared(encoded=10, reused=0, captions_encoded=11, captions_reused=0)
    assert (encoder.pictures, len(encoder.captions)) == (10, 11)
    again = prepared(records * 2, tmp_path / "c", encoder, flip=True, caption_dropout=0.1)
    assert again == Prepared(encoded=0, reused=10, captions_encoded=0, captions_reused=11)
    data = dataset(records, tmp_path / "c", encoder, flip=True, caption_dropout=0.1)
    data.prepare(quiet)
    for step in range(9):
        batches(data).step(step)
    assert (encoder.pictures, len(encoder.captions)) == (10, 11)


def test_whatever_changes_exactly_that_is_encoded_again(tmp_path: Path) -> None:
    records, cache = made(tmp_path / "p"), tmp_path / "c"

    def redone(**keys: object) -> tuple[int, int]:
        result = prepared(records, cache, **keys)
        return result.encoded, result.captions_encoded

    assert redone() == (5, 10)
    assert redone() == (0, 0)
    data = bytearray(records[2].path.read_bytes())
    records[2].path.write_bytes(data + b"\0")
    assert redone() == (1, 0)
    records[3] = replace(records[3], captions=("3 a", "new"))
    assert redone() == (0, 1)
    assert redone(flip=True) == (5, 0)
    assert redone(width=40) == (5, 0)
    assert redone(caption_dropout=0.5) == (0, 1)
    for name, expected in (("image_identity", (5, 0)), ("text_identity", (0, 10))):
        encoder = Averages()
        setattr(encoder, name, "another")
        assert redone(encoder=encoder) == expected
    renamed = records[0].path.rename(records[0].path.with_name("renamed.png"))
    records[0] = replace(records[0], path=renamed)
    assert redone() == (0, 0)


def test_latents_are_those_of_the_cropped_and_mirrored_picture(tmp_path: Path) -> None:
    records, encoder = made(tmp_path / "p"), Averages()
    for crop in ("center", "random"):
        data = dataset(records, tmp_path / "c", encoder, flip=True, crop=crop)
        data.prepare(quiet)
        slots = [Slot(row, epoch) for row in range(5) for epoch in range(3)]
        pixels = [apply(Decoded.of(load(records[slot.row].path)), data.transform(slot)) for slot in slots]
        mean, logvar = encoder.encode_images(np.stack(pixels))
        assert same(data.latents(slots), (mean, logvar))
        flips = {data.transform(slot).flip for slot in slots}
        places = {(data.transform(slot).left, data.transform(slot).top) for slot in slots}
        assert (flips, len(places)) == ({True, False}, 1 if crop == "center" else 15)


def test_random_crops_are_not_kept_and_broken_pictures_are_found_all_the_same(tmp_path: Path) -> None:
    records, encoder = made(tmp_path / "p"), Averages()
    data = dataset(records, tmp_path / "c", encoder, crop="random")
    assert data.prepare(quiet).encoded == encoder.pictures == 0
    torn = records[4].path
    torn.write_bytes(torn.read_bytes()[:-40])
    with pytest.raises(DataError, match="not a readable picture") as caught:
        prepared(records, tmp_path / "c", crop="random")
    assert caught.value.where == str(torn)


def test_all_broken_pictures_are_reported_together(tmp_path: Path) -> None:
    records = made(tmp_path / "p", instances=30)
    for record in records[3:17]:
        record.path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="14 of 30 pictures cannot be used") as caught:
        prepared(records, tmp_path / "c")
    message = str(caught.value)
    assert [message.count("HTML"), message.count("instance-"), "and 4 more" in message] == [10, 10, True]
    for record in records[3:5]:
        record.path.unlink()
    with pytest.raises(DataError, match=r"(?s)14 of 30 .*instance-4\.png: cannot be read.*HTML"):
        prepared(records, tmp_path / "c")


def test_a_picture_that_changes_during_the_run_is_noticed(tmp_path: Path) -> None:
    records = made(tmp_path / "p")
    data = dataset(records, tmp_path / "c", crop="random")
    data.prepare(quiet)
    picture(records[1].path, 99)
    with pytest.raises(DataError, match="changed while it was in use"):
        data.latents([Slot(1, 0)])


def test_calls_to_the_encoder_hold_one_and_progress_reaches_its_end(tmp_path: Path) -> None:
    records, encoder = made(tmp_path / "p", instances=35), Averages()
    told: list[tuple[str, int, int]] = []
    dataset(records, tmp_path / "c", encoder, flip=True).prepare(lambda *said: told.append(said))
    assert encoder.largest == 1
    ends = {what: (done, total) for what, done, total in told}
    assert ends == {"fingerprints": (35, 35), "pictures": (35, 35), "captions": (70, 70)}
    assert {total for what, _, total in told if what == "captions"} == {70}
    assert [done for what, done, _ in told if what == "captions"] == list(range(1, 71))


class Groups(Averages):
    """Its answers depend on how many it is asked at once, as the last bits of real encoders' answers do."""

    def encode_images(self, pixels: Float32) -> tuple[Float32, Float32]:
        mean, logvar = super().encode_images(pixels)
        return mean + np.float32(1e-3) * len(pixels), logvar

    def encode_text(self, captions: Sequence[str]) -> dict[str, Float32]:
        return {name: value + np.float32(len(captions)) for name, value in super().encode_text(captions).items()}


@pytest.mark.parametrize("crop", ["center", "random"])
def test_the_bits_do_not_depend_on_what_else_was_missing(tmp_path: Path, crop: str) -> None:
    records = made(tmp_path / "p")
    whole = dataset(records, tmp_path / "whole", Groups(), crop=crop, flip=True)
    whole.prepare(quiet)
    dataset(records[1:2], tmp_path / "parts", Groups(), crop=crop, flip=True).prepare(quiet)  # killed after a picture
    parts = dataset(records, tmp_path / "parts", Groups(), crop=crop, flip=True)
    parts.prepare(quiet)
    encoder = Groups()
    encoder.cache_latents = encoder.cache_text = False
    never = dataset(records, tmp_path / "never", encoder, crop=crop, flip=True)
    assert all(same(batches(whole).step(n), batches(parts).step(n)) for n in range(6))
    assert all(same(batches(whole).step(n), batches(never).step(n)) for n in range(6))
    slots = [Slot(row, 0) for row in range(5)]
    each = [never.latents([slot])[0][0] for slot in slots]
    assert same(never.latents(slots)[0], np.stack(each))
    assert same(never.condition(["a", "b"])["hidden"][1:], never.condition(["b"])["hidden"])


def test_pictures_that_are_enlarged_are_named_in_one_sentence(tmp_path: Path) -> None:
    records = made(tmp_path / "p", instances=12)  # of 48 x 40 pixels
    assert prepared(records, tmp_path / "c", width=48, height=40).notes == ()
    picture(records[3].path, 3, (64, 32))
    one = (f"1 of 12 pictures is smaller than 48 × 40 and is enlarged: {records[3].path} (64 × 32)",)
    assert prepared(records, tmp_path / "c", width=48, height=40).notes == one
    again = prepared(records, tmp_path / "c", width=48, height=40)
    assert (again.encoded, again.notes) == (0, one), "what comes from the cache is told of as well"
    assert prepared(records, tmp_path / "c", width=48, height=40, crop="random").notes == one
    (note,) = prepared(records, tmp_path / "c", width=64, height=64).notes
    assert note.startswith("12 of 12 pictures are smaller than 64 × 64 and are enlarged: ")
    assert note.endswith(" and 2 more")
    assert note.count("(48 × 40)") == 9


def test_an_encoder_that_overflows_is_named_with_the_picture(tmp_path: Path) -> None:
    class Overflows(Averages):
        def encode_images(self, pixels: Float32) -> tuple[Float32, Float32]:
            mean, logvar = super().encode_images(pixels)
            mean[-1, 0, 0, 0] = np.inf if self.pictures == 5 else 0
            return mean, logvar

    records = made(tmp_path / "p")
    with pytest.raises(NumbersError, match="not finite") as caught:
        prepared(records, tmp_path / "c", Overflows())
    assert caught.value.where == str(records[-1].path)


def test_captions_are_drawn_and_dropped_in_proportion(tmp_path: Path) -> None:
    data = dataset(made(tmp_path / "p", instances=4), tmp_path / "c", caption_dropout=0.25)
    drawn = Counter(data.caption(Slot(row, epoch))[1:] for row in range(4) for epoch in range(500))
    assert abs(drawn[""] / 2000 - 0.25) < 0.03
    assert abs(drawn[" a"] / 2000 - 0.375) < 0.04
    never = dataset(data.records, tmp_path / "c")
    kept = {data.caption(Slot(0, e)) for e in range(50)} - {""}
    assert kept == {never.caption(Slot(0, e)) for e in range(50)} == {"0 a", "0 b"}


def test_token_ids_when_the_text_encoder_trains(tmp_path: Path) -> None:
    encoder = Averages()
    encoder.train_text = True
    data = dataset(made(tmp_path / "p"), tmp_path / "c", encoder)
    assert data.prepare(quiet).captions_encoded == 0
    assert same(data.condition(["ab", "c"]), encoder.tokens(["ab", "c"]))
    assert encoder.captions == []


def test_without_the_cache_the_numbers_are_the_same(tmp_path: Path) -> None:
    records, encoder = made(tmp_path / "p"), Averages()
    encoder.cache_latents = encoder.cache_text = False
    kept, fresh = dataset(records, tmp_path / "c"), dataset(records, tmp_path / "none", encoder)
    kept.prepare(quiet)
    assert fresh.prepare(quiet) == Prepared()
    assert all(same(batches(kept).step(step), batches(fresh).step(step)) for step in range(4))
    assert not (tmp_path / "none").exists()


def test_the_lock_records_the_data_and_not_the_machine(tmp_path: Path) -> None:
    records = made(tmp_path / "here" / "p")
    lock = dataset(records, tmp_path / "c").lock([tmp_path / "here"])
    assert lock["pictures"][1] == {
        "file": "p/instance-1.png",
        "sha256": hashlib.sha256(records[1].path.read_bytes()).hexdigest(),
        "captions": ["1 a", "1 b"],
        "group": "instance",
        "weight": 1.1,
    }
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = [replace(r, path=tmp_path / "there" / "p" / r.path.name) for r in records]
    assert dataset(moved, tmp_path / "c").lock()["fingerprint"] == lock["fingerprint"]
    assert dataset(moved, tmp_path / "c").lock()["pictures"][1]["file"] == "instance-1.png"
    changed = (
        moved[::-1],
        moved[:-1],
        [replace(moved[0], captions=("x",)), *moved[1:]],
        [replace(moved[0], weight=2.0), *moved[1:]],
    )
    prints = {dataset(rows, tmp_path / "c").lock()["fingerprint"] for rows in (moved, *changed)}
    assert len(prints) == 5


def test_interpolation_and_background_reach_the_pixels_and_the_cache(tmp_path: Path) -> None:
    rgba = np.random.default_rng(3).integers(0, 256, (40, 48, 4), dtype=np.uint8)
    (tmp_path / "p").mkdir()
    Image.fromarray(rgba).save(tmp_path / "p/a.png")
    seen = []
    for background, interpolation in (("white", "lanczos"), ("black", "lanczos"), ("white", "bilinear")):
        records = read(DataTable(path=str(tmp_path / "p"), prompt="a", background=background))
        data = dataset(records, tmp_path / "c", encoder := Averages(), interpolation=interpolation)
        assert data.prepare(quiet).encoded == encoder.pictures == 1
        assert dataset(records, tmp_path / "c", interpolation=interpolation).prepare(quiet).encoded == 0
        transform = Transform(side_width=32, side_height=32, interpolation=interpolation, background=background)
        picture = decode((tmp_path / "p/a.png").read_bytes(), tmp_path, [transform])
        mean, _ = data.latents([Slot(0, 0)])
        assert same(mean, encoder.encode_images(apply(picture, transform)[None])[0])
        seen.append(mean)
    assert all(not np.array_equal(one, other) for one, other in itertools.combinations(seen, 2))
