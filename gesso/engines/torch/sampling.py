"""Pictures by diffusers' own pipelines, from the networks as they now are: what is previewed is what is shipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gesso.arrays import Picture
from gesso.engines.engine import SampleRequest
from gesso.engines.torch import adapters
from gesso.engines.torch.models import Models
from gesso.errors import RecipeError
from gesso.families.family import Family
from gesso.formats import lora

Autocast = Callable[[], AbstractContextManager[Any]]


def pipeline(models: Models, scheduler: str = "") -> Any:
    """The folder's own pipeline class around the loaded networks."""
    import diffusers

    kind = getattr(diffusers, models.index["_class_name"])
    own = {"_class_name", "_diffusers_version", "scheduler"}
    parts: dict[str, Any] = {}
    for name, value in models.index.items():
        if name in own or name == "safety_checker":
            continue
        if isinstance(value, list):
            parts[name] = models.get(name) if value[0] and name != "feature_extractor" else None
        elif name == "requires_safety_checker":
            parts[name] = False
    if "safety_checker" in models.index:
        parts["safety_checker"] = None
    made = kind(**parts, scheduler=_scheduler(models, scheduler))
    made.set_progress_bar_config(disable=True)
    return made


def _scheduler(models: Models, name: str) -> Any:
    own = models.scheduler
    if not name:
        return type(own).from_config(own.config)
    kind = getattr(import_module("diffusers"), name, None)
    if kind is None or not hasattr(kind, "from_config"):
        known = ", ".join(sorted(each.__name__ for each in own.compatibles))
        raise RecipeError(f'there is no scheduler "{name}"', todo=f"this model takes {known}")
    return kind.from_config(own.config)


@torch.no_grad()
def draw(models: Models, requests: Sequence[SampleRequest], autocast: Autocast) -> list[Picture]:
    """A picture for each request, in order.

    Each is drawn alone, its noise from its own seed on the CPU: in a batch, rounding would make it depend on its
    neighbours, and it would no longer be, pixel for pixel, what plain diffusers draws from the same weights.
    """
    made: dict[str, Any] = {}
    pictures = []
    for request in requests:
        if request.scheduler not in made:
            made[request.scheduler] = pipeline(models, request.scheduler)
        with autocast():
            image = made[request.scheduler](
                prompt=request.prompt,
                negative_prompt=request.negative,
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=torch.Generator("cpu").manual_seed(request.seed),
                output_type="np",
            ).images[0]
        pictures.append(np.round(np.nan_to_num(image) * 255.0).astype(np.uint8))
    return pictures


def add_lora(models: Models, family: Family, path: Path, *, name: str, strength: float) -> None:
    """Put a LoRA file into the denoiser beside those already there, scaled by `strength`."""
    arrays, config = lora.read(path)
    prefix = f"{family.denoiser}."
    own = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    if not own:
        raise RecipeError(f"the adapter holds nothing for this model's {family.denoiser}", where=str(path))
    net = models.get(family.denoiser)
    targets = sorted({key.rsplit(".lora_", 1)[0] for key in own})
    adapters.load(net, own, rank=config.rank, alpha=config.alpha * strength, targets=targets, name=name)
    for module in net.modules():
        if hasattr(module, "set_adapter") and hasattr(module, "lora_A"):
            module.set_adapter(list(module.lora_A))
