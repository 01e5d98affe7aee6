"""One file a family; `find` picks it by the pipeline class that a model folder names."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import cast

from gesso.errors import RecipeError
from gesso.families.family import Family


def find(pipeline: str) -> Family:
    """The family whose `pipelines` include the class `pipeline`; RecipeError when none does."""
    names = [module.name for module in iter_modules(__path__) if module.name != "family"]
    families = [cast(Family, import_module(f"{__name__}.{name}")) for name in names]
    for family in families:
        if pipeline in family.pipelines:
            return family
    known = ", ".join(sorted({known for family in families for known in family.pipelines}))
    raise RecipeError(f"models of the kind {pipeline} are not known yet", todo=f"use a model whose kind is {known}")
