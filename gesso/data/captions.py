"""What a caption says when its picture is seen: which one, which wildcard, in which order, with which words around it.

    chosen     one of the record's captions, by their weights
    wildcards  "a {red|blue} car": one of the choices, equally often; they may nest
    shuffle    "1girl, red hair, smile": tags in any order behind the first `keep` ones
    drop       each of those tags is left out now and then
    words      prefix + trigger, caption + suffix; the trigger is left out where the caption has it as a word

Every draw is a function of (seed, purpose, epoch, row), so a caption is the same wherever and whenever it is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from gesso.keys import generator

MOST = 64
"""Renderings of one caption up to which all of them are encoded beforehand; with more, each is when it is seen."""

_BRACES = re.compile(r"\{([^{}]*)\}")
Choose = Callable[[int], int]
"""One of so many choices, by number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How the captions of a source are rendered. Without any of it a caption stays as it is."""

    trigger: str = ""
    prefix: str = ""
    suffix: str = ""
    shuffle: bool = False
    keep: int = 0
    """Tags at the front that a shuffle leaves where they are."""
    drop: float = 0.0
    """Share of the tags behind those that are left out."""
    separator: str = ","
    wildcards: bool = False


def choose(shares: Sequence[float], count: int, draw: float) -> int:
    """Which of `count` captions: `draw` in [0, 1) falls into one of their shares, which are equal where none are given.

    `shares` are relative weights, each above 0.
    """
    if not shares:
        return int(draw * count)
    edges = np.cumsum(np.asarray(shares, dtype=np.float64))
    return min(int(np.searchsorted(edges, draw * edges[-1], side="right")), count - 1)


def render(caption: str, style: Style, seed: int, epoch: int, row: int) -> str:
    """The caption as it is learned at one place."""
    if style.wildcards and _BRACES.search(caption):
        rng = generator(seed, "wildcard", epoch, row)
        caption = _resolved(caption, lambda count: int(rng.integers(count)))
    if style.shuffle or style.drop:
        caption = _tagged(caption, style, seed, epoch, row)
    return _worded(caption, style)


def plain(caption: str, style: Style) -> str:
    """The caption with nothing drawn: tags in their order, the first choice of each wildcard. For measuring."""
    return _worded(_resolved(caption, lambda count: 0) if style.wildcards else caption, style)


def written(captions: Sequence[str], style: Style) -> tuple[str, ...]:
    """All the text that captions may be made of, to look for words in."""
    return (*captions, style.trigger, style.prefix, style.suffix)


def renderings(caption: str, style: Style) -> tuple[str, ...] | None:
    """Everything that `render` can make of the caption; None where it is more than MOST, or any choice of tags."""
    if style.shuffle or style.drop:
        if len(_tags(caption, style)) - style.keep > (0 if style.drop else 1):
            return None
        caption = _tagged(caption, style, 0, 0, 0)  # there is nothing to draw
    if not style.wildcards:
        return (_worded(caption, style),)
    counts: list[int] = []

    def first(count: int) -> int:
        counts.append(count)
        return 0

    _resolved(caption, first)  # a choice has no | in it, so that it changes no other wildcard's number of choices
    if math.prod(counts) > MOST * MOST:
        return None
    found = dict.fromkeys(
        _worded(_resolved(caption, _following(numbers)), style) for numbers in product(*map(range, counts))
    )
    return tuple(found) if len(found) <= MOST else None


def _following(numbers: Sequence[int]) -> Choose:
    left = list(numbers)
    return lambda count: left.pop(0) % count


def _resolved(caption: str, chosen: Choose) -> str:
    """The caption without wildcards, the innermost ones decided first, from left to right."""
    while match := _BRACES.search(caption):
        choices = match[1].split("|")
        caption = caption[: match.start()] + choices[chosen(len(choices))] + caption[match.end() :]
    return caption


def _tags(caption: str, style: Style) -> list[str]:
    return [tag for tag in (part.strip() for part in caption.split(style.separator)) if tag]


def _tagged(caption: str, style: Style, seed: int, epoch: int, row: int) -> str:
    """The caption with its tags in another order, or without some of them, or both."""
    tags = _tags(caption, style)
    first, rest = tags[: style.keep], tags[style.keep :]
    if style.shuffle:
        rest = [rest[at] for at in generator(seed, "tags", epoch, row).permutation(len(rest))]
    if style.drop:
        stays = generator(seed, "tag-dropout", epoch, row).random(len(rest)) >= style.drop
        rest = [tag for tag, stay in zip(rest, stays, strict=True) if stay]
    joint = style.separator if style.separator != style.separator.strip() else f"{style.separator} "
    return joint.join([*first, *rest])


def _worded(caption: str, style: Style) -> str:
    trigger = style.trigger.strip()
    if trigger and not re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption):
        caption = f"{trigger}, {caption}" if caption else trigger
    return f"{style.prefix}{caption}{style.suffix}".strip()
