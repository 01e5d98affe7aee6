"""What becomes of each key of a foreign configuration: one row a key, gathered in tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["text", "number", "whole", "switch", "texts", "numbers", "any"]
"""How a value is written: one text, number or whole number, on or off, or several of them; "any" is taken as it is."""
Action = Literal["mapped", "joined", "harmless", "differs", "unsupported"]
NOTHING: tuple[Any, ...] = (None, False, 0, "", "none", "None", [], {})
"""Values that ask for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One key of a source.

    mapped       its value is the recipe's, by itself
    joined       it decides keys of the recipe together with others
    harmless     it changes nothing that is learned
    differs      gesso goes another way, which `why` says, and carries on
    unsupported  it stops the import, unless its value is one of `off`
    """

    action: Action
    kind: Kind = "any"
    to: str = ""
    """The recipe's key, or several in words."""
    why: str = ""
    choices: Mapping[Any, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What the source calls by other names than the recipe does."""
    off: tuple[Any, ...] = NOTHING
    default: Any = None
    """What the source takes where the key is absent."""
    secret: bool = False


def maps(
    to: str, kind: Kind = "text", *, default: Any = None, why: str = "", choices: Mapping[Any, Any] | None = None
) -> Row:
    """The recipe has the same under another name."""
    return Row(action="mapped", kind=kind, to=to, default=default, why=why, choices=choices or {})


def joins(to: str, kind: Kind = "text", *, default: Any = None, why: str = "") -> Row:
    """The recipe's keys `to` follow from this key and others."""
    return Row(action="joined", kind=kind, to=to, default=default, why=why)


def harmless(why: str, kind: Kind = "any", *, secret: bool = False) -> Row:
    return Row(action="harmless", kind=kind, why=why, secret=secret)


def differs(why: str, kind: Kind = "any", *, off: tuple[Any, ...] = NOTHING) -> Row:
    return Row(action="differs", kind=kind, why=why, off=off)


def stops(why: str, kind: Kind = "any", *, off: tuple[Any, ...] = NOTHING, secret: bool = False) -> Row:
    return Row(action="unsupported", kind=kind, why=why, off=off, secret=secret)


def read(kind: Kind, value: Any) -> Any:
    """A value as its kind wants it, from a command's text or a file; ValueError says what it must be.

    YAML reads 1e-4 as text, and a form saves numbers as text: both are numbers here.
    """
    if value is None or kind == "any":
        return value
    if kind in ("texts", "numbers"):
        items = value if isinstance(value, list | tuple) else [value]
        return [read("text" if kind == "texts" else "number", each) for each in items]
    if kind == "switch":
        return _switch(value)
    if kind == "text":
        if isinstance(value, list | tuple | dict):
            raise ValueError("must be one text")
        return str(value)
    return _number(value, whole=kind == "whole")


def _switch(value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    found = words.get(str(value).lower())
    if found is None:
        raise ValueError("must be true or false")
    return found


def _number(value: Any, *, whole: bool) -> int | float:
    said = "must be a whole number" if whole else "must be a number"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(said)
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(said) from error
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(said)
    if number.is_integer() and (whole or isinstance(value, int) or str(value).lstrip("+-").isdigit()):
        return int(number)
    if whole:
        raise ValueError(said)
    return number
