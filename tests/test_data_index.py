"""Indexes of shards, records made from them, and the order of very many rows."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_parts import dataset, quiet
from hypothesis import given
from hypothesis import strategies as st
from sources_parts import COLOURS, captions, colour, parquet, picture, png, rgb, rows, table, tar

from gesso.data import images, index
from gesso.data import order as orders
from gesso.data.index import Row
from gesso.data.order import Walked, order
from gesso.data.places import Inside, Member
from gesso.data.plan import Plan, by_group
from gesso.data.records import Chosen, Indexed, Joined, joined, of_group, repeated
from gesso.data.sources import kept, read, webdataset
from gesso.errors import DataError
from gesso.keys import permutation

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from scale import made, readers_agree

COUNT = 8
ROWS = [
    Row(member=Member("a/é.png", 512, 10, "ab" * 32, 3, 4), captions=("x", "größer"), shares=(1.0, 2.5)),
    Row(member=Member("b.png", 2048, 5, "cd" * 32, 5, 6)),
    Row(member=Member("c\udce9.png", 4096, 0, "ef" * 32, 7, 8), captions=("",)),
]


def shard(path: Path, first: int = 0) -> Path:
    members = []
    for number in range(first, first + COUNT):
        members += [(f"{number}.png", png(COLOURS[number % 8])), (f"{number}.txt", f"number {number}".encode())]
    tar(path, members)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def described(path: Path, said: str = "index") -> list[Row]:
    """The rows of a shard as a packer describes them, with captions of their own."""
    found = []
    for number, record in enumerate(read(table(path))):
        data = images.contents(record.place)
        inner = record.inner
        assert isinstance(inner, Member)
        own = Member(inner.name, inner.offset, inner.size, hashlib.sha256(data).hexdigest(), 8, 8)
        found.append(Row(member=own, captions=(f"{said} {number}",)))
    return found


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "0.tar.index.safetensors"
    index.write(path, ROWS, 99)
    found = index.read(path, {"shard_size": 99})
    assert found is not None
    assert list(found) == ROWS
    assert [row.member.sha256 for row in found] == [row.member.sha256 for row in ROWS]
    assert (found[0].member.width, found[-1].member.height) == (3, 8)
    assert found.silent == 1
    assert index.read(path, {"shard_size": 98}) is None
    assert index.read(tmp_path / "none", {}) is None
    index.write(path, [], 0)
    assert index.read(path, {"shard_size": 0}) is not None
    whole = path.read_bytes()
    index.write(path, [], 0)
    assert path.read_bytes() == whole


def test_what_not_every_row_has_is_left_out(tmp_path: Path) -> None:
    index.write(tmp_path / "i", [*ROWS, Row(member=Member("d.png", 1, 1), captions=("d",))], 1)
    found = index.read(tmp_path / "i", {})
    assert found is not None
    assert set(found.columns) == {*index.FIXED, *index.TEXTS, "share"}
    assert found[0].member.sha256 == ""


def test_a_damaged_index_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "i"
    index.write(path, ROWS, 99)
    whole, refused, rng = path.read_bytes(), 0, np.random.default_rng(1)
    cut = [whole[: int(len(whole) * share)] for share in (0, 0.01, 0.3, 0.9)]
    flipped = []
    for _ in range(150):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        flipped.append(bytes(data))
    for data in (*cut, *flipped):
        path.write_bytes(data)
        try:
            found = index.read(path, {"shard_size": 99})
            assert found is None or len(list(found)) == len(ROWS)
        except DataError:
            refused += 1
    assert refused > 40


def test_the_index_beside_a_shard_is_used_where_it_is_its_own(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar")
    beside = Path(index.beside(str(path)))
    rows_ = described(path)
    index.write(beside, rows_, path.stat().st_size)
    found = read(table(path))
    assert [record.captions for record in found] == [(f"index {n}",) for n in range(COUNT)]
    assert [colour(record.place) for record in found] == [rgb(COLOURS[n]) for n in range(COUNT)]
    assert [record.place.pixels for record in found if isinstance(record.place, Inside)] == [(8, 8)] * COUNT
    assert captions(path, encoding="latin-1") == [(f"number {n}",) for n in range(COUNT)]
    index.write(beside, rows_, path.stat().st_size + 512)
    assert captions(path) == [(f"number {n}",) for n in range(COUNT)]
    beside.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not an index of a shard"):
        captions(path)


def test_fingerprints_come_from_the_index_and_are_held_against_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(tmp_path / "0.tar")
    index.write(Path(index.beside(str(path))), described(path), path.stat().st_size)
    record = read(table(path))[3]
    true = images.fingerprint(picture(tmp_path / "3.png", COLOURS[3]))
    monkeypatch.setattr(Inside, "read", lambda self: pytest.fail("the picture was read"))
    assert images.fingerprint(record.place) == true
    monkeypatch.undo()
    other = shard(tmp_path / "1.tar", first=1)
    assert other.stat().st_size == path.stat().st_size
    other.replace(path)  # another shard of the same size under an old index
    with pytest.raises(DataError, match="the file changed while it was in use"):
        dataset([record], tmp_path / "cache").prepare(quiet)


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_a_second_start_does_not_look_through_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    path = shard(tmp_path / "0.tar") if form == "tar" else parquet(tmp_path / "a.parquet", rows(COUNT))
    cache = tmp_path / "cache"
    monkeypatch.setattr(kept, "SETTLED_NS", -1)
    first = list(read(table(path), cache=cache))
    assert len(list(cache.rglob("*.safetensors"))) == 1

    def fail(*_: object) -> None:
        raise AssertionError("it was looked through")

    monkeypatch.setattr(webdataset, "_members", fail)
    monkeypatch.setattr("gesso.data.arrow.Table.texts", fail)
    assert list(read(table(path), cache=cache)) == first
    entry = next(cache.rglob("*.safetensors"))
    entry.write_bytes(entry.read_bytes()[:-3])  # what is damaged is made again
    monkeypatch.undo()
    monkeypatch.setattr(kept, "SETTLED_NS", -1)
    assert list(read(table(path), cache=cache)) == first
    if form == "tar":
        assert captions(path, encoding="latin-1") == [record.captions for record in first]
        shard(path, first=2)
        os.utime(path, (1_600_000_000, 1_600_000_000))
        assert read(table(path), cache=cache)[0].captions == ("number 2",)
    monkeypatch.setattr(kept, "SETTLED_NS", 10**18)  # a file that has just changed
    for each in cache.rglob("*.safetensors"):
        each.unlink()
    read(table(path), cache=cache)
    assert not list(cache.rglob("*.safetensors"))


def test_sequences_of_records_are_like_lists(tmp_path: Path) -> None:
    one, two = read(table(shard(tmp_path / "0.tar"))), read(table(shard(tmp_path / "1.tar", 8), group="class"))
    loose = read(table(picture(tmp_path / "p" / "x.png").parent, prompt="p"))
    assert isinstance(one, Indexed)
    parts = [list(one), list(two), list(loose), list(one)]
    whole = joined([one, two, loose, one])
    assert isinstance(whole, Joined)
    flat = [record for part in parts for record in part]
    assert list(whole) == flat
    assert [whole[n] for n in range(-25, 25)] == [flat[n] for n in range(-25, 25)]
    assert list(whole[3:20:4]) == flat[3:20:4]
    with pytest.raises(IndexError):
        whole[25]
    assert list(repeated(one, 3)) == parts[0] * 3
    assert {name: list(found) for name, found in by_group(whole).items()} == {
        "instance": [*range(8), *range(16, 25)],
        "class": list(range(8, 16)),
    }
    assert list(of_group(whole, "class")) == parts[1]
    assert isinstance(of_group(whole, "instance"), Chosen)
    assert by_group(one) == {"instance": range(8)}
    assert list(read(table(tmp_path / "0.tar", max_samples=3))) == [
        parts[0][n] for n in sorted(permutation(0, "max-samples/data", 0, COUNT)[:3])
    ]


@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(0, 3))
def test_a_walked_order_holds_every_row_once(seed: int, count: int, epoch: int) -> None:
    walked = Walked(seed, "order/instance", epoch, count)
    assert sorted(walked[place] for place in range(count)) == list(range(count))


def test_a_walked_order_looks_like_chance() -> None:
    """Of 4096 rows: places and rows do not go together, neighbours come apart, and epochs, seeds and groups differ."""
    many = 4096
    streams = [
        np.array([Walked(seed, stream, epoch, many)[place] for place in range(many)])
        for seed, stream, epoch in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1))
    ]
    for at, one in enumerate(streams):
        assert abs(np.corrcoef(one, np.arange(many))[0, 1]) < 5 / np.sqrt(many)
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 5 / np.sqrt(many)
        assert abs((np.abs(np.diff(one)) == 1).sum() - 2) < 12
        assert all((one == other).sum() < 12 for other in streams[at + 1 :])
        # The parity of a row says nothing of that of its place, nor do the upper halves.
        for bit in (0, 5, 11):
            assert abs(((one >> bit & 1) == (np.arange(many) >> bit & 1)).mean() - 0.5) < 5 / (2 * np.sqrt(many))


def test_only_very_many_rows_are_walked() -> None:
    assert np.array_equal(order(3, "s", 1, 1000), permutation(3, "s", 1, 1000))  # type: ignore[arg-type]
    assert isinstance(order(3, "s", 1, orders.MANY + 1), Walked)


@pytest.mark.parametrize("many", [orders.MANY, 1000])
def test_the_order_is_the_same_for_any_number_of_readers(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "MANY", many)
    assert readers_agree(20_011, readers=(1, 2, 4, 8))


def test_two_hundred_thousand_rows_start_and_resume_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record is made before it is wanted, and none but those of the step."""
    made(tmp_path / "set", 200_000, 20)
    wanted = Counter[str]()
    monkeypatch.setattr(Indexed, "at", _counted(Indexed.at, wanted))
    for step in (0, 1_000_000_007):
        records = read(table(tmp_path / "set"))
        plan = Plan(seed=1, rows=by_group(records), batch=16)
        for slot in plan.step(step):
            assert records[slot.row].captions == (f"picture number {slot.row:010d}",)
    assert wanted["at"] == 32


def _counted(action: object, wanted: Counter[str]) -> object:
    def counted(self: Indexed, row: int) -> object:
        wanted["at"] += 1
        return action(self, row)  # type: ignore[operator]

    return counted
