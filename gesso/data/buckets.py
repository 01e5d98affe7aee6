"""Aspect-ratio buckets: pictures of one shape meet in steps of that shape, instead of all being cut to one square.

    sizes of a list = {(w, h), (h, w)}: w from smallest to largest, h the largest multiple of step ≤ resolution² / w
    size of a picture = the one of the list whose width over height is nearest to the picture's

The list and the choice are those of kohya's sd-scripts, whose users know them; the idea is NovelAI's (2022). Everything
here is a pure function of the pictures' sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import TypeVar

import numpy as np

from gesso.arrays import Float64, Int64
from gesso.errors import RecipeError

SHOWN = 6
"""How many sizes a sentence names before it only counts."""

Name = TypeVar("Name", bound=Hashable)
Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """The sizes that pictures are trained at, of about `resolution`² pixels each.

    Sides are multiples of `step`, from `smallest` to `largest`, all in pixels. Without `enlarge` a picture of fewer
    pixels keeps its own size, down to the next multiples of `step`, whatever `smallest` and `largest` say; larger ones
    are brought to resolution² pixels in nearly their own shape.
    """

    resolution: int
    step: int = 64
    smallest: int = 256
    largest: int = 1024
    enlarge: bool = True

    def __post_init__(self) -> None:
        if self.step > self.resolution:
            raise RecipeError(
                f"train.bucket_step is {self.step}, but the resolution is {self.resolution} pixels",
                todo=f"set train.bucket_step to {self.resolution // 8 or 8} or so",
            )
        if not self.enlarge:
            return
        for name, value, ok in (
            ("min", self.smallest, self.smallest <= self.resolution),
            ("max", self.largest, self.largest >= self.resolution),
        ):
            if value % self.step or value < self.step:
                near = max(value // self.step, 1) * self.step
                raise RecipeError(
                    f"train.bucket_{name} is {value}, but must be a multiple of the buckets' step, {self.step}",
                    todo=f"set it to {near} or {near + self.step}",
                )
            if not ok:
                raise RecipeError(
                    f"train.bucket_{name} is {value}, which leaves no room for the resolution, {self.resolution}",
                    todo=f"set it to {self.resolution} or {'less' if name == 'min' else 'more'}",
                )

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """The list, in ascending order."""
        area = self.resolution**2
        side = self.resolution // self.step * self.step
        found = {(side, side)}
        for width in range(self.smallest, self.largest + 1, self.step):
            height = min(self.largest, area // width // self.step * self.step)
            if height >= self.smallest:
                found |= {(width, height), (height, width)}
        return tuple(sorted(found))

    def size(self, width: int, height: int) -> Size:
        """What a picture of `width` × `height` is trained at."""
        if not self.enlarge:
            return self._no_larger(width, height)
        if (width, height) in self.sizes:
            return width, height
        return self.sizes[int(np.abs(self._shapes - width / height).argmin())]

    @cached_property
    def _shapes(self) -> Float64:
        return np.array([width / height for width, height in self.sizes], dtype=np.float64)

    def _no_larger(self, width: int, height: int) -> Size:
        shape, area = width / height, self.resolution**2
        if width * height > area:
            # Of both ways to bring one side to the grid, the one that keeps the shape better.
            wide = self._grid(sqrt(area * shape))
            high = self._grid(sqrt(area / shape))
            first, second = (wide, self._grid(wide / shape)), (self._grid(high * shape), high)
            nearer = abs(first[0] / first[1] - shape) < abs(second[0] / second[1] - shape)
            width, height = (wide, int(wide / shape + 0.5)) if nearer else (int(high * shape + 0.5), high)
        return self._cut(width), self._cut(height)

    def _grid(self, side: float) -> int:
        return max(int(side + 0.5) // self.step * self.step, self.step)

    def _cut(self, side: int) -> int:
        return max(side // self.step * self.step, self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One line of the table: the pictures that are trained at `size`."""

    size: Size
    pictures: int
    """Different ones."""
    rows: int
    """How many there are in an epoch, repeats counted."""
    enlarged: int
    """Pictures with fewer pixels than `size` in width or height."""
    cut: float
    """Share of a picture that the crop leaves out, their mean, 0 … 1."""
    mixed: int
    """Rows of an epoch that do not fill a step: they share steps with other sizes. None is left out or repeated."""


def table(buckets: Buckets, rows: Sequence[Name], wholes: Mapping[Name, Size], batch: int) -> tuple[Bucket, ...]:
    """Who is trained at what size, most rows first.

    rows: the picture of each row of an epoch, by any name. wholes: width and height of each picture by that name.
    """
    different = Counter(wholes[name] for name in dict.fromkeys(rows))
    return counted(buckets, different, Counter(wholes[name] for name in rows), batch)


def counted(buckets: Buckets, pictures: Mapping[Size, int], rows: Mapping[Size, int], batch: int) -> tuple[Bucket, ...]:
    """The same, of how many different `pictures` and how many `rows` of an epoch there are of each width and height."""
    own_of: dict[Size, list[Size]] = {}
    for whole in pictures:
        own_of.setdefault(buckets.size(*whole), []).append(whole)
    found = []
    for size, own in sorted(own_of.items()):
        count, different = sum(rows[whole] for whole in own), sum(pictures[whole] for whole in own)
        found.append(
            Bucket(
                size=size,
                pictures=different,
                rows=count,
                enlarged=sum(pictures[whole] for whole in own if whole[0] < size[0] or whole[1] < size[1]),
                cut=sum(_cut_off(whole, size) * pictures[whole] for whole in own) / different,
                mixed=count % batch,
            )
        )
    return tuple(sorted(found, key=lambda bucket: -bucket.rows))


def _cut_off(whole: Size, size: Size) -> float:
    """The share of a picture that is left out where it covers `size`."""
    shape, wanted = whole[0] / whole[1], size[0] / size[1]
    return 1.0 - min(shape / wanted, wanted / shape)


def said(found: Sequence[Bucket], batch: int) -> str:
    """The table in a sentence."""
    shown = ", ".join(f"{bucket.size[0]} × {bucket.size[1]} ({bucket.rows})" for bucket in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    mixed, rows = sum(bucket.mixed for bucket in found), sum(bucket.rows for bucket in found)
    if len(found) == 1:
        steps = ""
    elif not mixed:
        steps = "; every step holds one size"
    else:
        steps = f"; {mixed} of {rows} share steps with other sizes, which take longer"
        steps += " (a larger train.bucket_step makes fewer sizes)" if 2 * mixed > rows else ""
    sizes = f"{len(found)} size{'s' * (len(found) > 1)}"
    return f"buckets: {sizes} for {rows} pictures an epoch in steps of {batch}: {shown}{more}{steps}"


def lines(found: Sequence[Bucket]) -> list[str]:
    """The table for a terminal, one line a size."""
    made = []
    for bucket in found:
        extra = [f"{bucket.enlarged} enlarged"] if bucket.enlarged else []
        extra += [f"{bucket.cut:.0%} cut off"] if bucket.cut >= 0.005 else []
        extra += [f"{bucket.mixed} in mixed steps"] if bucket.mixed and len(found) > 1 else []
        repeated = f" ({bucket.rows} an epoch)" if bucket.rows != bucket.pictures else ""
        width, height = bucket.size
        made.append(f"{width} × {height}  {bucket.pictures}{repeated}" + "".join(f", {each}" for each in extra))
    return made


def arranged(order: Int64, kinds: Int64, *, start: int, batch: int, draw: np.random.Generator) -> Int64:
    """`order` in such a sequence that as many steps as possible are of one kind.

    order: the n rows of an epoch as they are drawn, int64 [n]. kinds: the kind of each row by its number, int64 [n].
    start: where the epoch begins in its group's endless stream, which the steps cut into pieces of `batch`; an epoch
    may begin and end in the middle of a step. What does not fill steps of its own kind goes into those first and last
    pieces and into mixed steps, which lie anywhere in the epoch; which rows these are, `order` decides.
    """
    count = len(order)
    head = min(-start % batch, count)
    tail = (count - head) % batch
    names = draw.permutation(np.unique(kinds))
    parts = [order[kinds[order] == name] for name in names]
    whole = [part[: len(part) // batch * batch] for part in parts]
    rest = [part[len(part) // batch * batch :] for part in parts]
    if sum(map(len, rest)) < head + tail:
        # The pieces at the ends need more: one full step is opened for them.
        opened = next(at for at, part in enumerate(whole) if len(part))
        rest[opened] = np.concatenate([rest[opened], whole[opened][:batch]])
        whole[opened] = whole[opened][batch:]
    left = np.concatenate(rest)
    steps = np.concatenate([*whole, left[head : len(left) - tail]]).reshape(-1, batch)
    shuffled = steps[draw.permutation(len(steps))].reshape(-1)
    return np.concatenate([left[:head], shuffled, left[len(left) - tail :]])


def usual(
    resolution: int,
    *,
    step: int | None = None,
    smallest: int | None = None,
    largest: int | None = None,
    enlarge: bool = True,
) -> Buckets:
    """Buckets with the usual value for what is None: at 512 pixels those of kohya's scripts, elsewhere in proportion.

    Steps of 64 pixels, an eighth of the resolution where that is less; sides from half of the resolution to its double.
    RecipeError for values that do not fit together.
    """
    step = step or min(64, max(resolution // 64 * 8, 8))
    return Buckets(
        resolution=resolution,
        step=step,
        smallest=smallest or max(resolution // 2 // step, 1) * step,
        largest=largest or -(-2 * resolution // step) * step,
        enlarge=enlarge,
    )
