"""The tiny world: its tables, captions, held-out pairs, words, and the pictures that ship. No font is needed."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gesso import keys
from gesso.demo import glyphs, pictures, tokenizer

ASSETS = Path(glyphs.__file__).parent / "assets"


def test_twenty_known_things_in_five_classes_of_four() -> None:
    assert len(glyphs.KNOWN) == 20
    assert len(glyphs.SUBJECTS) == 8
    assert Counter(thing.kind for thing in glyphs.KNOWN) == dict.fromkeys(glyphs.KINDS, 4)
    assert {subject.kind for subject in glyphs.SUBJECTS} <= set(glyphs.KINDS)
    everything = glyphs.KNOWN + glyphs.SUBJECTS
    assert len({thing.name for thing in everything}) == len({thing.character for thing in everything}) == 28


def test_grounds_are_far_apart() -> None:
    colours = [np.array(colour) for colour in glyphs.GROUNDS.values()]
    assert len(colours) == 10
    assert min(np.linalg.norm(one - other) for one, other in combinations(colours, 2)) > 85


def test_fifty_held_out_pairs_are_spread_evenly() -> None:
    held_out, shown = glyphs.pairs(held_out=True), glyphs.pairs(held_out=False)
    assert len(held_out) == 50
    assert len(shown) == 150
    assert not set(held_out) & set(shown)
    assert set(Counter(ground for _, ground in held_out).values()) == {5}
    assert set(Counter(thing.name for thing, _ in held_out).values()) == {2, 3}
    # every ground misses one thing of every class, so no class is unknown on any ground
    assert set(Counter((thing.kind, ground) for thing, ground in held_out).values()) == {1}


@pytest.mark.parametrize(
    ("words", "said"),
    [("apple", "an apple"), ("unicorn", "a unicorn"), ("orange", "an orange"), ("teddy bear", "a teddy bear")],
)
def test_article(words: str, said: str) -> None:
    assert glyphs.article(words) == said


def test_captions_weigh_thing_class_and_ground() -> None:
    said = glyphs.captions(glyphs.glyph("apple"), "orange")
    assert "an apple on an orange background" in said
    counts = Counter(("apple" in text, "orange" in text) for text in said)
    named, classed = counts[True, True], counts[False, True] + counts[False, False]
    assert (named, classed, counts[True, False]) == (12, 5, 3)  # 60 %, 25 %, 15 %
    assert all("apple" in text or "fruit" in text for text in said)


def test_training_pairs_come_in_whole_rounds_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, tuple[int, int, int], glyphs.Pose]] = []

    def note(character: str, ground: tuple[int, int, int], pose: glyphs.Pose, **_: object) -> np.ndarray:
        drawn.append((character, ground, pose))
        return np.full((64, 64, 3), ground, np.uint8)

    monkeypatch.setattr(pictures, "draw", note)
    told = [pictures.training_picture(7, number)[1:] for number in range(300)]
    assert Counter(told) == dict.fromkeys(glyphs.pairs(held_out=False), 2)
    assert told[:150] != told[150:]
    assert pictures.training_picture(7, 200)[1:] == told[200]
    assert drawn[-1] == drawn[200]
    poses = [pose for _, _, pose in drawn]
    assert all(0.62 <= pose.scale <= 0.80 and abs(pose.degrees) <= 8 for pose in poses)


def test_training_folder_is_what_a_data_reader_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "draw", lambda _, ground, pose, **__: np.full((64, 64, 3), ground, np.uint8))
    pictures.write_training_set(tmp_path, seed=3, count=5)
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"0000{number}.png" for number in range(5)]
    for number, line in enumerate(lines):
        _, thing, ground = pictures.training_picture(3, number)
        assert line["text"] == glyphs.captions(thing, ground)
        picture = np.asarray(Image.open(tmp_path / line["file_name"]))
        assert tuple(picture[0, 0]) == glyphs.GROUNDS[ground]


def test_pose_is_a_function_of_its_key() -> None:
    poses = [glyphs.Pose.drawn(keys.generator(1, "demo pose", number)) for number in (4, 5, 4)]
    assert poses[0] == poses[2] != poses[1]


def test_every_wanted_word_is_one_token() -> None:
    merges = tokenizer.learn(tokenizer.words())
    vocab = tokenizer.vocabulary(merges)
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert all(word + "</w>" in vocab for word in tokenizer.words())
    assert {"sks", "kiwifruit", "background", "teddy", "bear"} <= set(tokenizer.words())
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for word in tokenizer.words():  # as a reader does it: the pair of lowest rank first
        piece = [*word[:-1], word[-1] + "</w>"]
        while len(piece) > 1:
            best = min(pairwise(piece), key=lambda pair: ranks.get(pair, 10**9))
            assert best in ranks, (word, piece)
            piece = tokenizer._merged(piece, best)


def test_vocabulary_covers_every_byte(tmp_path: Path) -> None:
    vocab = tokenizer.write(tmp_path)
    letters = tokenizer.byte_letters()
    assert len(set(letters)) == 256
    assert all(letter in vocab and letter + "</w>" in vocab for letter in letters)
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == vocab
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 32


def test_transformers_reads_the_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocab = tokenizer.write(tmp_path)
    reader = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    text = "a photo of a sks kiwifruit on an orange background"
    ids = reader(text, padding="max_length", max_length=32).input_ids
    wanted = [vocab[tokenizer.BEGIN], *(vocab[word + "</w>"] for word in text.split())]
    assert ids == wanted + [vocab[tokenizer.END]] * (32 - len(wanted))
    odd = "Łódź 雪 42!"
    assert reader.decode(reader(odd).input_ids, skip_special_tokens=True).replace(" ", "") == "łódź雪42!"


def test_shipped_subject_pictures() -> None:
    files = sorted((ASSETS / "subjects" / "teddy-bear").glob("*.png"))
    assert [file.name for file in files] == [f"{number}.png" for number in range(5)]
    for file, ground in zip(files, pictures.CLEAR_GROUNDS["teddy bear"], strict=True):
        picture = np.asarray(Image.open(file))
        assert picture.shape == (128, 128, 3)
        assert tuple(picture[0, 0]) == glyphs.GROUNDS[ground]
        assert (picture != picture[0, 0]).any(axis=2).mean() > 0.15


def test_shipped_captioned_pictures() -> None:
    files = sorted((ASSETS / "captioned").glob("*.png"))
    assert len(files) == 24
    for file in files:
        name = file.stem.rpartition("-")[0]
        said = file.with_suffix(".txt").read_text().strip()
        ground = next(g for g in glyphs.GROUNDS if said == glyphs.caption(name, g))
        assert tuple(np.asarray(Image.open(file))[0, 0]) == glyphs.GROUNDS[ground]
    assert "SIL OPEN FONT LICENSE Version 1.1" in (ASSETS / "LICENSE-NotoColorEmoji.txt").read_text()
