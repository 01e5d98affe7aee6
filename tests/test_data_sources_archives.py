"""Pictures inside files: Parquet, Arrow folders, tar shards. Read in place, refused with a sentence, never unpacked."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from data_parts import dataset, quiet
from sources_parts import COLOURS, captions, colour, parquet, picture, png, rgb, rows, saved, table, tar

from gesso.data import arrow
from gesso.data.images import load
from gesso.data.places import Cell, Inside
from gesso.data.plan import Slot
from gesso.data.sources import orphans, read
from gesso.errors import DataError, RecipeError

COUNT = 8


def shard(path: Path, count: int = COUNT, first: int = 0, kind: int = tarfile.PAX_FORMAT) -> Path:
    members = []
    for number in range(first, first + count):
        name = f"sub/{number:04d}" if number % 2 else f"{'long' * 60}{number:04d}"
        members += [(f"{name}.png", png(COLOURS[number % 8])), (f"{name}.txt", f"number {number}".encode())]
    return tar(path, members, kind)


@pytest.fixture(params=["parquet", "parquet folder", "save_to_disk", "splits", "tar", "tars", "gnu tar"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same eight pictures in every form."""
    whole, folder = rows(COUNT), tmp_path / "set"
    match request.param:
        case "parquet":
            return parquet(tmp_path / "all.parquet", whole)
        case "parquet folder":
            parquet(folder / "data" / "train-00000-of-00002.parquet", whole[:5])
            parquet(folder / "data" / "train-00001-of-00002.parquet", whole[5:])
            parquet(folder / "data" / "test-00000-of-00001.parquet", whole[:2])
        case "save_to_disk":
            saved(folder, whole[:3], whole[3:])
        case "splits":
            saved(folder / "train", whole)
            saved(folder / "test", whole[:2])
            (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        case "tar":
            return shard(tmp_path / "all.tar")
        case "tars":
            shard(folder / "0.tar", 5)
            shard(folder / "1.tar", 3, first=5)
        case "gnu tar":
            return shard(tmp_path / "all.tar", kind=tarfile.GNU_FORMAT)
    return folder


def test_every_form_gives_the_same_pictures_in_order(source: Path) -> None:
    found = read(table(source, weight=2.0))
    assert [record.captions for record in found] == [(f"number {n}",) for n in range(COUNT)]
    assert [colour(record.place) for record in found] == [rgb(COLOURS[n % 8]) for n in range(COUNT)]
    order = random.Random(1).sample(range(COUNT), COUNT)
    assert [colour(found[n].place) for n in order] == [rgb(COLOURS[n % 8]) for n in order]
    assert {record.weight for record in found} == {2.0}
    assert len({record.reader for record in found}) == 1
    assert len({str(record.place) for record in found}) == COUNT


def test_a_set_trains_from_inside_its_file(source: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    data = dataset(read(table(source, masks=True)), tmp_path / "cache")
    assert data.prepare(quiet).encoded == COUNT
    mean, _ = data.latents([Slot(row=row, epoch=0) for row in range(COUNT)])
    expected = [tuple(value / 127.5 - 1 for value in rgb(COLOURS[n % 8])) for n in range(COUNT)]
    assert mean[:, :, 0, 0] == pytest.approx(np.array(expected), abs=1e-6)
    lock = data.lock([source])
    assert len({row["file"] for row in lock["pictures"]}) == COUNT
    assert str(tmp_path) not in json.dumps(lock)
    assert before == {path: path.read_bytes() for path in before}


def test_the_same_pictures_have_the_same_fingerprints_in_every_form(tmp_path: Path) -> None:
    """SHA-256 of the picture's own bytes: what the cache holds of one form serves the others."""
    for number, row in enumerate(rows(3)):
        (tmp_path / "loose").mkdir(exist_ok=True)
        (tmp_path / "loose" / f"{number}.png").write_bytes(row["image"]["bytes"])
    forms = [tmp_path / "loose", parquet(tmp_path / "a.parquet", rows(3)), shard(tmp_path / "a.tar", 3)]
    sums = []
    for form in forms:
        data = dataset(read(table(form, prompt="p")), tmp_path / "cache")
        prepared = data.prepare(quiet)
        sums.append([row["sha256"] for row in data.lock()["pictures"]])
        assert prepared.encoded == (3 if form == forms[0] else 0)
    assert sums[0] == sums[1] == sums[2]


def test_splits_that_are_not_learned_are_noted(tmp_path: Path) -> None:
    parquet(tmp_path / "train-0.parquet", rows(2))
    parquet(tmp_path / "validation-0.parquet", rows(1))
    assert len(read(table(tmp_path))) == 2
    assert orphans(table(tmp_path)) == [f"{tmp_path}/validation-0.parquet: not used; only the split train is learned"]


def test_columns_of_a_table_are_chosen_or_listed(tmp_path: Path) -> None:
    image = rows(1)[0]["image"]
    file = parquet(tmp_path / "a.parquet", [{"pic": image, "words": "w", "text": "t", "caption": ["c", "d"], "n": 1}])
    assert captions(file, caption_column="words") == [("w",)]
    assert captions(file, caption_column="caption") == [("c", "d")]
    with pytest.raises(DataError, match="both text and caption could be the caption; there are pic, words, text"):
        captions(file)
    with pytest.raises(DataError, match='no column "none"; it has "pic", "words"'):
        captions(file, caption_column="none")
    with pytest.raises(DataError, match='no column "none"'):
        captions(file, caption_column="text", image_column="none")
    with pytest.raises(DataError, match='"words" holds no pictures; pic could'):
        captions(file, caption_column="text", image_column="words")
    with pytest.raises(DataError, match='"n" is neither text nor a list'):
        captions(file, caption_column="n")
    other = parquet(tmp_path / "b.parquet", [{"one": image, "two": image["bytes"], "words": "w"}])
    with pytest.raises(DataError, match="several columns could hold the picture: one, two"):
        captions(other, prompt="p")
    assert colour(read(table(other, prompt="p", image_column="two"))[0].place) == rgb("red")
    with pytest.raises(DataError, match='no column "text" or "caption"; there are one, two, words'):
        captions(other, image_column="one")
    with pytest.raises(DataError, match="no column holds pictures; there are words"):
        captions(parquet(tmp_path / "c.parquet", [{"words": "w"}]), prompt="p")


def test_rows_without_picture_or_caption_are_named(tmp_path: Path) -> None:
    content = rows(4)
    content[1]["text"] = None
    content[2]["image"] = {"bytes": None, "path": "/home/somebody/2.png"}
    content[3]["image"] = {"bytes": b"<html>", "path": ""}
    file = parquet(tmp_path / "a.parquet", content)
    with pytest.raises(DataError, match=r"1 of 4 pictures have no caption: a\.parquet row 1"):
        captions(file)
    found = read(table(file, prompt="p"))
    assert found[1].captions == ("p",)
    with pytest.raises(DataError, match=r"row 2: this row has no picture in it, only the name of one: /home"):
        dataset(found, tmp_path / "cache").prepare(quiet)
    with pytest.raises(DataError, match=r"a\.parquet row 3: not a readable picture: it is text in HTML"):
        dataset([found[0], found[3]], tmp_path / "cache").prepare(quiet)


@pytest.mark.parametrize("name", ["a.parquet", "set", "a.tar"])
def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    make: dict[str, Any] = {
        "a.parquet": lambda p: parquet(p, rows(4)),
        "a.tar": shard,
        "set": lambda p: saved(p, rows(4)),
    }
    whole = make[name](tmp_path / name)
    file = whole / "data-00000-of-00001.arrow" if name == "set" else whole
    data = file.read_bytes()
    for share in (0, 0.02, 0.3, 0.5, 0.75):
        file.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError) as caught:
            dataset(read(table(whole)), tmp_path / "cache").prepare(quiet)
        assert file.name in caught.value.where, share
    file.write_bytes(data)
    assert len(read(table(whole))) in (4, COUNT)


def test_a_tar_with_damaged_bytes_is_refused_or_reads_the_same(tmp_path: Path) -> None:
    file = shard(tmp_path / "a.tar")
    data, rng, refused = file.read_bytes(), random.Random(3), 0
    for _ in range(150):
        at = rng.randrange(len(data))
        file.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
        try:
            found = read(table(file))
        except DataError:
            refused += 1
        else:
            assert len(found) == COUNT
    assert refused > 20


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_table_with_damaged_bytes_is_refused_or_read(tmp_path: Path, form: str) -> None:
    whole = parquet(tmp_path / "a.parquet", rows(6)) if form == "parquet" else saved(tmp_path / "set", rows(6))
    file = whole if form == "parquet" else whole / "data-00000-of-00001.arrow"
    data, rng, refused = file.read_bytes(), random.Random(3), 0
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        file.unlink()  # a mapped file must not change under its readers
        file.write_bytes(damaged)
        try:
            for record in read(table(whole)):
                load(record.place)
        except DataError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("name", "reason"),
    [("../a.png", "leads out"), ("/etc/a.png", "leads out"), ("a/../../b.png", "leads out"), ("link.png", "is a link")],
)
def test_members_that_escape_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo(name)
        if "link" in name:
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
        else:
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))
    with pytest.raises(DataError, match=reason):
        captions(tmp_path / "a.tar", prompt="p")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.tar"]


def test_tar_samples_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    good = [("x/1.seg.v2.json", b"{}"), ("x/1.PNG", png()), ("x/1.json", b'{"caption": ["a", "b"], "other": 2}')]
    assert captions(tar(file, [*good, ("notes.md", b"#"), (".hidden.png", b"")])) == [("a", "b")]
    assert captions(file, caption_column="caption") == [("a", "b")]
    wrong: list[tuple[list[tuple[str, bytes]], str]] = [
        ([("1.png", png()), ("1.png", png())], "is in it twice"),
        ([("1.png", png()), ("1.jpg", png())], "several pictures"),
        ([("1.png", png())], "have no caption"),
        ([("1.txt", b"x")], "no picture in these archives"),
        ([], "no picture in these archives"),
        ([("1.png", png()), ("1.txt", b"caf\xe9")], "not UTF-8"),
        ([("1.png", png()), ("1.txt", b"a\0b")], "NUL"),
        ([("1.png", png()), ("1.json", b"{")], "Expecting property name"),
        ([("1.png", png()), ("1.json", b"[]")], "not a JSON object"),
        ([("1.png", png()), ("1.json", b'{"text": 5}')], "neither text nor a list"),
    ]
    for members, reason in wrong:
        with pytest.raises(DataError, match=reason):
            captions(tar(file, members))
    with pytest.raises(DataError, match=r"data\.image_column has no effect: an archive has no columns"):
        captions(file, image_column="png")
    with pytest.raises(DataError, match='"long" is missing; there is caption, other'):
        captions(tar(file, good), caption_column="long")
    whole = shard(tmp_path / "b.tar").read_bytes()
    for packed, tool in ((gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")):
        file.write_bytes(packed(whole))
        with pytest.raises(DataError, match="the archive is compressed") as caught:
            captions(file)
        assert tool in caught.value.todo


def test_packed_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    for name in ("a.zip", "a.tar.gz", "a.tgz", "a.7z"):
        (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(DataError, match="a packed file, which gesso does not read in place"):
            captions(tmp_path / name)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "names no data files"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "leads out of the folder"),
        ('{"_data_files": [{"filename": "/etc/passwd"}]}', "leads out of the folder"),
        ('{"_data_files": [{"filename": "b.arrow"}]}', "is missing"),
    ],
)
def test_a_wrong_state_of_a_saved_set_is_named(tmp_path: Path, state: str, reason: str) -> None:
    saved(tmp_path / "set", rows(1))
    (tmp_path / "set" / "state.json").write_text(state)
    with pytest.raises(DataError, match=reason):
        captions(tmp_path / "set")


def test_a_saved_set_without_a_train_split_lists_what_there_is(tmp_path: Path) -> None:
    saved(tmp_path / "test", rows(1))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "other"]}')
    with pytest.raises(DataError, match='it has the splits test, other, but not "train"'):
        captions(tmp_path)


def test_a_folder_that_could_be_two_things_is_asked_about(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", 2)
    picture(tmp_path / "loose.png")
    with pytest.raises(DataError, match="several kinds of data set: webdataset, folder") as caught:
        captions(tmp_path, prompt="p")
    assert 'data.format = "webdataset"' in caught.value.todo
    assert len(captions(tmp_path, format="webdataset")) == 2
    assert captions(tmp_path, prompt="p", format="folder") == [("p",)]
    assert any("a.tar: not used" in note for note in orphans(table(tmp_path, prompt="p", format="folder")))
    with pytest.raises(DataError, match='"parquet" does not fit'):
        captions(tmp_path, format="parquet")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Sixty pictures of a megabyte, five in a row group: no more than that is held, whatever the length of the file."""
    noise = random.Random(1)
    content = [{"image": noise.randbytes(1_000_000), "text": f"{number}"} for number in range(60)]
    file = parquet(tmp_path / "a.parquet", content, row_group=5)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    found = read(table(file))
    for record in found:
        assert len(Inside(record.path, record.inner or Cell("", 0)).read()) == 1_000_000
        assert pa.total_allocated_bytes() - before < 24_000_000
    assert tracemalloc.get_traced_memory()[1] < 24_000_000
    tracemalloc.stop()


def test_without_pyarrow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "a.parquet", rows(1))
    monkeypatch.setattr(arrow, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(RecipeError, match="needs pyarrow") as caught:
        captions(tmp_path / "a.parquet")
    assert "gesso[data]" in caught.value.todo


def test_what_the_datasets_library_saves_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    made = datasets.Dataset.from_list(rows(COUNT), features=features)
    made.save_to_disk(tmp_path / "plain", num_shards=2)
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "splits")
    made.shuffle(seed=1).select(range(4)).save_to_disk(tmp_path / "chosen")
    made.to_parquet(tmp_path / "all.parquet")
    order = [row["text"] for row in made.shuffle(seed=1).select(range(4))]
    for name in ("plain", "splits", "all.parquet"):
        assert [colour(record.place) for record in read(table(tmp_path / name))] == [rgb(name) for name in COLOURS]
    assert captions(tmp_path / "chosen") == [(text,) for text in order]


def test_a_shard_that_was_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar", [("0.png", png()), ("1.png", png())]).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        second = archive.getmembers()[1].offset
    (tmp_path / "a.tar").write_bytes(whole[:second])
    with pytest.raises(DataError, match="not a whole tar archive: the blocks of zeros that end one are not there"):
        read(table(tmp_path, prompt="a"))


def test_packed_files_in_a_folder_without_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"no picture was found .*packed files are not read.*: a\.tar\.gz"):
        read(table(tmp_path, prompt="a"))
