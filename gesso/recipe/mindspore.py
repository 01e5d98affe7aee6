"""What the MindSpore engine does not have, said of a recipe before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gesso import samplers
from gesso.errors import RecipeError
from gesso.recipe.keys import Problem
from gesso.schema import Recipe
from gesso.settings import drops

ADAPTERS = ("lora", "ti", "none")
OPTIMIZERS = ("adamw", "adam", "sgd")
DEVICES = ("auto", "cpu", "npu")
"""And npu:1, one of several."""


def broken(recipe: Recipe) -> Iterator[Problem]:
    """A sentence for each choice that only the PyTorch engine can carry out."""
    kind, optim, train = recipe.adapter.kind, recipe.optim.name, recipe.train
    refused = {
        "adapter.kind": (kind in ADAPTERS, f'adapter.kind = "{kind}"; it has {_list(ADAPTERS)}'),
        "optim.name": (optim in OPTIMIZERS, f'optim.name = "{optim}"; it has {_list(OPTIMIZERS)}'),
        "train.device": (
            re.sub(r"^npu:\d+$", "npu", train.device) in DEVICES,
            f'train.device = "{train.device}"; it has {_list(DEVICES)}',
        ),
    }
    for key, (known, what) in refused.items():
        if not known:
            yield Problem(text=f"the MindSpore engine does not have {what}", keys=(key, "engine"))
    if why := _undrawable(recipe.sample.scheduler):
        text = f'the MindSpore engine cannot draw with sample.scheduler = "{recipe.sample.scheduler}": {why}'
        yield Problem(text=f"{text}; choose another", keys=("sample.scheduler", "engine"))
    if recipe.mindspore.compile and (dropping := drops(recipe)):
        yield Problem(
            text="mindspore.compile makes one graph for all steps, and dropout is drawn anew in every step; "
            f"leave out mindspore.compile or {dropping[0]}",
            keys=(dropping[0], "mindspore.compile"),
        )
    if recipe.mindspore.compile and recipe.train.gradient_checkpointing:
        yield Problem(
            text="train.gradient_checkpointing saves no memory in a graph; leave out it or mindspore.compile",
            keys=("train.gradient_checkpointing", "mindspore.compile"),
        )


def _undrawable(scheduler: str) -> str:
    """Why this engine cannot draw with a scheduler, or ""; what is the name of none is said of every engine."""
    try:
        return samplers.NO_MINDSPORE.get(samplers.read(scheduler).kind, "") if scheduler else ""
    except RecipeError:
        return ""


def _list(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
