"""The held-out loss at each noise level, before training and now: what was learned shows where it was learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gesso.report.html import Markup, element, join, scroll
from gesso.report.reading import Event, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Mean squared errors at one timestep with their standard errors over pictures, first and last measured."""

    timestep: int
    before: float
    before_error: float
    now: float
    now_error: float

    @property
    def clear(self) -> bool:
        """Whether the change exceeds its standard error. The pictures are the same, so it is less than this one."""
        return abs(self.now - self.before) > math.hypot(self.before_error, self.now_error)


def levels(run: Run) -> list[Level]:
    """The noise levels that the first and the last measurement of a run have in common, by timestep."""
    measured = run.of("validated")
    if len(measured) < 2:
        return []
    first, last = (_numbers(measured[at], "by_timestep") for at in (0, -1))
    errors = [_numbers(measured[at], "error_by_timestep") for at in (0, -1)]
    return [
        Level(
            timestep=timestep,
            before=first[timestep],
            before_error=errors[0].get(timestep, 0.0),
            now=last[timestep],
            now_error=errors[1].get(timestep, 0.0),
        )
        for timestep in sorted(first.keys() & last.keys())
    ]


def table(run: Run) -> Markup | None:
    """The levels as a table; None where the run has not measured twice."""
    found = levels(run)
    if not found:
        return None
    first, last = (run.of("validated")[at]["step"] for at in (0, -1))
    before, now = "Before" if first == 0 else f"Step {first:,}", f"Step {last:,}"
    names = ("Timestep", before, now, "Change")
    head = element("tr", *(element("th", name, scope="col") for name in names))
    rows = (
        element(
            "tr",
            element("th", f"{level.timestep:,}", scope="row", data_label="timestep"),
            element("td", _with_error(level.before, level.before_error), data_label=before.lower()),
            element("td", _with_error(level.now, level.now_error), data_label=now.lower()),
            element("td", *_change(level)),
        )
        for level in found
    )
    return join(
        element("h3", "Held-out loss by noise level"),
        scroll(
            element("table", element("thead", head), element("tbody", *rows), class_="levels"),
            "Held-out loss by noise level",
        ),
        element(
            "p",
            "Mean squared error ± standard error over pictures. Low timesteps have little noise: there fine detail is "
            "decided; at high ones, the layout. The bar is what is left of the loss before.",
            class_="note",
        ),
    )


def _numbers(event: Event, name: str) -> dict[int, float]:
    """A measurement's values by timestep, those that were not finite left out."""
    found: Mapping[str, float | None] = event.get(name) or {}
    return {int(timestep): float(value) for timestep, value in found.items() if value is not None}


def _with_error(value: float, error: float) -> Markup:
    """A value as exact as its error allows: as far as the error's second digit."""
    if error <= 0:
        return element("span", f"{value:.3g}", class_="number")
    decimals = max(1 - math.floor(math.log10(error)), 0)
    return join(element("span", f"{value:.{decimals}f}", class_="number"), element("small", f" ± {error:.{decimals}f}"))


def _change(level: Level) -> tuple[Markup, ...]:
    if level.before <= 0:
        return (element("small", "–"),)
    share = level.now / level.before
    percent = f"{100 * (share - 1):+.0f} %".replace("-", "−")
    told = element("span", "0 %" if percent[1:] == "0 %" else percent, class_="number")
    bar = element("i", style=f"width:{100 * min(share, 1.0):.1f}%")
    doubt = None if level.clear else element("small", " within the error")
    return join(told, doubt), element("span", bar, class_="bar after", aria_hidden="true")
