"""A recipe from its file and flags: read, checked as a whole, with the origin of every value, and saved with it.

Paths in a recipe are relative to the current folder, not to the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gesso import __version__
from gesso.errors import RecipeError
from gesso.recipe import files, flags, rules
from gesso.recipe.keys import Given, Key, Problem, allowed, flatten, limits, lookup, nest, show, tables
from gesso.schema import Recipe
from gesso.storage import guard, write_bytes

__all__ = ["Loaded", "load", "save"]

EMPTY = "must not be empty"


COMMAND = "command.toml"
"""The translated command, in the run folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A recipe that can be carried out. `origins` says of every key: "default", "file" or "flag"."""

    recipe: Recipe
    origins: Mapping[str, str]
    path: Path | None = None
    """The file it was read from."""
    command: str = ""
    """The recipe as it was translated from another trainer's command, with the flag behind every line."""


def load(path: Path | None, arguments: Sequence[str] = (), defaults: Mapping[str, Any] | None = None) -> Loaded:
    """The recipe of a file, then flags over it (`["--train.steps", "400"]`), both over `defaults` (nested tables).

    `path` may be a run folder: its recipe.toml is read, and that folder is the run's. RecipeError names every problem
    at once, each with its file and line or its flag.
    """
    layers = [files.accept(defaults or {}, "default", "defaults", {}), *_file(path), flags.read(arguments)]
    given: dict[str, Given] = {}
    for layer, _ in layers:
        for table in _repeated():
            if any(name.startswith(f"{table}.") and value.origin == "file" for name, value in layer.items()):
                given = {name: value for name, value in given.items() if not name.startswith(f"{table}.")}
        given |= layer
    problems = [problem for _, found in layers for problem in found]
    problems += _gaps(given)
    recipe, wrong = _validate(given)
    problems += wrong
    wrong_keys = [key for problem in problems for key in problem.keys]
    known = {key.split(".")[0] if key.split(".")[0] in _repeated() else key for key in wrong_keys}
    # A rule about a key that is wrong in itself would only repeat the matter.
    problems += [
        problem
        for problem in rules.broken(recipe, given)
        if not any(key in known or key.split(".")[0] in known for key in problem.keys)
    ]
    if problems:
        raise _error(path, problems)
    values = _flat(recipe)
    return Loaded(
        recipe=recipe,
        origins={name: given[name].origin if name in given else "default" for name in values},
        path=_toml(path) if path else None,
    )


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Every value by its dotted name; a repeated table that is not there has none."""
    plain = recipe.model_dump(mode="json", by_alias=True)
    return {name: value for name, value in flatten(plain) if name not in tables()}


def _repeated() -> tuple[str, ...]:
    """The tables that may be written several times."""
    return tuple(name for name, several in tables().items() if several)


def _toml(path: Path) -> Path:
    return path / "recipe.toml" if path.is_dir() else path


def _file(path: Path | None) -> list[tuple[dict[str, Given], list[Problem]]]:
    if path is None:
        return []
    if path.is_dir() and not _toml(path).is_file():
        raise RecipeError(
            "this folder is not a run: it has no recipe.toml",
            where=str(path),
            todo=f"`gesso new {path}` writes a recipe if it holds your pictures",
        )
    given, problems = files.read(_toml(path))
    if path.is_dir():
        # What a flag switched off when the run began is still switched off by a flag.
        flags_then = _flags_of(path)
        given = {n: replace(g, origin="flag") if n in flags_then else g for n, g in given.items()}
        # A run that was moved goes on where it is now.
        given["out"] = Given(value=path.as_posix(), origin="file", where=str(path))
    return [(given, problems)]


def _flags_of(run: Path) -> set[str]:
    """The keys that a flag decided when the run was started, from its effective.json; none where that is lost."""
    try:
        effective = json.loads((run / "effective.json").read_text(encoding="utf-8"))
        return {name for name, each in effective.items() if each["origin"] == "flag"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _gaps(given: dict[str, Given]) -> list[Problem]:
    """Take out tables such as data.3 where there is no data.2, and say so."""
    problems = []
    for table in _repeated():
        numbered = {name: int(name.split(".")[1]) for name in given if name.startswith(f"{table}.")}
        numbers = set(numbered.values())
        lost = {number for number in numbers if set(range(number)) - numbers}
        for name in [name for name, number in numbered.items() if number in lost]:
            first = min(set(range(max(lost))) - numbers)
            problems.append(Problem(text=f"there is no {table}.{first} yet", where=given.pop(name).where))
    return problems


def _validate(given: Mapping[str, Given]) -> tuple[Recipe, list[Problem]]:
    """The recipe of those values that are right by themselves, and a problem for each that is not."""
    values = {name: each.value for name, each in given.items()}
    problems: list[Problem] = []
    text = json.dumps(nest(values), default=str)
    try:
        # JSON because there strict means what a user expects: 4 is a number, "4" is not, a list is a list.
        return Recipe.model_validate_json(text, strict=True), []
    except ValidationError as error:
        for each in error.errors():
            problems.append(_sentence(each["type"], each["loc"], each, given))
    # A list without its wrong items may be too short as well: that is no second mistake.
    told = [key for problem in problems if not problem.text.endswith(EMPTY) for key in problem.keys]
    problems = [each for each in problems if not (each.text.endswith(EMPTY) and set(each.keys) & set(told))]
    bad = {key for problem in problems for key in problem.keys}
    # A table cannot be without a key that it must have.
    broken = {key.rpartition(".")[0] for key in bad if (found := lookup(key)) and found.required}
    rest = {n: v for n, v in values.items() if n not in bad and n.rpartition(".")[0] not in broken}
    return Recipe.model_validate_json(json.dumps(nest(rest), default=str), strict=True), problems


def _sentence(kind: str, place: Sequence[int | str], error: Mapping[str, Any], given: Mapping[str, Given]) -> Problem:
    """pydantic's finding in the house's words."""
    name = ".".join(map(str, place))
    while place and lookup(name) is None:
        place = place[:-1]
        name = ".".join(map(str, place))
    key = lookup(name)
    if key is None:  # every name was checked before; what is left is a fault of gesso, not of the recipe
        raise AssertionError(f"the schema refuses {error}")
    if name not in given:
        return Problem(text=f"{name} is missing: {key.description}", keys=(name,))
    value = given[name].value
    return Problem(
        text=f"{name} is {show(value)}, {_must(kind, key, value, error)}", where=given[name].where, keys=(name,)
    )


def _must(kind: str, key: Key, value: Any, error: Mapping[str, Any]) -> str:
    inner = key.schema
    if key.kind == "array" and isinstance(value, list):
        inner = key.schema.get("items", {})
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind in ("too_short", "string_too_short"):
        return EMPTY
    if kind.startswith(("greater_than", "less_than")) and limits(inner):
        return f"must be {limits(inner)}"
    return f"must be {allowed(key.schema)}"


def _error(path: Path | None, problems: Sequence[Problem]) -> RecipeError:
    todo = "docs/recipe.md describes every key"
    if len(problems) == 1:
        return RecipeError(problems[0].text, where=problems[0].where, todo=todo)
    source = f"{path.as_posix()} with its flags" if path else "the flags"
    listed = "".join(f"\n  {problem}" for problem in sorted(problems, key=_line))
    return RecipeError(f"{len(problems)} things in {source} cannot be carried out:{listed}", todo=todo)


def _line(problem: Problem) -> float:
    match = re.search(r":(\d+)$", problem.where)
    return int(match[1]) if match else float("inf")


def save(loaded: Loaded, folder: Path) -> None:
    """Write `recipe.toml`, what the user chose and where, and `effective.json`, every value with its origin.

    A recipe translated from a command is kept as `command.toml` too, word for word.
    recipe.toml alone loads back to an equal recipe. StorageError when the folder cannot be written.
    """
    values = _flat(loaded.recipe)
    chosen = {name: value for name, value in values.items() if value is not None and _is_chosen(name, value, loaded)}
    notes = {name: f"flag --{name}" for name in chosen if loaded.origins[name] == "flag"}
    source = loaded.path.name if loaded.path else "the command line"
    heading = (
        f"Written by gesso {__version__} from {source}. What a flag changed says so; effective.json has every value.",
    )
    effective = {name: {"value": value, "origin": loaded.origins[name]} for name, value in values.items()}
    _write(folder / "recipe.toml", files.write(chosen, notes, heading))
    if loaded.command:
        _write(folder / COMMAND, loaded.command)
    _write(folder / "effective.json", json.dumps(effective, indent=1, ensure_ascii=False) + "\n")


def _is_chosen(name: str, value: Any, loaded: Loaded) -> bool:
    key = lookup(name)
    # A default that a command brought along, unlike one of the schema, must be written down to be there again.
    return loaded.origins[name] != "default" or (key is not None and value != key.default)


def _write(path: Path, text: str) -> None:
    with guard(path.parent, what=path.name, needed=len(text.encode())):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())
