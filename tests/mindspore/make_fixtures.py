"""Writes what the tests of the MindSpore engine compare it with: the tiny models' shapes and the PyTorch engine's runs.

`python -m tests.mindspore.make_fixtures` in the environment of the PyTorch engine. tests/test_mindspore_fixtures.py
holds that what is there is still what would be written.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import cases
import tiny_models
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from gesso.demo import tokenizer
from gesso.formats import tensors

LEGACY = "text_model."
WIDTHS = {"sd": (32,), "sd2": (48,), "xl": (32, 48)}
PROJECTION, TIME_WIDTH = 40, 8
NOISE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}


def unet(family: str) -> UNet2DConditionModel:
    """A UNet in the family's arrangement."""
    common: dict[str, Any] = {
        "sample_size": tiny_models.SIDE // 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": (2, 4),
        "cross_attention_dim": sum(WIDTHS[family]),
    }
    if family == "xl":
        return UNet2DConditionModel(
            **common,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_WIDTH,
            projection_class_embeddings_input_dim=6 * TIME_WIDTH + PROJECTION,
        )
    return UNet2DConditionModel(
        **common,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        use_linear_projection=family == "sd2",
    )


def text_encoder(width: int, activation: str, *, projected: bool, words: int) -> Any:
    """A CLIP text encoder of 2 layers."""
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=PROJECTION,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.LENGTH,
        hidden_act=activation,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def vae() -> AutoencoderKL:
    """An autoencoder with attention in the middle, as Stable Diffusion's has."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=tiny_models.SIDE,
    )


def parts(family: str, words: int) -> dict[str, Any]:
    """The components of a family that have a configuration."""
    noise = {**NOISE, "prediction_type": "v_prediction" if family == "sd2" else "epsilon"}
    euler = EulerDiscreteScheduler(**noise, timestep_spacing="leading")
    made = {
        "unet": unet(family),
        "vae": vae(),
        "text_encoder": text_encoder(
            WIDTHS[family][0], "gelu" if family == "sd2" else "quick_gelu", projected=False, words=words
        ),
        "scheduler": euler if family == "xl" else DDIMScheduler(**noise, clip_sample=False, set_alpha_to_one=False),
    }
    if family == "xl":
        made["text_encoder_2"] = text_encoder(WIDTHS[family][1], "gelu", projected=True, words=words)
    return made


def described(folder: Path) -> dict[str, Any]:
    """models.json: by family and component its configuration and the shapes of its weights by name."""
    words = len(tokenizer.write(folder / "tokenizer"))
    found: dict[str, Any] = {}
    for family in tiny_models.PIPELINES:
        found[family] = {}
        for part, made in parts(family, words).items():
            place = folder / family / part
            made.save_pretrained(place)
            file = "scheduler_config.json" if part == "scheduler" else "config.json"
            shapes = {} if part == "scheduler" else {n: list(v.shape) for n, v in made.state_dict().items()}
            if part == "text_encoder":
                shapes = {n if n.startswith(LEGACY) else LEGACY + n: shape for n, shape in shapes.items()}
            shapes = {n: shape for n, shape in sorted(shapes.items()) if not n.endswith("position_ids")}
            config = json.loads((place / file).read_text(encoding="utf-8"))
            found[family][part] = {"file": file, "config": config, "shapes": shapes}
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = described(Path(folder))
        tiny_models.LIST.write_text(json.dumps(found, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
        bases = {family: tiny_models.write(Path(folder) / f"base-{family}", family) for family in found}
        for family, base in bases.items():
            tensors.save(cases.place(family, "answers"), cases.answers("torch", family, base), {})
        for name, case in cases.CASES.items():
            numbers, weights = cases.run("torch", case, bases)
            cases.place(name, "json").write_text(json.dumps(numbers) + "\n", encoding="utf-8")
            if weights:
                tensors.save(cases.place(name, "safetensors"), {k: v.astype(np.float32) for k, v in weights.items()})
            print(name, f"{numbers['loss'][0]:.4f} → {numbers['loss'][-1]:.4f}")
        for name in cases.EXCHANGED:
            family = cases.CASES[name].family
            weights = {k: np.array(v) for k, v in tensors.load(cases.place(name, "safetensors")).items()}
            cases.write_lora(cases.place(name, "torch-lora"), weights)
            picture = cases.with_lora("torch", family, bases[family], cases.place(name, "torch-lora"))
            tensors.save(cases.place(name, "torch-picture"), {"picture": picture}, {})


if __name__ == "__main__":
    main()
