"""One file a family; `find` picks it by the pipeline class that a model folder names."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import cast

from gesso.errors import RecipeError
from gesso.families.family import Family


def find(pipeline: str, *, second_stage: bool = False) -> Family:
    """The family whose `pipelines`, or with `second_stage` also `refiners`, include the class `pipeline`.

    RecipeError when none does.
    """
    families = _all()
    for family in families:
        if pipeline in family.pipelines:
            return family
        if pipeline in family.refiners:
            if second_stage:
                return family
            raise RecipeError(
                f"{pipeline} is a second stage, which only goes on with what a base model has drawn",
                todo="start from the base model, and name this one with --refiner of gesso generate",
            )
    known = ", ".join(sorted({known for family in families for known in family.pipelines}))
    raise RecipeError(f"models of the kind {pipeline} are not known yet", todo=f"use a model whose kind is {known}")


def _all() -> list[Family]:
    names = [module.name for module in iter_modules(__path__) if module.name != "family"]
    return [cast(Family, import_module(f"{__name__}.{name}")) for name in names]
