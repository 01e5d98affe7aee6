"""What the MindSpore engine does not have, said of a recipe before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from gesso.recipe.keys import Problem
from gesso.schema import Recipe

ADAPTERS = ("lora", "ti", "none")
OPTIMIZERS = ("adamw", "adam", "sgd")
DEVICES = ("auto", "cpu", "npu")


def broken(recipe: Recipe) -> Iterator[Problem]:
    """A sentence for each choice that only the PyTorch engine can carry out."""
    kind, optim, train = recipe.adapter.kind, recipe.optim.name, recipe.train
    refused = {
        "adapter.kind": (kind in ADAPTERS, f'adapter.kind = "{kind}"; it has {_list(ADAPTERS)}'),
        "optim.name": (optim in OPTIMIZERS, f'optim.name = "{optim}"; it has {_list(OPTIMIZERS)}'),
        "train.device": (train.device in DEVICES, f'train.device = "{train.device}"; it has {_list(DEVICES)}'),
    }
    for key, (known, what) in refused.items():
        if not known:
            yield Problem(text=f"the MindSpore engine does not have {what}", keys=(key, "engine"))


def _list(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
