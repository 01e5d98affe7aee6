"""kohya's folders and data set TOML: repeats and words from names, and nothing that is dropped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from sources_parts import captions, picture, table

from gesso.data.sources import orphans, read
from gesso.errors import DataError, RecipeError
from gesso.gathering import pictures
from gesso.schema import Recipe


def kohya(folder: Path) -> Path:
    for name in ("3_sks dog/a.png", "3_sks dog/b.png", "1_a cat/c.png"):
        picture(folder / name)
    (folder / "3_sks dog" / "b.txt").write_text("my own words")
    return folder


def seen(folder: Path, **keys: object) -> list[tuple[str, str]]:
    return [(record.path.name, record.captions[0]) for record in read(table(folder, **keys))]


def test_names_of_folders_say_repeats_and_captions(tmp_path: Path) -> None:
    found = seen(kohya(tmp_path))
    assert found == [("c.png", "a cat"), *[("a.png", "sks dog"), ("b.png", "my own words")] * 3]
    assert {record.reader for record in read(table(tmp_path))} == {'kohya folder "3_sks dog"', 'kohya folder "1_a cat"'}
    assert seen(tmp_path / "3_sks dog") == found[1:]
    assert len(seen(tmp_path, repeats=2)) == 14
    assert seen(tmp_path, prompt="mine")[:2] == [("c.png", "mine"), ("a.png", "mine")]
    assert sorted(note.rpartition("/")[2] for note in orphans(table(tmp_path))) == [
        '1_a cat: a kohya folder: its pictures count 1 times; a plain one with data.format = "folder"',
        '3_sks dog: a kohya folder: its pictures count 3 times; a plain one with data.format = "folder"',
    ]


def test_a_folder_that_only_looks_like_it_is_a_plain_one(tmp_path: Path) -> None:
    kohya(tmp_path)
    assert len(seen(tmp_path, format="folder", prompt="p")) == 3
    picture(tmp_path / "loose.png")
    assert len(seen(tmp_path, prompt="p")) == 4
    with pytest.raises(DataError, match='"kohya" does not fit'):
        seen(tmp_path, format="kohya")
    for name in ("2024_summer", "2023_winter"):
        picture(tmp_path / "years" / name / "a.png")
    assert len(seen(tmp_path / "years", prompt="p")) == 2


def test_folders_that_count_nothing_are_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "0_off" / "a.png")
    with pytest.raises(DataError, match="no picture of these folders counts"):
        seen(tmp_path)
    picture(tmp_path / "2_on" / "b.png")
    assert seen(tmp_path) == [("b.png", "on")] * 2


def toml(folder: Path, text: str) -> Path:
    file = folder / "dataset.toml"
    file.write_text(text.replace("HERE", folder.as_posix()))
    return file


def test_subsets_bring_their_own_words(tmp_path: Path) -> None:
    for name in ("dog/a.png", "cat/b.png"):
        picture(tmp_path / name)
    (tmp_path / "dog" / "a.txt").write_text("1girl, red, green, blue")
    file = toml(
        tmp_path,
        """
        [general]
        caption_extension = ".txt"
        shuffle_caption = true
        enable_bucket = true
        [[datasets]]
        keep_tokens = 1
        flip_aug = false
        [[datasets.subsets]]
        image_dir = "HERE/dog"
        num_repeats = 2
        caption_prefix = "best,"
        caption_tag_dropout_rate = 0.25
        [[datasets.subsets]]
        image_dir = "HERE/cat"
        class_tokens = "a cat"
        caption_suffix = "end"
        shuffle_caption = false
        keep_tokens = 0
        alpha_mask = true
        """,
    )
    dog, again, cat = read(table(file))
    assert dog == again
    assert (dog.captions, dog.style.shuffle, dog.style.keep, dog.style.prefix) == (
        ("1girl, red, green, blue",),
        True,
        1,
        "best, ",
    )
    assert (cat.captions, cat.style.suffix, cat.style.shuffle, cat.mask) == (("a cat",), " end", False, cat.path)
    assert (dog.style.drop, cat.style.drop) == (0.25, 0.0)
    assert {record.reader for record in (dog, cat)} == {"kohya dataset TOML"}
    assert f"{file}: enable_bucket: train.buckets of the recipe decides" in orphans(table(file))
    (tmp_path / "cat" / "lonely.txt").write_text("no picture")
    assert f"{tmp_path}/cat/lonely.txt: a caption without a picture; it is not used" in orphans(table(file))


def test_a_run_is_not_written_into_a_subset(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "a.png")
    file = toml(tmp_path, '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "HERE/dog"\nclass_tokens = "dog"')
    data = (table(file),)
    assert len(pictures(Recipe(data=data, out=str(tmp_path / "out")))[0]) == 1
    with pytest.raises(RecipeError, match="lies in the pictures' folder"):
        pictures(Recipe(data=data, out=str(tmp_path / "dog" / "out")))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[", "this is not TOML"),
        ("", r"it has no \[\[datasets.subsets\]\]"),
        ("datasets = 3", "it has no"),
        ("datasets = [3]", "it has no"),
        ("general = 3\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'", "it has no"),
        ("[[datasets]]\nsubsets = 3", "it has no"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1", "subset 1: image_dir is missing"),
        ("[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'x'", "resolution is for the whole run"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\ncolor_aug = true", '"color_aug": gesso does not change'),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\nmetadata_file = 'm'", "captions stand beside"),
        ("[[datasets]]\nresize_interpolation = 'area'\n[[datasets.subsets]]\nimage_dir = 'x'", "for the whole run"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\nnew_key = 1", 'does not do "new_key"'),
        (
            "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\ncaption_tag_dropout_rate = 1.0",
            "must be a share below 1, but is 1.0",
        ),
        (
            "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\ncaption_tag_dropout_rate = true",
            "must be a share below 1, but is True",
        ),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 3", "image_dir must be text, but is 3"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\nnum_repeats = -1", "must be a whole number, but is -1"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\nnum_repeats = true", "must be a whole number"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\nnum_repeats = 0", "num_repeats must be at least 1"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\ncaption_extension = '.cap'", 'is ".cap"'),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'nowhere'", "nowhere: there is no such folder"),
    ],
)
def test_what_a_toml_asks_in_vain_is_said(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        captions(toml(tmp_path, text))
