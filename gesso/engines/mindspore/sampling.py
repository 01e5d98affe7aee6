"""Pictures by mindone's pipelines, from the networks as they now are."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from gesso import samplers
from gesso.arrays import Float32, Picture
from gesso.engines.engine import SampleRequest
from gesso.engines.mindspore import adapters, text
from gesso.engines.mindspore.models import UNUSED, Models, first_line, public
from gesso.engines.mindspore.noise import BLOCK, Noise
from gesso.errors import NumbersError, RecipeError
from gesso.families.family import Family
from gesso.formats import adapter as files
from gesso.formats import lora

NAMES = {"encoder_hidden_states": "prompt_embeds", "text_embeds": "pooled_prompt_embeds"}


def pipeline(models: Models, scheduler: str = "") -> Any:
    """The folder's own pipeline class around the loaded networks."""
    from mindone import diffusers

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
    made = kind(**{name: value for name, value in {**parts, "scheduler": chosen}.items() if name in takes})
    made.set_progress_bar_config(disable=True)
    return made


def _scheduler(models: Models, name: str) -> Any:
    """The scheduler called `name`, on the model's own noise levels; the model's own for ""."""
    from mindone import diffusers

    own = models.scheduler
    sampler = samplers.read(name or type(own).__name__, type(own).__name__)
    kind = getattr(diffusers, sampler.kind, None)
    why = samplers.NO_MINDSPORE.get(sampler.kind) or ("" if kind else "mindone does not have it")
    if kind is None or why:
        raise RecipeError(f"{sampler.kind} cannot be used here: {why}", todo="choose another scheduler")
    try:
        return kind.from_config(own.config, **sampler.options)
    except (ImportError, ValueError, NotImplementedError) as error:
        raise RecipeError(
            f"{name} cannot be used here: {first_line(error)}", todo="choose another scheduler"
        ) from error


def draw(models: Models, family: Family, requests: Sequence[SampleRequest], *, notes: list[str]) -> list[Picture]:
    """A picture for each request, in order, drawn alone, its noise that of PyTorch's generator for its seed.

    RecipeError for what cannot be drawn, NumbersError where a picture is not finite. `notes` gets a sentence where a
    prompt is read in several chunks.
    """
    for request in requests:
        if request.image is not None:
            raise RecipeError("the MindSpore engine begins with noise alone", todo="draw with the torch engine")
    for name, steps in dict.fromkeys((request.scheduler, request.steps) for request in requests):
        _can_take(_scheduler(models, name), steps)
    made: dict[str, Any] = {}
    pictures = []
    for request in requests:
        if request.scheduler not in made:
            made[request.scheduler] = pipeline(models, request.scheduler)
        image = _drawn(made[request.scheduler], request, _texts(request, models, family, notes))
        if not np.isfinite(image).all():
            raise NumbersError(
                f'the picture "{request.prompt}" (seed {request.seed}) came out as not-a-number',
                todo="draw in fp32 (train.precision); if it is fp32 already, the weights are broken: "
                "use an earlier checkpoint or fetch the model again",
            )
        pictures.append(np.round(image * 255.0).astype(np.uint8))
    return pictures


def _texts(request: SampleRequest, models: Models, family: Family, notes: list[str]) -> dict[str, Any]:
    """What a pipeline is told in words: the prompts themselves, or, where one of them is too long for the text encoder
    to read at once, the vectors of all its chunks.
    """
    asked = [request.prompt, request.negative]
    counts, limit = text.counts(asked, models, family, most=1)
    if max(counts) <= limit:
        # Where nothing is given, a pipeline knows best what stands for it: SDXL takes zeros, and not an encoded "".
        return {"prompt": request.prompt, "negative_prompt": request.negative or None}
    for prompt, count in zip(asked, counts, strict=True):
        note = f'the prompt "{prompt[:40]}…" has {count - 2} tokens and is read in chunks of {limit - 2}'
        if count > limit and note not in models.said:
            models.said.add(note)
            notes.append(note)
    ids = text.tokens(asked, models, family, most=0)
    found = text.condition({name: ms.Tensor(value) for name, value in ids.items()}, models, family)
    return {
        f"{negative}{NAMES[name]}": value[at : at + 1]
        for name, value in found.items()
        for at, negative in enumerate(("", "negative_"))
    }


def _drawn(pipe: Any, request: SampleRequest, texts: dict[str, Any]) -> Float32:
    """float [height, width, 3] in [0, 1]."""
    values = int(pipe.unet.config.in_channels) * (request.width // pipe.vae_scale_factor)
    if values * (request.height // pipe.vae_scale_factor) < BLOCK:
        raise RecipeError(f"a picture of {request.width} × {request.height} pixels is too small to draw")
    found = pipe(
        **texts,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=Noise(request.seed),
        width=request.width,
        height=request.height,
        output_type="np",
        return_dict=False,
    )
    return np.asarray(found[0][0])


def _can_take(scheduler: Any, steps: int) -> None:
    """RecipeError for a number of steps that a scheduler cannot take."""
    most = scheduler.config.num_train_timesteps
    if steps > most:
        raise RecipeError(f"{steps} denoising steps are asked for, but the model has {most} noise levels")
    try:
        scheduler.set_timesteps(steps)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{type(scheduler).__name__} cannot draw in {steps} steps: {first_line(error)}",
            todo="ask for more steps, or for another scheduler",
        ) from error


def add_lora(models: Models, family: Family, path: Path, *, strength: float) -> None:
    """Put the LoRA in a file into the parts it is for, beside those already there; `strength` multiplies alpha.

    RecipeError where it fits no part of the model, and for adapters of other kinds.
    """
    arrays, config = files.read(path)
    if config.kind != "lora":
        raise RecipeError(
            f"the MindSpore engine knows LoRA alone, and this is a {config.kind}",
            where=str(path),
            todo='set engine = "torch"',
        )
    parts = {key.split(".", 1)[0] for key in arrays}
    foreign = sorted(parts - {family.denoiser, *(encoder for encoder, _ in family.encoders)})
    if foreign:
        raise RecipeError(
            f"the adapter is also for {', '.join(foreign)}, which this model does not have", where=str(path)
        )

    def named(part: str, module: str) -> str:
        return public(models.get(part), lora.named(part, module.removeprefix(f"{part}.")))

    for part in sorted(parts):
        own = {named(part, key): value for key, value in arrays.items() if key.startswith(f"{part}.")}
        sizes = {
            named(part, module): (rank, alpha * strength)
            for module, (rank, alpha) in files.sizes(arrays, config).items()
            if module.startswith(f"{part}.")
        }
        adapters.load(models, part, own, sizes)
