"""Writes the base model before training: a real Stable Diffusion pipeline folder, 64×64, that has seen nothing.

`python -m gesso.engines.torch.demo.blank FOLDER [--autoencoder FOLDER]`. Pre-training starts from it, and tests use
it as the model that must not already know the answer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from gesso.demo import tokenizer
from gesso.demo.glyphs import SIZE
from gesso.engines.torch.demo import autoencoder

TEXT_WIDTH = 128
LEGACY = "text_model."


def unet() -> UNet2DConditionModel:
    """An untrained UNet of 3.2 M weights in Stable Diffusion 1.x's arrangement, one layer a block.

    Attention at 16×16 and 8×8, none at 4×4: text must reach the places where shapes are drawn, or a LoRA on attention
    alone cannot teach a shape. Cost, forward and backward, one thread, a sample at batch 32, AVX2 (November 2026):
    12.9 ms; (40, 80, 128) 17.6, (48, 96, 128) 20.9; attention at 8×8 and 4×4 instead: (32, 64, 128) 10.1,
    (48, 96, 128) 15.5. diffusers' `attention_head_dim` is the NUMBER of heads here (its historical misnomer): heads of
    16, 16 and 32 channels.
    """
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
    )


def text_encoder(vocab: dict[str, int]) -> CLIPTextModel:
    """An untrained CLIP text encoder: 2 layers of width 128, 32 positions, the tokenizer's own mark ids.

    Without the ids transformers would look for CLIP's 49407 and pool at the wrong place.
    """
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=vocab[tokenizer.BEGIN],
            eos_token_id=vocab[tokenizer.END],
            pad_token_id=vocab[tokenizer.END],
        )
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.x's schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def use_legacy_names(folder: Path) -> None:
    """Puts `text_model.` before the names in a saved CLIPTextModel.

    transformers 5 leaves it out; older readers then find none of their names and start from random weights without
    a word. transformers 5 reads both.
    """
    path = folder / "model.safetensors"
    weights = load_file(path)
    named = {name if name.startswith(LEGACY) else LEGACY + name: value for name, value in weights.items()}
    save_file(named, path, metadata={"format": "pt"})


def write(folder: Path, *, trained_autoencoder: Path | None = None, seed: int = 1) -> None:
    """The pipeline folder, fp32, the same bytes for the same seed.

    Without `trained_autoencoder` (a folder as `AutoencoderKL.save_pretrained` leaves it) that part is untrained too.
    """
    torch.manual_seed(seed)
    vocab = tokenizer.write(folder / "tokenizer")
    parts = {"unet": unet(), "text_encoder": text_encoder(vocab)}
    if trained_autoencoder is None:
        vae = autoencoder.network()
        autoencoder.prepare(vae)
    else:
        vae = AutoencoderKL.from_pretrained(trained_autoencoder)
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=vae,
        tokenizer=words,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
    pipeline.save_pretrained(folder)
    tokenizer.write(folder / "tokenizer")  # again: transformers 5 leaves tokenizer.json and removes the older files
    use_legacy_names(folder / "text_encoder")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gesso.engines.torch.demo.blank", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--autoencoder", type=Path, help="a trained autoencoder folder")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    write(given.folder, trained_autoencoder=given.autoencoder, seed=given.seed)


if __name__ == "__main__":
    main()
