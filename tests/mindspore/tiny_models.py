"""Tiny random models as diffusers has them on disk, made by numpy alone: the same bytes whichever engine is installed.

The configurations and the shapes of the weights are in models.json, which make_fixtures.py writes with diffusers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gesso.arrays import Float32
from gesso.demo import tokenizer
from gesso.formats import tensors
from gesso.keys import generator

HERE = Path(__file__).parent
LIST = HERE / "models.json"
PIPELINES = {"sd": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "xl": "StableDiffusionXLPipeline"}
SIDE = 64
"""Pixels; latents are a quarter of it."""


def write(folder: Path, family: str) -> Path:
    """The pipeline folder of "sd", "sd2" or "xl"."""
    for part, known in json.loads(LIST.read_text(encoding="utf-8"))[family].items():
        place = folder / part
        place.mkdir(parents=True, exist_ok=True)
        (place / known["file"]).write_text(json.dumps(known["config"], indent=1) + "\n", encoding="utf-8")
        if known["shapes"]:
            stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
            arrays = {name: value(f"{family} {part} {name}", shape) for name, shape in known["shapes"].items()}
            tensors.save(place / f"{stem}.safetensors", arrays, {"format": "pt"})
    for name in ("tokenizer", "tokenizer_2")[: 1 + (family == "xl")]:
        tokenizer.write(folder / name)
    (folder / "model_index.json").write_text(json.dumps(_index(family), indent=1) + "\n", encoding="utf-8")
    return folder


def value(name: str, shape: list[int]) -> Float32:
    """Weights that keep the size of what passes through them, norms near 1, small biases."""
    noise = generator(0, name).standard_normal(tuple(shape), dtype=np.float32)
    if len(shape) > 1:
        size = 0.3 if "embedding" in name.rsplit(".", 2)[-2] else 1.0 / np.sqrt(np.prod(shape[1:]))
        return np.asarray(noise * np.float32(size), dtype=np.float32)
    return np.asarray((1.0 if name.endswith("weight") else 0.0) + np.float32(0.05) * noise, dtype=np.float32)


def _index(family: str) -> dict[str, Any]:
    xl = family == "xl"
    schedulers = {"sd": "DDIMScheduler", "sd2": "DDIMScheduler", "xl": "EulerDiscreteScheduler"}
    index: dict[str, Any] = {
        "_class_name": PIPELINES[family],
        "_diffusers_version": "0.35.2",
        "scheduler": ["diffusers", schedulers[family]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if xl:
        second = {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
        return {**index, **second, "force_zeros_for_empty_prompt": True}
    return {**index, "safety_checker": [None, None], "requires_safety_checker": False}
