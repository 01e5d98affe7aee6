"""New words without a framework: names, beginnings, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gesso.engines.engine import Token
from gesso.errors import RecipeError, StorageError
from gesso.formats import embeddings
from gesso.words import begin, check, parted, pieces, unused

TABLE = np.random.default_rng(0).normal(0, 0.3, (500, 64)).astype(np.float32)
NONE = TABLE[:0]


def rows(count: int, width: int = 8, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def test_a_word_of_several_vectors_is_several_tokens() -> None:
    assert pieces(Token(name="<dog>")) == ["<dog>"]
    assert pieces(Token(name="<dog>", vectors=3)) == ["<dog>", "<dog>_1", "<dog>_2"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([""], "is empty"),
        ([" "], "is empty"),
        (["a dog"], "white space"),
        (["<dog> "], "white space"),
        (["do\u200bg"], "invisible"),
        (["<dog>", "<cat>", "<dog>"], "twice"),
        (["<dog>", "<dog>1"], "part of"),
        (["xdogx", "dog"], "part of"),
    ],
)
def test_names_that_could_not_be_told_apart_are_refused(names: list[str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        check([Token(name=name) for name in names])


def test_other_names_pass() -> None:
    check([Token(name="<dog>"), Token(name="<cat>", vectors=2), Token(name="größe")])


def test_a_word_begins_as_the_mean_of_its_init() -> None:
    known = TABLE[[3, 5, 9]]
    one = begin(Token(name="<dog>", init="x", vectors=1), "text_encoder", known, TABLE)
    np.testing.assert_allclose(one[0], known.astype(np.float64).mean(axis=0), rtol=1e-7)
    two = begin(Token(name="<dog>", init="x", vectors=2), "text_encoder", known, TABLE)
    np.testing.assert_array_equal(two, np.repeat(one, 2, axis=0))
    assert one.dtype == two.dtype == np.float32


def test_a_word_begins_as_one_known_word_for_each_vector_where_the_count_fits() -> None:
    known = TABLE[[3, 5, 9]]
    np.testing.assert_array_equal(begin(Token(name="<dog>", vectors=3), "text_encoder", known, TABLE), known)


def test_a_random_beginning_has_the_size_of_the_table_and_follows_from_seed_name_and_encoder() -> None:
    token = Token(name="<dog>", vectors=100, seed=4)
    found = begin(token, "text_encoder", NONE, TABLE)
    assert found.shape == (100, 64)
    assert abs(float(found.std()) / float(TABLE.std()) - 1.0) < 0.03  # 6400 draws: five times the standard error
    assert abs(float(found.mean())) < 0.02
    np.testing.assert_array_equal(found, begin(token, "text_encoder", NONE, TABLE))
    others = (
        begin(Token(name="<dog>", vectors=100, seed=5), "text_encoder", NONE, TABLE),
        begin(Token(name="<cat>", vectors=100, seed=4), "text_encoder", NONE, TABLE),
        begin(token, "text_encoder_2", NONE, TABLE),
    )
    for other in others:
        assert abs(float(np.corrcoef(found.ravel(), other.ravel())[0, 1])) < 0.1


def test_a_word_that_no_caption_has_is_found() -> None:
    tokens = [Token(name="<dog>"), Token(name="<cat>"), Token(name="<hat>")]
    assert unused(tokens, ["a <dog>, asleep", "a cat", "the <hat>s"]) == ["<cat>"]
    assert unused(tokens, []) == ["<dog>", "<cat>", "<hat>"]


def test_words_are_parted_from_the_rest() -> None:
    weights = {"unet.a.lora_A.weight": rows(2), "tokens.text_encoder.<a.b>": rows(1)}
    words, rest = parted(weights)
    assert list(words) == ["tokens.text_encoder.<a.b>"]
    assert list(rest) == ["unet.a.lora_A.weight"]


SD = {f"tokens.text_encoder.{name}": rows(n, seed=n) for name, n in (("<zebra>", 1), ("<a.b>", 3), ("clip_l", 2))}
XL = {
    "tokens.text_encoder.<dog>": rows(2, 8),
    "tokens.text_encoder.<cat>": rows(1, 8),
    "tokens.text_encoder_2.<dog>": rows(2, 12),
    "tokens.text_encoder_2.<cat>": rows(1, 12),
}


@pytest.mark.parametrize("weights", [SD, XL], ids=["sd", "xl"])
def test_what_is_written_is_read_back_bit_for_bit_in_order(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    writers = embeddings.writers(weights)
    for name, write in writers.items():
        write(tmp_path / name)
        assert write.nbytes == sum(array.nbytes for array in load_file(tmp_path / name).values())
    names = [path.name for path in embeddings.files(tmp_path)]
    assert names == list(writers)
    assert names[:2] == ["learned_embeds.safetensors", "learned_embeds-2.safetensors"]
    found = embeddings.read(embeddings.files(tmp_path))
    assert found.keys() == weights.keys()
    assert list(embeddings.vectors(found)) == list(embeddings.vectors(weights))
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value)


def test_the_forms_are_those_of_diffusers(tmp_path: Path) -> None:
    for form, weights in (("sd", SD), ("xl", XL)):
        (tmp_path / form).mkdir()
        for name, write in embeddings.writers(weights).items():
            write(tmp_path / form / name)
    assert list(load_file(tmp_path / "sd" / embeddings.FILE)) == ["<zebra>"]
    assert {name: value.shape for name, value in load_file(tmp_path / "xl" / embeddings.FILE).items()} == {
        "clip_l": (2, 8),
        "clip_g": (2, 12),
    }


def test_the_files_of_others_are_read(tmp_path: Path) -> None:
    """Without metadata, in half precision, a single vector without an axis for it."""
    save_file({"<toy>": rows(1)[0].astype(np.float16)}, tmp_path / "toy.safetensors")
    found = embeddings.read([tmp_path / "toy.safetensors"])
    np.testing.assert_array_equal(found["tokens.text_encoder.<toy>"], rows(1).astype(np.float16).astype(np.float32))


def test_a_file_that_is_no_word_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"clip_l": rows(1), "clip_g": rows(1, 12)}, path)
    with pytest.raises(StorageError, match="does not say the word's name"):
        embeddings.read([path])
    save_file({"unet.conv_in.weight": np.zeros((2, 2, 3, 3), dtype=np.float32)}, path)
    with pytest.raises(StorageError, match="not learned words"):
        embeddings.read([path])
    save_file({"<dog>": rows(1)}, path)
    with pytest.raises(StorageError, match='two files have the word "<dog>"'):
        embeddings.read([path, path])


def test_a_word_must_fit_the_text_encoders() -> None:
    embeddings.fit(XL, {"text_encoder": 8, "text_encoder_2": 12})
    embeddings.fit({}, {"text_encoder": 8})
    for widths in ({"text_encoder": 8}, {"text_encoder": 8, "text_encoder_2": 13}):
        with pytest.raises(StorageError, match="another base"):
            embeddings.fit(XL, widths)
    with pytest.raises(StorageError, match="1 and 2 vectors"):
        embeddings.vectors({"tokens.text_encoder.<a>": rows(1), "tokens.text_encoder_2.<a>": rows(2)})
