"""Recipes as TOML files: reading one with the line of every key, and writing one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gesso.errors import RecipeError
from gesso.recipe.keys import Given, Problem, flatten, lookup, nearest, show, tables, unknown


def read(path: Path) -> tuple[dict[str, Given], list[Problem]]:
    """What the file `path` gives, by dotted name, and what is wrong with its names; RecipeError if it is not TOML."""
    text = _text(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax(path, text, str(error)) from error
    return accept(values, "file", path.as_posix(), lines(text))


def accept(
    values: Mapping[str, Any], origin: str, source: str, at: Mapping[str, int]
) -> tuple[dict[str, Given], list[Problem]]:
    """Nested values as flat ones, with a problem for every name that is no key; `at` has lines by dotted name."""
    given: dict[str, Given] = {}
    problems: dict[str, Problem] = {}
    for name, value in flatten(values):
        table, *rest = name.split(".")
        if (value == {} and table in tables()) or (value == [] and tables().get(name)):
            continue
        if lookup(name) and (table not in tables() or tables()[table] == (len(rest) == 2)):
            given[name] = Given(value=value, origin=origin, where=_place(source, at, name))
            continue
        said = _no_table(table, rest, value)
        if said:  # one word about a table that cannot be, not one for each of its keys
            problem = Problem(text=said, where=_place(source, at, table), keys=(table, *nearest(table, tables())))
        else:
            problem = unknown(name, _place(source, at, name))
        problems.setdefault(problem.text, problem)
    return given, list(problems.values())


def _place(source: str, at: Mapping[str, int], name: str) -> str:
    return f"{source}:{at[name]}" if name in at else source


def _no_table(table: str, rest: list[str], value: Any) -> str:
    """What is wrong with the table of a name; empty if only the key in it is."""
    if table not in tables():
        if lookup(table):
            return f"{table} is one value, not a table"
        if not rest and not isinstance(value, dict):
            return ""
        meant = nearest(table, tables())
        todo = f"did you mean [{meant[0]}]?" if meant else f"there are {', '.join(f'[{each}]' for each in tables())}"
        return f"there is no table [{table}]; {todo}"
    if not rest:
        brackets = f"[[{table}]]" if tables()[table] else f"[{table}]"
        return f"{table} is {show(value)}, but is a table: write {brackets}"
    if tables()[table] and not rest[0].isdigit():
        return f"write [[{table}]] with two brackets, for there may be several"
    if not tables()[table] and rest[0].isdigit():
        return f"write [{table}] with one bracket, for there is only one"
    return ""


def lines(text: str) -> dict[str, int]:
    """The line, from 1, where each dotted name of valid TOML is written.

    A statement is the fewest whole lines that are TOML by themselves, which tomllib itself decides: so quoting, nesting
    and strings over many lines need no second parser here.
    """
    found: dict[str, int] = {}
    table, chunk, start, counts = "", "", 1, dict[str, int]()
    for number, line in enumerate(text.split("\n"), start=1):
        chunk += line + "\n"
        try:
            parsed = tomllib.loads(chunk)
        except tomllib.TOMLDecodeError:
            continue
        if chunk.lstrip().startswith("["):
            table = _header(parsed, counts)
            found.setdefault(table, start)
            found.setdefault(table.split(".")[0], start)
        else:
            for name, _ in flatten(parsed):
                found.setdefault(f"{table}.{name}" if table and name else table or name, start)
        chunk, start = "", number + 1
    return found


def _header(parsed: Mapping[str, Any], counts: dict[str, int]) -> str:
    parts: list[str] = []
    at: Any = parsed
    while at:
        if isinstance(at, list):
            name = ".".join(parts)
            counts[name] = counts.get(name, -1) + 1
            parts.append(str(counts[name]))
            at = at[0]
        else:
            key, at = next(iter(at.items()))
            parts.append(key)
    return ".".join(parts)


def _text(path: Path) -> str:
    try:
        # Windows editors put a byte order mark in front, which TOML does not know.
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError as error:
        todo = f"`gesso new PHOTOS --out {path}` writes one"
        raise RecipeError("there is no such recipe", where=str(path), todo=todo) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        todo = "save it as UTF-8 in your editor"
        raise RecipeError("this line is not UTF-8 text", where=f"{path}:{line}", todo=todo) from error
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _syntax(path: Path, text: str, message: str) -> RecipeError:
    """tomllib's message in the house's words, with file and line."""
    match = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    line = int(match[1]) if match and match[1] else text.count("\n") + 1
    what = message[: match.start()] if match else message
    if re.match(r"Cannot (overwrite|declare|mutate)", what):
        return RecipeError(
            "this key or table is written twice",
            where=f"{path}:{line}",
            todo="keep one of the two; [[data]] alone may repeat",
        )
    shown = text.split("\n")[line - 1].strip() if line <= text.count("\n") + 1 else ""
    return RecipeError(
        f"this is not TOML: {what[:1].lower()}{what[1:]}" + (f", in  {shown}" if shown else ""),
        where=f"{path}:{line}",
        todo='texts stand in quotes, lists in brackets: prompts = ["a dog", "a cat"]',
    )


def write(values: Mapping[str, Any], notes: Mapping[str, str], heading: Iterable[str]) -> str:
    """TOML of flat values in their order, top keys first; `notes` are put behind a key as a comment."""
    out = [f"# {line}".rstrip() for line in heading]
    table = ""
    for name, value in sorted(values.items(), key=lambda item: "." in item[0]):
        prefix, _, key = name.rpartition(".")
        if prefix != table:
            table, first = prefix, prefix.split(".")[0]
            out += ["", f"[[{first}]]" if tables()[first] else f"[{first}]"]
        elif not prefix and out and out[-1].startswith("#"):
            out.append("")
        out.append(f"{key} = {toml(value)}" + (f"  # {notes[name]}" if notes.get(name) else ""))
    return "\n".join(out) + "\n"


def toml(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(each) for each in value)}]"
    # JSON's escapes are TOML's, except that TOML wants DEL escaped too.
    return show(value).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
