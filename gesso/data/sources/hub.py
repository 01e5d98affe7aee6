"""Data sets of the Hub, "hub:user/name": fetched once into the Hub library's own cache, then read like any other data.

What is fetched is what is learned from: the split "train" of the part that data.config names, as the data set's card
says (hub_card.py), or as the names of its files tell.
This is the one source that contacts the Hub, and only because the recipe names it so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from gesso.data.sources import hub_card
from gesso.data.sources.folder import CAPTIONS, LISTS, PICTURES, SHARDS
from gesso.data.sources.hub_card import TRAIN
from gesso.data.sources.made import listed
from gesso.errors import DataError, NetworkError, RecipeError
from gesso.schema import DataTable

PREFIX = "hub:"
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
CARD = "README.md"
OTHERS = ("test", "testing", "eval", "evaluation", "valid", "validation", "val", "dev")
WANTED = (*PICTURES, *CAPTIONS, *SHARDS, ".json", ".jsonl", ".csv")
PART = re.compile(
    r"(?:^|[/._ -])(?P<word>training|train|" + "|".join(sorted(OTHERS, reverse=True)) + r")(?=[/._ -]|\d|$)"
)
"""How the name of a file tells its split (huggingface.co/docs/hub/datasets-file-names-and-splits)."""
NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A data set on this machine: the files that hold pictures, or where there are none the folder of pictures."""

    folder: Path
    files: tuple[Path, ...]


def fetched(table: DataTable, key: str) -> Fetched:
    """What `table.path`, "hub:user/name", holds to learn from, downloaded where it is not in the Hub's cache.

    Raises RecipeError for a name that is none, NetworkError where the Hub does not give it, DataError for a data set
    without a split "train", without the configuration that is asked for, or without pictures.
    """
    name = table.path.removeprefix(PREFIX)
    if not NAME.fullmatch(name):
        raise RecipeError(f'"{table.path}" names no data set of the Hub', todo='write "hub:user/name"')
    root = _snapshot(name, table.revision or None, [CARD])
    commit = root.name
    wanted = hub_card.patterns(root / CARD, table, key)
    there = _names(name, commit, root)
    folder = "" if wanted or not table.config else f"{table.config}/"
    chosen = _matching(there, wanted) if wanted else [each for each in there if each.startswith(folder)]
    learned, others = _split([each for each in chosen if each.lower().endswith(WANTED)], bool(wanted), table, key)
    if not learned:
        raise DataError(
            f"there are no pictures that gesso reads in {len(there)} files: {listed(there)}",
            where=table.path,
            todo=f'name another {key}.config; of a data set made by a script, {key}.revision = "refs/convert/parquet"',
        )
    allow = [_flat(each) for each in wanted] or [f"{folder}*{ending}" for ending in WANTED]
    root = _snapshot(name, commit, allow, _prefixes(others, learned))
    shards = tuple(root / each for each in learned if each.lower().endswith((".tar", ".parquet")))
    shards = tuple(each for each in shards if each.name not in LISTS)
    pictures = any(each.lower().endswith(tuple(PICTURES)) for each in learned)
    if shards and not pictures:
        _whole([each for each in learned if root / each in shards], table.path)
        return Fetched(root, shards)
    return Fetched(root / _common(learned), ())


def _flat(pattern: str) -> str:
    """A pattern of the card as the Hub's library compares it: its * passes over / too."""
    return re.sub(r"\*\*/?", "*", pattern)


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, _flat(pattern)) for pattern in patterns)]


def _split(names: Sequence[str], said: bool, table: DataTable, key: str) -> tuple[list[str], list[str]]:
    """(files of "train", files of other splits) by their names, unless the card has said which they are."""
    if said:
        return list(names), []
    of = {name: {match["word"] for match in PART.finditer(name)} for name in names}
    if not any(word.startswith(TRAIN) for words in of.values() for word in words):
        other = sorted({word for words in of.values() for word in words})
        files = [name for name in names if name.lower().endswith(SHARDS)]
        if files and all(of[name] for name in files):
            raise DataError(
                f'it has the splits {", ".join(other)}, but not "{TRAIN}"',
                where=table.path,
                todo=f"choose another part with {key}.config, or copy the files and give their folder",
            )
        return list(names), []
    trained = [name for name, words in of.items() if any(word.startswith(TRAIN) for word in words)]
    return trained, [name for name, words in of.items() if words and name not in set(trained)]


def _prefixes(others: Sequence[str], learned: Sequence[str]) -> list[str]:
    """Patterns for the files of other splits, short ones, that leave all that is learned."""
    found = set()
    for name in others:
        match = PART.search(name)
        end = match.end() if match else len(name)
        found.add(_escaped(name[:end]) + "*")
    return sorted(each for each in found if not any(fnmatchcase(name, each) for name in learned))


def _escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _common(names: Sequence[str]) -> str:
    """The folder that holds all of `names`: that of the list of captions among them, or the deepest one."""
    folders = [name.rpartition("/")[0] for name in names]
    shared = folders[0].split("/")
    for folder in folders:
        parts = folder.split("/")
        while shared != parts[: len(shared)]:
            shared.pop()
    return "/".join(shared)


def _whole(names: Sequence[str], where: str) -> None:
    """DataError where one of several numbered files is missing."""
    there: dict[tuple[str, str, str], set[int]] = {}
    for match in filter(None, map(NUMBERED.fullmatch, names)):
        there.setdefault((match[1], match[3], match[4]), set()).add(int(match[2]))
    for (name, count, ending), numbers in there.items():
        missing = sorted(set(range(int(count))) - numbers)
        if missing:
            raise DataError(
                f"{len(missing)} of its {int(count)} files are missing: "
                + listed([f"{name}-{number:05d}-of-{count}{ending}" for number in missing]),
                where=where,
                todo="tell its owner, or name another data.revision",
            )


def _names(name: str, commit: str, root: Path) -> list[str]:
    """The files of the data set: as the Hub lists them, or as it did when this commit was fetched."""
    import huggingface_hub
    from huggingface_hub import HfApi

    try:
        return sorted(HfApi(endpoint=_endpoint()).list_repo_files(name, repo_type="dataset", revision=commit))
    except Exception:  # offline: each version of the library says so in another way
        kept = getattr(huggingface_hub, "get_cached_repo_tree", None)  # not before 2.0
    try:
        return sorted(entry.path for entry in kept(name, repo_type="dataset", revision=commit)) if kept else _here(root)
    except Exception:  # a cache that another version of the library has filled
        return _here(root)


def _here(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _snapshot(name: str, revision: str | None, allow: list[str], ignore: Sequence[str] = ()) -> Path:
    """The folder of the data set in the Hub's cache with the files that are allowed. Raises NetworkError."""
    from huggingface_hub import snapshot_download

    return _asked(
        name,
        lambda: Path(
            snapshot_download(
                name,
                repo_type="dataset",
                revision=revision,
                allow_patterns=allow,
                ignore_patterns=list(ignore) or None,
                endpoint=_endpoint(),
            )
        ),
    )


def _asked(name: str, action: Callable[[], Answer]) -> Answer:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = PREFIX + name
    try:
        return action()
    except GatedRepoError as error:
        raise NetworkError(
            "this data set is gated",
            where=where,
            todo="accept its licence on its page, then set HF_TOKEN to a token of your account",
        ) from error
    except RepositoryNotFoundError as error:
        raise NetworkError(
            "there is no such data set on the Hub, or it is private",
            where=where,
            todo="check the name; for a private one set HF_TOKEN",
        ) from error
    except RevisionNotFoundError as error:
        raise NetworkError("it has no such revision", where=where, todo="check data.revision") from error
    except LocalEntryNotFoundError as error:
        raise NetworkError(
            "the Hub cannot be reached, and this data set is not, or not wholly, on this machine",
            where=where,
            todo="check the connection, HF_ENDPOINT and HF_HUB_OFFLINE, and start again: what was fetched is kept",
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "none"
        raise NetworkError(f"the Hub answers with status {status}", where=where, todo="try again later") from error
    except Exception as error:  # the library's transport has its own kinds, others in each version
        raise NetworkError(
            f"it could not be fetched ({type(error).__name__})",
            where=where,
            todo="check the connection and start again: what was fetched is kept",
        ) from error
