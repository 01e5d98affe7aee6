"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, one UNet, epsilon or v-prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gesso.arrays import Float32
from gesso.errors import RecipeError
from gesso.families.family import Size

name = "sd"
pipelines = ("StableDiffusionPipeline",)
refiners: tuple[str, ...] = ()
denoiser = "unet"
autoencoder = "vae"
encoders = (("text_encoder", "tokenizer"),)
lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
text_lora_targets = ("q_proj", "k_proj", "v_proj", "out_proj")


def scale(vae: Mapping[str, Any]) -> tuple[float, float]:
    return float(vae.get("scaling_factor") or 0.18215), float(vae.get("shift_factor") or 0.0)


def side(denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    channels, size = vae.get("block_out_channels"), denoiser.get("sample_size") or 64
    if not isinstance(channels, list) or not channels:
        raise RecipeError(
            "the model's configuration lacks block_out_channels",
            where="vae/config.json",
            todo="fetch or export the model again, or use another one",
        )
    if not isinstance(size, int) or size < 1:
        raise RecipeError(f"sample_size is {size}, must be a whole number above 0", where="unet/config.json")
    return size * int(2 ** (len(channels) - 1))


def drops_to_zeros(index: Mapping[str, Any]) -> bool:
    return False


def geometry(whole: Size, corner: Size, side: Size) -> dict[str, Float32]:
    return {}


def condition(outputs: Mapping[str, Any]) -> dict[str, Any]:
    # SD 2.x wants the penultimate layer; its folders hold a text encoder that ends there.
    return {"encoder_hidden_states": outputs["text_encoder"].last_hidden_state}


def predict(denoiser: Any, x: Any, c_noise: Any, cond: Mapping[str, Any]) -> Any:
    return denoiser(x, c_noise, encoder_hidden_states=cond["encoder_hidden_states"], return_dict=False)[0]
