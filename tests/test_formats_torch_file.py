"""PyTorch's files are read without running their pickle, or refused."""

from __future__ import annotations

import io
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats_convert import read as bits_of
from test_formats_kohya import draw, equal, old_name, pipe_of, targets

from gesso.cli import main
from gesso.errors import StorageError
from gesso.formats import lora, parts, single_file, torch_file
from gesso.formats.kohya import A

KINDS = [torch.float32, torch.float16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def arrays() -> dict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    made = {str(kind): torch.arange(7).to(kind) for kind in KINDS}
    return {
        **made,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "transposed": base.T,
        "part": base[1:3, 2:],
        "every second": base[:, ::2],
        "parameter": torch.nn.Parameter(base),
        "shared": base,
    }


@pytest.mark.parametrize("nested", [False, True])
def test_every_tensor_is_that_of_torch(tmp_path: Path, nested: bool) -> None:
    own: Any = OrderedDict(arrays())
    torch.save({"state_dict": own, "epoch": 3, "note": ["a", (1, 2.5, None)]} if nested else own, tmp_path / "x.ckpt")
    found = torch_file.read(tmp_path / "x.ckpt")
    assert found.keys() == own.keys()
    for name, value in own.items():
        assert np.array_equal(found[name].read(), value.detach().numpy())
        assert found[name].shape == tuple(value.shape)


def test_bfloat16_and_the_state_of_a_module(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2).to(torch.bfloat16)
    torch.save(net.state_dict(), tmp_path / "x.bin")
    found = torch_file.read(tmp_path / "x.bin")
    assert {tensor.code for tensor in found.values()} == {"BF16"}
    for name, value in net.state_dict().items():
        assert np.array_equal(found[name].widened(), value.float().numpy())


def test_a_model_as_published_in_2022_is_converted(blank: Path, tmp_path: Path) -> None:
    """With what PyTorch Lightning left in it, which is not imported."""
    family, own = parts.read(blank)
    packed = single_file.pack(own, family)
    state = {name: torch.from_numpy(np.array(tensor.read())) for name, tensor in packed.items()}
    made = tmp_path / "sd-v1.ckpt"
    torch.save({"state_dict": state, "callbacks": _Named(), "global_step": 470000}, made, pickle_module=_Lightning)
    assert b"pytorch_lightning.callbacks" in made.read_bytes()
    assert main(["convert", str(made), "--to", str(tmp_path / "out.safetensors")]) == 0
    assert bits_of(tmp_path / "out.safetensors") == bits_of(blank)


class _Named:
    """Stands for an object of a class that is not installed."""


class _Pickler(pickle._Pickler):
    def save_global(self, obj: Any, name: Any = None) -> None:
        if obj is _Named:
            self.write(b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n")
            self.memoize(obj)
            return
        super().save_global(obj, name)

    dispatch: ClassVar[dict[Any, Any]] = {**pickle._Pickler.dispatch, type: save_global}


class _Lightning:
    """A pickle module for torch.save."""

    Pickler = _Pickler


def test_loras_of_2023_in_bin_files(blank: Path, tmp_path: Path) -> None:
    arrays_, sizes = draw({n: s for n, s in targets(pipe_of(blank), usual=True).items() if n.endswith(".to_q")})
    named = {old_name(name, "processor"): torch.from_numpy(array) for name, array in arrays_.items()}
    torch.save(named, tmp_path / "pytorch_lora_weights.bin")
    out = tmp_path / "x.safetensors"
    flags = ["--to", str(out), "--form", "diffusers"]
    assert main(["convert", str(tmp_path / "pytorch_lora_weights.bin"), *flags]) == 0
    back, config = lora.read(out)
    assert equal(back, arrays_)
    assert all(config.size(name) == (rank, float(rank)) for name, (rank, _) in sizes.items())
    assert len([name for name in back if name.endswith(A)]) == len(sizes)


def archive(tmp_path: Path, raw: bytes, storages: dict[str, bytes] | None = None, *, packed: bool = False) -> Path:
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as made:
        made.writestr("archive/data.pkl", raw)
        for key, content in (storages or {}).items():
            made.writestr(f"archive/data/{key}", content)
    return path


def number(value: int) -> bytes:
    size = (value.bit_length() + 8) // 8
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(shape: list[int], strides: list[int], *, offset: int = 0, key: str = "0") -> bytes:
    """The pickle of {"a": tensor}."""
    storage = tuple_of(text("storage"), b"ctorch\nFloatStorage\n", text(key), text("cpu"), number(4)) + b"Q"
    sides, steps = tuple_of(*map(number, shape)), tuple_of(*map(number, strides))
    made = tuple_of(storage, number(offset), sides, steps, b"\x89", b"ccollections\nOrderedDict\n)R")
    return b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n" + made + b"Rs."


def test_a_tensor_made_by_hand_is_read(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32)
    found = torch_file.read(archive(tmp_path, tensor([2, 2], [1, 2]), {"0": values.tobytes()}))
    assert np.array_equal(found["a"].read(), values.reshape(2, 2).T)


BAD = {
    "beyond": (tensor([5], [1]), "does not lie in its storage of 16 bytes"),
    "offset": (tensor([4], [1], offset=1), "does not lie in its storage"),
    "huge": (tensor([1 << 40], [1]), "does not lie in its storage"),
    "step of 0": (tensor([1 << 40], [0]), "does not lie in its storage"),
    "negative": (tensor([-1], [1]), "not put together as PyTorch does it"),
    "negative step": (tensor([2], [-1], offset=3), "not put together"),
    "many sides": (tensor([1] * 40, [1] * 40), "not put together"),
    "lengths": (tensor([2, 2], [1]), "not put together"),
    "key": (tensor([4], [1], key="7"), "make no sense|it has no"),
    "kind": (tensor([4], [1]).replace(b"FloatStorage", b"OtherStorage"), "would import torch.OtherStorage"),
    "cut": (tensor([4], [1])[:-9], "cut off or damaged"),
    "no tensors": (b"\x80\x02}X\1\0\0\0aK\1s.", "holds no tensors by name"),
    "a list": (b"\x80\x02].", "holds no tensors by name"),
    "itself": (b"\x80\x02}q\0X\x0a\0\0\0state_dicth\0s.", "holds no tensors by name"),
    "empty stack": (b"\x80\x02s.", "make no sense"),
    "no mark": (b"\x80\x02}u.", "mark is missing|make no sense"),
    "no dictionary's key": (b"\x80\x02}))s.", "a key is neither"),
    "persistent": (b"\x80\x02)Q.", "storage is of the kind"),
    "other instruction": (b"\x80\x04\x8f.", "the instruction EMPTY_SET"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_lies_is_refused(tmp_path: Path, case: str) -> None:
    raw, reason = BAD[case]
    with pytest.raises(StorageError, match=reason):
        torch_file.read(archive(tmp_path, raw, {"0": bytes(16)}))


def test_nesting_that_doubles_takes_no_time(tmp_path: Path) -> None:
    """Sixty tuples of two each, which as text, or hashed, would be 2^60 long."""
    bomb = b"\x80\x02)" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    start = time.perf_counter()
    for raw in (
        b"}" + bomb[2:] + b"K\1s.", bomb[2:] + b"Q.", bomb[2:] + b"X\1\0\0\0a\x93.", b"}X\1\0\0\0a" + bomb[2:] + b"s.",
        bomb[2:] + b"\x85R.", tuple_of(text("storage"), b"ctorch\nFloatStorage\n", bomb[2:], b"N", b"N") + b"Q.",
    ):  # fmt: skip
        with pytest.raises(StorageError):
            torch_file.read(archive(tmp_path, b"\x80\x04" + raw))
    assert time.perf_counter() - start < 5


def test_packed_archives_and_other_imports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is compressed"):
        torch_file.read(archive(tmp_path, tensor([4], [1]), {"0": bytes(16)}, packed=True))
    with pytest.raises(StorageError, match=r"this pickle would import os\.system"):
        torch_file.read(archive(tmp_path, b"\x80\x02cos\nsystem\n."))
    made = io.BytesIO()
    torch.save({"a": torch.ones(2)}, made, _use_new_zipfile_serialization=False)
    (tmp_path / "old.ckpt").write_bytes(made.getvalue())
    with pytest.raises(StorageError, match=r"before PyTorch 1\.6"):
        torch_file.read(tmp_path / "old.ckpt")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=5))
def test_no_instructions_do_anything_but_read_or_be_refused(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    raw = bytearray(tensor([2, 2], [2, 1]))
    for at, byte in flips:
        raw[at % len(raw)] = byte
    try:
        found = torch_file.read(archive(tmp_path, bytes(raw), {"0": bytes(16)}))
    except StorageError:
        return
    assert all(each.read().nbytes == each.nbytes for each in found.values())
