"""A whole page: one HTML file with its style, its pictures and its few lines of script, which asks no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from gesso.report.html import Markup, element


def document(name: str, body: Markup, *, styles: Sequence[str] = (), maker: str = "gesso") -> str:
    """The document `name` around `body`; a picture in a button of class zoom is enlarged when it is clicked.

    styles: further files beside style.css. maker: who made it, in the title and for programs.
    """
    inner = element("body", body, _zoom(), element("script", Markup(_SCRIPT)))
    return "<!doctype html>\n" + element("html", _head(name, styles, maker), inner, lang="en") + "\n"


def _zoom() -> Markup:
    """Where a picture is enlarged; zoom.js fills it."""
    turns = (("back", "Picture before (left arrow)", "←"), ("on", "Next picture (right arrow)", "→"))
    buttons = [element("button", sign, type="button", class_=name, aria_label=label) for name, label, sign in turns]
    close = element("button", "Close", type="button", class_="close", autofocus=True)
    below = element("div", element("p", aria_live="polite"), element("div", *buttons, close, class_="turns"))
    return element("dialog", element("img", alt=""), below, id="zoom", aria_label="Enlarged picture")


def _head(name: str, styles: Sequence[str], maker: str) -> Markup:
    style = "".join(_file(each) for each in ("style.css", *styles))
    allowed = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    # the browser itself is told to fetch nothing and to run only this page's own script
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=maker),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{name} · {maker}"),
        element("style", Markup(style)),
    )


def _file(name: str) -> str:
    return files("gesso.report").joinpath(name).read_text(encoding="utf-8")


_SCRIPT = _file("zoom.js")
