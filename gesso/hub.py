"""Putting an export or a finished run on the Hub: only where the user asks, and private unless told otherwise."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gesso.errors import NetworkError, RecipeError
from gesso.formats import card
from gesso.schema import Hub

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NAME = re.compile(r"(?!.*(?:--|\.\.|\.git$))\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
_LONGEST = 96


def check(name: str) -> None:
    """RecipeError for a name that the Hub cannot have; NetworkError without a token to write with, or offline."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise RecipeError(
            f'"{name}" is no name on the Hub',
            todo="name it OWNER/NAME, of letters, digits, and single - . _ between them",
        )
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise NetworkError("HF_HUB_OFFLINE is set, which forbids an upload", todo="unset it, or ask for no upload")
    if not get_token():
        raise NetworkError(
            "there is no token to upload with",
            todo="set HF_TOKEN to a token that may write, or run `hf auth login` once",
        )


def make(name: str, *, public: bool, kind: str = "model") -> str:
    """The page of the repository `name`, made if it is not there: who can do that can upload to it.

    A repository that exists keeps its visibility. Raises NetworkError with what the Hub says.
    """
    with _talk(name) as api:
        return str(api.create_repo(name, private=not public, exist_ok=True, repo_type=kind))


def push(
    folder: Path,
    name: str,
    *,
    public: bool,
    message: str,
    kind: str = "model",
    but: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> str:
    """Upload a folder, or `only` and `but` some files, as one commit to the repository `name`, made as by `make`.

    `kind` is "model" or "dataset", the files are patterns. The repository keeps its other files. Returns its page;
    raises NetworkError with what the Hub says.
    """
    page = make(name, public=public, kind=kind)
    with _talk(name) as api:
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=message,
            repo_type=kind,
            ignore_patterns=list(but),
            allow_patterns=None if only is None else list(only),
        )
    return page


def push_run(out: Path, hub: Hub, files: Sequence[str]) -> str:
    """Upload the result of the finished run `out`, of its `files`: with its card and the pictures that this shows.

    Neither the recipe nor the record of the run goes along, which name folders of this machine. Raises NetworkError.
    """
    try:
        return push(
            out, hub.push, public=not hub.private, message=f"{out.resolve().name}, trained with gesso",
            only=[*_result(out, files), "README.md", *card.newest_samples(out)],
        )  # fmt: skip
    except NetworkError as error:
        raise NetworkError(
            f"the run is complete, but it is not on the Hub: {error.what}",
            where=hub.push,
            todo="start the same command again: nothing is trained, only the upload is tried again",
        ) from error


def _result(out: Path, files: Sequence[str]) -> list[str]:
    """The files of a result, and the folders of a pipeline, as patterns."""
    if "model_index.json" not in files:
        return list(files)
    index = json.loads((out / "model_index.json").read_text(encoding="utf-8"))
    parts = [name for name in index if not name.startswith("_") and (out / name).is_dir()]
    return [*files, *(f"{part}/*" for part in parts)]


@contextmanager
def _talk(name: str) -> Iterator[HfApi]:
    """The Hub; what it refuses, and what stands between, as NetworkError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        reasons = {
            401: ("the Hub does not accept the token", "set HF_TOKEN to a valid token"),
            403: (f"the token may not write to {name}", "use a token with write permission for that owner"),
        }
        why, todo = reasons.get(code, (f"the Hub refuses: {_first_line(error)}", "try again later"))
        raise NetworkError(why, where=name, todo=todo) from error
    except Exception as error:  # what the library's transport raises has another base in each of its versions
        raise NetworkError(
            f"the upload failed: {_first_line(error)}", where=name, todo="check the connection, and run it again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
