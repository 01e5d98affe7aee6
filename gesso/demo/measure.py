"""What the judge says of pictures, as figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gesso.arrays import Picture
from gesso.demo.oracle import Oracle


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What one picture shows, how sure the judge is, and the colour of its ground."""

    name: str
    chance: float
    ground: str


def judge(oracle: Oracle, pictures: Sequence[Picture]) -> list[Judged]:
    named = oracle.name(pictures)
    return [
        Judged(name=name, chance=chance, ground=oracle.ground(picture))
        for (name, chance), picture in zip(named, pictures, strict=True)
    ]


def share(found: Sequence[Judged], name: str) -> float:
    """Share of the pictures that show `name`."""
    return sum(each.name == name for each in found) / max(len(found), 1)
