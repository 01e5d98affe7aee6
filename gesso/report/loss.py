"""The section on the loss: curves, what their marks mean, and what was learned at which noise level."""

from __future__ import annotations

import dataclasses

import numpy as np

from gesso.report import levels
from gesso.report.curve import Losses, Span, curve
from gesso.report.html import Markup, element, join
from gesso.report.reading import Run

SQUARED = "mean squared error"
WIDE, NARROW = (1080, 400), (390, 320)
"""Sizes of the drawing on wide screens and on telephones."""


def section(run: Run, found: Losses) -> Markup | None:
    """The curves with their explanation; None where no loss was measured yet."""
    if not found.any:
        return None
    held = bool(np.isfinite(found.held_out).any())
    if held and weighted(run):  # two scales, on which one line says nothing of the other
        nothing = np.empty(0)
        drawn = join(
            element("h3", "Held-out loss"),
            _figure(dataclasses.replace(found, steps=nothing.astype(int), train=nothing), found.span, SQUARED, "held"),
            element("h3", "Training loss"),
            _figure(
                dataclasses.replace(found, checked=nothing.astype(int), held_out=nothing, errors=nothing),
                found.span,
                "weighted loss",
                "train",
            ),
        )
    else:
        unit = "weighted loss" if weighted(run) else SQUARED
        drawn = _figure(found, found.span, unit, "loss")
    return element("section", element("h2", "Loss"), drawn, _explained(run, found), levels.table(run))


def weighted(run: Run) -> bool:
    """Whether the loss of a step is another quantity than the held-out loss, which is always a mean squared error."""
    given = {key: run.values.get(f"objective.{key}") for key in ("weighting", "loss", "edm_style", "dream")}
    usual = {"weighting": (None, "uniform"), "loss": (None, "l2"), "edm_style": (None, False), "dream": (None, False)}
    return any(value not in usual[key] for key, value in given.items())


def _figure(found: Losses, span: Span, unit: str, name: str) -> Markup:
    keys = []
    if np.isfinite(found.train).any():
        keys += [element("li", "each step", class_="key-raw"), element("li", "running mean", class_="key-smooth")]
    if np.isfinite(found.held_out).any():
        keys.append(element("li", "held-out pictures ± standard error", class_="key-held"))
    return join(
        element("ul", *keys, class_="keys"),
        *(
            curve(found, width=width, height=height, name=f"{kind} {name}", unit=unit, span=span)
            for kind, (width, height) in (("wide", WIDE), ("narrow", NARROW))
        ),
    )


def _explained(run: Run, found: Losses) -> Markup:
    told = ["Each step sees other pictures, other noise and other noise levels, so its loss jumps."]
    if run.latest("started").get("class_pictures"):
        told.append("That of the class pictures is part of it.")
    if weighted(run):
        told.append("It is weighted as the recipe's [objective] says; the held-out loss never is.")
    if np.isfinite(found.held_out).any():
        pictures = run.latest("validated").get("pictures")
        told.append(
            f"The held-out loss is measured on {f'{pictures} pictures' if pictures else 'pictures'} that are not "
            "trained on, the same ones with the same noise each time. A bar reaches one standard error over these "
            "pictures up and down; since they stay the same, a change from one point to the next is usually surer than "
            "the bars look."
        )
    elif run.values:
        told.append("No pictures were held out; validate.holdout = 0.1 would tell learning from memorising.")
    return element("p", " ".join(told), class_="note")
