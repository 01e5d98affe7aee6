"""Other kinds of models on the PyTorch engine: v-prediction, zero terminal SNR, PNDM, a trained text encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler
from runs import hashes, pictures
from safetensors.numpy import load_file
from torch_runs import FULL, LORA, again, copy_with, drawn, go, pixels, plain, torch_recipe, watch
from transformers import CLIPTextModel

from gesso.errors import Exit, RecipeError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "pictures")
    return tmp_path


@pytest.fixture(params=["lora", "full"])
def adapter(request: pytest.FixtureRequest) -> dict[str, Any]:
    return LORA if request.param == "lora" else FULL


@pytest.mark.parametrize("zero", [False, True], ids=["v", "zero-snr"])
def test_a_v_prediction_model_stays_one(folder: Path, blank: Path, zero: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero else {}
    base = copy_with(blank, folder / "v", prediction_type="v_prediction", **changed)
    seen = watch(monkeypatch)
    assert go(torch_recipe(folder, base, adapter=FULL, train={"batch": 4})) == Exit.DONE
    coefficients = [c for step in seen.steps for _, c in step]
    for c in coefficients:
        assert np.array_equal(c.p, -c.b)
        assert np.array_equal(c.q, c.a)
    scheduler = plain(base).scheduler
    for c in coefficients:
        bar = scheduler.alphas_cumprod.double().numpy()[c.c_noise.astype(int)]
        np.testing.assert_allclose(np.square(c.a), bar, atol=1e-6)
    if zero:
        assert float(scheduler.alphas_cumprod[-1]) == 0.0
    out = folder / "out"
    assert hashes(out, "scheduler/*") == hashes(base, "scheduler/*")
    assert np.array_equal(pixels(out / "samples/step-6/p00-s7.png"), drawn(plain(out)))


def test_epsilon_at_zero_terminal_snr_is_refused(folder: Path, blank: Path) -> None:
    base = copy_with(blank, folder / "zero", rescale_betas_zero_snr=True)
    with pytest.raises(RecipeError, match="epsilon cannot be predicted at zero terminal SNR"):
        go(torch_recipe(folder, base))
    assert not (folder / "out").exists()


def as_the_hub_has_it(blank: Path, to: Path) -> Path:
    """Stable Diffusion 1.5's folder after a download: PNDM, a feature extractor, a safety checker that is not there."""
    base = copy_with(blank, to, _class_name="PNDMScheduler", skip_prk_steps=True)
    index = json.loads((base / "model_index.json").read_text())
    index.pop("requires_safety_checker")
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (base / "model_index.json").write_text(json.dumps(index))
    (base / "feature_extractor").mkdir()
    (base / "feature_extractor/preprocessor_config.json").write_text(
        '{"feature_extractor_type": "CLIPFeatureExtractor"}'
    )
    return base


def test_a_downloaded_model_without_its_safety_checker_is_whole(
    folder: Path, blank: Path, adapter: dict[str, Any]
) -> None:
    out = folder / "out"
    base = as_the_hub_has_it(blank, folder / "sd15")
    assert go(torch_recipe(folder, base, adapter=adapter, train={"steps": 2})) == Exit.DONE
    last = pixels(out / "samples/step-2/p00-s7.png")
    assert np.array_equal(last, again(out, folder / "drawn"))
    if adapter["kind"] == "none":
        pipe = plain(out)
        assert type(pipe.scheduler).__name__ == "PNDMScheduler"
        assert np.array_equal(last, drawn(pipe))


@pytest.mark.parametrize("zero", [False, True], ids=["v", "zero-snr"])
def test_a_model_taught_another_prediction_is_drawn_with_it(
    folder: Path, blank: Path, adapter: dict[str, Any], zero: bool
) -> None:
    """What the recipe changes in the scheduler goes with the result, by every way of naming it."""
    out = folder / "out"
    objective = {"prediction": "v_prediction", **({"zero_snr": True} if zero else {})}
    base = as_the_hub_has_it(blank, folder / "base") if zero else blank
    path = torch_recipe(folder, base, adapter=adapter, objective=objective, sample={"every": 4})
    assert go(path) == Exit.DONE
    last, middle = (pixels(out / f"samples/step-{step}/p00-s7.png") for step in (6, 4))
    if adapter["kind"] == "none":
        saved = json.loads((out / "scheduler/scheduler_config.json").read_text())
        assert saved["prediction_type"] == "v_prediction"
        assert saved.get("rescale_betas_zero_snr", False) is zero
        pipe = plain(out)
    else:
        pipe = plain(blank)
        pipe.load_lora_weights(out)
        more = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero else {}
        config = {**pipe.scheduler.config, "prediction_type": "v_prediction", **more}
        pipe.scheduler = DDIMScheduler.from_config(config)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert np.array_equal(last, drawn(pipe))
    assert np.array_equal(last, again(out, folder / "drawn"))
    assert np.array_equal(middle, again(out / "checkpoint-4", folder / "middle"))


@pytest.mark.parametrize("parts", [["text_encoder"], ["unet", "text_encoder"]], ids="+".join)
def test_a_trained_text_encoder_is_read_by_everybody(folder: Path, blank: Path, parts: list[str]) -> None:
    out = folder / "out"
    path = torch_recipe(folder, blank, adapter=FULL, model={"train": parts}, sample={"every": 4}, optim={"lr": 1e-3})
    assert go(path) == Exit.DONE
    before, after = (load_file(place / "text_encoder/model.safetensors") for place in (blank, out))
    assert after.keys() == before.keys()
    assert all(name.startswith("text_model.") for name in after)
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert len(moved) > len(before) // 2
    encoder = CLIPTextModel.from_pretrained(out / "text_encoder")
    own = {name: value.numpy() for name, value in encoder.state_dict().items()}
    for name, value in own.items():
        kept = after.get(name, after.get(f"text_model.{name}"))
        assert kept is None or np.array_equal(kept, value), name
    assert sum(name in after or f"text_model.{name}" in after for name in own) == len(after)
    last = pixels(out / "samples/step-6/p00-s7.png")
    assert np.array_equal(last, drawn(plain(out)))
    assert not np.array_equal(last, pixels(out / "samples/step-0/p00-s7.png"))
    assert np.array_equal(pixels(out / "samples/step-4/p00-s7.png"), again(out / "checkpoint-4", folder / "middle"))
    same = hashes(out, "unet/*.safetensors") == hashes(blank, "unet/*.safetensors")
    assert same is ("unet" not in parts)
