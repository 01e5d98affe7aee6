"""The PyTorch engine against plain loops: diffusers' own scheduler and networks, peft's adapter, torch's AdamW.

The same latents, noise and timesteps go into both; losses and gradients must come out the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from runs import events, pictures
from torch import nn
from torch.nn import functional as F
from torch_plain import (
    ATTACHED,
    CAPTIONS,
    FAMILY,
    LORA,
    PLAIN,
    TIMESTEPS,
    Plain,
    assert_same_gradients,
    create,
    gradients,
    rates,
    rows,
)
from torch_runs import go, torch_recipe, watch
from transformers import CLIPTextModel, CLIPTokenizer

from gesso.engines.engine import Optim, SampleRequest
from gesso.objective.objective import Objective
from gesso.objective.weightings import Weighting
from gesso.schema import TorchEngine


@pytest.fixture(params=list(ATTACHED))
def trained(request: pytest.FixtureRequest) -> str:
    """What learns: the UNet, the UNet and the text encoder, or a LoRA."""
    return str(request.param)


@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_loss_and_gradients_are_the_plain_loops(blank: Path, trained: str, prediction: str, weighting: str) -> None:
    engine = create(blank, trained)
    plain = Plain.load(blank, trained, prediction, engine)
    objective = Objective(prediction=prediction, weighting=Weighting(name=weighting))
    batch, c = rows(engine, objective, tokens=trained == "both")

    errors = plain.errors(batch.x0, batch.eps_in, TIMESTEPS)
    loss = (errors * plain.min_snr(5.0, TIMESTEPS)).mean() if weighting == "min_snr" else errors.mean()
    torch.autograd.backward(loss)

    assert engine.evaluate(batch, c) == pytest.approx(errors.detach().numpy(), rel=1e-5)
    assert engine.step([(batch, c)], lr=rates(1e-3), ema_decay=0.0, key=0).read().loss == pytest.approx(
        loss.item(), rel=1e-5
    )
    assert_same_gradients(engine, plain.parameters())


def test_prior_preservation_is_instance_plus_share_of_class(blank: Path, trained: str) -> None:
    """DreamBooth: the Min-SNR weighted mean over instances plus lambda times the plain mean over class pictures."""
    share = 0.3
    engine = create(blank, trained)
    plain = Plain.load(blank, trained, "epsilon", engine)
    objective = Objective(weighting=Weighting(name="min_snr"))
    batch, c = rows(engine, objective, tokens=trained == "both")
    halves = np.array([0.5, 0.5, 0.5 * share, 0.5 * share], dtype=np.float32)
    weights = np.concatenate([c.w[:2], np.ones(2)])

    errors = plain.errors(batch.x0, batch.eps_in, TIMESTEPS)
    instance = (errors[:2] * plain.min_snr(5.0, TIMESTEPS)[:2]).mean()
    loss = instance + share * errors[2:].mean()
    torch.autograd.backward(loss)

    taken = engine.step(
        [(replace(batch, weight=halves), replace(c, w=weights))], lr=rates(1e-3), ema_decay=0.0, key=0
    ).read()
    assert taken.loss == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(engine, plain.parameters())


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimisers_are_torchs_own(blank: Path, trained: str, name: str) -> None:
    """Three steps with a changing rate and clipping, on the gradients that the engine itself computed.

    Before them a step without finite gradient, which must leave no trace (the fused SGD of torch left one).
    """
    optim = Optim(name=name, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.1, text_weight_decay=0.1, clip=0.05)
    engine = create(blank, trained, optim=optim)
    copies = {name: nn.Parameter(torch.from_numpy(value)) for name, value in engine.read()["weights"].items()}
    adam: dict[str, Any] = {"lr": 0.0, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.1, "foreach": False}
    own: torch.optim.Optimizer
    if name == "sgd":
        own = torch.optim.SGD(copies.values(), lr=0.0, momentum=0.8, weight_decay=0.1, foreach=False)
    else:
        own = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name](copies.values(), **adam)
    norms: list[float] = []

    def same_step(*_: object) -> None:
        for name, copy in copies.items():
            gradient = engine.trained[name].grad
            copy.grad = None if gradient is None else gradient.detach().clone()
        norms.append(
            float(torch.nn.utils.get_total_norm([value.grad for value in copies.values() if value.grad is not None]))
        )

    batch, c = rows(engine, Objective(), tokens=trained == "both")
    poisoned = replace(batch, x0=np.full_like(batch.x0, np.nan))
    assert engine.step([(poisoned, c)], lr=rates(1e-3), ema_decay=0.0, key=0).read().skipped
    engine.optimizer.made[0].register_step_pre_hook(same_step)
    for step, lr in enumerate((1e-3, 2e-3, 5e-4)):
        metrics = engine.step([(batch, c)], lr=rates(lr), ema_decay=0.0, key=step).read()
        assert metrics.grad_norm > 0.05, "nothing was clipped"
        own.param_groups[0]["lr"] = lr
        own.step()
    assert norms == pytest.approx([0.05] * 3, rel=1e-4)
    for name, value in engine.read()["weights"].items():
        np.testing.assert_allclose(value, copies[name].detach().numpy(), rtol=1e-5, atol=1e-7, err_msg=name)


def calls(net: nn.Module, kinds: tuple[str, ...]) -> Iterator[list[str]]:
    """The names of modules of these classes, each time one begins (a recomputation ends as soon as it has enough)."""
    seen: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
        for name, module in net.named_modules()
        if type(module).__name__ in kinds
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def test_gradient_checkpointing_recomputes_and_changes_nothing(blank: Path, trained: str) -> None:
    results = []
    for checkpointing in (False, True):
        engine = create(blank, trained, checkpointing=checkpointing)
        batch, c = rows(engine, Objective(), tokens=trained == "both")
        counters = [calls(engine.models.get("unet"), ("ResnetBlock2D",))]
        if trained == "both":
            counters.append(calls(engine.models.get("text_encoder"), ("CLIPAttention",)))
        seen = [next(counter) for counter in counters]
        loss = engine.step([(batch, c)], lr=rates(1e-3), ema_decay=0.0, key=0).read().loss
        results.append((loss, gradients(engine), [sorted(names) for names in seen]))
    (loss, plain, once), (again, recomputed, twice) = results
    assert again == loss
    assert all(np.array_equal(plain[name], recomputed[name]) for name in plain)
    for names, doubled in zip(once, twice, strict=True):
        assert len(names) > 1
        # diffusers keeps the activations of the first block in the middle.
        repeated = [name for name in names if name != "mid_block.resnets.0"]
        assert doubled == sorted(names + repeated), "each block runs once forward and once more on the way back"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_in_half_and_remembers_in_full(blank: Path, trained: str, precision: str) -> None:
    losses = {}
    for each in ("fp32", precision):
        engine = create(blank, trained, precision=each, optim=Optim(ema=True))
        tokens = trained == "both"
        batch, c = rows(engine, Objective(), tokens=tokens)
        losses[each] = [engine.step([(batch, c)], lr=rates(1e-4), ema_decay=0.5, key=k).read().loss for k in range(2)]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=2e-2)
    assert losses[precision] != losses["fp32"], "this was computed in full precision"
    assert {value.dtype for value in engine.trained.values()} == {torch.float32}
    state = engine.read()
    assert {v.dtype for file in ("weights", "ema") for v in state[file].values()} == {np.dtype("float32")}
    assert {v.dtype for k, v in state["optimizer"].items() if k != "scaler"} == {np.dtype("float32")}
    frozen = {value.dtype for value in engine.models.get("unet").parameters() if not value.requires_grad}
    assert frozen == ({getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[precision])} if not tokens and
                      trained == "lora" else set())  # fmt: skip
    picture = engine.sample([SampleRequest(prompt="a cat", seed=1, width=64, height=64, steps=2)])[0]
    assert picture.std() > 1


def test_the_loss_scale_is_part_of_the_state(blank: Path, trained: str) -> None:
    first = create(blank, trained, precision="fp16")
    batch, c = rows(first, Objective(), tokens=trained == "both")
    first.step([(batch, c)], lr=rates(1e-4), ema_decay=0.0, key=0).read()
    assert first.read()["optimizer"]["scaler"].tolist() == [2.0**14, 1.0]
    before = first.read()["weights"]
    poisoned = replace(batch, x0=np.full_like(batch.x0, np.inf))
    metrics = first.step([(poisoned, c)], lr=rates(1e-4), ema_decay=0.0, key=1).read()
    assert metrics.skipped
    saved = first.read()
    assert all(np.array_equal(before[name], saved["weights"][name]) for name in before)
    assert saved["optimizer"]["scaler"].tolist() == [2.0**13, 0.0], "an overflow halves the scale"

    second = create(blank, trained, precision="fp16", seed=1)
    second.write(saved)
    assert second.read()["optimizer"]["scaler"].tolist() == [2.0**13, 0.0]
    for engine in (first, second):
        engine.step([(batch, c)], lr=rates(1e-4), ema_decay=0.0, key=2).read()
    one, other = first.read(), second.read()
    assert all(np.array_equal(one[file][key], other[file][key]) for file in one for key in one[file])


def test_captions_are_encoded_as_transformers_does(blank: Path) -> None:
    engine = create(blank, "lora")
    long = "a cat on a red background " * 20
    captions = [*CAPTIONS, long, "Ünïcode — ✓"]
    tokenizer = CLIPTokenizer.from_pretrained(blank / "tokenizer")
    ids = tokenizer(
        captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    assert np.array_equal(engine.tokens(captions)["text_encoder"], ids.numpy())
    assert ids.shape == (6, 32)
    encoder = CLIPTextModel.from_pretrained(blank / "text_encoder").eval()
    with torch.no_grad():
        hidden = encoder(ids).last_hidden_state.numpy()
    found = engine.encode_text(captions)
    assert found.keys() == {"encoder_hidden_states"}
    assert found["encoder_hidden_states"] == pytest.approx(hidden, abs=1e-6)
    counts, limit = engine.token_counts(captions)
    assert limit == 32
    assert counts == [len(tokenizer(caption).input_ids) for caption in captions]
    assert counts[4] > limit


def test_pictures_are_encoded_as_diffusers_does(blank: Path) -> None:
    engine = create(blank, "lora")
    pixels = np.random.default_rng(2).uniform(-1, 1, (3, 3, 64, 96)).astype(np.float32)
    vae = AutoencoderKL.from_pretrained(blank / "vae").eval()
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(pixels)).latent_dist
    mean, logvar = engine.encode_images(pixels)
    assert mean.shape == (3, 4, 16, 24)
    assert mean == pytest.approx(posterior.mean.numpy(), abs=1e-6)
    assert logvar == pytest.approx(posterior.logvar.numpy(), abs=1e-6)
    assert FAMILY.scale(vae.config)[0] == vae.config.scaling_factor


@pytest.mark.parametrize("kind", ["lora", "unet"])
def test_a_whole_run_is_the_plain_loop(tmp_path: Path, blank: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gesso train` for five steps, and the plain loop with torch's AdamW on the same latents, noise and timesteps."""
    pictures(tmp_path / "pictures", 4)
    seen = watch(monkeypatch)
    lora = {"kind": "lora", "rank": LORA.rank, "alpha": LORA.alpha, "targets": list(LORA.targets["unet"])}
    path = torch_recipe(
        tmp_path,
        blank,
        adapter=lora if kind == "lora" else {"kind": "none"},
        train={"steps": 5, "batch": 4, "micro_batch": 2},
        optim={"lr": 1e-3, "weight_decay": 0.1, "clip": 0.5, "schedule": "linear"},
        objective={"weighting": "min_snr"},
    )
    go(path)
    started = import_module("gesso.engines.torch.engine").create(TorchEngine(), device="cpu", precision="fp32")
    started.load(blank, FAMILY, parts=ATTACHED[kind])
    started.attach(replace(LORA, init=3) if kind == "lora" else None, PLAIN)  # 3: the recipe's seed
    plain = Plain.load(blank, kind, "epsilon", started)
    parameters = plain.parameters()
    own = torch.optim.AdamW(parameters.values(), lr=1e-3, weight_decay=0.1)
    losses = []
    for step, micro in enumerate(seen.steps):
        own.param_groups[0]["lr"] = 1e-3 * (1 - step / 5)
        own.zero_grad()
        x0, eps, c_noise = (
            np.concatenate([value(batch, c) for batch, c in micro])
            for value in (lambda b, _: b.x0, lambda b, _: b.eps_in, lambda _, c: c.c_noise)
        )
        at = c_noise.astype(np.int64)
        cond = torch.from_numpy(np.concatenate([batch.cond["encoder_hidden_states"] for batch, _ in micro]))
        noisy = plain.scheduler.add_noise(torch.from_numpy(x0), torch.from_numpy(eps), torch.from_numpy(at))
        answer = plain.unet(noisy, torch.from_numpy(at), cond).sample
        errors = F.mse_loss(answer, torch.from_numpy(eps), reduction="none").mean(dim=(1, 2, 3))
        loss = (errors * plain.min_snr(5.0, at)).mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters.values(), 0.5)
        own.step()
        losses.append(loss.item())
    assert len(losses) == 5
    assert [event["loss"] for event in events(tmp_path / "out", "stepped")] == pytest.approx(losses, rel=1e-4)
