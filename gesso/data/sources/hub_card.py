"""What the card of a Hub data set says of its files: `configs:` in the YAML that its README.md begins with.

    configs: [{config_name: default, data_files: [{split: train, path: "data/train-*.parquet"}]}]
(huggingface.co/docs/hub/datasets-manual-configuration)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from gesso.data.sources.made import listed
from gesso.errors import DataError
from gesso.schema import DataTable

TRAIN = "train"
"""The split that is learned from."""


def _configs(path: Path, name: str) -> list[Mapping[str, Any]]:
    """`configs:` of the data set's card; none where it has no such thing."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        found = yaml.safe_load(head[1]) if head else {}
    except yaml.YAMLError as error:
        raise DataError(
            f"its {path.name} begins with what is not YAML: {error}", where=name, todo="tell its owner"
        ) from error
    configs = found.get("configs") if isinstance(found, dict) else None
    return [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else []


def patterns(card: Path, table: DataTable, key: str) -> list[str]:
    """The patterns of the files of the split "train"; none where the card says nothing of files.

    Raises DataError where the part or the split is not there, with the names of those that are.
    """
    configs = _configs(card, table.path)
    return _of(_chosen(configs, table, key), table, key) if configs else []


def _chosen(configs: Sequence[Mapping[str, Any]], table: DataTable, key: str) -> Mapping[str, Any]:
    """The part that data.config names, or the default one."""
    names = [str(each.get("config_name", "default")) for each in configs]
    default = [name for name, each in zip(names, configs, strict=True) if each.get("default") is True]
    first = table.config or next(iter([*default, *(name for name in names if name == "default")]), "")
    if not first and len(names) > 1:
        raise DataError(
            f"it has several parts: {listed(names, 20)}",
            where=table.path,
            todo=f'choose one: {key}.config = "{names[0]}"',
        )
    if first and first not in names:
        raise DataError(
            f'it has no part "{first}", but {listed(names, 20)}',
            where=table.path,
            todo=f"choose one of them with {key}.config",
        )
    return configs[names.index(first) if first else 0]


def _of(config: Mapping[str, Any], table: DataTable, key: str) -> list[str]:
    inside = str(config.get("data_dir") or "").strip("./")
    splits = dict(_data_files(config.get("data_files")))
    if splits and TRAIN not in splits:
        if len(splits) > 1:
            raise DataError(
                f'it has the splits {", ".join(splits)}, but not "{TRAIN}"',
                where=table.path,
                todo=f"choose another part with {key}.config, or copy the files and give their folder",
            )
        splits = {TRAIN: next(iter(splits.values()))}
    files = splits.get(TRAIN) or (["**"] if inside else [])
    found = [f"{inside}/{each}" if inside else each.removeprefix("./") for each in files]
    outside = [each for each in found if "://" in each or ".." in each.split("/") or each.startswith("/")]
    if outside:
        raise DataError(
            f"its files lie elsewhere: {outside[0]}",
            where=table.path,
            todo=f"give that URL as {key}.path, if you trust it",
        )
    return found


def _data_files(value: Any) -> Iterator[tuple[str, list[str]]]:
    """(split, patterns) of `data_files`, which may be a text, a list of texts, of tables, or a table."""
    if isinstance(value, str):
        yield TRAIN, [value]
    elif isinstance(value, dict):
        yield from ((str(split), _texts(paths)) for split, paths in value.items())
    elif isinstance(value, list):
        plain = [each for each in value if isinstance(each, str)]
        if plain:
            yield TRAIN, plain
        found: dict[str, list[str]] = {}
        for each in value:
            if isinstance(each, dict):
                found.setdefault(str(each.get("split", TRAIN)), []).extend(_texts(each.get("path")))
        yield from found.items()


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [each for each in value or () if isinstance(each, str)]
