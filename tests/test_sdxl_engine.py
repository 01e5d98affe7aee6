"""SDXL on the PyTorch engine: conditions, losses, gradients and pictures equal plain diffusers'."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from sdxl_plain import Plain, drawn, pipe

from gesso.data.batch import Batch
from gesso.data.batches import _scaled
from gesso.engines.engine import Adapter, Optim, SampleRequest
from gesso.engines.torch.demo.blank_xl import write
from gesso.families import find
from gesso.objective.objective import Objective
from gesso.objective.own import from_scheduler, prediction
from gesso.schema import TorchEngine

FAMILY = find("StableDiffusionXLPipeline")
PARTS = ("unet", "text_encoder", "text_encoder_2")
CAPTIONS = ["a cat", "", "a toy on a green background", "an apple"]
TIMESTEPS = np.array([10, 300, 600, 990])
SIZES = np.array([[64, 64, 0, 0, 64, 64], [777, 1023, 3, 9, 64, 64], [80, 64, 8, 0, 64, 64], [65, 99, 0, 17, 64, 64]])
RATES = dict.fromkeys(PARTS, 1e-3)


@pytest.fixture(scope="module")
def edm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What playground-v2.5 is, tiny."""
    folder = tmp_path_factory.mktemp("edm")
    write(folder, edm=True)
    return folder


def create(folder: Path, parts: tuple[str, ...] = (), **options: Any) -> Any:
    module = import_module("gesso.engines.torch.engine")
    engine = module.create(TorchEngine(), **{"device": "cpu", "precision": "fp32", **options})
    engine.load(folder, FAMILY, parts=parts)
    return engine


def batch(engine: Any, *, live: bool) -> Batch:
    x0, eps = np.random.default_rng(5).standard_normal((2, 4, 4, 16, 16)).astype(np.float32)
    captions = engine.tokens(CAPTIONS) if live else engine.encode_text(CAPTIONS)
    return Batch(
        x0=x0,
        eps_in=eps,
        eps_target=eps,
        cond={**captions, "time_ids": SIZES.astype(np.float32)},
        weight=np.full(4, 0.25, dtype=np.float32),
        ids=np.arange(4),
    )


def request(**keys: Any) -> SampleRequest:
    options = {"prompt": "a red apple", "seed": 3, "width": 64, "height": 64, "steps": 3, "guidance": 4.0}
    return SampleRequest(**{**options, **keys})


def test_conditions_are_those_of_the_pipeline(blank_xl: Path) -> None:
    made, engine = pipe(blank_xl), create(blank_xl)
    given, absent = engine.encode_text(["a red apple"]), engine.encode_text([""])
    with torch.no_grad():
        embeds, negative, pooled, negative_pooled = made.encode_prompt("a red apple")
    assert np.array_equal(given["encoder_hidden_states"], embeds.numpy())
    assert np.array_equal(given["text_embeds"], pooled.numpy())
    # What an absent negative prompt is drawn with is what a dropped caption is trained with: zeros.
    assert np.array_equal(absent["encoder_hidden_states"], negative.numpy())
    assert np.array_equal(absent["text_embeds"], negative_pooled.numpy())
    assert not negative.any()
    assert not negative_pooled.any()
    assert embeds.any()


def test_where_the_model_says_so_an_absent_caption_is_encoded(blank_xl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoded"
    shutil.copytree(blank_xl, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": False}))
    found = create(folder).encode_text([""])
    with torch.no_grad():
        _, negative, _, negative_pooled = pipe(folder).encode_prompt("a red apple")
    assert np.array_equal(found["encoder_hidden_states"], negative.numpy())
    assert negative.any()
    assert np.array_equal(found["text_embeds"], negative_pooled.numpy())
    assert negative_pooled.any()
    engine = create(folder)
    assert np.array_equal(engine.sample([request()])[0], to_bytes(drawn_np(pipe(folder))))


def to_bytes(image: Any) -> Any:
    return np.round(np.asarray(image) * 255.0).astype(np.uint8)


def drawn_np(made: Any, **options: Any) -> Any:
    return drawn(
        made, "a red apple", 3, **{"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "np", **options}
    )


def test_a_picture_is_that_of_plain_diffusers(blank_xl: Path) -> None:
    plain, engine = pipe(blank_xl), create(blank_xl)
    assert np.array_equal(engine.sample([request()])[0], to_bytes(drawn_np(plain)))
    wanted = to_bytes(drawn_np(plain, negative_prompt="a dog", width=96, height=64))
    assert np.array_equal(engine.sample([request(negative="a dog", width=96)])[0], wanted)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_losses_and_gradients_are_those_of_a_plain_loop(blank_xl: Path, live: bool, kind: str) -> None:
    parts = PARTS if live else ("unet",)
    engine = create(blank_xl, parts)
    engine.attach(None, Optim(clip=0.0))
    given = batch(engine, live=live)
    coefficients = Objective(prediction=kind).at(TIMESTEPS)
    plain = Plain.load(blank_xl)
    scheduler = DDPMScheduler.from_pretrained(blank_xl / "scheduler", prediction_type=kind)
    errors = plain.errors(scheduler, given.x0, given.eps_in, TIMESTEPS, CAPTIONS, SIZES.astype(np.float32))
    found = engine.evaluate(given, coefficients)
    np.testing.assert_allclose(found, errors.detach().numpy(), rtol=1e-5)
    errors.mean().backward()
    engine.step([(given, coefficients)], lr=RATES, ema_decay=0.0, key=1).read()
    moments = engine.read()["optimizer"]
    wanted = {
        name: value.grad.numpy()
        for name, value in plain.parameters().items()
        if value.grad is not None and name.split(".")[0] in parts
    }
    largest = max(float(np.abs(value).max()) for value in wanted.values())
    assert largest > 1e-4
    assert {name.split(".")[0] for name in wanted} == set(parts)
    for name, value in wanted.items():
        assert float(np.abs(moments[f"exp_avg/{name}"] / 0.1 - value).max()) < 1e-5 * largest, name


def test_lora_losses_and_gradients_are_those_of_a_plain_loop(blank_xl: Path) -> None:
    """Adapters on the denoiser and on both text encoders."""
    engine = create(blank_xl)
    text = FAMILY.text_lora_targets
    targets = {"unet": FAMILY.lora_targets, "text_encoder": text, "text_encoder_2": text}
    engine.attach(Adapter(rank=3, alpha=5.0, targets=targets), Optim(clip=0.0))
    rng = np.random.default_rng(0)
    weights = engine.read()["weights"]
    # At zero, as they begin, the gradients of A would all be zero.
    shapes = {name: value.shape for name, value in weights.items() if ".lora_B." in name}
    weights |= {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in sorted(shapes.items())}
    engine.write({"weights": weights})
    given = batch(engine, live=True)
    plain = Plain.load(blank_xl)
    for part, net in {"unet": plain.unet, **dict(zip(PARTS[1:], plain.encoders, strict=True))}.items():
        net.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=3, lora_alpha=5.0, target_modules=list(targets[part])), net)
    own = {name.replace(".default.", "."): value for name, value in plain.parameters().items() if value.requires_grad}
    assert own.keys() == weights.keys()
    for name, value in own.items():
        value.data.copy_(torch.from_numpy(weights[name]))
    scheduler = DDPMScheduler.from_pretrained(blank_xl / "scheduler")
    errors = plain.errors(scheduler, given.x0, given.eps_in, TIMESTEPS, CAPTIONS, SIZES.astype(np.float32))
    coefficients = Objective().at(TIMESTEPS)
    np.testing.assert_allclose(engine.evaluate(given, coefficients), errors.detach().numpy(), rtol=1e-5)
    errors.mean().backward()
    engine.step([(given, coefficients)], lr=RATES, ema_decay=0.0, key=1).read()
    moments = engine.read()["optimizer"]
    wanted = {name: value.grad.numpy() for name, value in own.items() if value.grad is not None}
    assert {name.split(".")[0] for name in wanted} == set(PARTS)
    largest = max(float(np.abs(value).max()) for value in wanted.values())
    assert largest > 1e-4
    assert max(float(np.abs(moments[f"exp_avg/{name}"] / 0.1 - wanted[name]).max()) for name in wanted) < 1e-5 * largest


def test_sizes_reach_the_network_unrounded_under_bfloat16(blank_xl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create(blank_xl, precision="bf16")
    engine.attach(Adapter(rank=2, alpha=2.0, targets={"unet": FAMILY.lora_targets}), Optim())
    net = engine.models.get("unet")
    seen: list[torch.Tensor] = []
    net.add_time_proj.register_forward_hook(lambda module, given, result: seen.append(given[0]))
    engine.evaluate(batch(engine, live=False), Objective().at(TIMESTEPS))
    assert seen[0].dtype == torch.float32
    assert seen[0].reshape(4, 6).tolist() == SIZES.tolist()
    assert torch.tensor(777.0).bfloat16().item() == 776.0


def test_edm_losses_are_those_of_diffusers_own_script(edm: Path) -> None:
    """playground-v2.5: preconditioning, x0 as the target, no weights."""
    engine = create(edm, PARTS)
    engine.attach(None, Optim(clip=0.0))
    given = batch(engine, live=True)
    config = json.loads((edm / "scheduler" / "scheduler_config.json").read_text())
    objective = Objective(schedule=from_scheduler(config), prediction=prediction(config))
    coefficients = objective.at(TIMESTEPS)
    sigmas = coefficients.b / coefficients.a
    assert sigmas.min() < 0.05
    assert sigmas.max() > 20.0
    plain = Plain.load(edm)
    errors = plain.edm_errors(sigmas, given.x0, given.eps_in, CAPTIONS, SIZES.astype(np.float32))
    found = engine.evaluate(given, coefficients) * coefficients.w
    np.testing.assert_allclose(found, errors.detach().numpy(), rtol=1e-5)
    errors.mean().backward()
    engine.step([(given, coefficients)], lr=RATES, ema_decay=0.0, key=1).read()
    moments = engine.read()["optimizer"]
    wanted = {name: value.grad.numpy() for name, value in plain.parameters().items() if value.grad is not None}
    largest = max(float(np.abs(value).max()) for value in wanted.values())
    assert max(float(np.abs(moments[f"exp_avg/{name}"] / 0.1 - wanted[name]).max()) for name in wanted) < 1e-5 * largest


def test_an_edm_picture_is_that_of_plain_diffusers(edm: Path) -> None:
    assert np.array_equal(create(edm).sample([request()])[0], to_bytes(drawn_np(pipe(edm))))


def test_latents_are_scaled_by_channel_where_the_autoencoder_says_so(edm: Path) -> None:
    """x0 = (z − mean)·0.5/std, and the pipeline's own way back ends where it began."""
    config = json.loads((edm / "vae" / "config.json").read_text())
    scale, shift = FAMILY.scale(config)
    z = np.random.default_rng(1).normal(0, 3, (2, 4, 16, 16)).astype(np.float32)
    x0 = _scaled(z, scale, shift)
    for channel in range(4):
        wanted = (z[:, channel] - config["latents_mean"][channel]) * 0.5 / config["latents_std"][channel]
        np.testing.assert_allclose(x0[:, channel], wanted, rtol=1e-5, atol=1e-6)
    mean, std = (np.array(config[key], dtype=np.float32).reshape(1, 4, 1, 1) for key in ("latents_mean", "latents_std"))
    np.testing.assert_allclose(x0 * std / config["scaling_factor"] + mean, z, rtol=1e-5, atol=1e-5)


def test_half_precision_decodes_in_float32_where_the_autoencoder_asks_for_it(blank_xl: Path) -> None:
    engine = create(blank_xl, precision="bf16")
    plain = pipe(blank_xl)
    with torch.autocast("cpu", torch.bfloat16):
        latents = drawn_latents(plain)
    wanted = plain.image_processor.postprocess(
        plain.vae.decode((latents / plain.vae.config.scaling_factor).float()).sample.detach(), output_type="np"
    )[0]
    # The denoiser is held in bf16 there, which moves the latents a little; the decoding adds nothing to that.
    engine.models._dtypes = {}
    assert np.array_equal(engine.sample([request()])[0], to_bytes(wanted))
    assert engine.notes == []


def drawn_latents(made: Any) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(3)
    options: Any = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}
    latents: torch.Tensor = made("a red apple", generator=generator, **options).images
    return latents


def test_an_autoencoder_that_overflows_is_said_once_and_decodes_in_float32(blank_xl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hot"
    shutil.copytree(blank_xl, folder)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "force_upcast": False}))
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    # As SDXL's: activations beyond 65504, fp16's largest number, between two layers.
    weights["decoder.conv_in.weight"] *= 1e7
    weights["decoder.conv_in.bias"] *= 1e7
    save_file(weights, folder / "vae" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    engine = create(folder, precision="fp16")
    pictures = engine.sample([request(), request(seed=4)])
    assert [note for note in engine.notes if "hot/vae" in note and "fp32" in note] == engine.notes != []
    assert len(engine.notes) == 1
    assert all(picture.std() > 0 for picture in pictures)
