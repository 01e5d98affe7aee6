"""Pictures by diffusers' own pipelines, from the networks as they now are: what is previewed is what is shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image

from gesso.arrays import Picture
from gesso.engines.engine import SampleRequest
from gesso.engines.torch import decoding, pipelines, text
from gesso.engines.torch.models import Models
from gesso.errors import NumbersError
from gesso.families.family import Family

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Refiner:
    """A second stage, and the share of the noise that the first one removes; None for all of it."""

    models: Models
    handover: float | None = None


@torch.no_grad()
def draw(
    models: Models,
    family: Family,
    requests: Sequence[SampleRequest],
    autocast: Autocast,
    *,
    notes: list[str],
    refiner: Refiner | None = None,
    batch: int = 1,
) -> list[Picture]:
    """A picture for each request, in order, its noise from its own seed on the CPU.

    One at a time (`batch` = 1), since in a batch rounding would make it depend on its neighbours. In fp32 it is then,
    pixel for pixel, what plain diffusers draws from the same weights; in bf16 and fp16 it is what diffusers draws under
    autocast, the autoencoder excluded where half precision would break it (`notes` gets a sentence where that comes as
    a surprise). NumbersError where a picture is not finite.
    """
    stages = [models, *([refiner.models] if refiner else [])]
    _check(requests, stages, refiner)
    made: dict[tuple[str, bool], list[Any]] = {}
    pictures: list[Picture] = []
    for group in _groups(requests, batch):
        first = group[0]
        kind = first.scheduler, first.image is not None
        if kind not in made:
            made[kind] = [pipelines.pipeline(stage, first.scheduler, from_image=kind[1]) for stage in stages]
        pipes = made[kind]
        with autocast(), decoding.careful(pipes[-1].vae, stages[-1], notes):
            texts = [_texts(group, stage, family, notes) for stage in stages]
            drawn = _drawn(group, pipes, texts, refiner.handover if refiner else None)
        for request, image in zip(group, drawn, strict=True):
            if not np.isfinite(image).all():
                raise NumbersError(
                    f'the picture "{request.prompt}" (seed {request.seed}) came out as not-a-number',
                    todo="draw in fp32 (--precision fp32, in training train.precision); if it is fp32 already, "
                    "the weights are broken: use an earlier checkpoint or fetch the model again",
                )
            pictures.append(np.round(image * 255.0).astype(np.uint8))
    return pictures


def _check(requests: Sequence[SampleRequest], stages: Sequence[Models], refiner: Refiner | None) -> None:
    """RecipeError for a scheduler or a number of steps that cannot be."""
    for name, steps in dict.fromkeys((request.scheduler, request.steps) for request in requests):
        schedulers = [pipelines.made(stage, name) for stage in stages]
        for scheduler in schedulers:
            pipelines.can_take(scheduler, steps)
        if refiner:
            pipelines.can_share(schedulers, steps, refiner.handover)


def _groups(requests: Sequence[SampleRequest], size: int) -> Iterator[Sequence[SampleRequest]]:
    """Requests that one call of a pipeline can carry out: they differ in prompt and seed alone."""

    def alike(each: SampleRequest) -> tuple[object, ...]:
        how = (each.negative, each.width, each.height, each.steps, each.guidance, each.scheduler)
        return (*how, each.denoise, each.image is None)

    for _, same in groupby(requests, alike):
        left = list(same)
        yield from (left[at : at + size] for at in range(0, len(left), size))


def _texts(group: Sequence[SampleRequest], models: Models, family: Family, notes: list[str]) -> dict[str, Any]:
    """What a pipeline is told in words: the prompts themselves, or, where one of them is too long for the text encoder
    to read at once, the vectors of all its chunks.
    """
    prompts, negative = [each.prompt for each in group], group[0].negative
    counts, limit = text.counts([*prompts, negative], models, family, most=1)
    if max(counts) <= limit:
        # Where nothing is given, a pipeline knows best what stands for it: SDXL takes zeros, and not an encoded "".
        return {"prompt": prompts, "negative_prompt": [negative] * len(prompts) if negative else None}
    for prompt, count in zip([*prompts, negative], counts, strict=True):
        note = f'the prompt "{prompt[:40]}…" has {count - 2} tokens and is read in chunks of {limit - 2}'
        if count > limit and note not in models.said:
            models.said.add(note)
            notes.append(note)
    asked = [*prompts, *[negative] * len(prompts)]
    ids = {name: torch.from_numpy(value) for name, value in text.tokens(asked, models, family, most=0).items()}
    found = text.condition({name: value.to(models.device) for name, value in ids.items()}, models, family)
    names = {"encoder_hidden_states": "prompt_embeds", "text_embeds": "pooled_prompt_embeds"}
    told = {names[name]: value[: len(prompts)] for name, value in found.items()}
    return told | {f"negative_{names[name]}": value[len(prompts) :] for name, value in found.items()}


def _drawn(
    group: Sequence[SampleRequest], pipes: Sequence[Any], texts: Sequence[dict[str, Any]], handover: float | None
) -> Any:
    """float [B, height, width, 3] in [0, 1] by one pipeline, or by two of which the second goes on with the latents."""
    first = group[0]
    for pipe in pipes:
        pipelines.seeded(pipe.scheduler, [each.seed for each in group])
    asked = {
        "num_inference_steps": first.steps,
        "guidance_scale": first.guidance,
        "generator": [torch.Generator("cpu").manual_seed(each.seed) for each in group],
    }
    begin: dict[str, Any] = {"width": first.width, "height": first.height}
    if first.image is not None:
        starts = [Image.fromarray(each.image) for each in group if each.image is not None]
        begin = {"image": starts, "strength": first.denoise}
    if len(pipes) == 1:
        return pipes[0](**texts[0], **asked, **begin, output_type="np").images
    end, start = ({}, {}) if handover is None else ({"denoising_end": handover}, {"denoising_start": handover})
    latents = pipes[0](**texts[0], **asked, **begin, **end, output_type="latent").images
    return pipes[1](**texts[1], **asked, **start, image=latents, output_type="np").images
