"""What makes the embedded base: the autoencoder resumes bit for bit, the blank pipeline loads and knows nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from gesso import keys
from gesso.arrays import UInt8
from gesso.demo import oracle
from gesso.demo.confusers import blobs
from gesso.engines.torch.demo import autoencoder, blank
from gesso.engines.torch.demo import oracle as oracle_training


@pytest.fixture
def no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    def smears(seed: int, _characters: object, numbers: range, **_: object) -> UInt8:
        return np.stack([blobs(keys.generator(seed, "test", number), "") for number in numbers])

    monkeypatch.setattr(autoencoder, "scattered", smears)
    monkeypatch.setattr(autoencoder, "every_character", lambda _: [])
    monkeypatch.setattr(autoencoder, "POOL", 24)


@pytest.mark.usefixtures("no_font")
def test_stopped_and_resumed_autoencoder_is_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder.train(tmp_path / "whole", steps=6, batch=2, every=3)

    class Stopped(Exception):
        pass

    real = autoencoder.batch_at

    def until_four(step: int, *rest: object) -> UInt8:
        if step == 4:
            raise Stopped
        return real(step, *rest)

    monkeypatch.setattr(autoencoder, "batch_at", until_four)
    with pytest.raises(Stopped):
        autoencoder.train(tmp_path / "parts", steps=6, batch=2, every=3)
    monkeypatch.setattr(autoencoder, "batch_at", real)
    autoencoder.train(tmp_path / "parts", steps=6, batch=2, every=3)
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    config = json.loads((tmp_path / "parts" / "vae" / "config.json").read_text())
    vae = autoencoder.AutoencoderKL.from_pretrained(tmp_path / "parts" / "vae")
    pool = np.stack([blobs(keys.generator(1, "test", number), "") for number in range(24)])
    assert config["scaling_factor"] == pytest.approx(1 / autoencoder.latent_spread(vae, pool), rel=1e-3)


def test_numpy_oracle_computes_what_torch_does() -> None:
    layers = oracle_training.network()
    layers.load_state_dict({name: value.float() for name, value in load_file(oracle.WEIGHTS).items()})
    pictures = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        told = torch.softmax(oracle_training.scores(layers, oracle_training._input(pictures)), dim=1).numpy()
    assert np.allclose(oracle.Oracle().probabilities(pictures), told, atol=1e-5)


def test_blank_pipeline_loads_and_draws_nothing(tmp_path: Path) -> None:
    blank.write(tmp_path)
    names = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in names)
    assert {path.name for path in (tmp_path / "tokenizer").iterdir()} >= {"vocab.json", "merges.txt", "tokenizer.json"}
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.safety_checker is None
    assert pipeline.scheduler.config.steps_offset == 1
    held = pipeline.text_encoder.state_dict()
    assert all(torch.equal(value, names.get(name, names.get(f"text_model.{name}"))) for name, value in held.items())
    seeded = torch.Generator().manual_seed(0)
    drawn = pipeline(["a cat on a blue background"] * 16, num_inference_steps=4, generator=seeded, output_type="np")
    told = oracle.Oracle().name(list((drawn.images * 255).astype(np.uint8)))
    assert np.mean([name != oracle.NONE for name, _ in told]) <= 0.2


def test_blank_pipeline_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for part in ("first", "second"):
        blank.write(tmp_path / part, seed=4)
    for path in sorted((tmp_path / "first").rglob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()
