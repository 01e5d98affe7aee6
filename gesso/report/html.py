"""HTML made of values: text is escaped unless it was made here, so a caption can never become markup."""

from __future__ import annotations

from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """`<tag attributes>children</tag>`. Trailing underscores of attribute names are dropped (`class_`), others become
    dashes; an attribute that is None or False is left out, one that is True stands without a value."""
    given = "".join(_attribute(name, value) for name, value in attributes.items())
    inner = join(*children)
    return Markup(f"<{tag}{given}>" if tag in ("img", "br", "meta", "wbr") else f"<{tag}{given}>{inner}</{tag}>")


def join(*children: object) -> Markup:
    """The children one after another; None is nothing."""
    return Markup("".join(c if isinstance(c, Markup) else escape(str(c)) for c in children if c is not None))


def scroll(wide: Markup, label: str) -> Markup:
    """What may be wider than the page, in a place that scrolls by itself, with the keyboard too."""
    return element("div", wide, class_="scroll", tabindex="0", role="region", aria_label=label)


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
