"""Which layers get an adapter, and of what size: what an `Adapter`'s targets and rules make of layers' names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gesso.engines.engine import Adapter, Rule
from gesso.errors import RecipeError

_PART = re.compile(r"(unet|text_encoder(?:_\d)?)\\?\.")
_WRAPPER = "text_model."


@dataclass(frozen=True, slots=True)
class Layer:
    """The adapter of one layer: its output is scaled by alpha/rank, `dropout` is a probability."""

    rank: int
    alpha: float
    dropout: float = 0.0


def choose(adapter: Adapter, layers: Mapping[str, Iterable[str]]) -> dict[str, dict[str, Layer]]:
    """The layers that get an adapter, by part and name in the order of `layers`, which has each part's names.

    RecipeError for a target that means no layer of its part, for a rule that means none that has an adapter, and for
    rules that leave a part without any.
    """
    found = {part: _targeted(adapter, part, list(names)) for part, names in layers.items()}
    everywhere = [name for names in layers.values() for name in names]
    for rule in adapter.rules:
        hit = [(part, name) for part, own in found.items() for name in own if matches(rule.match, part, name)]
        if not hit:
            raise RecipeError(
                f'[[rules]]: "{rule.match}" matches no layer that has an adapter',
                todo="layers end in " + endings([name for own in found.values() for name in own] or everywhere),
            )
        for part, name in hit:
            if rule.skip:
                del found[part][name]
            else:
                found[part][name] = _changed(found[part][name], rule)
    for part, own in found.items():
        if not own:
            raise RecipeError(
                f"[[rules]] leave no layer of {part} with an adapter",
                todo=f"skip fewer layers, or take {part} out of model.train",
            )
    return found


def settle(adapter: Adapter, part: str, name: str) -> Layer:
    """The adapter of a layer that has one: what the rules make of the adapter's own size."""
    layer = Layer(adapter.rank, adapter.alpha, adapter.dropout)
    for rule in adapter.rules:
        if matches(rule.match, part, name):
            layer = _changed(layer, rule)
    return layer


def matches(pattern: str, part: str, name: str) -> bool:
    """Whether `pattern` means the layer `name` of `part`: as an ending, or as a regular expression of the whole name.

    The part may stand in front, and then is meant alone. A text encoder's names may have the "text_model." that some
    versions of transformers put in front of them. RecipeError for what is no regular expression.
    """
    owner = _PART.match(pattern)
    if owner and owner[1] != part:
        return False
    names = {name}
    if part.startswith("text_encoder"):
        plain = name.removeprefix(_WRAPPER)
        names |= {plain, _WRAPPER + plain}
    try:
        whole = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f'"{pattern}", which is to match layers, is not a regular expression: {error}') from error
    full = [*names, *(f"{part}.{each}" for each in names)]
    return any(each == pattern or each.endswith("." + pattern) or whole.fullmatch(each) for each in full)


def endings(names: Iterable[str]) -> str:
    """The last words of layers' names, for people."""
    found = sorted({re.sub(r"^.*?([a-z0-9_]*[a-z_][a-z0-9_]*(?:\.\d+)?)$", r"\1", name) for name in names})
    return ", ".join(found[:20]) + (", …" if len(found) > 20 else "")


def _targeted(adapter: Adapter, part: str, names: list[str]) -> dict[str, Layer]:
    text = part.startswith("text_encoder")
    key = "adapter.text_targets" if text else "adapter.targets"
    chosen: set[str] = set()
    for target in adapter.targets[part]:
        owner = _PART.match(target)
        if owner and owner[1] != part:
            continue
        hit = [name for name in names if matches(target, part, name)]
        if not hit:
            raise RecipeError(
                f'{key}: "{target}" matches no layer of {part if text else "the denoiser"}',
                todo=f"layers end in {endings(names)}",
            )
        chosen.update(hit)
    if not chosen:
        raise RecipeError(f"{key} names no layer of {part}", todo=f"layers end in {endings(names)}")
    base = Layer(adapter.rank, adapter.alpha, adapter.dropout)
    return {name: base for name in names if name in chosen}


def _changed(layer: Layer, rule: Rule) -> Layer:
    if rule.rank is not None:
        layer = replace(layer, rank=rule.rank, alpha=float(rule.rank))
    if rule.alpha is not None:
        layer = replace(layer, alpha=rule.alpha)
    return layer if rule.dropout is None else replace(layer, dropout=rule.dropout)
