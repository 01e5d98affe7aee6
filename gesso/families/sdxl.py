"""Stable Diffusion XL and its relatives: two text encoders, and a UNet that is told sizes and crops.

Podell et al. 2023, arXiv:2307.01952, section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gesso.arrays import Float32
from gesso.families import sd
from gesso.families.family import Scale, Size

name = "sdxl"
pipelines = ("StableDiffusionXLPipeline",)
refiners = ("StableDiffusionXLImg2ImgPipeline",)
denoiser = "unet"
autoencoder = "vae"
encoders = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
lora_targets = sd.lora_targets
text_lora_targets = sd.text_lora_targets
side = sd.side


def scale(vae: Mapping[str, Any]) -> tuple[Scale, Scale]:
    """One scale; with `latents_mean` and `latents_std` (playground-v2.5) x0 = (z − mean)·scaling_factor/std."""
    factor, mean, std = (vae.get(key) for key in ("scaling_factor", "latents_mean", "latents_std"))
    factor = float(factor or 0.13025)
    if not (mean and std):
        return factor, float(vae.get("shift_factor") or 0.0)
    return _channels(factor / np.array(std, dtype=np.float64)), _channels(np.array(mean, dtype=np.float64))


def drops_to_zeros(index: Mapping[str, Any]) -> bool:
    # diffusers' pipeline takes it for true where the file does not say.
    return bool(index.get("force_zeros_for_empty_prompt", True))


def geometry(whole: Size, corner: Size, side: Size) -> dict[str, Float32]:
    """`time_ids`, float32 [6]: height before width, top before left."""
    return {"time_ids": np.array([*whole[::-1], *corner[::-1], *side[::-1]], dtype=np.float32)}


def condition(outputs: Mapping[str, Any]) -> dict[str, Any]:
    # The layer before the last of each, their channels side by side; a second stage has but the second encoder.
    hidden = tuple(outputs[encoder].hidden_states[-2] for encoder, _ in encoders if encoder in outputs)
    return {"encoder_hidden_states": hidden, "text_embeds": outputs["text_encoder_2"].text_embeds}


def predict(denoiser: Any, x: Any, c_noise: Any, cond: Mapping[str, Any]) -> Any:
    # time_ids stay float32 until the network embeds them: bfloat16 would make 776 of 777.
    added = {"text_embeds": cond["text_embeds"], "time_ids": cond["time_ids"]}
    return denoiser(
        x, c_noise, encoder_hidden_states=cond["encoder_hidden_states"], added_cond_kwargs=added, return_dict=False
    )[0]


def _channels(values: Any) -> Float32:
    return np.asarray(values, dtype=np.float32).reshape(-1, 1, 1)
