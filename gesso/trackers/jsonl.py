"""The run's own record: one JSON object a line, appended and never rewritten.

Everything that shows a run (report page, studio, a user's notebook) reads this file and nothing else, so what it says
must survive a kill at any byte.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gesso.arrays import Float64, Int64
from gesso.errors import StorageError
from gesso.events import Event


class Jsonl:
    """Appends each event to a file: `{"event": "stepped", "time": "2026-01-31T12:00:00.000+00:00", "step": 12, …}`.

    One write per line, so that a kill leaves whole lines and at most one cut short; opening the file again ends that
    one with a line break. Numbers that are not finite become null, for JSON has no other word for them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            if _cut_short(path):
                self._file.write(b"\n")
        except OSError as error:
            raise _unwritable(path, error) from error

    def handle(self, event: Event) -> None:
        """Append one event. A disk that refuses it is a StorageError: a run without its record is not to go on."""
        said = event.as_json()
        line = {"event": said.pop("event"), "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **said}
        try:
            rest = memoryview(encode(line))
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        self._file.close()


def encode(value: Mapping[str, Any]) -> bytes:
    """One line of valid JSON in UTF-8, with its line break."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # a lone surrogate of a file name becomes its JSON escape


def read(path: Path) -> list[dict[str, Any]]:
    """All events of a run, in the order written; [] where there is no file yet.

    A line that a kill cut short is left out. It is the last one, until a resumed run writes on below it.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"the record cannot be read: {error.strerror or error}", where=str(path)) from error
    events = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "event" in value:
            events.append(value)
    return events


def current(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events that still count: a run that resumed from step N disowns what came after N before, and repeats it.

    Of one kind of event at one step the last counts. Warnings all count. Ordered by step.
    """
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, event in enumerate(events):
        step = int(event.get("step") or 0)
        if event["event"] == "started":
            kept = {key: old for key, old in kept.items() if key[0] in ("started", "warned") or key[1] <= step}
        kept[event["event"], step, number if event["event"] == "warned" else 0] = event
    return sorted(kept.values(), key=lambda event: int(event.get("step") or 0))


def series(events: Sequence[dict[str, Any]], name: str, field: str) -> tuple[Int64, Float64]:
    """Steps and values of one field of one kind of event, int64 [N] and float64 [N], rising in step; null is NaN.

    Where a step was taken twice, before and after a resume, the last one counts.
    """
    chosen = [event for event in current(events) if event["event"] == name and field in event]
    values = [math.nan if event[field] is None else float(event[field]) for event in chosen]
    steps = [int(event.get("step") or 0) for event in chosen]
    return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cut_short(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"the run's record cannot be written: {error.strerror or error}",
        where=str(path),
        todo="make room or choose another folder with --out; the last checkpoint stands",
    )
