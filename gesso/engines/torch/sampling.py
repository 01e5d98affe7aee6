"""Pictures by diffusers' own pipelines, from the networks as they now are: what is previewed is what is shipped."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gesso.arrays import Picture
from gesso.engines.engine import SampleRequest
from gesso.engines.torch import adapters, decoding
from gesso.engines.torch.models import UNUSED, Models
from gesso.errors import NumbersError, RecipeError
from gesso.families.family import Family
from gesso.formats import adapter as files
from gesso.formats import lora

Autocast = Callable[[], AbstractContextManager[Any]]

REDRAWN = 0.3
"""Share of the steps that diffusers' img2img pipeline takes when it is asked nothing else."""


@dataclass(frozen=True, slots=True)
class Refiner:
    """A second stage, and the share of the noise that the first one removes; None for all of it."""

    models: Models
    handover: float | None = None


def pipeline(models: Models, scheduler: str = "") -> Any:
    """The folder's own pipeline class around the loaded networks."""
    import diffusers

    chosen = _scheduler(models, scheduler)  # first: a name that is none should not cost the loading of a model
    kind = getattr(diffusers, models.index["_class_name"])
    takes = inspect.signature(kind.__init__).parameters
    parts: dict[str, Any] = {}
    for name, value in models.index.items():
        if isinstance(value, list):
            parts[name] = models.get(name) if value[0] and name not in {*UNUSED, "scheduler"} else None
        elif name in takes:
            parts[name] = value
    if "safety_checker" in takes:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    made = kind(**{**parts, "scheduler": chosen})
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


def _can_share(schedulers: Sequence[Any], steps: int, handover: float | None) -> None:
    """RecipeError where one of two stages has no step to take; `set_timesteps` has been called on both schedulers."""
    if handover is None:
        if int(steps * REDRAWN) < 1:
            raise RecipeError(
                f"{steps} denoising steps leave none for the refiner, which takes {REDRAWN:.0%} of them",
                todo=f"ask for at least {math.ceil(1 / REDRAWN)} steps, or hand over earlier with --handover",
            )
        return
    first, second = schedulers
    levels = first.config.num_train_timesteps
    # As diffusers cuts the noise levels; a step at the cut itself is the first stage's.
    cut = round(levels - handover * levels)
    if not (any(t >= cut for t in first.timesteps) and any(t < cut for t in second.timesteps)):
        raise RecipeError(
            f"with {steps} denoising steps and a handover at {handover:g} one of the two stages has no step to take",
            todo="ask for more steps, or hand over nearer to 0.5",
        )


@torch.no_grad()
def draw(
    models: Models,
    requests: Sequence[SampleRequest],
    autocast: Autocast,
    *,
    notes: list[str],
    refiner: Refiner | None = None,
) -> list[Picture]:
    """A picture for each request, in order.

    Each is drawn alone, its noise from its own seed on the CPU: in a batch, rounding would make it depend on its
    neighbours. In fp32 it is, pixel for pixel, what plain diffusers draws from the same weights; in bf16 and fp16 it is
    what diffusers draws under autocast, the autoencoder excluded where half precision would break it (`notes` gets a
    sentence where that comes as a surprise). NumbersError where a picture is not finite.
    """
    stages = [models, *([refiner.models] if refiner else [])]
    for name, steps in dict.fromkeys((request.scheduler, request.steps) for request in requests):
        schedulers = [_scheduler(stage, name) for stage in stages]
        for scheduler in schedulers:
            _can_take(scheduler, steps)
        if refiner:
            _can_share(schedulers, steps, refiner.handover)
    made: dict[str, list[Any]] = {}
    pictures = []
    for request in requests:
        if request.scheduler not in made:
            made[request.scheduler] = [pipeline(stage, request.scheduler) for stage in stages]
        pipes = made[request.scheduler]
        with autocast(), decoding.careful(pipes[-1].vae, stages[-1], notes):
            image = _drawn(request, pipes, refiner.handover if refiner else None)
        if not np.isfinite(image).all():
            raise NumbersError(
                f'the picture "{request.prompt}" (seed {request.seed}) came out as not-a-number',
                todo="draw in fp32 (--precision fp32, in training train.precision); if it is fp32 already, "
                "the weights are broken: use an earlier checkpoint or fetch the model again",
            )
        pictures.append(np.round(image * 255.0).astype(np.uint8))
    return pictures


def _drawn(request: SampleRequest, pipes: Sequence[Any], handover: float | None) -> Any:
    """float [height, width, 3] in [0, 1] by one pipeline, or by two of which the second goes on with the latents."""
    asked = {
        "prompt": request.prompt,
        # Where nothing is given, a pipeline knows best what stands for it: SDXL takes zeros, and not an encoded "".
        "negative_prompt": request.negative or None,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "generator": torch.Generator("cpu").manual_seed(request.seed),
    }
    size = {"width": request.width, "height": request.height}
    if len(pipes) == 1:
        return pipes[0](**asked, **size, output_type="np").images[0]
    end, start = ({}, {}) if handover is None else ({"denoising_end": handover}, {"denoising_start": handover})
    latents = pipes[0](**asked, **size, **end, output_type="latent").images
    return pipes[1](**asked, **start, image=latents, output_type="np").images[0]


def add_lora(models: Models, family: Family, path: Path, *, name: str, strength: float) -> None:
    """Put adapters (a LoRA file, or a run's folder) into the parts they are for, beside those already there.

    `strength` multiplies alpha, as diffusers' set_adapters does. RecipeError where they fit no part of the model, which
    `adapter.fit` finds out before, and for an OFT with another strength than 1.
    """
    arrays, config = files.read(path)
    if config.kind == "oft" and strength != 1.0:
        raise RecipeError(files.UNSCALABLE, where=str(path), todo="leave its strength at 1")
    parts = {key.split(".", 1)[0] for key in arrays}
    foreign = sorted(parts - {family.denoiser, *(encoder for encoder, _ in family.encoders)})
    if foreign:
        raise RecipeError(
            f"the adapter is also for {', '.join(foreign)}, which this model does not have", where=str(path)
        )
    for part in sorted(parts):
        net = models.get(part)
        wrapped = hasattr(net, "text_model")  # transformers 5 has dropped this level of names, LoRA files keep it
        own = {
            lora.named(part, key.removeprefix(f"{part}."), wrapped=wrapped): value
            for key, value in arrays.items()
            if key.startswith(f"{part}.")
        }
        sizes = {
            lora.named(part, module.removeprefix(f"{part}."), wrapped=wrapped): (rank, alpha * strength)
            for module, (rank, alpha) in files.sizes(arrays, config).items()
            if module.startswith(f"{part}.")
        }
        adapters.load(net, own, sizes, kind=config.kind, factor=config.factor, name=name)
