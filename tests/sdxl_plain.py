"""Stable Diffusion XL with plain diffusers, written as its training scripts and its users write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from gesso.arrays import Array, Picture


def pipe(folder: Path, kind: Any = StableDiffusionXLPipeline) -> Any:
    """The pipeline as any user of diffusers loads it."""
    made = kind.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(made: Any, prompt: str, seed: int, **options: Any) -> Picture:
    """One picture by a pipeline, from a seed on the CPU."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return np.asarray(made(prompt, generator=generator, **options).images[0])


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The networks of an SDXL folder in training, and the loss of diffusers' own training scripts."""

    unet: UNet2DConditionModel
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection]
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]

    @classmethod
    def load(cls, folder: Path) -> Plain:
        return cls(
            unet=UNet2DConditionModel.from_pretrained(folder / "unet").train(),
            encoders=(
                CLIPTextModel.from_pretrained(folder / "text_encoder").train(),
                CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").train(),
            ),
            tokenizers=(
                CLIPTokenizer.from_pretrained(folder / "tokenizer"),
                CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            ),
        )

    def encode(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeddings [B, 32, 80] and pooled embeddings [B, 40]; zeros for an absent caption."""
        hidden, pooled = [], torch.zeros(0)
        for encoder, tokenizer in zip(self.encoders, self.tokenizers, strict=True):
            ids = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
            found = encoder(ids, output_hidden_states=True)
            hidden.append(found.hidden_states[-2])
            pooled = found[0]
        embeds = torch.cat(hidden, dim=-1)
        for row, caption in enumerate(captions):
            if not caption:
                embeds, pooled = embeds.clone(), pooled.clone()
                embeds[row], pooled[row] = 0.0, 0.0
        return embeds, pooled

    def ask(self, x: torch.Tensor, timesteps: torch.Tensor, captions: Sequence[str], time_ids: Array) -> torch.Tensor:
        embeds, pooled = self.encode(captions)
        added = {"text_embeds": pooled, "time_ids": torch.from_numpy(time_ids)}
        answer: torch.Tensor = self.unet(x, timesteps, embeds, added_cond_kwargs=added).sample
        return answer

    def errors(
        self, scheduler: DDPMScheduler, x0: Array, eps: Array, at: Array, captions: Sequence[str], time_ids: Array
    ) -> torch.Tensor:
        """Mean squared error of each row, as train_text_to_image_sdxl.py has it."""
        latents, noise, timesteps = (torch.from_numpy(np.ascontiguousarray(each)) for each in (x0, eps, at))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        answer = self.ask(noisy, timesteps, captions, time_ids)
        kinds = {"epsilon": noise, "v_prediction": scheduler.get_velocity(latents, noise, timesteps)}
        wanted = kinds[str(scheduler.config.prediction_type)]
        return F.mse_loss(answer, wanted, reduction="none").mean(dim=(1, 2, 3))

    def edm_errors(
        self, sigmas: Array, x0: Array, eps: Array, captions: Sequence[str], time_ids: Array, sigma_data: float = 0.5
    ) -> torch.Tensor:
        """The EDM branch of train_dreambooth_lora_sdxl.py: precondition, ask, precondition the answer, no weights."""
        latents, noise = torch.from_numpy(x0), torch.from_numpy(eps)
        sigma = torch.from_numpy(sigmas.astype(np.float32)).view(-1, 1, 1, 1)
        noisy = latents + noise * sigma
        shown = noisy * (1 / (sigma**2 + sigma_data**2) ** 0.5)
        answer = self.ask(shown, 0.25 * torch.log(sigma.flatten()), captions, time_ids)
        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        c_out = sigma * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
        denoised = c_skip * noisy + c_out * answer
        return F.mse_loss(denoised, latents, reduction="none").mean(dim=(1, 2, 3))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        nets = {"unet": self.unet, "text_encoder": self.encoders[0], "text_encoder_2": self.encoders[1]}
        return {f"{part}.{name}": value for part, net in nets.items() for name, value in net.named_parameters()}
