"""Folders of pictures to records: what is found, what is refused, and in which words."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gesso.data import check
from gesso.data.sources import orphans, read, text
from gesso.errors import DataError, RecipeError
from gesso.schema import DataTable


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def table(folder: Path, **keys: object) -> DataTable:
    return DataTable.model_validate({"path": str(folder), **keys})


def captions(folder: Path, **keys: object) -> dict[str, tuple[str, ...]]:
    return {r.path.relative_to(folder).as_posix(): r.captions for r in read(table(folder, **keys))}


def metadata(folder: Path, *lines: object) -> None:
    rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")


def test_pictures_are_found_below_in_order_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        "b.JPG",
        "a.png",
        "sub/z.webp",
        "sub-1/c.tiff",
        "Ünï 🐕.gif",
        ".cache/x.png",
        ".hidden.png",
        "sub/.y.png",
    ):
        picture(tmp_path / name)
    for name in ("Thumbs.db", "notes.pdf", "a.psd"):
        (tmp_path / name).write_bytes(b"no picture")
    found = [r.path.relative_to(tmp_path).as_posix() for r in read(table(tmp_path, prompt="p"))]
    assert found == ["a.png", "b.JPG", "sub-1/c.tiff", "sub/z.webp", "Ünï 🐕.gif"]


def test_metadata_then_text_beside_then_prompt(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.png", "4.png", "deep/5.png"):
        picture(tmp_path / name)
    metadata(
        tmp_path,
        {"file_name": "1.png", "text": [" one ", "uno"], "other": 1},
        "",
        {"file_name": "deep/5.png", "text": "five\u2028lines"},
    )
    (tmp_path / "1.txt").write_text("not this")
    (tmp_path / "2.txt").write_text("\n two \n")
    (tmp_path / "3.caption").write_text("three")
    records = read(table(tmp_path, prompt=" all ", weight=0.5, repeats=2), group="class")
    assert [r.captions for r in records[:5]] == [("one", "uno"), ("two",), ("three",), ("all",), ("five\u2028lines",)]
    assert records[5:] == records[:5]
    assert {(r.group, r.weight) for r in records} == {("class", 0.5)}
    assert [r.origin.removeprefix(f"{tmp_path}/") for r in records[:5]] == [
        "metadata.jsonl:1",
        "2.txt",
        "3.caption",
        "data.prompt",
        "metadata.jsonl:3",
    ]


def test_pictures_without_caption_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    for number in range(7):
        picture(tmp_path / f"{number}.png")
    (tmp_path / "0.txt").write_text("zero")
    (tmp_path / "1.txt").write_text("  \n")
    with pytest.raises(DataError, match=r"6 of 7 pictures have no caption: 1\.png, .*5\.png and 1 more") as caught:
        read(table(tmp_path))
    assert "data.prompt" in str(caught.value)
    assert captions(tmp_path, prompt="") == {f"{n}.png": ("zero",) if n == 0 else ("",) for n in range(7)}


def test_an_absent_or_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read(table(tmp_path / "none"))
    with pytest.raises(DataError, match="is a file"):
        read(table(picture(tmp_path / "a.png")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture was found"):
        read(table(tmp_path / "empty", prompt="p"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"text": "x"}', '"file_name" is missing'),
        ('{"file_name": "a.png"}', '"text" is missing'),
        ('{"file_name": "a.png", "text": ["x", 3]}', "neither text nor a list"),
        ('{"file_name": "../a.png", "text": "x"}', "leads out of the folder"),
        ('{"file_name": "..\\\\a.png", "text": "x"}', "leads out of the folder"),
        ('{"file_name": "/a.png", "text": "x"}', "leads out of the folder"),
        ('{"file_name": "C:\\\\a.png", "text": "x"}', "leads out of the folder"),
        ('{"file_name": "b.png", "text": "x"}', 'no picture "b.png"'),
        ('{"file_name": "b\\u0000.png", "text": "x"}', "no picture"),
        ('{"file_name": "metadata.jsonl", "text": "x"}', "not a picture gesso reads"),
        ('{"file_name": "a.png", "text": "again"}', "already listed at .*:1"),
    ],
)
def test_a_wrong_metadata_line_is_named_with_its_reason(tmp_path: Path, line: str, reason: str) -> None:
    picture(tmp_path / "a.png")
    metadata(tmp_path, {"file_name": "./a.png", "text": "fine"}, line)
    with pytest.raises(DataError, match=f"(?s)line 2: .*{reason}") as caught:
        read(table(tmp_path, prompt="p"))
    assert "metadata.jsonl" in caught.value.where


def test_every_wrong_metadata_line_is_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    metadata(tmp_path, *["{"] * 8)
    with pytest.raises(DataError, match=r"(?s)8 line.*line 5: .*and 3 more") as caught:
        read(table(tmp_path))
    assert "line 6" not in str(caught.value)


def test_metadata_finds_a_file_name_in_either_unicode_form(tmp_path: Path) -> None:
    picture(tmp_path / "cafe\u0301.png")
    metadata(tmp_path, {"file_name": "caf\u00e9.png", "text": "coffee"})
    assert list(captions(tmp_path).values()) == [("coffee",)]


def test_linked_folders_are_not_entered_and_linked_files_are_read(tmp_path: Path) -> None:
    picture(tmp_path / "outside" / "a.png")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "folder").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="linked folders are not followed: folder"):
        read(table(inside, prompt="p"))
    (inside / "b.png").symlink_to(tmp_path / "outside" / "a.png")
    assert captions(inside, prompt="p") == {"b.png": ("p",)}
    assert any("folder: a link" in note for note in orphans(table(inside)))


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
@given(caption=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_unicode_captions_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, codec: str, caption: str
) -> None:
    file = tmp_path_factory.mktemp("text") / "a.txt"
    stripped = caption.lstrip("\ufeff")  # at the very start this character is the mark itself
    file.write_bytes(stripped.encode(codec))
    assert text.read(file, "a.txt") == stripped


def test_other_encodings_need_a_name(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "a.txt").write_bytes("a café".encode("cp1252"))
    (tmp_path / "b.txt").write_bytes("a café".encode())
    with pytest.raises(DataError, match="byte 5 is 0xe9") as caught:
        read(table(tmp_path))
    assert caught.value.where.endswith("a.txt")
    assert "data.encoding" in caught.value.todo
    assert captions(tmp_path, encoding="cp1252") == {"a.png": ("a café",), "b.png": ("a café",)}
    with pytest.raises(DataError, match="not GBK: byte 5"):
        read(table(tmp_path, encoding="gbk"))
    for unknown in ("gbkk", "hex"):
        with pytest.raises(RecipeError, match=f'"{unknown}" is not a known text encoding'):
            read(table(tmp_path, encoding=unknown))


@pytest.mark.parametrize("data", [b"a\0b", "no mark".encode("utf-16-le"), "wide".encode("utf-32")])
def test_nul_characters_are_refused(tmp_path: Path, data: bytes) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match="NUL character") as caught:
        read(table(tmp_path))
    assert caught.value.where.endswith("a.txt")


def test_a_cut_utf16_file_and_half_a_character_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("cut".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="not UTF-16: byte 6"):
        read(table(tmp_path))
    metadata(tmp_path, '{"file_name": "a.png", "text": "\\ud800"}')
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match="half a character"):
        read(table(tmp_path))


def test_what_is_not_used_is_noted(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "twin.png", "sub/b.png"):
        picture(tmp_path / name, "blue" if name == "a.jpg" else "red")
    for name in ("a.txt", "a.caption", "sub/c.txt", "twin.png.txt", "sub/metadata.jsonl"):
        (tmp_path / name).write_text("words")
    data = table(tmp_path, prompt="a long prompt", repeats=3)
    notes = check.check(read(data), [data, data], counter=lambda texts: ([len(t.split()) for t in texts], 2))
    assert [note.replace(f"{tmp_path}/", "") for note in notes] == [
        "sub/c.txt: a caption without a picture; it is not used",
        "twin.png.txt: a caption without a picture; it is not used",
        "a.caption: another caption stands beside it; it is not used",
        f"sub/metadata.jsonl: not used; metadata.jsonl belongs in {tmp_path} itself",
        "3 files hold the same picture: a.png, sub/b.png, twin.png",
        "2 pictures share one caption file: a.jpg, a.png",
        "data.prompt: the caption has 3 tokens, the text encoder takes 2; the end is cut off",
    ]
    assert check.check(read(table(picture(tmp_path / "clean" / "a.png").parent, prompt="p")), []) == []


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="their file systems hold only names that are text")
@pytest.mark.parametrize("name", [b"caf\xe9.png", b"caf\xe9.txt", b"caf\xe9/a.png"])
def test_names_that_are_not_text_are_refused_and_shown(tmp_path: Path, name: bytes) -> None:
    picture(tmp_path / "fine.png")
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    strange.parent.mkdir(exist_ok=True)
    strange.write_bytes((tmp_path / "fine.png").read_bytes())
    with pytest.raises(DataError, match="the name is not UTF-8 text") as caught:
        read(table(tmp_path, prompt="p"))
    assert caught.value.where == f"{tmp_path}/{name.decode('utf-8', 'backslashreplace')}"
    str(caught.value).encode("utf-8")
    strange.rename(strange.with_name(os.fsdecode(b"not used \xe9.pdf")))
    if b"/" not in name:
        assert len(read(table(tmp_path, prompt="p"))) == 1
    with pytest.raises(DataError, match="the name is not UTF-8 text"):
        read(
            DataTable.model_construct(path=os.fsdecode(b"photos \xe9"), prompt="p", encoding="", repeats=1, weight=1.0)
        )


def test_messages_send_the_user_to_the_table_that_was_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="no caption") as caught:
        read(table(tmp_path), key="validate")
    assert "set validate.prompt" in caught.value.todo
    with pytest.raises(DataError, match="no such folder") as caught:
        read(table(tmp_path / "none"), key="validate")
    assert "check validate.path" in caught.value.todo
    assert read(table(tmp_path, prompt="p"), key="validate")[0].origin == "validate.prompt"
    assert read(table(tmp_path, prompt="p"))[0].origin == "data.prompt"


def test_many_equal_pictures_share_one_sentence(tmp_path: Path) -> None:
    for name in ("red", "blue", "green", "white", "black"):
        picture(tmp_path / f"{name}.png", name)
        picture(tmp_path / f"{name}2.png", name)
    notes = check.check(read(table(tmp_path, prompt="p")), [])
    assert [note.startswith("2 files hold the same picture") for note in notes] == [True] * 3 + [False]
    assert notes[-1] == "4 more files hold pictures that are there several times"
