"""What the tests of exports stand on: tiny models of three families, and random adapters of every kind on them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_formats_kohya import draw, pipe_of, targets

from gesso.formats import adapter, embeddings
from gesso.formats.metadata import Config
from gesso.words import full_name

FAMILIES = ("sd1", "sd2", "sdxl")
BLOCKS = 4
"""Of OFT in each layer."""


def second(blank: Path, folder: Path) -> Path:
    """The tiny Stable Diffusion as version 2 is arranged: matrices before attention, OpenCLIP's activation."""
    from diffusers import UNet2DConditionModel

    shutil.copytree(blank, folder)
    torch.manual_seed(2)
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config({**config, "use_linear_projection": True}).save_pretrained(folder / "unet")
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "gelu"}))
    return folder


def trained(kind: str, base: Path, folder: Path) -> Path:
    """Random adapters of a kind on every part, or words, as a run leaves them in its folder; alpha is not the rank."""
    folder.mkdir(parents=True)
    if kind == "ti":
        for name, write in embeddings.writers(words(base)).items():
            write(folder / name)
        return folder
    shapes = {
        name: shape
        for name, shape in targets(pipe_of(base), usual=kind != "loha").items()
        if kind != "oft" or len(shape) == 2
    }
    if kind in adapter.LORAS:
        arrays, sizes = draw(shapes, dora=kind == "dora")
    elif kind == "lokr":
        arrays, sizes = kronecker(base)
    else:
        arrays, sizes = others(kind, shapes)
    for name, write in adapter.writers(arrays, Config.of(sizes, kind=kind)).items():
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder / name)
    return folder


def words(base: Path) -> dict[str, np.ndarray]:
    """Two words, of two vectors and of one, for each text encoder."""
    rng = np.random.default_rng(3)
    pipe = pipe_of(base)
    made = {}
    for word, count in (("<dog>", 2), ("<hat>", 1)):
        for encoder in ("text_encoder", "text_encoder_2"):
            if getattr(pipe, encoder, None) is not None:
                width = getattr(pipe, encoder).config.hidden_size
                made[full_name(encoder, word)] = rng.normal(0, 1, (count, width)).astype(np.float32)
    return made


def kronecker(base: Path) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, float]]]:
    """A random LoKr with peft's own factors: of the text encoders' layers the second is whole, of the others' not."""
    from gesso.engines.engine import Adapter, Rule
    from gesso.engines.torch import adapters

    pipe, rng = pipe_of(base), np.random.default_rng(9)
    nets = {p: getattr(pipe, p) for p in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, p, None)}
    targets_ = {part: ("to_q", "to_v", "conv1", "ff.net.2") if part == "unet" else ("q_proj", "fc1") for part in nets}
    rules = (Rule(match="q_proj", rank=64, alpha=48.0), Rule(match="fc1", rank=64, alpha=48.0))
    chosen = Adapter(kind="lokr", rank=2, alpha=5.0, targets=targets_, rules=rules)
    adapters.attach(nets, chosen)
    arrays, sizes = {}, {}
    for part, net in nets.items():
        for name, value in net.named_parameters():
            if value.requires_grad:
                whole = f"{part}.{adapters.public_name(name)}".replace(".text_model.", ".")
                size = 0.02 if whole.endswith("lokr_w2") else 0.3
                arrays[whole] = rng.normal(0, size, tuple(value.shape)).astype(np.float32)
                sizes[whole.rpartition(".")[0]] = (2, 5.0) if part == "unet" else (64, 48.0)
    assert any(name.endswith("lokr_w2") for name in arrays)
    assert any(name.endswith("lokr_w2_a") for name in arrays)
    return arrays, sizes


def others(kind: str, shapes: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, float]]]:
    """A random LoHa or OFT."""
    rng = np.random.default_rng(8)
    arrays: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, float]] = {}

    def put(name: str, *shape: int, size: float = 0.3) -> None:
        arrays[name] = rng.normal(0, size, shape).astype(np.float32)

    for number, (name, shape) in enumerate(sorted(shapes.items())):
        out, width = shape[0], math.prod(shape[1:])
        rank, alpha = (2, 3)[number % 2], (1.0, 2.5, 5.0)[number % 3]
        sizes[name] = (rank, alpha)
        if kind == "loha":
            for which in (1, 2):
                put(f"{name}.hada_w{which}_a", out, rank)
                put(f"{name}.hada_w{which}_b", rank, width)
        else:
            sizes[name] = (BLOCKS, float(BLOCKS))
            side = width // BLOCKS
            put(f"{name}.oft_R.weight", BLOCKS, side * (side - 1) // 2, size=0.03)
    return arrays, sizes
