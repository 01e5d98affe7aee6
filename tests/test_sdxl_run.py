"""`gesso train` on SDXL: what it leaves is what plain diffusers loads, and draws what gesso drew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import events, hashes, pictures
from safetensors.numpy import load_file
from sdxl_plain import drawn, pipe
from torch_runs import GUIDANCE, PROMPT, STEPS, again, go, pixels, torch_recipe, watch

from gesso.errors import RecipeError
from gesso.models import composed, resolve, with_vae

ALL = ["unet", "text_encoder", "text_encoder_2"]
SHORT = {"steps": 4, "batch": 2}


def sample(out: Path, step: int) -> Any:
    return pixels(out / f"samples/step-{step}/p00-s7.png")


def plainly(made: Any) -> Any:
    return drawn(made, PROMPT, 7, num_inference_steps=STEPS, guidance_scale=GUIDANCE)


def test_a_full_run_is_a_pipeline_and_goes_on_bit_for_bit(tmp_path: Path, blank_xl: Path) -> None:
    folder = pictures(tmp_path / "pictures").parent
    train = {**SHORT, "caption_dropout": 0.5, "crop": "random", "flip": True}
    recipe = torch_recipe(
        folder, blank_xl, adapter={"kind": "none"}, model={"train": ALL}, train=train, optim={"lr": 1e-4}
    )
    assert go(recipe) == 0
    out = folder / "out"
    assert np.array_equal(sample(out, 4), plainly(pipe(out)))
    assert np.array_equal(sample(out, 0), plainly(pipe(blank_xl)))
    assert not np.array_equal(sample(out, 4), sample(out, 0))
    for part in ALL:
        name = "diffusion_pytorch_model" if part == "unet" else "model"
        before, after = (load_file(each / part / f"{name}.safetensors") for each in (blank_xl, out))
        assert before.keys() == after.keys()
        assert any(not np.array_equal(before[key], after[key]) for key in before)
    assert hashes(out / "vae") == hashes(blank_xl / "vae")
    # Two roads, one end: stopped after two steps.
    other = tmp_path / "other"
    assert go(recipe, "--out", other, "--train.steps", "2") == 0
    assert go(recipe, "--out", other) == 0
    assert [hashes(other / part) for part in ALL] == [hashes(out / part) for part in ALL]
    assert hashes(other / "checkpoint-4") == hashes(out / "checkpoint-4")
    assert np.array_equal(again(out / "checkpoint-4", tmp_path / "drawn"), sample(out, 4))


def test_a_lora_is_loaded_by_the_pipeline(tmp_path: Path, blank_xl: Path) -> None:
    folder = pictures(tmp_path / "pictures").parent
    train = {**SHORT, "caption_dropout": 0.5}
    recipe = torch_recipe(folder, blank_xl, adapter={"kind": "lora", "rank": 3}, train=train)
    assert go(recipe) == 0
    made = pipe(blank_xl)
    made.load_lora_weights(folder / "out")
    assert np.array_equal(sample(folder / "out", 4), plainly(made))
    assert not np.array_equal(sample(folder / "out", 4), sample(folder / "out", 0))
    assert np.array_equal(again(folder / "out", tmp_path / "drawn"), sample(folder / "out", 4))


def test_dropped_captions_are_trained_as_zeros_by_cache_and_by_live_encoders(
    tmp_path: Path, blank_xl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path / "pictures").parent
    seen = watch(monkeypatch)
    dropped = {**SHORT, "steps": 2, "caption_dropout": 1.0}
    assert go(torch_recipe(folder, blank_xl, train=dropped)) == 0
    cached = [batch for step in seen.steps for batch, _ in step]
    assert not any(batch.cond[name].any() for batch in cached for name in ("encoder_hidden_states", "text_embeds"))
    assert {name: value.shape for name, value in cached[0].cond.items()} == {
        "encoder_hidden_states": (2, 32, 80), "text_embeds": (2, 40), "time_ids": (2, 6),
    }  # fmt: skip
    losses = [event["loss"] for event in events(folder / "out", "stepped")]
    live = tmp_path / "live"
    model = {"train": ALL}
    recipe = torch_recipe(folder, blank_xl, out=str(live), train=dropped, model=model, adapter={"kind": "none"})
    assert go(recipe) == 0
    assert seen.steps[2][0][0].cond["given"].tolist() == [0, 0]
    np.testing.assert_allclose(events(live, "stepped")[0]["loss"], losses[0], rtol=1e-6)


def test_playground_trains_on_latents_by_channel_and_draws_like_diffusers(tmp_path: Path) -> None:
    from gesso.engines.torch.demo.blank_xl import write

    base = tmp_path / "edm"
    write(base, edm=True)
    folder = pictures(tmp_path / "pictures").parent
    recipe = torch_recipe(folder, base, adapter={"kind": "none"}, train=SHORT, optim={"lr": 1e-3})
    assert go(recipe) == 0
    assert np.array_equal(sample(folder / "out", 4), plainly(pipe(folder / "out")))
    assert not np.array_equal(sample(folder / "out", 4), sample(folder / "out", 0))


# ---------------------------------------------------------------- another autoencoder


@pytest.fixture(scope="module")
def other_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder by itself, of other weights and another scaling factor."""
    from gesso.engines.torch.demo.blank_xl import write

    whole = tmp_path_factory.mktemp("other")
    write(whole, seed=9)
    config = whole / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 0.25}))
    return whole / "vae"


def with_other(blank_xl: Path, vae: Path, to: Path) -> Path:
    shutil.copytree(blank_xl, to)
    shutil.rmtree(to / "vae")
    shutil.copytree(vae, to / "vae")
    return to


def test_a_run_with_another_autoencoder_is_a_run_on_a_base_that_has_it(
    tmp_path: Path, blank_xl: Path, other_vae: Path
) -> None:
    folder = pictures(tmp_path / "pictures").parent
    base = with_other(blank_xl, other_vae, tmp_path / "base")
    keys: dict[str, Any] = {
        "adapter": {"kind": "none"}, "train": SHORT, "optim": {"lr": 1e-3},
        "prior": {"prompt": "a thing", "pictures": 3, "sampling_steps": 2},
    }  # fmt: skip
    assert go(torch_recipe(folder, base, out=str(tmp_path / "composed"), **keys)) == 0
    recipe = torch_recipe(folder, blank_xl, **{**keys, "model": {"vae": str(other_vae)}})
    assert go(recipe) == 0
    out = folder / "out"
    for part in ("vae", "unet", "class", "checkpoint-4/unet"):
        assert hashes(out / part, "**/*") == hashes(tmp_path / "composed" / part, "**/*") != {}, part
    assert np.array_equal(sample(out, 4), sample(tmp_path / "composed", 4))
    assert hashes(out / "vae") == hashes(other_vae)
    assert np.array_equal(sample(out, 4), plainly(pipe(out)))
    for model in (out, out / "checkpoint-4"):
        assert np.array_equal(again(model, tmp_path / "drawn"), sample(out, 4))
    assert events(out, "started")[0]["from_cache"] > 0  # the same pictures, the same autoencoder: encoded once
    # Going on with another one would be another run.
    with pytest.raises(RecipeError, match=r"model\.vae"):
        go(recipe, "--model.vae", str(blank_xl / "vae"))


def test_a_lora_remembers_its_autoencoder(tmp_path: Path, blank_xl: Path, other_vae: Path) -> None:
    folder = pictures(tmp_path / "pictures").parent
    assert go(torch_recipe(folder, blank_xl, train=SHORT, model={"vae": str(other_vae)})) == 0
    out = folder / "out"
    assert resolve(str(out)).vae == other_vae
    assert np.array_equal(again(out, tmp_path / "drawn"), sample(out, 4))
    made = pipe(with_other(blank_xl, other_vae, tmp_path / "base"))
    made.load_lora_weights(out)
    assert np.array_equal(sample(out, 4), plainly(made))


def test_an_autoencoder_is_found_by_folder_or_by_a_model_that_has_one(blank_xl: Path, other_vae: Path) -> None:
    base = resolve(str(blank_xl))
    for name in (other_vae, other_vae.parent):
        assert with_vae(base, str(name)).config("vae")["scaling_factor"] == 0.25
    assert with_vae(base, "") == base
    with composed(with_vae(base, str(other_vae))) as whole:
        assert hashes(whole.folder / "vae") == hashes(other_vae)
        assert hashes(whole.folder / "unet") == hashes(blank_xl / "unet")
        assert whole.vae is None
    assert not whole.folder.exists()
    assert (other_vae / "config.json").is_file()
    with composed(base) as same:
        assert same == base


def test_what_is_no_fitting_autoencoder_is_refused(tmp_path: Path, blank_xl: Path, other_vae: Path) -> None:
    base = resolve(str(blank_xl))
    wide = tmp_path / "wide"
    shutil.copytree(other_vae, wide)
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**config, "latent_channels": 16}))
    with pytest.raises(RecipeError, match=r"makes latents of 16 channels, and .* takes 4"):
        with_vae(base, str(wide))
    with pytest.raises(RecipeError, match="is no autoencoder, but of the kind UNet2DConditionModel"):
        with_vae(base, str(blank_xl / "unet"))
    (wide / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"no \.safetensors weights"):
        with_vae(base, str(wide))
    with pytest.raises(RecipeError, match="there is no model"):
        with_vae(base, "nowhere")


# ---------------------------------------------------------------- refusals


def test_a_second_text_encoder_is_refused_on_a_model_without_one(tmp_path: Path, blank: Path) -> None:
    folder = pictures(tmp_path / "pictures").parent
    with pytest.raises(RecipeError, match="text_encoder_2"):
        go(torch_recipe(folder, blank, model={"train": ["text_encoder_2"]}))


def test_a_refiner_is_refused_as_a_base(tmp_path: Path) -> None:
    from gesso.engines.torch.demo.blank_xl import write

    write(tmp_path / "refiner", refiner=True)
    folder = pictures(tmp_path / "pictures").parent
    with pytest.raises(RecipeError, match="second stage") as caught:
        go(torch_recipe(folder, tmp_path / "refiner"))
    assert "--refiner" in str(caught.value.todo)
