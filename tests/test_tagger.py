"""WD taggers: what the network is shown, which tags pass, how they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from caption_parts import TAGS, tagger
from PIL import Image

from gesso.captioning import Asked, asked_of, kind_of
from gesso.captioning import tagger as tagging
from gesso.errors import DeviceError, RecipeError

pytest.importorskip("onnx", reason="the tagger of these tests is made with onnx")
pytest.importorskip("onnxruntime", reason="pip install 'gesso[tagger]'")


def made(folder: Path, **asked: float) -> tagging.Tagger:
    assert kind_of(folder) == "tagger"
    return tagging.create(folder, "tagger", asked_of("tagger", Asked(device="cpu", **asked), folder))


def test_a_picture_is_shown_on_a_white_square_blue_first() -> None:
    picture = np.zeros((2, 4, 3), dtype=np.uint8)
    picture[:] = (10, 20, 30)
    shown = tagging.prepared(picture, 4)
    assert shown.dtype == np.float32
    assert shown.shape == (4, 4, 3)
    np.testing.assert_array_equal(shown[[0, 3]], 255.0)
    np.testing.assert_array_equal(shown[1:3], np.broadcast_to(np.float32([30, 20, 10]), (2, 4, 3)))


def test_a_larger_picture_is_resized_as_pillow_does() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BICUBIC), dtype=np.float32)
    np.testing.assert_array_equal(tagging.prepared(picture, 16), wanted[:, :, ::-1])


@pytest.mark.parametrize("batch", [None, 1])
def test_tags_are_those_whose_probability_passes(tmp_path: Path, batch: int | None) -> None:
    """Against the network worked out by hand, for any number of pictures and for one at a time."""
    from onnx import load, numpy_helper

    folder = tagger(tmp_path / "wd", batch=batch)
    weights = numpy_helper.to_array(load(folder / "model.onnx").graph.initializer[0])
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, 3, dtype=np.uint8) + np.zeros((16, 16 + 4 * n, 3), np.uint8) for n in range(6)]
    means = np.stack([tagging.prepared(each, 16).mean((0, 1)) for each in pictures])
    shares = 1 / (1 + np.exp(-(means @ weights + np.linspace(-2, 2, len(TAGS)))))
    model = made(folder, general=0.3, character=0.6)
    expected = []
    for row in shares:
        found = [at for category, least in ((4, 0.6), (0, 0.3))
                 for at in sorted(range(len(TAGS)), key=lambda at: -row[at])
                 if TAGS[at][1] == category and row[at] > least]  # fmt: skip
        expected.append(", ".join(tagging.spoken(TAGS[at][0]) for at in found))
    assert model.caption(pictures) == expected
    assert any(expected)
    everything = made(folder, general=0.0, character=0.0).caption(pictures)[0]
    assert sorted(everything.split(", ")) == sorted(
        ["1girl", "red hair", "^_^", "looking at viewer", "hatsune miku", "mona (game)"]
    )
    assert made(folder, general=1.0, character=1.0).caption(pictures) == [""] * len(pictures)


def test_faces_keep_their_underscores() -> None:
    for face in ("^_^", ">_<", "o_o", "0_0", "@_@", "|_|", "=_=", "(o)_(o)", "3_3"):
        assert tagging.spoken(face) == face
    for tag, said in (("red_hair", "red hair"), ("mona_(game)", "mona (game)"), ("1girl", "1girl"), ("k-on!", "k-on!")):
        assert tagging.spoken(tag) == said


def test_what_is_no_tagger_is_said(tmp_path: Path) -> None:
    folder = tagger(tmp_path / "short")
    lines = (folder / "selected_tags.csv").read_text().splitlines()
    (folder / "selected_tags.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(RecipeError, match="8 numbers for 7 tags"):
        made(folder)
    (folder / "selected_tags.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RecipeError, match="no list of tags"):
        made(folder)
    folder = tagger(tmp_path / "broken")
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RecipeError, match="cannot be read"):
        made(folder)
    folder = tagger(tmp_path / "device")
    with pytest.raises(DeviceError, match="cannot use mps"):
        tagging.create(folder, "tagger", Asked(device="mps"))
    for wrong in ({"prompt": "x"}, {"beams": 2}, {"tokens": 5}, {"temperature": 1.0}):
        with pytest.raises(RecipeError, match="takes no --"):
            asked_of("tagger", Asked(**wrong), folder)
