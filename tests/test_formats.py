"""Tensor files and the model card, read by others: safetensors' own reader and YAML."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from gesso.errors import StorageError
from gesso.formats import card, lora, tensors
from gesso.schema import Hub, Recipe

KINDS = ("?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8")

WRITE = """
import sys
from pathlib import Path
import numpy as np
from gesso.formats import tensors
arrays = {"b": np.ones((2, 3), np.float32), "a": np.arange(7, dtype=np.uint8), "c": np.float64(4)[None]}
names = sys.argv[2]
tensors.save(Path(sys.argv[1]), {name: arrays[name] for name in names}, {key: key * 2 for key in reversed("pqrstuv")})
"""


def crafted(path: Path, head: object, data: bytes = b"", length: int | None = None) -> Path:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


# ---------------------------------------------------------------- tensors


def test_equal_tensors_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    digests = set()
    for number, names in enumerate(("abc", "cab", "bca")):
        path = tmp_path / f"{number}.safetensors"
        subprocess.run([sys.executable, "-c", WRITE, str(path), names], check=True)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_safetensors_own_reader_reads_every_type_and_shape(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {
        f"{kind} {shape}": (draw.random(shape) * 9).astype(kind) for kind in KINDS for shape in ((3, 5), (1,), (2, 0))
    }
    arrays |= {"scalar": np.array(3, np.float32), "turned": draw.random((4, 3)).T, "big": np.arange(5, dtype=">i4")}
    path = tmp_path / "all.safetensors"
    tensors.save(path, arrays, {"format": "pt", "note": "ä\n"})
    theirs, ours = safetensors.numpy.load_file(path), tensors.load(path)
    assert theirs.keys() == ours.keys() == arrays.keys()
    for name, array in arrays.items():
        for found in (theirs[name], ours[name]):
            assert found.dtype == array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(found, array)
    head = tensors.header(path)
    assert head.metadata == {"format": "pt", "note": "ä\n"}
    assert all(entry.start % 8 == 0 for entry in head.tensors.values() if entry.code in ("F64", "I64", "U64"))
    assert (int.from_bytes(path.read_bytes()[:8], "little") % 8) == 0
    with pytest.raises(TypeError, match="no type for numpy's complex128"):
        tensors.save(path, {"a": np.zeros(1, complex)})


def test_we_read_what_safetensors_writes(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array([True, False])}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", {"k": "v"})
    found = tensors.load(tmp_path / "a.safetensors", widen=True)
    assert found["a"].dtype == np.float32
    np.testing.assert_array_equal(found["a"], arrays["a"])
    np.testing.assert_array_equal(found["b"], arrays["b"])


def test_bfloat16_is_read_exactly_as_float32(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5, 0.0], [np.inf, 3.0e38, 1e-40]], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2")
    head = {"x": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}
    path = crafted(tmp_path / "b.safetensors", head, halves.tobytes())
    found = tensors.load(path, widen=True)["x"]
    np.testing.assert_array_equal(found, (halves.astype(np.uint32) << 16).view(np.float32))
    assert found[0].tolist() == [1.0, -2.5, 0.0]
    with pytest.raises(StorageError, match="bfloat16"):
        tensors.load(path)
    with pytest.raises(StorageError, match='tensor "x" holds numbers that are not finite'):
        tensors.load(path, widen=True, finite=True)


F4 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("head", "data", "length", "words"),
    [
        (b"", b"", 10**15, "header would be"),
        (b"{}", b"", 200_000_000, "header would be"),
        (b"{", b"", None, "not a whole safetensors file"),
        (b"\xff\xfe{}", b"", None, "not a whole safetensors file"),
        (b"[1]", b"", None, "not a whole safetensors file"),
        (b"[" * 100_000, b"", None, "not a whole safetensors file"),
        ({"a": {**F4, "shape": [2]}}, b"1234", None, "not a whole safetensors file"),
        ({"a": F4}, b"123", None, 'tensor "a" lies outside the file'),
        ({"a": {**F4, "data_offsets": [-4, 0]}}, b"1234", None, "lies outside"),
        ({"a": {**F4, "dtype": "F31"}}, b"1234", None, "not a whole safetensors file"),
        ({"a": F4}, b"12345", None, "not a whole safetensors file"),
        ({"a": 3}, b"", None, "not a whole safetensors file"),
        (
            b'{"a":' + json.dumps(F4).encode() + b',"a":' + json.dumps(F4).encode() + b"}",
            b"1234",
            None,
            '"a" is there twice',
        ),
    ],
)
def test_a_lying_file_is_refused_by_name(
    tmp_path: Path, head: object, data: bytes, length: int | None, words: str
) -> None:
    path = crafted(tmp_path / "lies.safetensors", head, data, length)
    with pytest.raises(StorageError) as told:
        tensors.load(path)
    assert str(path) in str(told.value)
    assert words in str(told.value)


def test_a_cut_or_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors.save(path, {"a": np.arange(9.0)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StorageError, match=r"a\.safetensors"):
            tensors.load(path)
    with pytest.raises(StorageError, match=r"none\.safetensors: cannot be read"):
        tensors.load(tmp_path / "none.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_tensor_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        tensors.save(tmp_path / "a.safetensors", {"a": np.zeros(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644


# ---------------------------------------------------------------- model card


def front_matter(text: str) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_the_card_says_what_the_hub_reads(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text('---\nlicense: "creativeml-openrail-m"\ntags:\n- x\n---\n# Base\nlicense: other\n')
    out = tmp_path / "dog"
    for step, names in ((0, ["p00-s0.png"]), (20, ["p00-s0.png", "p01-s0.png"])):
        (out / "samples" / f"step-{step}").mkdir(parents=True)
        for name in names:
            (out / "samples" / f"step-{step}" / name).write_bytes(b"")
    prompts = ['a photo of sks dog: "on" a beach', "- [x] sks\ndog"]
    recipe = Recipe.model_validate(
        {
            "model": {"base": "owner/stable-diffusion"},
            "adapter": {"rank": 4, "alpha": 8},
            "data": [{"path": str(tmp_path / "secret" / "photos"), "prompt": "a photo of sks dog"}],
            "train": {"steps": 20, "batch": 2},
            "optim": {"lr": 3e-4},
            "sample": {"prompts": prompts},
            "out": str(out),
        }
    )
    path = card.write(out, recipe, [lora.FILE], base=base, pictures=5)
    text = path.read_text(encoding="utf-8")
    front = front_matter(text)
    assert front["license"] == "creativeml-openrail-m"
    assert front["base_model"] == "owner/stable-diffusion"
    assert front["library_name"] == "diffusers"
    assert front["instance_prompt"] == "a photo of sks dog"
    assert {"text-to-image", "lora", "stable-diffusion", "diffusers-training"} <= set(front["tags"])
    assert [entry["text"] for entry in front["widget"]] == prompts
    assert [entry["output"]["url"] for entry in front["widget"]] == [
        "samples/step-20/p00-s0.png",
        "samples/step-20/p01-s0.png",
    ]
    for words in (
        "20 steps of 2 pictures",
        "learning rate 0.0003",
        "5 pictures",
        "rank 4, alpha 8",
        "load_lora_weights",
    ):
        assert words in text
    assert str(tmp_path) not in text
    assert "secret" not in text


def test_the_card_of_a_local_base_without_a_licence(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"model": {"base": str(tmp_path / "base")}, "adapter": {"kind": "none"}, "out": str(tmp_path)}
    )
    text = card.write(tmp_path, recipe, ["model_index.json"], base=tmp_path / "base").read_text(encoding="utf-8")
    front = front_matter(text)
    assert "license" not in front
    assert front["base_model"] == str(tmp_path / "base"), "what loads the base again on this machine"
    pushed = recipe.model_copy(update={"hub": Hub(push="owner/dog")})
    card.write(tmp_path, pushed, ["model_index.json"], base=tmp_path / "base")
    assert str(tmp_path) not in (tmp_path / "README.md").read_text(encoding="utf-8"), "no path goes to the Hub"
    assert "full" in front["tags"]
    assert "lora" not in front["tags"]
    assert "states no licence" in text
    assert text.count(str(tmp_path)) == 1
    assert "DiffusionPipeline.from_pretrained" in text
