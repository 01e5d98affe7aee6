"""`gesso inspect` tells what files are by their content, refuses what lies, and runs nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import resource
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats_kohya import draw, targets

from gesso.cli import main
from gesso.errors import StorageError
from gesso.formats import kohya, lora, mindspore, mindspore_names, parts, pickles, single_file, stored, tensors
from gesso.formats.adapter import Config
from gesso.formats.convert import Request, convert
from gesso.formats.identify import identify, text


@pytest.fixture(scope="module")
def pipe(blank: Path) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(blank, local_files_only=True, safety_checker=None)


def test_models_in_each_form(blank: Path, blank_xl: Path, tmp_path: Path) -> None:
    for folder, expected in ((blank, "sd1"), (blank_xl, "sdxl")):
        family, own = parts.read(folder)
        path = tmp_path / f"{family}.safetensors"
        stored.save_safetensors(path, single_file.pack(own, family))
        found = identify(path)
        assert (found["kind"], found["form"], found["family"]) == ("model", "single file", expected)
        assert found["parts"] == {part: len(tensors_) for part, tensors_ in own.items()}
        assert found["types"] == {"F32": found["tensors"]}
        assert found["problems"] == []
        whole = identify(folder)
        assert whole["kind"] == "pipeline"
        assert whole["parts"].keys() == own.keys()
    family, own = parts.read(blank)
    path = tmp_path / "ms.ckpt"
    mindspore.write(path, mindspore_names.pack(own, family), {"note": "x"}, checksum=True)
    found = identify(path)
    assert (found["kind"], found["form"], found["family"]) == ("model", "mindspore", "sd1")
    assert found["checksum"] is True
    assert found["metadata"] == {"note": "x"}
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert "its checksum is" in identify(path)["problems"][0]
    assert identify(path, values=False)["problems"] == []


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_adapters_with_rank_alpha_targets_and_base(pipe: Any, tmp_path: Path, form: str) -> None:
    arrays, sizes = draw(targets(pipe, usual=True))
    path = tmp_path / "x.safetensors"
    if form == "kohya":
        tensors.save(path, kohya.pack(arrays, sizes, "sd1"), kohya.metadata(sizes, "sd1", "x"))
    else:
        lora.write(path, arrays, Config.of(sizes))
    found = identify(path)
    assert (found["kind"], found["form"], found["adapter"]) == ("adapter", form, "lora")
    assert found["ranks"] == sorted({rank for rank, _ in sizes.values()})
    assert found["alphas"] == sorted({alpha for _, alpha in sizes.values()})
    assert {"to_q", "to_out.0", "net.2", "proj", "q_proj", "fc1"} <= set(found["targets"])
    assert found["modules"].keys() == {"unet", "text_encoder"}
    assert found["family"] is None  # the tiny model's text is 128 wide
    assert found["problems"] == []


def test_what_a_lora_lacks_is_said(pipe: Any, tmp_path: Path) -> None:
    arrays, sizes = draw(targets(pipe, usual=True))
    packed = kohya.pack(arrays, sizes, "sd1")
    gone = next(name for name in packed if name.endswith("lora_up.weight"))
    tensors.save(tmp_path / "x.safetensors", {name: array for name, array in packed.items() if name != gone})
    assert "has no lora_B" in identify(tmp_path / "x.safetensors")["problems"][0]


def test_parts_words_and_what_is_unknown(blank: Path, tmp_path: Path) -> None:
    for part, file in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        found = identify(blank / part / f"{file}.safetensors")
        assert (found["kind"], found["form"], found["part"]) == ("part", "diffusers", part)
        assert identify(blank / part)["kind"] == "part"
    family, own = parts.read(blank)
    vae = {n: t for n, t in single_file.pack(own, family).items() if n.startswith(single_file.VAE)}
    path = tmp_path / "x.safetensors"
    for prefix in ("", single_file.VAE):
        stored.save_safetensors(path, {prefix + n.removeprefix(single_file.VAE): t for n, t in vae.items()})
        assert (identify(path)["form"], identify(path)["part"]) == ("single file", "vae")
    words = {
        ("diffusers", "sd1"): {"<dog>": (2, 768)},
        ("a1111", "sd2"): {"emb_params": (1, 1024)},
        ("sdxl", "sdxl"): {"clip_l": (3, 768), "clip_g": (3, 1280)},
    }
    for (form, base), shapes in words.items():
        tensors.save(path, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})
        found = identify(path)
        assert (found["kind"], found["form"], found["family"]) == ("word", form, base)
        assert found["vectors"] == {name: shape[0] for name, shape in shapes.items()}
    tensors.save(path, {"some.thing": np.ones(3, np.float32)})
    assert identify(path)["kind"] == "unknown"
    assert identify(path)["names"] == ["some.… (1)"]


ODD = {"F16": ("<u2", 0x7C01), "BF16": ("<u2", 0xFF80), "F32": ("<u4", 0x7F800000), "F64": ("<u8", 0xFFF << 52)}
"""Bits of a NaN or an infinity."""


@pytest.mark.parametrize("code", ODD)
def test_numbers_that_are_not_finite_are_found_in_every_type(tmp_path: Path, code: str) -> None:
    kind, odd = ODD[code]
    for last, count in ((0, 0), (odd, 1)):
        bits = np.array([1, 2, 3, last], kind)
        tensor = stored.Stored(code=code, shape=(4,), read=lambda bits=bits: bits.view(stored.TYPES[code]))
        stored.save_safetensors(tmp_path / "x.safetensors", {"a.b": tensor})
        assert len(identify(tmp_path / "x.safetensors")["problems"]) == count
        assert identify(tmp_path / "x.safetensors", values=False)["problems"] == []


def test_runs_and_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "dog"
    (run / "checkpoint-8").mkdir(parents=True)
    for name in ("recipe.toml", "effective.json"):
        (run / name).write_text("{}")
    (run / "checkpoint-8" / "manifest.json").write_text("{}")
    (run / "checkpoint-8" / "state.json").write_text('{"step": 8}')
    assert (identify(run)["kind"], identify(run)["checkpoints"]) == ("run", [8])
    assert (identify(run / "checkpoint-8")["kind"], identify(run / "checkpoint-8")["step"]) == ("checkpoint", 8)
    (run / "checkpoint-8" / "state.json").write_text("[")
    assert "not JSON" in identify(run / "checkpoint-8")["problems"][0]


class Canary:
    """Loading it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def zipped(inside: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", inside)
        archive.writestr("archive/data/0", bytes(8))
    return made.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", ["bare", "zip", "late"])
def test_a_pickle_is_listed_and_never_run(tmp_path: Path, protocol: int, form: str) -> None:
    canary = tmp_path / "canary"
    raw = pickle.dumps(Canary(canary), protocol)
    if form == "zip":
        raw = zipped(raw)
    if form == "late":  # as in PyTorch's older files, after others
        raw = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + raw
    for name in ("model.ckpt", "model.safetensors", "model.bin"):
        (tmp_path / name).write_bytes(raw)
        found = identify(tmp_path / name)
        assert found["kind"] == "pickle"
        assert found["imports"] == ["posix.system"]
        assert "posix.system: it can run any code" in found["problems"][0]
        assert main(["inspect", str(tmp_path / name)]) == 5
        with pytest.raises(StorageError, match=r"this pickle would import posix\.system"):
            convert(Request(source=tmp_path / name, target=tmp_path / "out"))
    assert not canary.exists()


def test_pytorchs_own_files_are_pickles_without_a_problem(tmp_path: Path) -> None:
    import torch

    values = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.nn.Parameter(torch.ones(1))}
    for name, new in (("new.ckpt", True), ("old.ckpt", False)):
        torch.save({"state_dict": values, "step": 3}, tmp_path / name, _use_new_zipfile_serialization=new)
        found = identify(tmp_path / name)
        assert (found["kind"], found["problems"]) == ("unknown" if new else "pickle", [])
        assert found.get("tensors") == (3 if new else None)
        assert "torch._utils._rebuild_tensor_v2" in found["imports"]


HIDDEN = {
    "pop": b"\x80\x04\x8c\x05posix\x8c\x06system\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v200\x93.",
    "dup": b"\x80\x04\x8c\x05posix2\x93.",
    "empty": b"\x80\x04\x93.",
    "extension": b"\x80\x02\x82\x01.",
    "dotted": b"\x80\x04\x8c\x0bcollections\x8c\x18OrderedDict.__init__.foo\x93.",
    "through memo": b"\x80\x04K\x01\x94h\x00h\x00\x93.",
}


@pytest.mark.parametrize("case", HIDDEN)
def test_names_that_a_pickle_hides_are_a_problem(tmp_path: Path, case: str) -> None:
    list(pickletools.genops(HIDDEN[case]))  # well formed
    (tmp_path / "x").write_bytes(HIDDEN[case])
    assert identify(tmp_path / "x")["problems"] != []


DAMAGED = {
    "empty": (b"", "it is empty"),
    "header cut": (struct.pack("<Q", 90) + b'{"a": {"dtype"', "its header would be 90 bytes of a file of 22"),
    "header huge": (struct.pack("<Q", 99_000_000) + b'{"a": {"dtype"', "its header would be 99000000 bytes"),
    "header beyond": (struct.pack("<Q", 1 << 60) + b'{"a": {"dtype"', "its header would be 1152921504606846976 bytes"),
    "header no json": (struct.pack("<Q", 9) + b'{"a": nil' + bytes(9), "not a whole safetensors file"),
    "deep": (struct.pack("<Q", 90_000) + b'{"a":' + b"[" * 89_995, "not a whole safetensors file"),
    "pickle cut": (pickle.dumps({"a": "b" * 200})[:50], "cut off or damaged"),
    "zip cut": (zipped(b"x")[:60], "zip archive is cut off"),
    "zip other": (zipped(b"x").replace(b"data.pkl", b"data.txt"), "it has no data.pkl"),
    "ckpt cut": (b"\x0a\x30\x0a\x01a", "it is cut off"),
    "encrypted": ((0x7F3A5ED8).to_bytes(4, "little") + bytes(40), "is encrypted"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named_without_allocating(tmp_path: Path, case: str) -> None:
    content, reason = DAMAGED[case]
    (tmp_path / "x").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = identify(tmp_path / "x")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
    assert found["kind"] == "damaged"
    assert reason in found["problems"][0]


def test_a_bomb_in_an_archive_is_not_unpacked(tmp_path: Path) -> None:
    made = tmp_path / "x"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as out:
        for _ in range(256):
            out.write(b"\x80\x02" + bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert identify(made)["problems"] != []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


OTHERS = {
    "GGUF": b"GGUF\3",
    "PNG": b"\x89PNG\r\n",
    "web page": b"<!DOCTYPE html>",
    "LFS": b"version https://git-lfs.gith",
    "nothing that": b"abc",
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_files_are_named(tmp_path: Path, what: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(OTHERS[what] + bytes(60))
    assert what in identify(tmp_path / "model.safetensors")["what"]


HEADS = [b"", b"\x80\x02", b"\x80\x04\x95", b"PK\x03\x04", b"\x0a\x10\x0a", bytes(8) + b"{", b"\x20" + bytes(7) + b"{"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from(HEADS), rest=st.binary(max_size=80))
def test_no_bytes_do_anything_but_be_told(tmp_path: Path, start: bytes, rest: bytes) -> None:
    (tmp_path / "x").write_bytes(start + rest)
    assert text(identify(tmp_path / "x"))


def test_the_command_speaks_to_people_and_programs(
    blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, own = parts.read(blank)
    path = tmp_path / "model.safetensors"
    stored.save_safetensors(path, single_file.pack(own, family))
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("model.safetensors: sd1 single file model\n")
    assert main(["inspect", str(path), str(blank), "--json", "--quick"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert [each["kind"] for each in both] == ["model", "pipeline"]
    assert main(["inspect", str(tmp_path / "none")]) == 5
    assert "cannot be read" in capsys.readouterr().err


def test_a_pipeline_with_a_broken_part_says_which(blank: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(blank, folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert identify(folder)["problems"][0].startswith("vae: this is not a whole safetensors file")
    assert pickles.unusual(["torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes"]) == [
        "torch.storage._load_from_bytes"
    ]
