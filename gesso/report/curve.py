"""The loss curve as SVG: every step faintly, their running mean, and held-out losses with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gesso.arrays import Float64, Int64
from gesso.report.html import Markup, element, join

MOST_POINTS = 700
Span = tuple[float, float]
"""First and last step of a drawing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Training loss of each step and held-out loss with its standard error, all mean squared errors; NaN is a gap."""

    steps: Int64
    train: Float64
    checked: Int64
    held_out: Float64
    errors: Float64

    @property
    def any(self) -> bool:
        return bool(np.isfinite(self.train).any() or np.isfinite(self.held_out).any())

    @property
    def span(self) -> Span:
        """The steps from 0, or the first, to the last."""
        steps = np.concatenate([self.steps, self.checked]).astype(float)
        first = min(float(steps.min()), 0.0)
        return first, max(float(steps.max()), first + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where steps and losses lie on a drawing of `width` by `height` pixels."""

    width: int
    height: int
    left: int = 64
    right: int = 16
    top: int = 14
    bottom: int = 52
    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        share = (step - self.first) / (self.last - self.first)
        return self.left + share * (self.width - self.left - self.right)

    def y(self, loss: float) -> float:
        share = (loss - self.low) / (self.high - self.low)
        return self.height - self.bottom - share * (self.height - self.bottom - self.top)


def curve(losses: Losses, *, width: int, height: int, name: str, unit: str, span: Span) -> Markup:
    """The drawing, as wide as its place allows; colours come from the page's style.

    name: its classes, which no other drawing of the page has together. unit: what the vertical axis says. span: what
    the horizontal one shows.
    """
    frame = _frame(losses, width, height, span)
    clipping = f"clip-{name.replace(' ', '-')}"
    inside = {"x": frame.left - 6, "y": frame.top, "width": width - frame.left - frame.right + 12}
    clip = element("clipPath", element("rect", **inside, height=height - frame.top - frame.bottom), id=clipping)
    kept = np.isfinite(losses.train)
    steps, train = losses.steps[kept], losses.train[kept]
    drawn = [
        _line(frame, *thinned(steps, train), "raw") if len(train) else None,
        _line(frame, *thinned(steps, smoothed(train)), "smooth") if len(train) > 4 else None,
        *_held_out(frame, losses),
    ]
    return element(
        "svg",
        element("title", f"Loss by optimiser step, {_summary(losses)}"),
        element("defs", clip),
        *_axes(frame, unit),
        element("g", *drawn, clip_path=f"url(#{clipping})"),
        viewBox=f"0 0 {width} {height}",
        class_=f"curve {name}",
        role="img",
    )


def smoothed(values: Float64) -> Float64:
    """The mean around each value under a Gaussian window, a fortieth of the whole wide, float64 [N]."""
    wide = max(len(values) / 40, 1.5)
    reach = math.ceil(3 * wide)
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / wide) ** 2)
    sums, weights = (np.convolve(row, window)[reach:-reach] for row in (values, np.ones(len(values))))
    return np.asarray(sums / weights, dtype=np.float64)


def thinned(steps: Int64, values: Float64) -> tuple[Int64, Float64]:
    """At most about MOST_POINTS points with the same outline: the lowest and highest of each stretch, in order."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    stretches = np.array_split(np.arange(len(steps)), MOST_POINTS // 2)
    kept = sorted({int(at[pick(values[at])]) for at in stretches for pick in (np.argmin, np.argmax)})
    return steps[kept], values[kept]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from low to high."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    pitch = min((power * nice for nice in (1, 2, 5, 10)), key=lambda size: abs(math.log(size / rough)))
    first, last = math.ceil(low / pitch - 1e-9), math.floor(high / pitch + 1e-9)
    return [round(number * pitch, 12) for number in range(first, last + 1)]


def _summary(losses: Losses) -> str:
    """The course in words, for those who do not see the drawing."""
    told = []
    for what, steps, values in (
        ("training", losses.steps, losses.train),
        ("held-out", losses.checked, losses.held_out),
    ):
        kept = np.isfinite(values)
        if kept.any():
            course, at = smoothed(values[kept]) if what == "training" else values[kept], steps[kept]
            told.append(f"{what} {course[0]:.3g} at step {at[0]:,}, {course[-1]:.3g} at step {at[-1]:,}")
    return "; ".join(told)


def _frame(losses: Losses, width: int, height: int, span: Span) -> Frame:
    train = losses.train[np.isfinite(losses.train)]
    held = np.isfinite(losses.held_out)
    errors = np.nan_to_num(losses.errors[held])
    parts = [losses.held_out[held] - errors, losses.held_out[held] + errors]
    if len(train):
        # single steps are noisy, and one outlier would flatten everything worth seeing
        parts += [np.percentile(train, [2, 97]), smoothed(train)]
    values = np.concatenate(parts)
    low, high = float(values.min()), float(values.max())
    room = (high - low or abs(high) or 1.0) * 0.08
    low = 0.0 if 0 <= low < 0.3 * high else low - room
    return Frame(width=width, height=height, first=span[0], last=span[1], low=low, high=high + room)


def _line(frame: Frame, steps: Int64, values: Float64, kind: str) -> Markup:
    points = " ".join(f"{frame.x(s):.1f},{frame.y(v):.1f}" for s, v in zip(steps, values, strict=True))
    return element("polyline", points=points, class_=kind)


def _held_out(frame: Frame, losses: Losses) -> list[Markup]:
    kept = np.isfinite(losses.held_out)
    drawn = [_line(frame, losses.checked[kept], losses.held_out[kept], "held-line")] if kept.any() else []
    for step, loss, error in zip(losses.checked[kept], losses.held_out[kept], losses.errors[kept], strict=True):
        x, y = frame.x(step), frame.y(loss)
        if np.isfinite(error) and error > 0:
            top, bottom = frame.y(loss + error), frame.y(loss - error)
            bar = f"M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 4:.1f} {top:.1f}h8M{x - 4:.1f} {bottom:.1f}h8"
            drawn.append(element("path", d=bar, class_="error"))
        told = element("title", f"step {step}: held-out {loss:.4g}" + (f" ± {error:.2g}" if error > 0 else ""))
        drawn.append(element("circle", told, cx=f"{x:.1f}", cy=f"{y:.1f}", r=4, class_="held"))
    return drawn


def _axes(frame: Frame, unit: str) -> list[Markup]:
    right, base = frame.width - frame.right, frame.height - frame.bottom
    drawn = []
    losses = ticks(frame.low, frame.high, 6)
    decimals = max(len(f"{value:.12f}".rstrip("0").partition(".")[2]) for value in losses)
    for value in losses:
        y = f"{frame.y(value):.1f}"
        drawn.append(element("line", x1=frame.left, x2=right, y1=y, y2=y, class_="rule"))
        drawn.append(element("text", f"{value:.{decimals}f}", x=frame.left - 8, y=y, dy="0.35em", class_="tick-y"))
    for value in ticks(frame.first, frame.last, 8 if frame.width > 600 else 4):
        if value == int(value):
            x = f"{frame.x(value):.1f}"
            drawn.append(element("line", x1=x, x2=x, y1=base, y2=base + 5, class_="stub"))
            drawn.append(element("text", f"{value:,.0f}", x=x, y=base + 20, class_="tick-x"))
    middle = (frame.top + base) / 2
    turned = f"translate(14 {middle:.0f}) rotate(-90)"
    return [
        join(*drawn),
        element("line", x1=frame.left, x2=right, y1=base, y2=base, class_="base"),
        element("text", "optimiser steps", x=(frame.left + right) / 2, y=frame.height - 8, class_="unit"),
        element("text", unit, transform=turned, class_="unit"),
    ]
