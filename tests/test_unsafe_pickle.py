"""Bare pickles and old PyTorch files through `gesso convert --unsafe-pickle`; canaries that would write a file."""

from __future__ import annotations

import collections
import os
import pickle
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_formats_convert import read as bits_of
from test_formats_kohya import draw, equal, pipe_of, targets

from gesso.cli import main
from gesso.errors import StorageError
from gesso.formats import embeddings, lora, old_pickles, parts, single_file, stored, tensors, unsafe_pickle

STATE = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.float16),
    "c": torch.arange(12.0).reshape(3, 4).T,
    "d": torch.arange(5, dtype=torch.int64)[2:],
    "e": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "f": torch.tensor(3.5),
}


def old(path: Path, value: Any) -> Path:
    """As PyTorch 1.1 to 1.5 wrote it."""
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def bare(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def same(found: dict[str, stored.Stored], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].shape == tuple(value.shape) and np.array_equal(found[name].widened(), value.float().numpy())
        if value.is_floating_point()
        else np.array_equal(found[name].read(), value.numpy())
        for name, value in wanted.items()
    )


@pytest.mark.parametrize("way", ["old", "bare", "state_dict", "ordered"])
def test_tensors_are_read_as_they_were_written(way: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    if way == "old":
        old(path, STATE)
    elif way == "bare":
        bare(path, STATE, protocol=2)
    elif way == "state_dict":
        old(path, {"state_dict": STATE, "epoch": 3, "loss": 0.5, "name": "x"})
    else:
        old(path, collections.OrderedDict(STATE))
    assert same(old_pickles.read(path), STATE)
    assert same(stored.open_safetensors(unsafe_pickle.read(path, tmp_path)), STATE)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpys_arrays(protocol: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(0, 1, (3, 4)).astype(np.float32),
        "b": np.asfortranarray(rng.normal(0, 1, (2, 3, 5))),
        "c": np.arange(4, dtype=np.int16),
        "d": rng.normal(0, 1, 3).astype(np.float16),
    }
    found = old_pickles.read(bare(tmp_path / "x.pkl", arrays, protocol))
    assert all(np.array_equal(found[name].read(), value) for name, value in arrays.items())


def test_two_tensors_of_one_storage(tmp_path: Path) -> None:
    whole = torch.arange(10.0)
    state = {"left": whole[:4], "right": whole[4:].reshape(2, 3)}
    assert same(old_pickles.read(old(tmp_path / "x.pt", state)), state)


def test_models_loras_and_words_of_old(blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family, own = parts.read(blank)
    packed = single_file.pack(own, family)
    state = {name: torch.from_numpy(np.array(tensor.read())) for name, tensor in packed.items()}
    model = old(tmp_path / "model.ckpt", {"state_dict": state})
    flags = ["convert", str(model), "--to", str(tmp_path / "model.safetensors")]
    assert main(flags) == 5
    assert "--unsafe-pickle reads it in a separate, limited process" in capsys.readouterr().err
    assert main([*flags, "--unsafe-pickle"]) == 0
    assert bits_of(tmp_path / "model.safetensors") == bits_of(blank)

    arrays, sizes = draw({n: s for n, s in targets(pipe_of(blank), usual=True).items() if n.endswith(".to_q")})
    named = {name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): array for name, array in arrays.items()}
    bare(tmp_path / "lora.bin", named)
    out = tmp_path / "lora.safetensors"
    flags = ["convert", str(tmp_path / "lora.bin"), "--to", str(out), "--form", "diffusers"]
    assert main([*flags, "--unsafe-pickle"]) == 0
    assert equal(lora.read(out)[0], arrays)
    assert len(sizes) > 4

    word = np.random.default_rng(1).normal(0, 1, (2, 32)).astype(np.float32)
    old(tmp_path / "dog.pt", {"string_to_param": {"*": torch.from_numpy(word)}, "name": "dog", "step": 5})
    flags = ["convert", str(tmp_path / "dog.pt"), "--to", str(tmp_path / "w.safetensors"), "--unsafe-pickle"]
    assert main(flags) == 0
    assert np.array_equal(embeddings.read([tmp_path / "w.safetensors"])["tokens.text_encoder.dog"], word)


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("way", ["old", "bare", "zip", "inside"])
@pytest.mark.parametrize("call", ["system", "open", "Popen", "import", "eval"])
def test_canaries_write_nothing(way: str, call: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = f"open({str(canary)!r}, 'w').write('x')"
    made = {
        "system": Canary(os.system, f"echo x > {canary}"),
        "open": Canary(open, str(canary), "w"),
        "Popen": Canary(subprocess.Popen, ["touch", str(canary)]),
        "import": Canary(__import__, "antigravity"),
        "eval": Canary(eval, text),
    }[call]
    value = {"a": torch.ones(2), "b": made}
    path = tmp_path / "x.pt"
    if way == "old":
        old(path, value)
    elif way == "zip":
        torch.save(value, path)
    elif way == "inside":  # what stands for a tensor's storage is a pickle in itself
        raw = pickle.dumps(made, protocol=2)
        from torch.storage import _load_from_bytes

        bare(path, {"a": Canary(_load_from_bytes, raw)})
    else:
        bare(path, value)
    before = sorted(each.name for each in tmp_path.iterdir())
    flags = ["convert", str(path), "--to", str(tmp_path / "out.safetensors")]
    assert main([*flags, "--unsafe-pickle"]) == 5
    assert main(flags) == 5
    assert sorted(each.name for each in tmp_path.iterdir()) == before
    assert not canary.exists()


def test_lies_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    whole = old(tmp_path / "x.pt", {"a": torch.arange(6.0)}).read_bytes()
    size = struct.pack("<q", 6)
    assert whole.count(size) == 1
    for name, data in {
        "cut": whole[:-4],
        "longer": whole.replace(size, struct.pack("<q", 1 << 40)),
        "negative": whole.replace(size, struct.pack("<q", -1)),
        "shorter": whole.replace(size, struct.pack("<q", 2)),
        "half a pickle": whole[:60],
        "wide": whole.replace(b"K\x06\x85", b"J\xff\xff\xff\x7f\x85"),
    }.items():
        path = tmp_path / "y.pt"
        path.write_bytes(data)
        with pytest.raises(StorageError, match="left alone"):
            old_pickles.read(path)
        with pytest.raises(StorageError):
            unsafe_pickle.read(path, tmp_path)
        assert not (tmp_path / "y.safetensors").exists(), name


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
def test_the_process_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its place a process that tries what it must not: memory, a long file, the user's environment."""
    tried = tmp_path / "tried.py"
    tried.write_text(
        "import os, resource\n"
        "assert 'HF_TOKEN' not in os.environ and 'HOME' not in os.environ\n"
        "try:\n    bytearray(1 << 34)\nexcept MemoryError:\n    pass\nelse:\n    raise SystemExit(3)\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n    open('long', 'wb').write(bytes(1 << 24))\nexcept OSError:\n    raise SystemExit(7)\n"
    )
    monkeypatch.setenv("HF_TOKEN", "secret")
    run = subprocess.run
    seen = []

    def instead(command: list[str], **options: Any) -> Any:
        assert command[1] == "-I"
        done = run([sys.executable, "-I", str(tried)], **options)
        seen.append(done.returncode)
        return done

    monkeypatch.setattr(unsafe_pickle.subprocess, "run", instead)
    with pytest.raises(StorageError):
        unsafe_pickle.read(bare(tmp_path / "x.pkl", {}), tmp_path)
    assert seen == [7]


@pytest.mark.skipif(sys.platform != "linux", reason="a network of its own is Linux's")
def test_the_process_reaches_no_network() -> None:
    """Not even this machine's own, where the system lets a process have another; some containers do not."""
    allowed = "import ctypes; raise SystemExit(ctypes.CDLL(None).unshare(0x50000000) != 0)"
    if subprocess.run([sys.executable, "-I", "-c", allowed], check=False).returncode:
        pytest.skip("this system lets no process have a network of its own")
    with socket.create_server(("127.0.0.1", 0)) as server:
        ask = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        command = [sys.executable, "-I", "-c", ask]
        assert subprocess.run(command, check=False).returncode == 0
        limited = subprocess.run(
            command, check=False, capture_output=True, text=True, preexec_fn=lambda: unsafe_pickle.limit(1 << 20)
        )
    assert limited.returncode != 0
    assert "unreachable" in limited.stderr


def test_nothing_without_names(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no tensors by name"):
        old_pickles.read(bare(tmp_path / "x.pkl", {"a": 1, "b": "two", 3: [None, True, 2.5]}))


def test_words_go_to_a1111_and_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for name, weights in {
        "sd": {"tokens.text_encoder.<dog>": rng.normal(0, 1, (2, 768)).astype(np.float32)},
        "xl": {
            "tokens.text_encoder.<dog>": rng.normal(0, 1, (2, 768)).astype(np.float32),
            "tokens.text_encoder_2.<dog>": rng.normal(0, 1, (2, 1280)).astype(np.float32),
        },
    }.items():
        first, second, third = (tmp_path / name / f"{step}.safetensors" for step in ("one", "two", "three"))
        first.parent.mkdir()
        embeddings.writers(weights)[embeddings.FILE](first)
        assert main(["convert", str(first), "--to", str(second), "--form", "a1111"]) == 0
        keys = {"emb_params"} if name == "sd" else {"clip_l", "clip_g"}
        assert tensors.header(second).tensors.keys() == keys
        assert main(["convert", str(second), "--to", str(third), "--form", "diffusers"]) == 0
        assert third.read_bytes() == first.read_bytes()
