"""RUN/pick.json: what was measured and chosen, of which checkpoints. The run's page shows it as long as they last."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gesso.checkpoint import MANIFEST
from gesso.pick.choice import Measured
from gesso.pick.reasons import Reasons, Row
from gesso.storage import guard, write_json

FILE = "pick.json"


def write(run: Path, found: Reasons, measured: Sequence[Measured]) -> None:
    """Numbers that are not finite become null, for JSON has no other word for them."""
    told = {**asdict(found), "measured": [asdict(each) for each in measured], "checkpoints": identities(run)}
    with guard(run, what=FILE):
        write_json(run / FILE, _plain(told))


def read(run: Path) -> Reasons | None:
    """What `gesso pick` found, if that was about the checkpoints that there are now."""
    try:
        said = json.loads((run / FILE).read_text(encoding="utf-8"))
        found = Reasons(
            step=said["step"],
            sentence=str(said["sentence"]),
            why=tuple(map(str, said["why"])),
            doubts=tuple(map(str, said["doubts"])),
            rows=tuple(Row(**row) for row in said["rows"]),
        )
        same = bool(said["checkpoints"] == identities(run))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # there is none, or one that this version cannot read
    return found if same else None


def identities(run: Path) -> dict[str, str]:
    """What tells each checkpoint of a run from any other: the SHA-256 of its manifest, by the folder's name."""
    found = {}
    for folder in run.glob("checkpoint-*"):
        if re.fullmatch(r"checkpoint-\d+", folder.name):
            found[folder.name] = ""
            with suppress(OSError):  # one without a manifest is damaged, and left out of what is measured
                found[folder.name] = identity(folder)
    return found


def identity(folder: Path) -> str:
    """What tells a checkpoint's weights from any others."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
