"""The LoRA file, loaded by diffusers with one plain call, must do what peft did in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gesso.errors import RecipeError, StorageError
from gesso.formats import lora, tensors

TARGETS = ["to_q", "to_v", "conv1", "conv_in", "proj_in"]
RANK, ALPHA = 4, 6.0


def random_lora(net: Any, component: str, targets: list[str], alpha: float) -> dict[str, np.ndarray]:
    """peft's own adapter with random matrices in `net`, as arrays in an engine's names."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=alpha, target_modules=targets), net)
    draw = torch.Generator().manual_seed(3)
    arrays = {}
    for name, value in net.named_parameters():
        if ".lora_" in name:
            value.data = torch.randn(value.shape, generator=draw) * 0.2
            arrays[f"{component}." + name.replace(".default.weight", ".weight")] = value.detach().numpy().copy()
    return arrays


def ask(unet: Any) -> np.ndarray:
    import torch

    draw = torch.Generator().manual_seed(5)
    x = torch.randn(2, 4, 16, 16, generator=draw)
    cond = torch.randn(2, 7, unet.config.cross_attention_dim, generator=draw)
    with torch.no_grad():
        return np.asarray(unet.eval()(x, torch.tensor([10, 700]), cond).sample)


def encode(text_encoder: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.asarray(text_encoder.eval()(torch.arange(1, 9)[None])[0])


def pipe_of(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)


def test_diffusers_loads_the_lora_with_its_alpha(blank: Path, tmp_path: Path) -> None:
    teacher, plain, wrong = pipe_of(blank), pipe_of(blank), pipe_of(blank)
    untouched = ask(teacher.unet)
    arrays = random_lora(teacher.unet, "unet", TARGETS, ALPHA)
    assert {array.ndim for array in arrays.values()} == {2, 4}
    expected = ask(teacher.unet)

    lora.write(tmp_path / lora.FILE, arrays, lora.Config(rank=RANK, alpha=ALPHA))
    plain.load_lora_weights(tmp_path)
    np.testing.assert_allclose(ask(plain.unet), expected, rtol=0, atol=1e-6)
    assert np.abs(expected - untouched).max() > 1e-2

    lora.write(tmp_path / lora.FILE, arrays, lora.Config(rank=RANK, alpha=float(RANK)))
    wrong.load_lora_weights(tmp_path)
    assert np.abs(ask(wrong.unet) - expected).max() > 1e-3


def test_diffusers_loads_a_text_encoders_lora(blank: Path, tmp_path: Path) -> None:
    teacher, plain = pipe_of(blank), pipe_of(blank)
    untouched = encode(teacher.text_encoder)
    arrays = random_lora(teacher.text_encoder, "text_encoder", ["q_proj", "out_proj"], ALPHA)
    expected = encode(teacher.text_encoder)
    lora.write(tmp_path, arrays, lora.Config(rank=RANK, alpha=ALPHA))
    assert all(name.startswith("text_encoder.text_model.") for name in tensors.header(tmp_path / lora.FILE).tensors)
    plain.load_lora_weights(tmp_path)
    np.testing.assert_allclose(encode(plain.text_encoder), expected, rtol=0, atol=1e-6)
    assert np.abs(expected - untouched).max() > 1e-2


def test_the_lora_metadata_holds_only_what_old_peft_takes(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "unet.a.lora_A.weight": np.ones((4, 3), np.float32),
        "unet.a.lora_B.weight": np.ones((2, 4), np.float16),
    }
    lora.write(tmp_path / "x.safetensors", arrays, lora.Config(rank=4, alpha=2.0))
    metadata = tensors.header(tmp_path / "x.safetensors").metadata
    assert metadata["format"] == "pt"
    fields = json.loads(metadata["lora_adapter_metadata"])
    # Every one is an argument of LoraConfig in peft 0.15.0.
    assert fields == {
        "unet.alpha_pattern": {},
        "unet.bias": "none",
        "unet.lora_alpha": 2,
        "unet.peft_type": "LORA",
        "unet.r": 4,
        "unet.rank_pattern": {},
        "unet.target_modules": ["a"],
        "unet.use_dora": False,
        "unet.use_rslora": False,
    }
    found, config = lora.read(tmp_path / "x.safetensors")
    assert config == lora.Config(rank=4, alpha=2.0)
    assert {name: array.dtype.name for name, array in found.items()} == dict.fromkeys(arrays, "float32")


def test_each_module_keeps_its_own_rank_and_alpha(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    sizes = {"unet.a": (4, 2.0), "unet.b": (4, 2.0), "unet.x.a": (2, 2.5), "text_encoder.text_model.a": (1, 2.0)}
    for module, (rank, _) in sizes.items():
        arrays[f"{module}.lora_A.weight"] = np.ones((rank, 3), np.float32)
        arrays[f"{module}.lora_B.weight"] = np.ones((2, rank), np.float32)
    config = lora.Config.of(sizes)
    assert (config.rank, config.alpha) == (4, 2.0)
    lora.write(tmp_path, arrays, config)
    fields = json.loads(tensors.header(tmp_path / lora.FILE).metadata["lora_adapter_metadata"])
    assert fields["unet.rank_pattern"] == {r"^x\.a": 2}  # "a" alone would mean x.a, too
    assert fields["unet.alpha_pattern"] == {r"^x\.a": 2.5}
    assert (fields["unet.r"], fields["unet.lora_alpha"], fields["text_encoder.r"]) == (4, 2, 1)
    found, again = lora.read(tmp_path)
    assert {module: again.size(module) for module in sizes} == sizes
    assert found.keys() == arrays.keys()


def test_a_lora_that_cannot_be_carried_over_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    pair: dict[str, Any]
    a, b = np.ones((4, 3), np.float32), np.ones((2, 4), np.float32)
    pair = {"unet.a.lora_A.weight": a, "unet.a.lora_B.weight": b}
    tensors.save(path, pair)
    assert lora.read(path)[1] == lora.Config(rank=4, alpha=4.0)  # diffusers' rule where alpha is not given
    tensors.save(path, {"lora_unet_a.lora_down.weight": a})
    with pytest.raises(StorageError, match="lora_unet_a"):
        lora.read(path)
    tensors.save(path, {**pair, "unet.b.lora_A.weight": a[:2], "unet.b.lora_B.weight": b})
    with pytest.raises(StorageError, match=r'the matrices of "unet.b" are not of rank 2'):
        lora.read(path)
    tensors.save(path, pair, {"lora_adapter_metadata": '{"unet.r": 8}'})
    with pytest.raises(StorageError, match=r'the matrices of "unet.a" are not of rank 8'):
        lora.read(path)
    tensors.save(path, {**pair, "unet.a.lora_magnitude_vector": b[:, 0], "unet.b.lora_A.weight": a})
    with pytest.raises(StorageError, match=r'is there without "unet.b.lora_B.weight"'):
        lora.read(path)
    tensors.save(path, {"unet.a.lora_A.weight": a[0], "unet.a.lora_B.weight": b})
    with pytest.raises(StorageError, match="are not of rank"):
        lora.read(path)
    tensors.save(path, {"unet.a.lora_A.weight": a})
    with pytest.raises(StorageError, match="lora_B"):
        lora.read(path)
    tensors.save(path, pair, {"lora_adapter_metadata": '{"unet.r": 4, "unet.use_rslora": true}'})
    with pytest.raises(StorageError, match="use_rslora"):
        lora.read(path)
    tensors.save(path, pair, {"lora_adapter_metadata": "{"})
    with pytest.raises(StorageError, match="adapter metadata cannot be read"):
        lora.read(path)
    tensors.save(path, pair, {"lora_adapter_metadata": '{"unet.r": 4, "unet.alpha_pattern": {"(": 1}}'})
    with pytest.raises(StorageError, match="adapter metadata cannot be read"):
        lora.read(path)
    with pytest.raises(RecipeError, match="not of rank 8"):
        lora.write(path, pair, lora.Config(rank=8, alpha=8.0))
    with pytest.raises(RecipeError, match="not the matrices of a dora"):
        lora.write(path, pair, lora.Config(rank=4, alpha=4.0, kind="dora"))
    with pytest.raises(RecipeError, match="not the name of a LoRA matrix"):
        lora.write(path, {"unet.a.weight": a}, lora.Config(rank=4, alpha=4.0))
