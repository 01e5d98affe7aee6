"""The pipeline folder that a full fine-tuning leaves, loaded by diffusers and transformers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gesso.errors import RecipeError, StorageError
from gesso.formats import pipeline, tensors


def pipe_of(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)


def weights_of(net: Any, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {n: draw.standard_normal(p.shape).astype(np.float32) for n, p in net.named_parameters()}


def same_tree(one: Path, two: Path) -> bool:
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(two) for path in two.rglob("*") if path.is_file()}
    return bool(names) and all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_diffusers_loads_the_assembled_pipeline_bit_for_bit(blank: Path, tmp_path: Path) -> None:
    pipe = pipe_of(blank)
    new = {"unet": weights_of(pipe.unet, 1), "text_encoder": weights_of(pipe.text_encoder, 2)}
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    before = {path: path.read_bytes() for path in blank.rglob("*") if path.is_file()}
    for _ in range(2):  # a run that is extended writes its result again
        pipeline.assemble(blank, tmp_path, new, changes)
    found = pipe_of(tmp_path)
    for part, arrays in new.items():
        loaded = dict(getattr(found, part).named_parameters())
        assert loaded.keys() == arrays.keys()
        for name, array in arrays.items():
            assert loaded[name].detach().numpy().tobytes() == array.tobytes()
    assert found.scheduler.config.prediction_type == "v_prediction"
    assert found.scheduler.config.rescale_betas_zero_snr is True
    assert same_tree(blank / "vae", tmp_path / "vae")
    assert same_tree(blank / "tokenizer", tmp_path / "tokenizer")
    assert {"vocab.json", "merges.txt"} <= set(os.listdir(tmp_path / "tokenizer"))
    assert (tmp_path / "model_index.json").read_bytes() == (blank / "model_index.json").read_bytes()
    legacy = tensors.header(tmp_path / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in legacy.tensors)
    assert {entry.code for entry in legacy.tensors.values()} == {"F32"}
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
    assert {path: path.read_bytes() for path in blank.rglob("*") if path.is_file()} == before
    for part, arrays in new.items():  # a checkpoint gives the engine its own names back
        again = pipeline.read_part(tmp_path / part)
        assert again.keys() == arrays.keys()
        assert all(again[name].tobytes() == array.tobytes() for name, array in arrays.items())


def test_the_scheduler_itself_can_be_changed(blank: Path, tmp_path: Path) -> None:
    pipeline.assemble(blank, tmp_path, {}, {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"})
    found = pipe_of(tmp_path)
    assert type(found.scheduler).__name__ == "EulerDiscreteScheduler"
    assert found.scheduler.config.timestep_spacing == "trailing"
    assert same_tree(blank / "unet", tmp_path / "unet")


def test_weights_that_were_not_trained_keep_the_bases_values(blank: Path, tmp_path: Path) -> None:
    whole = pipeline.read_part(blank / "unet")
    trained = {"conv_in.weight": whole["conv_in.weight"] + 1}
    pipeline.assemble(blank, tmp_path, {"unet": trained})
    found = tensors.load(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert found.keys() == whole.keys()
    assert all(np.array_equal(found[name], trained.get(name, whole[name])) for name in whole)
    assert pipeline.read_part(tmp_path / "unet").keys() == trained.keys()


def halve(folder: Path, stem: str, variant: str) -> None:
    path = folder / f"{stem}.safetensors"
    arrays = {name: array.astype(np.float16) for name, array in tensors.load(path).items()}
    path.unlink()
    tensors.save(folder / f"{stem}.{variant}.safetensors", arrays, {"format": "pt"})


def shard(folder: Path, stem: str) -> None:
    path = folder / f"{stem}.safetensors"
    arrays = tensors.load(path)
    names = sorted(arrays)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-0000{number}-of-00002.safetensors"
        tensors.save(folder / file, {name: arrays[name] for name in part}, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    path.unlink()
    (folder / f"{stem}.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": sum(a.nbytes for a in arrays.values())}, "weight_map": weight_map})
    )


def test_variants_and_shards_of_the_base_become_what_plain_loading_finds(blank: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(blank, base)
    vae = tensors.load(blank / "vae" / "diffusion_pytorch_model.safetensors")
    unet = tensors.load(blank / "unet" / "diffusion_pytorch_model.safetensors")
    halve(base / "vae", "diffusion_pytorch_model", "fp16")
    shard(base / "unet", "diffusion_pytorch_model")
    (base / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    pipeline.assemble(base, out, {})
    found = pipe_of(out)
    for name, value in found.vae.named_parameters():
        np.testing.assert_array_equal(value.detach().numpy(), vae[name].astype(np.float16).astype(np.float32))
    for name, value in found.unet.named_parameters():
        np.testing.assert_array_equal(value.detach().numpy(), unet[name])
    assert not list(out.rglob("*.bin"))
    retrained = {name: array + 1 for name, array in unet.items()}
    pipeline.assemble(base, out, {"unet": retrained})
    assert sorted(os.listdir(out / "unet")) == ["config.json", "diffusion_pytorch_model.safetensors"]
    shard_two = base / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    shard_two.unlink()
    with pytest.raises(RecipeError, match=r"diffusion_pytorch_model-00002-of-00002\.safetensors"):
        pipeline.check(base, out)


def test_a_half_precision_text_encoder_is_exported_in_float32(blank: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(blank, base)
    config = json.loads((base / "text_encoder" / "config.json").read_text())
    (base / "text_encoder" / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    new = weights_of(pipe_of(blank).text_encoder, 4)
    pipeline.assemble(base, out, {"text_encoder": new})
    for name, value in pipe_of(out).text_encoder.named_parameters():
        assert value.detach().numpy().tobytes() == new[name].tobytes()


def renamed(base: Path, name: str) -> None:
    (base / "vae" / "diffusion_pytorch_model.safetensors").rename(base / "vae" / name)


WEIGHTS = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda base: (base / "model_index.json").unlink(), r"no model_index\.json"),
        (lambda base: shutil.rmtree(base / "vae"), 'has no "vae"'),
        (lambda base: renamed(base, "a.bin"), "opens no pickles"),
        (lambda base: renamed(base, f"{WEIGHTS}.fp16-00001-of-00002.safetensors"), "neither plain weights nor"),
        (lambda base: renamed(base, f"{WEIGHTS}-00001-of-00002.safetensors"), "neither plain weights nor"),
    ],
)
def test_a_base_that_cannot_be_carried_over_is_refused_at_the_start(
    blank: Path, tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(blank, base)
    pipeline.check(base, tmp_path / "out")
    spoil(base)
    with pytest.raises(RecipeError, match=words):
        pipeline.check(base, tmp_path / "out")


def test_the_base_is_never_written_to(blank: Path) -> None:
    for out in (blank, blank / "runs"):
        with pytest.raises(RecipeError, match="must stay as it is"):
            pipeline.assemble(blank, out, {})


def test_weights_of_another_model_are_refused(blank: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        pipeline.assemble(blank, tmp_path, {"unet": {"nothing.weight": np.zeros(3, np.float32)}})
    with pytest.raises(StorageError, match=r"has the shape \(3,\), the base's"):
        pipeline.assemble(blank, tmp_path, {"unet": {"conv_in.weight": np.zeros(3, np.float32)}})
    with pytest.raises(RecipeError, match='no part "transformer"'):
        pipeline.assemble(blank, tmp_path, {"transformer": {}})
    assert not (tmp_path / "model_index.json").exists()


def test_identity_follows_what_is_loaded(blank: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(blank, base)
    first = pipeline.identity(base, "vae")
    assert len(first) == 64
    assert first == pipeline.identity(blank, "vae") != pipeline.identity(blank, "unet")
    (base / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"not loaded")
    assert pipeline.identity(base, "vae") == first
    config = base / "vae" / "config.json"
    config.write_text(config.read_text().replace("{", "{ ", 1))
    assert pipeline.identity(base, "vae") != first
    with pytest.raises(RecipeError, match='has no "transformer"'):
        pipeline.identity(base, "transformer")
