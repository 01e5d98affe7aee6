"""A model folder for the reference engine: shaped like Stable Diffusion's, with a linear map for a UNet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gesso.formats import tensors
from gesso.keys import generator

CHANNELS = 4
CONFIGS: dict[str, dict[str, Any]] = {
    "unet/config.json": {"_class_name": "Linear", "sample_size": 4, "in_channels": CHANNELS},
    "vae/config.json": {"_class_name": "Means", "block_out_channels": [1, 1, 1, 1], "scaling_factor": 1.0},
    "text_encoder/config.json": {"_class_name": "Hash"},
    "tokenizer/tokenizer_config.json": {"_class_name": "Words"},
    "scheduler/scheduler_config.json": {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
    },
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        **{name: ["diffusers", "Linear"] for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")},
    },
}


def write(folder: Path) -> Path:
    """The folder, whose own resolution is 32 × 32 pixels; the same bytes every time."""
    for name, config in CONFIGS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    linear = {
        "linear.weight": generator(0, "reference-weights").standard_normal((CHANNELS, CHANNELS), dtype=np.float32)
        * 0.1,
        "linear.bias": np.zeros(CHANNELS, dtype=np.float32),
        "linear.condition": np.zeros((CHANNELS, 3), dtype=np.float32),
    }
    tensors.save(folder / "unet/diffusion_pytorch_model.safetensors", linear)
    tensors.save(folder / "vae/diffusion_pytorch_model.safetensors", {"none": np.zeros(1, dtype=np.float32)})
    tensors.save(folder / "text_encoder/model.safetensors", {"none": np.zeros(1, dtype=np.float32)})
    return folder
