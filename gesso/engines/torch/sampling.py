"""Pictures by diffusers' own pipelines, from the networks as they now are: what is previewed is what is shipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gesso.arrays import Picture
from gesso.engines.engine import SampleRequest
from gesso.engines.torch import adapters
from gesso.engines.torch.models import Models
from gesso.errors import NumbersError, RecipeError
from gesso.families.family import Family
from gesso.formats import lora

Autocast = Callable[[], AbstractContextManager[Any]]


def pipeline(models: Models, scheduler: str = "") -> Any:
    """The folder's own pipeline class around the loaded networks."""
    import diffusers

    chosen = _scheduler(models, scheduler)  # first: a name that is none should not cost the loading of a model
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
    made = kind(**parts, scheduler=chosen)
    made.set_progress_bar_config(disable=True)
    return made


def _scheduler(models: Models, name: str) -> Any:
    own = models.scheduler
    if not name:
        return type(own).from_config(own.config)
    kinds = {kind.__name__: kind for kind in (type(own), *own.compatibles)}
    if name not in kinds:
        known = ", ".join(sorted(kinds))
        raise RecipeError(f'this model cannot be drawn with a scheduler "{name}"', todo=f"it takes {known}")
    try:
        return kinds[name].from_config(own.config)
    except (ImportError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(f"{name} cannot be used here: {reason}", todo="choose another scheduler") from error


def _can_take(scheduler: Any, steps: int) -> None:
    """RecipeError for a number of steps that a scheduler cannot take."""
    most = scheduler.config.num_train_timesteps
    if steps > most:
        raise RecipeError(f"{steps} denoising steps are asked for, but the model has {most} noise levels")
    try:
        scheduler.set_timesteps(steps)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{type(scheduler).__name__} cannot draw in {steps} steps: {error}",
            todo="ask for more steps, or for another scheduler",
        ) from error


@torch.no_grad()
def draw(models: Models, requests: Sequence[SampleRequest], autocast: Autocast) -> list[Picture]:
    """A picture for each request, in order.

    Each is drawn alone, its noise from its own seed on the CPU: in a batch, rounding would make it depend on its
    neighbours. In fp32 it is, pixel for pixel, what plain diffusers draws from the same weights; in bf16 and fp16 it is
    what diffusers draws under autocast, the autoencoder included. NumbersError where a picture is not finite.
    """
    for name, steps in dict.fromkeys((request.scheduler, request.steps) for request in requests):
        _can_take(_scheduler(models, name), steps)
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
        if not np.isfinite(image).all():
            raise NumbersError(
                f'the picture "{request.prompt}" (seed {request.seed}) came out as not-a-number',
                todo="draw in fp32 (--precision fp32, in training train.precision); if it is fp32 already, "
                "the weights are broken: use an earlier checkpoint or fetch the model again",
            )
        pictures.append(np.round(image * 255.0).astype(np.uint8))
    return pictures


def add_lora(models: Models, family: Family, path: Path, *, name: str, strength: float) -> None:
    """Put a LoRA file into the denoiser and the text encoders, as it has them, beside those already there.

    Scaled by `strength`. RecipeError where a part of it fits no part of the model; `lora.fit` finds that out before.
    """
    arrays, config = lora.read(path)
    parts = {key.split(".", 1)[0] for key in arrays}
    foreign = sorted(parts - {family.denoiser, *(encoder for encoder, _ in family.encoders)})
    if foreign:
        raise RecipeError(f"the LoRA is also for {', '.join(foreign)}, which this model does not have", where=str(path))
    for part in sorted(parts):
        net = models.get(part)
        own = {key.split(".", 1)[1]: value for key, value in arrays.items() if key.startswith(f"{part}.")}
        if not hasattr(net, "text_model"):  # transformers 5 has dropped this level of names, files keep it
            own = {key.removeprefix("text_model."): value for key, value in own.items()}
        targets = sorted({key.rsplit(".lora_", 1)[0] for key in own})
        adapters.load(net, own, rank=config.rank, alpha=config.alpha * strength, targets=targets, name=name)
        for module in net.modules():
            if hasattr(module, "set_adapter") and hasattr(module, "lora_A"):
                module.set_adapter(list(module.lora_A))
