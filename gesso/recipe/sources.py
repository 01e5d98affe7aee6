"""What the keys of [[data]] demand of each other and of [prior]."""

from __future__ import annotations

from collections.abc import Iterator

from gesso.recipe.keys import Problem
from gesso.schema import Recipe

HUB = "hub:"


def broken(recipe: Recipe) -> Iterator[Problem]:
    """Every rule between sources that `recipe` breaks."""
    for index, table in enumerate(recipe.data):
        for name in ("revision", "config"):
            if getattr(table, name) and not table.path.startswith(HUB):
                yield Problem(
                    text=f'data.{index}.{name} is for data sets of the Hub, path = "hub:user/name"',
                    keys=(f"data.{index}.{name}",),
                )
    of_class = [f"data.{index}.group" for index, table in enumerate(recipe.data) if table.group == "class"]
    if of_class and len(of_class) == len(recipe.data):
        yield Problem(
            text='every [[data]] has group = "class": there is nothing to learn, only a class to keep; '
            "add a [[data]] of your pictures",
            keys=tuple(of_class),
        )
    if of_class and recipe.prior.kind == "teacher":
        yield Problem(
            text=f'{of_class[0]} = "class" gives pictures of the class, and prior.kind = "teacher" does without; '
            "leave one of the two out",
            keys=("prior.kind", of_class[0]),
        )
    if of_class and recipe.prior.path:
        yield Problem(
            text=f'{of_class[0]} = "class" and prior.path both give pictures of the class; leave one of the two out',
            keys=("prior.path", of_class[0]),
        )


def switches(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], bool, str, *tuple[str, ...]]]:
    """(keys, whether they act, why not otherwise, the keys that decide), as in `rules`."""
    own = any(table.group == "class" for table in recipe.data)
    # kohya's file may hold pictures of the class, which is seen when it is read.
    may_own = own or any(table.path.lower().endswith(".toml") for table in recipe.data)
    without = "without prior.prompt, the class in words"
    yield ("prior.weight",), bool(recipe.prior.prompt) or may_own, without, "prior.prompt"
    names = ("prior.kind", "prior.captions", "prior.path", "prior.pictures", "prior.sampling_steps", "prior.guidance")
    yield names, bool(recipe.prior.prompt) or own, without, "prior.prompt"
    drawn = ("prior.pictures", "prior.sampling_steps", "prior.guidance", "prior.captions")
    yield drawn, not own, 'with [[data]] of group = "class": nothing is drawn, those are the class'
