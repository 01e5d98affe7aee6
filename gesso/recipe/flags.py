"""Any key as a flag: `--train.steps 400`, `--train.micro-batch=2`, `--train.flip`, `--sample.prompts '["a", "b"]'`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gesso.recipe.keys import Given, Key, Problem, allowed, lookup, show, tables, unknown


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what stands alone, flags with their values) of a command line: a recipe may stand before or after flags."""
    alone: list[str] = []
    flags: list[str] = []
    for flag, value, tokens in _pairs(arguments):
        if flag:
            flags += tokens
        elif value is not None:
            alone.append(value)
    return alone, flags


def read(arguments: Sequence[str]) -> tuple[dict[str, Given], list[Problem]]:
    """What the flags give, by dotted name, and what is wrong with them. Of one given twice the last counts."""
    given: dict[str, Given] = {}
    problems: list[Problem] = []
    for flag, text, _ in _pairs(arguments):
        if not flag:
            problems.append(Problem(text=f"{text} is not a flag; write --key value", where="command line"))
            continue
        name = _name(flag)
        where = f"--{flag}"
        key = lookup(name)
        if key is None:
            problems.append(unknown(name, where, flag=True))
        elif text is None and key.kind != "boolean":
            problems.append(Problem(text=f"needs a value, {allowed(key.schema)}", where=where, keys=(name,)))
        else:
            before = given[name].value if name in given else None
            try:
                given[name] = Given(value=_value(key, text, before), origin="flag", where=where)
            except ValueError as error:
                problems.append(Problem(text=str(error), where=where, keys=(name,)))
    return given, problems


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str | None, list[str]]]:
    """(flag without dashes or "", value or None, the tokens themselves)."""
    at = 0
    while at < len(arguments):
        token = arguments[at]
        at += 1
        if not token.startswith("--") or token == "--":
            yield "", token, [token]
            continue
        flag, equals, value = token[2:].partition("=")
        following = arguments[at] if at < len(arguments) else None
        if equals:
            yield flag, value, [token]
        elif following is None or following.startswith("--") or (_is_switch(flag) and not _is_truth(following)):
            yield flag, None, [token]
        else:
            at += 1
            yield flag, following, [token, following]


def _is_switch(flag: str) -> bool:
    key = lookup(_name(flag))
    return key is not None and key.kind == "boolean"


def _is_truth(text: str) -> bool:
    return text.lower() in ("true", "false")


def _name(flag: str) -> str:
    """The dotted name of a flag: dashes are underscores, and `data.path` means the first `[[data]]`."""
    name = flag.replace("-", "_")
    table, _, rest = name.partition(".")
    return f"{table}.0.{rest}" if tables().get(table) and rest and not re.match(r"\d+\.", rest) else name


def _value(key: Key, text: str | None, before: Any) -> Any:
    """The text of a flag as the type its key wants; ValueError says what is wrong with it."""
    if text is None:
        return True
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("is not valid text in this terminal's encoding")
    if key.kind != "array":
        return _single(key.schema, text)
    listed = text.lstrip().startswith("[")
    if before is not None and (listed or not isinstance(before, list)):
        raise ValueError("is given twice: write one list, or repeat the flag with one item each")
    if listed:
        try:
            return tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"""is {text}, must be a list such as '["a", "b"]' or '[1, 2]'""") from error
    inner = key.schema.get("items") or key.schema["prefixItems"][0]
    return [*(before or []), _single(inner, text)]


def _single(schema: Mapping[str, Any], text: str) -> Any:
    kind = schema["type"]
    if kind == "boolean" and _is_truth(text):
        return text.lower() == "true"
    if kind in ("integer", "number"):
        for convert in (int, float):
            try:
                return convert(text)
            except ValueError:
                continue
    if kind == "string":
        return text
    raise ValueError(f"is {show(text)}, must be {allowed(schema)}")
