"""Lists of captions in a folder: CSV, Parquet, JSON; columns by name, several captions, what two lists say."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sources_parts import captions, parquet, picture, table

from gesso.data.sources import orphans, read
from gesso.data.sources.folder import CAPTIONS, LISTS, MASK, SHARDS
from gesso.errors import DataError
from gesso.recipe.keys import keys as recipe_keys


def three(folder: Path) -> Path:
    for name in ("a.png", "b.png", "sub/c.png"):
        picture(folder / name)
    return folder


def wrote(folder: Path, name: str, text: str | bytes) -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", 'file_name,text,more\na.png,"one, and more",x\nsub/c.png,"thr""ee\nlines",\nb.png,two,\n'),
        ("metadata.csv", "\ufefftext,file_name\r\n one and more,a.png\r\n"),
        ("img_txt.csv", "dir,text\na.png,one and more\n"),
        ("image_captions.json", json.dumps({"/home/me/x/a.png": "one and more"}, indent=4)),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "one and more"}'),
    ],
)
def test_each_list_gives_its_captions(tmp_path: Path, name: str, text: str) -> None:
    found = read(table(wrote(three(tmp_path), name, text), prompt="p"))
    assert found[0].captions[0].replace(",", "") == "one and more"
    assert (found[0].reader, found[0].origin.rpartition(":")[0]) == (name, f"{tmp_path}/{name}")
    if "lines" in text:
        assert [record.captions for record in found[1:]] == [("two",), ('thr"ee\nlines',)]
    else:
        assert [record.reader for record in found[1:]] == ["data.prompt"] * 2


def test_metadata_parquet_has_texts_lists_and_gaps(tmp_path: Path) -> None:
    listed = [
        {"file_name": "a.png", "text": ["one", "uno"]},
        {"file_name": "b.png", "text": None},
        {"file_name": "sub/c.png", "text": ["three"]},
    ]
    parquet(three(tmp_path) / "metadata.parquet", listed)
    assert captions(tmp_path, prompt="p") == [("one", "uno"), ("p",), ("three",)]


def test_columns_are_chosen_by_name_or_listed(tmp_path: Path) -> None:
    wrote(three(tmp_path), "metadata.csv", "picture,long,short\na.png,a long one,short\n")
    chosen = {"image_column": "picture", "caption_column": "long", "prompt": "p"}
    assert captions(tmp_path, **chosen)[0] == ("a long one",)
    with pytest.raises(DataError, match='no column "file_name"; it has "picture", "long", "short"') as caught:
        captions(tmp_path)
    assert "data.image_column" in caught.value.todo
    with pytest.raises(DataError, match='no column "longer"'):
        captions(tmp_path, **{**chosen, "caption_column": "longer"})
    (tmp_path / "metadata.csv").unlink()
    wrote(tmp_path, "metadata.jsonl", '{"picture": "a.png", "long": "a long one"}')
    assert captions(tmp_path, **chosen)[0] == ("a long one",)
    with pytest.raises(DataError, match='"file_name" is missing; there is picture, long'):
        captions(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    parquet(tmp_path / "metadata.parquet", [{"picture": "a.png", "long": "a long one"}])
    assert captions(tmp_path, **chosen)[0] == ("a long one",)
    with pytest.raises(DataError, match='no column "file_name"; it has "picture", "long"'):
        captions(tmp_path)


def test_the_page_names_every_form() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    keys = [key.name.rpartition(".")[2] for key in recipe_keys().values() if key.name.startswith("data.")]
    assert [word for word in (*LISTS, *SHARDS, *CAPTIONS, MASK, *keys) if word not in page] == []


def test_columns_that_are_nowhere_are_refused(tmp_path: Path) -> None:
    wrote(three(tmp_path), "image_captions.json", '{"a.png": "one"}')
    with pytest.raises(DataError, match=r"data\.caption_column has no effect: there is no list with columns"):
        captions(tmp_path, prompt="p", caption_column="long")
    assert len(read(table(tmp_path, prompt="p", caption_column="long"), key="validate")) == 3


def test_captions_may_have_weights(tmp_path: Path) -> None:
    wrote(three(tmp_path), "metadata.jsonl", '{"file_name": "a.png", "text": [["a dog", 3], "an animal", [" ", 9]]}')
    record = read(table(tmp_path, prompt="p"))[0]
    assert (record.captions, record.shares) == (("a dog", "an animal"), (3.0, 1.0))
    for weight in ("0", "-1", "1e999", "true", '"2"'):
        wrote(tmp_path, "metadata.jsonl", f'{{"file_name": "a.png", "text": [["a dog", {weight}]]}}')
        with pytest.raises(DataError, match=r"weights are above 0|neither text nor a list"):
            captions(tmp_path, prompt="p")


def test_json_keys_of_any_machine_name_pictures_by_their_end(tmp_path: Path) -> None:
    three(tmp_path)
    picture(tmp_path / "deep" / "a.png")
    keys = {
        "/mnt/other/photos/sub/c.png": "c",
        "C:\\Users\\me\\b.png": "b",
        "photos/deep/a.png": "deep",
        str(tmp_path / "a.png"): "a",
    }
    wrote(tmp_path, "image_captions.json", json.dumps(keys))
    assert captions(tmp_path) == [("a",), ("b",), ("deep",), ("c",)]
    wrote(tmp_path, "image_captions.json", json.dumps({"c.png": "bare"}))
    assert captions(tmp_path, prompt="p")[-1] == ("bare",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["a.png"]', "not a JSON object"),
        ('"a.png"', "not a JSON object"),
        ('{"a.png": 3}', "neither text nor a list"),
        ('{"a.png": {"caption": "x"}}', "neither text nor a list"),
        ('{"a.png": "x", "/b/a.png": "y"}', "already listed"),
        ('{"../a.png": "x"}', "leads out of the folder"),
        ('{"x/../../a.png": "x"}', "leads out of the folder"),
        ('{"z.png": "x"}', 'no picture "z.png"'),
        ('{"a\\u0000.png": "x"}', "no picture"),
        ('{"": "x"}', '"name" is not text'),
        ('{"a.png": "x\\u0000"}', "NUL"),
        ('{"a.png": "\\ud800"}', "half a character"),
        ('{"/": "x"}', "no picture"),
        (b'{"a.png": "\xe9"}', "not UTF-8"),
    ],
)
def test_a_wrong_captions_json_is_named_with_its_reason(tmp_path: Path, text: str | bytes, reason: str) -> None:
    wrote(three(tmp_path), "image_captions.json", text)
    with pytest.raises(DataError, match=reason) as caught:
        captions(tmp_path, prompt="p")
    assert "image_captions.json" in caught.value.where


def test_a_bare_name_that_several_pictures_have_is_refused(tmp_path: Path) -> None:
    for name in ("x/a.png", "y/a.png"):
        picture(tmp_path / name)
    wrote(tmp_path, "image_captions.json", '{"a.png": "which?"}')
    with pytest.raises(DataError, match=r"could be x/a\.png or y/a\.png"):
        captions(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", 'no column "file_name"; it has none'),
        ("file_name;text\na.png;x", 'it has "file_name;text"'),
        ("file_name,text\na.png,one, two\n", "line 2: there are more values than columns"),
        ("file_name,text\na.png\n", ""),
        ("file_name,text\n,x\n", '"file_name" is not text'),
        ("file_name,text\n../a.png,x\n", "leads out of the folder"),
        ("file_name,text\n/etc/a.png,x\n", "leads out of the folder"),
        ("file_name,text\nz.png,x\n", 'no picture "z.png"'),
        ('file_name,text\na.png,"x\n', "not CSV"),
        ('file_name,text\na.png,"x"y\n', "not CSV"),
        ("file_name,text\na.png,x\0\n", "NUL"),
        ("file_name,text\na.png," + "x" * 200_000, "not CSV: field larger"),
        (b"file_name,text\na.png,caf\xe9\n", "not UTF-8: byte 24"),
    ],
)
def test_a_wrong_csv_is_named_with_its_reason(tmp_path: Path, text: str | bytes, reason: str) -> None:
    wrote(three(tmp_path), "metadata.csv", text)
    if not reason:  # a row that ends early has no caption
        assert captions(tmp_path, prompt="p")[0] == ("p",)
        return
    with pytest.raises(DataError, match=reason) as caught:
        captions(tmp_path, prompt="p")
    assert "metadata.csv" in caught.value.where


def test_a_csv_in_another_encoding_is_read_when_it_is_named(tmp_path: Path) -> None:
    wrote(three(tmp_path), "metadata.csv", b"file_name,text\na.png,caf\xe9\n")
    assert captions(tmp_path, prompt="p", encoding="cp1252")[0] == ("café",)


def test_a_cut_or_wrong_parquet_list_is_named(tmp_path: Path) -> None:
    whole = parquet(three(tmp_path) / "metadata.parquet", [{"file_name": "a.png", "text": "x"}]).read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"PAR1" + bytes(200) + b"PAR1"):
        wrote(tmp_path, "metadata.parquet", data)
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            captions(tmp_path, prompt="p")
    for file in ("../a.png", "/a.png", "z.png"):
        parquet(tmp_path / "metadata.parquet", [{"file_name": file, "text": "x"}])
        with pytest.raises(DataError, match=r"leads out|no picture"):
            captions(tmp_path, prompt="p")
    raw = pa.array([b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"file_name": ["a.png"], "text": raw}), tmp_path / "metadata.parquet")
    with pytest.raises(DataError, match="a text in it is not UTF-8: byte 3 is 0xe9"):
        captions(tmp_path, prompt="p")


def test_two_lists_that_differ_are_refused_and_two_that_agree_are_not(tmp_path: Path) -> None:
    wrote(three(tmp_path), "metadata.csv", "file_name,text\na.png,one\n")
    wrote(tmp_path, "metadata.jsonl", '{"file_name": "a.png", "text": "one"}')
    assert captions(tmp_path, prompt="p")[0] == ("one",)
    wrote(tmp_path, "metadata.jsonl", '{"file_name": "a.png", "text": "another"}')
    with pytest.raises(DataError, match=r"a\.png has one caption in metadata\.jsonl:1 and another in metadata\.csv:2"):
        captions(tmp_path, prompt="p")


def test_a_text_beside_that_says_something_else_than_the_list_is_noted(tmp_path: Path) -> None:
    wrote(three(tmp_path), "metadata.csv", "file_name,text\na.png,one\nb.png,two\n")
    wrote(tmp_path, "a.txt", "something else")
    wrote(tmp_path, "b.txt", "two")
    assert captions(tmp_path, prompt="p")[0] == ("one",)
    assert orphans(table(tmp_path, prompt="p")) == [
        f"{tmp_path}/a.txt: not used; the caption of a.png stands in metadata.csv:2"
    ]


def test_a_hundred_thousand_lines_take_seconds(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for number in range(2000):
        (tmp_path / f"{number}.png").hardlink_to(tmp_path / "a.png")
    lines = [json.dumps({"file_name": f"{number}.png", "text": f"caption {number}"}) for number in range(2000)]
    lines += [json.dumps({"file_name": f"no{number}.png", "text": "x"}) for number in range(98_000)]
    wrote(tmp_path, "metadata.jsonl", "\n".join(lines))
    began = time.monotonic()
    with pytest.raises(DataError, match=r"98000 line\(s\) cannot be used"):
        captions(tmp_path, prompt="p")
    assert time.monotonic() - began < 20
    wrote(tmp_path, "metadata.jsonl", "\n".join(lines[:2000]))
    assert len(captions(tmp_path, prompt="p")) == 2001


def test_max_samples_is_drawn_by_lot_from_the_seed_and_keeps_the_order(tmp_path: Path) -> None:
    for number in range(9):
        picture(tmp_path / f"{number}.png")
    data = table(tmp_path, prompt="p", max_samples=4, repeats=2)

    def names(seed: int) -> list[str]:
        return [record.path.stem for record in read(data, seed=seed)]

    assert names(1) == names(1)
    assert names(1) == sorted(names(1)[:4]) * 2
    assert len({tuple(names(seed)) for seed in range(8)}) > 4
    assert len(read(table(tmp_path, prompt="p", max_samples=99))) == 9


def test_masks_are_no_pictures_and_are_noted_where_they_are_not_used(tmp_path: Path) -> None:
    three(tmp_path)
    Image.new("L", (8, 8), 128).save(tmp_path / "sub" / "c-masklabel.png")
    picture(tmp_path / "alone-masklabel.png")
    data = table(tmp_path, prompt="p")
    assert [record.path.name for record in read(data)] == ["a.png", "alone-masklabel.png", "b.png", "c.png"]
    assert all(record.mask is None for record in read(data))
    assert any("sub/c-masklabel.png: a mask; it is used with data.masks" in note for note in orphans(data))
    assert any("1 of 4 pictures have a mask" in note for note in orphans(table(tmp_path, prompt="p", masks=True)))
    masked = {r.path.name: r for r in read(table(tmp_path, prompt="p", masks=True, unmasked_weight=0.25))}
    assert masked["c.png"].mask == tmp_path / "sub" / "c-masklabel.png"
    assert masked["a.png"].mask == masked["a.png"].path
    assert {record.outside for record in masked.values()} == {0.25}
