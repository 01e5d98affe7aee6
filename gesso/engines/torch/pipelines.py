"""diffusers' own pipelines around the loaded networks, with a scheduler that can do what is asked of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from gesso import samplers
from gesso.engines.torch.models import UNUSED, Models
from gesso.errors import RecipeError

IMAGE = "Img2Img"
REDRAWN = 0.3
"""Share of the steps that diffusers' img2img pipeline takes when it is asked nothing else."""


def pipeline(models: Models, scheduler: str = "", *, from_image: bool = False) -> Any:
    """The folder's own pipeline class around the loaded networks, or the one of the same family that begins with a
    picture.
    """
    import diffusers

    chosen = made(models, scheduler)  # first: a name that is none should not cost the loading of a model
    name = str(models.index["_class_name"])
    kind = getattr(diffusers, name.replace("Pipeline", "Img2ImgPipeline") if from_image and IMAGE not in name else name)
    takes = inspect.signature(kind.__init__).parameters
    parts: dict[str, Any] = {}
    for name, value in models.index.items():
        if isinstance(value, list):
            parts[name] = models.get(name) if value[0] and name not in {*UNUSED, "scheduler"} else None
        elif name in takes:
            parts[name] = value
    if "safety_checker" in takes:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    found = kind(**{**parts, "scheduler": chosen})
    found.set_progress_bar_config(disable=True)
    return found


def made(models: Models, name: str) -> Any:
    """The scheduler called `name`, on the model's own noise levels; the model's own for ""."""
    import diffusers

    own = models.scheduler
    if not name:
        return type(own).from_config(own.config)
    sampler = samplers.read(name, type(own).__name__, str(own.config.get("prediction_type", "")))
    try:
        return getattr(diffusers, sampler.kind).from_config(own.config, **sampler.options)
    except (ImportError, ValueError, NotImplementedError) as error:
        missing = next((library for library in ("scipy", "torchsde") if library in str(error)), "")
        reason = f"it needs {missing}" if missing else str(error).strip().splitlines()[0]
        todo = f"`pip install {missing}`, or choose another scheduler" if missing else "choose another scheduler"
        raise RecipeError(f"{name} cannot be used here: {reason}", todo=todo) from error


def can_take(scheduler: Any, steps: int) -> None:
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


def seeded(scheduler: Any, seeds: Sequence[int]) -> None:
    """Give a seed for each picture to a scheduler that draws its noise from seeds of its own (DPMSolverSDEScheduler):
    diffusers would leave it to chance, and the same seed would not draw the same picture.
    """
    if "noise_sampler_seed" in scheduler.config and scheduler.config.noise_sampler_seed is None:
        scheduler.noise_sampler_seed = seeds[0] if len(seeds) == 1 else list(seeds)


def can_share(schedulers: Sequence[Any], steps: int, handover: float | None) -> None:
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
