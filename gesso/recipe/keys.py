"""The keys of a recipe as a flat table, made from the schema: name, type, limits, default, sentence.

Flags, files, messages and docs/recipe.md all read this one table, so they cannot disagree. A key of a `[[data]]` table
is called `data.path` here and `data.0.path` where a value is meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args

from gesso.schema import Recipe, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key a user may write. `schema` is its JSON schema, with the choice of null taken out."""

    name: str
    schema: Mapping[str, Any]
    description: str
    default: Any = None
    required: bool = False

    @property
    def kind(self) -> str:
        """integer, number, boolean, string or array."""
        return str(self.schema["type"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A value with where it comes from: origin "default", "file" or "flag"; `where` is for messages."""

    value: Any
    origin: str
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One sentence about what cannot be carried out, and where it was written. `keys` are those it speaks of."""

    text: str
    where: str = ""
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


@cache
def keys() -> dict[str, Key]:
    """Every key by name, in the order of the schema."""
    found: dict[str, Key] = {}
    top = Recipe.model_json_schema()["properties"]
    for field, info in Recipe.model_fields.items():
        name = info.alias or field
        tables = [part for part in (info.annotation, *get_args(info.annotation)) if _is_table(part)]
        if not tables:
            found[name] = _key(name, top[name], required=info.is_required())
            continue
        schema = tables[0].model_json_schema()
        for inner, rule in schema["properties"].items():
            full = f"{name}.{inner}"
            found[full] = _key(full, rule, required=inner in schema.get("required", ()))
    return found


@cache
def tables() -> dict[str, bool]:
    """Every table by name; True for one that may be written several times, `[[data]]`."""
    return {
        info.alias or field: not _is_table(info.annotation)
        for field, info in Recipe.model_fields.items()
        if any(_is_table(part) for part in (info.annotation, *get_args(info.annotation)))
    }


def _is_table(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, Table)


def _key(name: str, rule: Mapping[str, Any], *, required: bool) -> Key:
    inner = next((choice for choice in rule.get("anyOf", ()) if choice["type"] != "null"), rule)
    return Key(name=name, schema=inner, description=rule["description"], default=rule.get("default"), required=required)


def lookup(name: str) -> Key | None:
    """The key behind `train.steps` or `data.0.path`."""
    return keys().get(re.sub(r"^(\w+)\.\d+\.", r"\1.", name))


def nearest(name: str, names: Iterable[str] | None = None) -> tuple[str, ...]:
    """The keys a user may have meant by `name`: the same last part elsewhere, else the most alike; or none."""
    names = tuple(keys() if names is None else names)
    last = name.rsplit(".", 1)[-1]
    same = tuple(key for key in names if key.rsplit(".", 1)[-1] == last)
    alike = tuple(get_close_matches(name, names, n=1, cutoff=0.7))
    by_last = get_close_matches(last, [key.rsplit(".", 1)[-1] for key in names], n=1, cutoff=0.7)
    return same or alike or tuple(key for key in names if by_last and key.rsplit(".", 1)[-1] == by_last[0])


def unknown(name: str, where: str, *, flag: bool = False) -> Problem:
    """What to say of a key that is not there."""
    meant = nearest(name)
    dashes = "--" if flag else ""
    todo = f"did you mean {' or '.join(dashes + each for each in meant)}?" if meant else "docs/recipe.md lists them all"
    return Problem(text=f"there is no key {name}; {todo}", where=where, keys=meant)


def flatten(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted name, value) of every leaf of nested tables and lists of tables; other lists are leaves."""
    if isinstance(value, Mapping) and (value or not name):
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
        for index, inner in enumerate(value):
            yield from flatten(inner, f"{name}.{index}")
    else:
        yield name, value


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The tables behind dotted names: what `flatten` took apart."""
    root: dict[str, Any] = {}
    for name, value in flat.items():
        *parts, last = name.split(".")
        at = root
        for part in parts:
            at = at.setdefault(part, {})
        at[last] = value
    for table, repeated in tables().items():
        if repeated and isinstance(root.get(table), dict):
            root[table] = [root[table][index] for index in sorted(root[table], key=int)]
    return root


def show(value: Any) -> str:
    """A value as a user would write it."""
    return json.dumps(value, ensure_ascii=False, default=str)


def allowed(schema: Mapping[str, Any]) -> str:
    """What a value may be, in words: "a whole number, at least 1"."""
    if "enum" in schema:
        return "one of " + ", ".join(show(each) for each in schema["enum"])
    if schema["type"] == "array":
        if "prefixItems" in schema:
            inner = schema["prefixItems"]
            return f"a list of {len(inner)}, each {allowed(inner[0])}"
        return f"a list, each {allowed(schema['items'])}"
    if "examples" in schema:
        return "text: " + ", ".join(show(each) for each in schema["examples"])
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text in quotes"}
    return ", ".join(filter(None, (words[schema["type"]], limits(schema))))


def limits(schema: Mapping[str, Any]) -> str:
    """The range of a number in words: "at least 1", "above 0", "from 0 to 1"; empty without one."""
    if "minimum" in schema and "maximum" in schema:
        return f"from {schema['minimum']:g} to {schema['maximum']:g}"
    names = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return " and ".join(f"{word} {schema[name]:g}" for name, word in names.items() if name in schema)
