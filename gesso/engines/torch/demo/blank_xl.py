"""Writes a tiny Stable Diffusion XL pipeline folder, 64×64 pixels, that has seen nothing; tests use it.

`python -m gesso.engines.torch.demo.blank_xl FOLDER [--edm | --refiner]`. It is arranged as SDXL is: two text encoders
of different widths, the second with a projection; sizes and crops as a condition; an autoencoder that wants float32.
`edm` makes it what playground-v2.5 is (EDM's scheduler, latents normalised by channel), `refiner` what SDXL's refiner
is (the second text encoder alone, an aesthetic score in place of the target size).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from gesso.demo import tokenizer
from gesso.demo.glyphs import SIZE
from gesso.engines.torch.demo import autoencoder
from gesso.engines.torch.demo.blank import LEGACY

TEXT_WIDTHS = (32, 48)
PROJECTION = 40
TIME_WIDTH = 8
"""Channels that each number of `time_ids` is embedded in."""
SCALING_FACTOR = 0.13025
PLAYGROUND = {
    "scaling_factor": 0.5,
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
}
"""What playground-v2.5 says of its autoencoder's latents."""


def unet(cross_attention: int, numbers: int) -> UNet2DConditionModel:
    """An untrained UNet in SDXL's arrangement, conditioned on `numbers` numbers of size, crop or score."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=cross_attention,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=numbers * TIME_WIDTH + PROJECTION,
        norm_num_groups=8,
    )


def text_config(vocab: dict[str, int], width: int, activation: str) -> CLIPTextConfig:
    """A CLIP text encoder of 2 layers of `width`, with the tokenizer's own mark ids."""
    return CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=PROJECTION,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.LENGTH,
        hidden_act=activation,
        bos_token_id=vocab[tokenizer.BEGIN],
        eos_token_id=vocab[tokenizer.END],
        pad_token_id=vocab[tokenizer.END],
    )


def scheduler(*, edm: bool = False) -> EulerDiscreteScheduler | EDMDPMSolverMultistepScheduler:
    """SDXL's schedule, or playground-v2.5's."""
    if edm:
        return EDMDPMSolverMultistepScheduler(
            sigma_min=0.002,
            sigma_max=80.0,
            sigma_data=0.5,
            rho=7.0,
            prediction_type="epsilon",
            num_train_timesteps=1000,
        )
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="epsilon",
    )


def use_legacy_names(folder: Path) -> None:
    """Puts `text_model.` before a saved text encoder's names, as `blank.use_legacy_names`, but not its projection."""
    path = folder / "model.safetensors"
    kept = (LEGACY, "text_projection.")
    named = {name if name.startswith(kept) else LEGACY + name: value for name, value in load_file(path).items()}
    save_file(named, path, metadata={"format": "pt"})


def write(folder: Path, *, edm: bool = False, refiner: bool = False, seed: int = 1) -> None:
    """The pipeline folder, fp32, the same bytes for the same seed."""
    torch.manual_seed(seed)
    vocab = tokenizer.write(folder / "tokenizer_2")
    vae = autoencoder.network()
    autoencoder.prepare(vae)
    vae.register_to_config(force_upcast=True, **(PLAYGROUND if edm else {"scaling_factor": SCALING_FACTOR}))
    second = CLIPTextModelWithProjection(text_config(vocab, TEXT_WIDTHS[1], "gelu"))
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder_2": second,
        "tokenizer_2": words,
        "scheduler": scheduler(edm=edm),
        "force_zeros_for_empty_prompt": not refiner,
        "add_watermarker": False,
    }
    if refiner:
        parts |= {"text_encoder": None, "tokenizer": None, "unet": unet(TEXT_WIDTHS[1], 5)}
        pipeline = StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)
    else:
        first = CLIPTextModel(text_config(vocab, TEXT_WIDTHS[0], "quick_gelu"))
        parts |= {"text_encoder": first, "tokenizer": words, "unet": unet(sum(TEXT_WIDTHS), 6)}
        pipeline = StableDiffusionXLPipeline(**parts)
    pipeline.save_pretrained(folder)
    for name in ("tokenizer_2",) if refiner else ("tokenizer", "tokenizer_2"):
        tokenizer.write(folder / name)  # again: transformers 5 leaves tokenizer.json and removes the older files
    for name in ("text_encoder_2",) if refiner else ("text_encoder", "text_encoder_2"):
        use_legacy_names(folder / name)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gesso.engines.torch.demo.blank_xl", description=__doc__)
    parser.add_argument("folder", type=Path)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--edm", action="store_true", help="as playground-v2.5 is")
    kind.add_argument("--refiner", action="store_true", help="as SDXL's refiner is")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    write(given.folder, edm=given.edm, refiner=given.refiner, seed=given.seed)


if __name__ == "__main__":
    main()
