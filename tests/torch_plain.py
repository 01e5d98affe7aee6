"""The training loop as anyone would write it with diffusers, peft and torch, to compare the engine with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from gesso.arrays import Array
from gesso.data.batch import Batch
from gesso.engines.engine import Adapter, Optim
from gesso.families import find
from gesso.objective.coefficients import Coefficients
from gesso.objective.objective import Objective
from gesso.schema import TorchEngine

CAPTIONS = ["a cat", "an apple on a red background", "", "a toy on a green background"]
TIMESTEPS = np.array([10, 300, 600, 990])
LORA = Adapter(rank=3, alpha=5.0, targets={"unet": ("to_q", "to_k", "to_v", "to_out.0", "conv1")})
FAMILY = find("StableDiffusionPipeline")
PLAIN = Optim(clip=0.0)
ATTACHED = {"unet": ("unet",), "both": ("unet", "text_encoder"), "lora": ()}


def rates(lr: float) -> dict[str, float]:
    """The same learning rate for every part."""
    return {"unet": lr, "text_encoder": lr}


def create(blank: Path, trained: str, *, optim: Optim = PLAIN, seed: int = 0, **options: Any) -> Any:
    """An engine ready to step. A LoRA's B matrices get values: at zero, the gradients of A would all be zero."""
    module = import_module("gesso.engines.torch.engine")
    engine = module.create(TorchEngine(), **{"device": "cpu", "precision": "fp32", **options})
    engine.load(blank, FAMILY, parts=ATTACHED[trained])
    engine.attach(LORA if trained == "lora" else None, optim)
    if trained == "lora":
        rng = np.random.default_rng(seed)
        weights = engine.read()["weights"]
        for name in sorted(weights):
            if ".lora_B." in name:
                weights[name] = rng.normal(0, 0.05, weights[name].shape).astype(np.float32)
        engine.write({"weights": weights, **({"ema": weights} if optim.ema else {})})
    return engine


def rows(engine: Any, objective: Objective, *, tokens: bool, seed: int = 5) -> tuple[Batch, Coefficients]:
    rng = np.random.default_rng(seed)
    x0, eps = rng.standard_normal((2, 4, 4, 16, 16)).astype(np.float32)
    batch = Batch(
        x0=x0,
        eps_in=eps,
        eps_target=eps,
        cond=engine.tokens(CAPTIONS) if tokens else engine.encode_text(CAPTIONS),
        weight=np.full(4, 0.25, dtype=np.float32),
        ids=np.arange(4),
    )
    return batch, objective.at(TIMESTEPS)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The training loop as anyone would write it with diffusers."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    scheduler: DDPMScheduler
    ids: torch.Tensor
    lora: bool

    @classmethod
    def load(cls, blank: Path, trained: str, prediction: str, engine: Any) -> Plain:
        unet = UNet2DConditionModel.from_pretrained(blank / "unet").train()
        text_encoder = CLIPTextModel.from_pretrained(blank / "text_encoder").train()
        text_encoder.requires_grad_(trained == "both")
        if trained == "lora":
            unet.requires_grad_(False)
            unet.add_adapter(LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=list(LORA.targets["unet"])))
            own = dict(unet.named_parameters())
            for name, value in engine.read()["weights"].items():
                inner = name.removeprefix("unet.").replace(".weight", ".default.weight")
                own[inner].data.copy_(torch.from_numpy(value))
        tokenizer = CLIPTokenizer.from_pretrained(blank / "tokenizer")
        ids = tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
        scheduler = DDPMScheduler.from_pretrained(blank / "scheduler", prediction_type=prediction)
        return cls(
            unet=unet,
            text_encoder=text_encoder,
            scheduler=scheduler,
            ids=ids,
            lora=trained == "lora",
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        nets = {"unet": self.unet, "text_encoder": self.text_encoder}
        return {
            f"{part}.{name.replace('.default.', '.')}": value
            for part, net in nets.items()
            for name, value in net.named_parameters()
            if value.requires_grad
        }

    def errors(self, x0: Array, eps: Array, timesteps: Array) -> torch.Tensor:
        """Mean squared error of each row."""
        latents, noise, at = (torch.from_numpy(np.ascontiguousarray(each)) for each in (x0, eps, timesteps))
        noisy = self.scheduler.add_noise(latents, noise, at)
        answer = self.unet(noisy, at, self.text_encoder(self.ids)[0]).sample
        kinds = {
            "epsilon": noise,
            "v_prediction": self.scheduler.get_velocity(latents, noise, at),
            "sample": latents,
        }
        wanted = kinds[self.scheduler.config.prediction_type]
        return torch.mean(F.mse_loss(answer, wanted, reduction="none"), dim=(1, 2, 3))

    def min_snr(self, gamma: float, timesteps: Array) -> torch.Tensor:
        """Min-SNR as diffusers' training scripts write it, for each prediction type."""
        snr = compute_snr(self.scheduler, torch.from_numpy(timesteps))
        least = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
        kinds: dict[str, torch.Tensor] = {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}
        return kinds[str(self.scheduler.config.prediction_type)]


def gradients(engine: Any) -> dict[str, Array]:
    """After one AdamW step without clipping: the first moment is (1 − beta1) times the gradient."""
    found = engine.read()["optimizer"]
    return {key.removeprefix("exp_avg/"): value / 0.1 for key, value in found.items() if key.startswith("exp_avg/")}


def assert_same_gradients(engine: Any, plain: dict[str, nn.Parameter]) -> None:
    found = gradients(engine)
    assert found.keys() == plain.keys()
    wanted = {name: value.grad.numpy() for name, value in plain.items() if value.grad is not None}
    assert wanted.keys() == plain.keys()
    scale = max(float(np.abs(value).max()) for value in wanted.values())
    assert scale > 1e-4
    assert max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted) < 1e-5 * scale
