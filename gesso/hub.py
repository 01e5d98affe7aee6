"""Putting an export on the Hub: only where the user asks for it, and private unless told otherwise."""

from __future__ import annotations

import os
from pathlib import Path

from gesso.errors import NetworkError, RecipeError
from gesso.models import looks_like_hub_id


def check(name: str) -> None:
    """RecipeError for a name that the Hub cannot have, or without a token to write with."""
    if not looks_like_hub_id(name):
        raise RecipeError(f'"{name}" is no name on the Hub', todo="name it OWNER/NAME")
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise NetworkError("HF_HUB_OFFLINE is set, which forbids an upload", todo="unset it, or leave --push out")
    if not get_token():
        raise NetworkError(
            "there is no token to upload with",
            todo="set HF_TOKEN to a token that may write, or run `hf auth login` once",
        )


def push(folder: Path, name: str, *, public: bool, message: str) -> str:
    """Upload every file of a folder as one commit to the model repository `name`, made if it is not there; its page.

    A repository that exists keeps its visibility, and its other files. Raises NetworkError with what the Hub says.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        page = str(api.create_repo(name, private=not public, exist_ok=True, repo_type="model"))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, repo_type="model")
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        reasons = {
            401: ("the Hub does not accept the token", "set HF_TOKEN to a valid token"),
            403: (f"the token may not write to {name}", "use a token with write permission for that owner"),
        }
        why, todo = reasons.get(code, (f"the Hub refuses: {_first_line(error)}", "try again later"))
        raise NetworkError(why, where=name, todo=todo) from error
    except (OSError, ValueError) as error:
        raise NetworkError(
            f"the upload failed: {_first_line(error)}", where=name, todo="check the connection, and run it again"
        ) from error
    return page


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
