"""Very many pictures whose indexes vouch for them: nothing read, nothing held, nothing else learned."""

from __future__ import annotations

import hashlib
import json
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_parts import Averages, batches, dataset, quiet, same
from runs import events, hashes, recipe
from sources_parts import table

from gesso.cli import main
from gesso.data import index, many
from gesso.data.buckets import Buckets, counted, usual
from gesso.data.buckets import table as bucket_table
from gesso.data.cache import Store
from gesso.data.encoded import Pictures
from gesso.data.index import Row
from gesso.data.lock import lock
from gesso.data.places import Inside, Member
from gesso.data.plan import Plan, by_group
from gesso.data.record import Record
from gesso.data.records import Indexed, chosen, joined, repeated, spans
from gesso.data.sources import read
from gesso.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from scale import bitmap, made

COUNT = 12


def packed(folder: Path, shards: tuple[int, ...] = (COUNT,), first: int = 0, **changes: object) -> Path:
    """COUNT bitmaps in shards of so many rows, with an index beside each; captions and weights vary by row."""
    folder.mkdir(parents=True)
    row = first
    for number, count in enumerate(shards):
        path, rows = folder / f"{number}.tar", []
        with path.open("wb") as file:
            for _ in range(count):
                data = bitmap(row)
                offset = file.tell()
                file.write(data)
                member = Member(f"{row}.bmp", offset, len(data), hashlib.sha256(data).hexdigest(), 32, 32)
                captions, shares = said(row)
                rows.append(Row(member=member, captions=captions, shares=shares))
                row += 1
        for at, change in changes.items():
            rows[int(at[1:])] = change(rows[int(at[1:])])  # type: ignore[operator]
        index.write(Path(index.beside(str(path))), rows, path.stat().st_size)
    return folder


def said(row: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
    if row % 5 == 3:
        return (), ()
    texts = tuple(f"{row} größer {'x' * (row % 3)} {each}" for each in range(1 + row % 3))
    return texts, tuple(1.0 + each for each in range(len(texts))) if row % 4 == 2 else ()


def loose(folder: Path, count: int = COUNT) -> Path:
    """The same pictures and captions as files."""
    folder.mkdir(parents=True)
    for row in range(count):
        (folder / f"{row:03d}.bmp").write_bytes(bitmap(row))
        (folder / f"{row:03d}.txt").write_text(f"picture {row}")
    return folder


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a small set is very many."""
    monkeypatch.setattr(many, "MANY", 2)


def fingerprint(records: object, tmp_path: Path) -> str:
    pictures = Pictures(encoder=Averages(), store=Store(tmp_path / "cache"), keep=False)
    return str(lock(records, pictures)["fingerprint"])  # type: ignore[arg-type]


def test_spans_are_the_rows_in_their_order(tmp_path: Path) -> None:
    first, second = read(table(packed(tmp_path / "a", (5, 7)), prompt="p")), read(table(loose(tmp_path / "b")))
    whole = joined([first, second])
    picked = chosen(joined([whole, first]), np.array([0, 30, 4, 5, 13, 35, 12, 11]))
    for records in (whole, repeated(first, 3), picked, chosen(picked, np.array([7, 1, 1, 0])), picked[2:6]):
        found = list[Record]()
        for span in spans(records):
            assert span.start == len(found)
            rows = range(len(span.part)) if span.rows is None else span.rows
            found += [span.part[int(row)] for row in rows]
        assert found == list(records)


def test_the_fingerprint_is_that_of_the_rows_whatever_shards_they_lie_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch)
    monkeypatch.setattr("gesso.data.lock.AT_ONCE", 5)
    one = read(table(packed(tmp_path / "one"), prompt="ein Käfer"))
    three = read(table(packed(tmp_path / "three", (3, 1, 8)), prompt="ein Käfer"))
    expected = fingerprint(one, tmp_path)
    assert fingerprint(three, tmp_path) == expected
    assert fingerprint(chosen(three, np.arange(COUNT)), tmp_path) == expected
    assert fingerprint(joined([one[:4], three[4:]]), tmp_path) == expected
    assert fingerprint(repeated(one, 2), tmp_path) == fingerprint(joined([three, one]), tmp_path) != expected
    written = packed(tmp_path / "written", (COUNT,), r3=lambda row: replace(row, captions=("ein Käfer",)))
    assert fingerprint(read(table(written, prompt="ein Käfer")), tmp_path) == expected


def test_every_change_of_the_data_changes_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)

    def bent(**changes: object) -> object:
        return lambda row: replace(row, member=replace(row.member, **changes))

    base = packed(tmp_path / "base")
    prints = [fingerprint(read(table(base, prompt="p")), tmp_path)]
    for number, change in enumerate(
        (
            {"r1": bent(sha256="ab" * 32)},
            {"r1": bent(width=33)},
            {"r1": lambda row: replace(row, captions=("other",))},
            {"r2": lambda row: replace(row, shares=(1.0, 2.0, 4.0))},
            {"r2": lambda row: replace(row, shares=())},
            {"r6": lambda row: replace(row, captions=(*row.captions[:-1], ""), shares=())},
        )
    ):
        prints.append(fingerprint(read(table(packed(tmp_path / f"{number}", **change), prompt="p")), tmp_path))
    for keys in ({"prompt": "q"}, {"weight": 2.0}, {"masks": True}, {"masks": True, "unmasked_weight": 0.5}):
        prints.append(fingerprint(read(table(base, **{"prompt": "p", **keys})), tmp_path))
    prints.append(fingerprint(read(table(base, prompt="p", group="class")), tmp_path))
    prints.append(fingerprint(read(table(base, prompt="p"))[::-1], tmp_path))
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("buckets", [None, usual(32, step=8)])
@pytest.mark.parametrize("keys", [{}, {"crop": "random"}, {"flip": True, "caption_dropout": 0.3}])
def test_a_trusted_set_teaches_what_the_same_set_looked_at_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buckets: Buckets | None, keys: dict[str, object]
) -> None:
    records = read(table(packed(tmp_path / "set", (5, 7)), prompt="p"))
    looked = dataset(records, tmp_path / "one", buckets=buckets, **keys)
    before = looked.prepare(quiet)
    few(monkeypatch)
    for cached in (True, False):
        encoder = Averages()
        encoder.cache_latents = encoder.cache_text = cached
        data = dataset(records, tmp_path / "two", encoder, buckets=buckets, **keys)
        prepared = data.prepare(quiet)
        if cached:
            assert (prepared.encoded, prepared.captions_encoded) == (before.encoded, before.captions_encoded)
            assert prepared.notes == before.notes
        else:
            assert (encoder.pictures, encoder.captions) == (0, [])
        one, two = batches(looked), batches(data)
        for step in (0, 1, 5, 17):
            assert same(one.step(step), two.step(step))


def test_before_the_first_step_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    data = dataset(read(table(packed(tmp_path / "set"), prompt="p")), tmp_path / "cache", crop="random")
    monkeypatch.setattr(Inside, "read", lambda self: pytest.fail("the picture was read"))
    monkeypatch.setattr(data.encoder, "cache_text", False)
    data.prepare(quiet)
    data.lock()
    Plan(seed=1, rows=by_group(data.records), batch=4).step(100)
    monkeypatch.undo()
    (tmp_path / "set" / "0.tar").write_bytes(bytes(COUNT * 4096))
    with pytest.raises(DataError, match="the file changed while it was in use"):
        batches(data).step(0)


def test_an_index_that_is_wrong_about_a_size_is_found_out(tmp_path: Path) -> None:
    wrong = packed(tmp_path / "set", (4,), r1=lambda row: replace(row, member=replace(row.member, width=31)))
    with pytest.raises(DataError, match="32 × 32 pixels, its index says 31 × 32"):
        dataset(read(table(wrong, prompt="p")), tmp_path / "cache").prepare(quiet)


def test_the_rows_without_an_index_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    own, others = read(table(packed(tmp_path / "set"), prompt="p")), read(table(loose(tmp_path / "files", 3)))
    data = dataset(joined([own, others]), tmp_path / "cache", crop="random")
    assert list(data.doubted) == [COUNT, COUNT + 1, COUNT + 2]
    found = data.lock()
    assert [row["captions"] for row in found["pictures"]] == [[f"picture {row}"] for row in range(3)]
    assert [(each["file"], each["rows"]) for each in found["indexes"]] == [("set/0.tar", COUNT)]
    whole = (tmp_path / "set" / ("0.tar" + index.ENDING)).read_bytes()
    assert found["indexes"][0]["sha256"] == hashlib.sha256(whole).hexdigest()
    other = fingerprint(joined([own, others[:2]]), tmp_path)
    assert found["fingerprint"] != other != fingerprint(own, tmp_path)
    (tmp_path / "files" / "001.bmp").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"001\.bmp"):
        dataset(joined([own, others]), tmp_path / "cache", crop="random").prepare(quiet)


def test_buckets_are_counted_by_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [(32, 32), (64, 32), (31, 64), (64, 30), (20, 20)]
    bends = {f"r{row}": _of_size(sides[row % 5]) for row in range(COUNT)}
    records = repeated(read(table(packed(tmp_path / "set", **bends), prompt="p")), 2)  # type: ignore[arg-type]
    chosen_ = usual(32, step=8)
    data = dataset(records, tmp_path / "cache", crop="random", buckets=chosen_)
    sizes = list(data.all_sizes())
    places = [record.place for record in records]
    expected = bucket_table(chosen_, places, {place: data.pictures.size(place) for place in places}, 5)
    orders = [Plan(seed=1, rows=by_group(records), batch=5, sizes=sizes).step(step) for step in range(12)]
    notes = data._enlarged({place: row for row, place in enumerate(places)})
    few(monkeypatch)
    data = dataset(records, tmp_path / "cache", crop="random", buckets=chosen_)
    coded = data.all_sizes()
    assert isinstance(coded, many.Coded)
    assert list(coded) == sizes
    assert [Plan(seed=1, rows=by_group(records), batch=5, sizes=coded).step(step) for step in range(12)] == orders
    assert many.table(records, chosen_, data.pictures.size, 5) == expected
    assert counted(chosen_, {(32, 32): 2}, {(32, 32): 4}, 3)[0].mixed == 1
    assert data._enlarged_of_many() == notes


def _of_size(size: tuple[int, int]) -> object:
    return lambda row: replace(row, member=replace(row.member, width=size[0], height=size[1]))


def test_what_is_held_out_of_very_many_is_drawn_by_the_pictures_themselves(tmp_path: Path) -> None:
    made(tmp_path / "set", 4000, 2, 400)
    records = repeated(read(table(tmp_path / "set")), 2)
    kept, held = many.held_out(records, 0.2, 1)
    sides = [{many_sha(records, row) for row in rows} for rows in (kept, held)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 800
    assert 120 < len(sides[1]) < 200
    assert held.max() < 4000
    assert len(kept) + 2 * len(held) == 8000
    assert [*map(list, many.held_out(records, 0.2, 1))] == [list(kept), list(held)]
    assert list(many.held_out(records, 0.2, 2)[1]) != list(held)


def many_sha(records: Sequence[Record], row: int) -> str:
    place = records[row].place
    assert isinstance(place, Inside)
    return place.sha256


def _counted(action: Callable[[Indexed, int], Record], wanted: Counter[str]) -> Callable[[Indexed, int], Record]:
    def counted(self: Indexed, row: int) -> Record:
        wanted["at"] += 1
        return action(self, row)

    return counted


def test_fifty_thousand_rows_hold_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start and its steps hold as much for a hundred thousand rows, and make records of what is seen alone."""
    monkeypatch.setattr("gesso.data.order.MANY", 1000)
    monkeypatch.setattr("gesso.data.many.AT_ONCE", 1000)
    monkeypatch.setattr("gesso.data.lock.AT_ONCE", 1000)
    peaks = []
    monkeypatch.setattr(Indexed, "at", _counted(Indexed.at, wanted := Counter[str]()))
    for rows in (25_000, 100_000):
        made(tmp_path / f"{rows}", rows, 5)
        encoder = Averages()
        encoder.cache_latents = encoder.cache_text = False
        tracemalloc.start()
        data = dataset(read(table(tmp_path / f"{rows}")), tmp_path / "cache", encoder)
        data.prepare(quiet)
        data.lock()
        many.shapes(data.records)
        ready = batches(data)
        for step in (0, 3 * rows):
            ready.step(step)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert encoder.pictures == 6
    assert wanted["at"] < 200
    assert abs(peaks[1] - peaks[0]) < 0.1 * peaks[0]


def test_a_run_on_a_trusted_set_goes_on_and_learns_what_one_on_the_folder_does(
    tmp_path: Path, linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = loose(tmp_path / "files")
    named = {f"r{row}": _said(f"picture {row}") for row in range(COUNT)}
    shards = packed(tmp_path / "set", **named)  # type: ignore[arg-type]
    expected = trained(tmp_path / "folder", linear, folder)
    few(monkeypatch)
    assert trained(tmp_path / "shards", linear, shards) == expected
    assert trained(tmp_path / "halves", linear, shards, steps=5) != expected
    assert trained(tmp_path / "halves", linear, shards) == expected
    losses = [[event["loss"] for event in events(tmp_path / name / "out", "stepped")] for name in ("folder", "halves")]
    assert losses[0] == losses[1]
    told = [event["message"] for event in events(tmp_path / "halves" / "out", "warned")]
    assert sum(f"of {COUNT} pictures the indexes are trusted" in message for message in told) == 2
    lock_ = json.loads((tmp_path / "shards" / "out" / "data.lock.json").read_text())
    assert (lock_["pictures"], len(lock_["indexes"])) == ([], 1)
    other = packed(tmp_path / "other", **{**named, "r4": _said("another")})  # type: ignore[arg-type]
    assert main(["train", str(written(tmp_path / "halves", linear, other, steps=20))]) == 2


def _said(text: str) -> object:
    return lambda row: replace(row, captions=(text,), shares=())


def written(folder: Path, linear: Path, data: Path, steps: int = 12) -> Path:
    folder.mkdir(exist_ok=True)
    cache = {"latents": False, "text": False}
    # Of the reference engine's weights only its own, not an adapter's, depend on captions.
    tables = {"adapter": {"kind": "none"}, "train": {"steps": steps, "batch": 4}, "cache": cache}
    return recipe(folder, linear, data=[{"path": str(data)}], **tables)  # type: ignore[arg-type]


def trained(folder: Path, linear: Path, data: Path, steps: int = 12) -> dict[str, str]:
    assert main(["train", str(written(folder, linear, data, steps))]) == 0
    return hashes(folder / "out", "unet/*.safetensors")
