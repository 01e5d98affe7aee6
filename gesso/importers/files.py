"""Configuration files read as plain values: TOML, JSON, YAML without tags or anchors, and text."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # its hints are a package of their own

from gesso.errors import RecipeError

LARGEST = 4 * 2**20
"""Bytes; configurations of people have some thousands."""
DEEPEST = 40


def read(path: Path) -> Any:
    """The content of a .toml, .json or .yaml file, or any other's text; RecipeError for what is none, with its line."""
    text = _text(path)
    readers = {".toml": _toml, ".json": _json, ".yaml": _yaml, ".yml": _yaml}
    reader = readers.get(path.suffix.lower())
    return reader(path, text) if reader else text


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise RecipeError("it has more than 4 MiB, and is no configuration", where=str(path))
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise RecipeError("there is no such file", where=str(path), todo="check its name and folder") from error
    except UnicodeDecodeError as error:
        raise RecipeError("it is not UTF-8 text", where=str(path), todo="save it as UTF-8 in your editor") from error
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _toml(path: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"this is not TOML: {error}", where=str(path), todo="mend that line") from error


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"this is not JSON: {error.msg}", where=f"{path}:{error.lineno}", todo="mend that line"
        ) from error
    except (RecursionError, ValueError) as error:
        raise RecipeError("this JSON is no configuration: it is nested too deeply", where=str(path)) from error


def _yaml(path: Path, text: str) -> Any:
    """Plain YAML. Tags would make objects and anchors can grow without bounds, so neither is read."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            where = f"{path}:{event.start_mark.line + 1}"
            anchored = isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None)
            tag = getattr(event, "tag", None)
            if anchored or (tag and not tag.startswith("tag:yaml.org,2002:") and tag != "!") or _makes(tag):
                what = "an anchor" if anchored else f"the tag {tag}"
                raise RecipeError(f"{what} is not read here", where=where, todo="write the value itself in its place")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise RecipeError("it is nested too deeply for a configuration", where=where)
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(
            f"this is not YAML: {error.problem}", where=f"{path}:{line}", todo="mend that line"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError("this is not YAML", where=str(path), todo="mend or export it again") from error


def _makes(tag: str | None) -> bool:
    return bool(tag) and "python" in str(tag)


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf; lists of tables are numbered, other lists are leaves; empty tables none."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        for index, inner in enumerate(value):
            yield from flat(inner, f"{name}.{index}")
    else:
        yield name, value


def mapping(content: Any, where: str) -> dict[str, Any]:
    """The content as a table; RecipeError where the file holds something else."""
    if not isinstance(content, dict):
        raise RecipeError("it holds no keys", where=where, todo="is it the right file?")
    return content
