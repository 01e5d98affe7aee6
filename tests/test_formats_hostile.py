"""Files that lie, hide or wait: what `gesso inspect` and `gesso convert` answer, within a limit of memory."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from test_formats import crafted

from gesso.cli import main
from gesso.errors import StorageError
from gesso.formats import embeddings, mindspore, pickles, stored
from gesso.formats.identify import identify, text

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWO = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
LIES: dict[str, tuple[Any, int, str]] = {
    "a share of a side": ({"a": {**ONE, "shape": [2.7]}}, 8, "not of whole numbers"),
    "a text for a shape": ({"a": {**ONE, "shape": "2"}}, 8, "no list"),
    "true for a side": ({"a": {**ONE, "shape": [True, 2]}}, 8, "not of whole numbers"),
    "offsets as texts": ({"a": {**ONE, "data_offsets": ["0", "8"]}}, 8, "not of whole numbers"),
    "sides without end": ({"a": {**ONE, "shape": [1] * 70 + [2]}}, 8, "at most 32 numbers"),
    "a negative side": ({"a": {**ONE, "shape": [-2]}}, 8, "has the shape [-2]"),
    "a hole": ({"a": ONE, "b": {**TWO, "data_offsets": [12, 20]}}, 20, "4 bytes in it belong to no tensor"),
    "something behind": ({"a": ONE}, 80, "72 bytes in it belong to no tensor"),
    "metadata as a list": ({"__metadata__": [1], "a": ONE}, 8, "metadata are not texts"),
    "metadata as tables": ({"__metadata__": {"x": {"y": 1}}, "a": ONE}, 8, "metadata are not texts"),
    "no object": ([1], 8, "no JSON object"),
}


@pytest.mark.parametrize("case", LIES)
def test_what_other_readers_refuse_is_refused(tmp_path: Path, case: str) -> None:
    head, length, reason = LIES[case]
    path = crafted(tmp_path / "x.safetensors", head, bytes(length))
    with pytest.raises(StorageError) as told:
        stored.open_safetensors(path)
    assert reason in str(told.value)
    assert main(["inspect", str(path)]) == 5
    with pytest.raises((SafetensorError, ValueError)):
        load_file(path)


def test_names_cannot_move_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An escape sequence in a name or in the metadata is shown, and does nothing."""
    head = {"__metadata__": {"x": "\x1b]0;owned\x07"}, "a\x1b[31m\x9b1m": ONE}
    path = crafted(tmp_path / "x.safetensors", head, bytes(8))
    assert main(["inspect", str(path)]) == 0
    assert main(["convert", str(path), "--to", str(tmp_path / "y.safetensors")]) == 0
    bad = crafted(tmp_path / "z.safetensors", {"a\x1b[31m": {**ONE, "shape": [3]}}, bytes(8))
    assert main(["convert", str(bad), "--to", str(tmp_path / "w.safetensors")]) == 5
    said = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b"} & set(said.out + said.err)
    assert "\\x1b[31m" in said.err


class Canary:
    """Writes a file if it is ever loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self._path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_any_protocol_is_told_and_left_alone(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps({"a": Canary(tmp_path / "canary")}, protocol=protocol))
    found = identify(path)
    assert found["kind"] == "pickle"
    assert "posix.system" in found["problems"][0]
    for flag in ([], ["--unsafe-pickle"]):
        assert main(["convert", str(path), "--to", str(tmp_path / "y.safetensors"), *flag]) == 5
    assert {each.name for each in tmp_path.iterdir()} == {"x.safetensors"}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_numpy_are_no_danger(tmp_path: Path, protocol: int) -> None:
    down, up = np.ones((2, 3), np.float32), np.arange(6, dtype=np.float32).reshape(3, 2)
    named = {"unet.a.to_q.lora_A.weight": down, "unet.a.to_q.lora_B.weight": up}
    path, out = tmp_path / "x.bin", tmp_path / "y.safetensors"
    path.write_bytes(pickle.dumps(named, protocol=protocol))
    assert identify(path)["problems"] == []
    assert main(["convert", str(path), "--to", str(out), "--form", "diffusers"]) == 5
    assert main(["convert", str(path), "--to", str(out), "--form", "diffusers", "--unsafe-pickle"]) == 0
    assert np.array_equal(stored.open_safetensors(out)["unet.a.to_q.lora_B.weight"].read(), up)


def members(path: Path, *contents: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents:
            if name in archive.namelist():
                with pytest.warns(UserWarning, match="Duplicate name"):
                    archive.writestr(name, content)
            else:
                archive.writestr(name, content)
    return path


def test_every_pickle_of_an_archive_is_looked_at(tmp_path: Path) -> None:
    """Which one another reader takes is not known here."""
    plain, evil = pickle.dumps({}, 2), pickle.dumps(Canary(tmp_path / "canary"), 2)
    for number, names in enumerate((("x/sub/data.pkl", "a/data.pkl"), ("a/data.pkl", "x/constants.pkl"))):
        path = members(tmp_path / f"{number}.ckpt", (names[0], plain), (names[1], evil))
        assert "posix.system" in identify(path)["problems"][0]
    for number, (first, second) in enumerate(((plain, evil), (evil, plain))):
        path = members(tmp_path / f"twice{number}.ckpt", ("a/data.pkl", first), ("a/data.pkl", second))
        assert identify(path)["problems"] == ['the name "a/data.pkl" is in this archive twice']
        assert main(["convert", str(path), "--to", str(tmp_path / "y.safetensors")]) == 5
    assert not (tmp_path / "canary").exists()


def test_a_pickle_of_endless_instructions_ends(tmp_path: Path) -> None:
    start = time.monotonic()
    whole = members(tmp_path / "large.ckpt", ("a/data.pkl", b"\x80\x02" + b"N0" * (pickles.LARGEST // 2) + b"."))
    assert "a whole model's under a million" in identify(whole)["problems"][0]
    steps = b"\x80\x02" + b"N0" * pickles.MOST_STEPS + b"N."
    for path in (members(tmp_path / "steps.ckpt", ("a/data.pkl", steps)), tmp_path / "steps.pt"):
        path.write_bytes(steps) if path.suffix == ".pt" else None
        assert "instructions" in identify(path)["problems"][0]
    assert time.monotonic() - start < 20


def test_a_length_that_a_pickle_claims_makes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"abc.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "cut off or damaged" in identify(path)["problems"][0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_the_limits_of_the_process_fit_into_those_that_are_there(tmp_path: Path) -> None:
    """A batch system's own limit of memory cannot be raised."""
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": Canary(tmp_path / "canary")}))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1500 << 20, 1500 << 20));"
        "from gesso.cli import main; sys.exit(main(['convert', 'x.pt', '--to', 'y.safetensors', '--unsafe-pickle']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "it would call posix.system" in done.stderr


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for verb in (["inspect", str(tmp_path / "pipe")], ["convert", str(tmp_path / "pipe"), "--to", str(tmp_path / "y")]):
        assert main(verb) == 5


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n <!doctype HTML>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_what_stands_in_a_models_place_is_a_problem(
    tmp_path: Path, content: bytes, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert main(["inspect", str(path)]) == 5
    assert main(["convert", str(path), "--to", str(tmp_path / "y.safetensors")]) == 5
    said = capsys.readouterr()
    assert what in said.out
    assert what in said.err
    (tmp_path / "page").write_bytes(content)
    assert main(["inspect", str(tmp_path / "page")]) == 0  # it claims nothing


def test_pieces_of_a_tensor_that_do_not_follow_one_another(tmp_path: Path) -> None:
    def value(name: str, count: int) -> bytes:
        return mindspore._head(name, "Float32", (4,), 4 * count) + bytes(4 * count)

    (tmp_path / "x.ckpt").write_bytes(value("a", 2) + value("b", 4) + value("a", 2))
    assert "stands over pieces that do not follow one another" in identify(tmp_path / "x.ckpt")["problems"][0]
    (tmp_path / "x.ckpt").write_bytes(value("a", 4) + value("b", 4) + value("a", 4))
    assert '"a" is there twice' in identify(tmp_path / "x.ckpt")["problems"][0]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_word_of_the_first_textual_inversion(tmp_path: Path, zipped: bool) -> None:
    """Its vectors lie in a ParameterDict, with empty sets beside them."""
    vectors = torch.randn(2, 768, generator=torch.Generator().manual_seed(0))
    kept = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
    path, out = tmp_path / "dog.pt", tmp_path / "dog.safetensors"
    own = {"string_to_token": {"*": 265}, "string_to_param": kept}
    torch.save(own, path, _use_new_zipfile_serialization=zipped)
    assert identify(path)["problems"] == []
    assert main(["convert", str(path), "--to", str(out), *([] if zipped else ["--unsafe-pickle"])]) == 0
    assert np.array_equal(embeddings.read([out])["tokens.text_encoder.dog"], vectors.numpy())
    assert "dog" in text(identify(out))


def test_json_is_still_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = crafted(tmp_path / "x.safetensors", {"__metadata__": {"x": "\x1b[31m"}, "a": ONE}, bytes(8))
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["metadata"] == {"x": "\x1b[31m"}
