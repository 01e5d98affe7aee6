"""A run folder as the report sees it: read from files, each of which may be missing while a run is young."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gesso.arrays import Picture
from gesso.errors import StorageError
from gesso.trackers import jsonl

Event = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One sample: its place in the run folder and what it was asked for."""

    step: int
    prompt: str
    seed: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One training picture as the data lock names it, and where it may be; or the picture itself."""

    file: str
    captions: tuple[str, ...] = ()
    group: str = "instance"
    sha256: str = ""
    places: tuple[Path, ...] = ()
    picture: Picture | None = None

    def find(self) -> Path | Picture | None:
        """The picture, or its file if it is where it was and still what it was."""
        if self.picture is not None:
            return self.picture
        for place in self.places:
            with contextlib.suppress(OSError), place.open("rb") as file:
                if self.sha256 and hashlib.file_digest(file, "sha256").hexdigest() == self.sha256:
                    return place
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything the page is made from. `events` are those that count after resumes; `last` is the last one written."""

    folder: Path
    events: Sequence[Event] = ()
    last: Event = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    """Effective recipe, by dotted key."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where each value came from, by dotted key."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    drawn: Sequence[Drawn] = ()
    shown: Sequence[Shown] = ()
    """The pictures that were learned from."""
    of_class: Sequence[Shown] = ()
    """Those of the class, which keep it as it was."""

    def of(self, name: str) -> list[Event]:
        """The events of one kind, by step."""
        return [event for event in self.events if event["event"] == name]

    def first(self, name: str) -> Event:
        """The first event of a kind, or {}."""
        return next(iter(self.of(name)), {})

    def latest(self, name: str) -> Event:
        """The last event of a kind, or {}."""
        return next(reversed(self.of(name)), {})

    @property
    def seconds(self) -> float | None:
        """How long a finished run took. Started again, it finishes at once: then its steps tell, which all count."""
        finished = [float(event["seconds"]) for event in self.of("finished") if event.get("seconds") is not None]
        steps = sum(float(event.get("seconds") or 0.0) for event in self.of("stepped"))
        return max(*finished, steps) if finished else None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def adapter(self) -> bool:
        return str(self.values.get("adapter.kind", "none")) != "none"

    @property
    def place(self) -> str:
        """The run folder as commands should name it: as the user wrote it, unless it has been moved."""
        out = str(self.values.get("out", ""))
        return out if out and Path(out).name == self.name else self.name


def read(folder: Path) -> Run:
    """Read a run folder."""
    if not folder.is_dir():
        raise StorageError("there is no run folder here", where=str(folder), todo="name the folder given with --out")
    written = jsonl.read(folder / "events.jsonl")
    events = jsonl.current(written)
    values, origins = recipe(_json(folder / "effective.json"))
    shown = _shown(_json(folder / "data.lock.json"), values)
    return Run(
        folder=folder,
        events=events,
        last=written[-1] if written else {},
        values=values,
        origins=origins,
        environment=_json(folder / "environment.json"),
        drawn=_drawn(folder, events),
        shown=[each for each in shown if each.group == "instance"],
        of_class=[each for each in shown if each.group == "class"],
    )


def recipe(effective: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and origins by dotted key, from `{"recipe": {…}, "origins": {key: origin}}` or from a recipe with
    `{"value": …, "origin": …}` at its leaves."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping) and set(node) >= {"value", "origin"}:
            values[prefix], origins[prefix] = node["value"], str(node["origin"])
        elif isinstance(node, Mapping):
            for key, inner in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(node, list) and node and all(isinstance(inner, Mapping) for inner in node):
            for number, inner in enumerate(node):
                walk(f"{prefix}.{number}", inner)
        else:
            values[prefix] = node

    body = next(
        (effective[name] for name in ("recipe", "values") if isinstance(effective.get(name), Mapping)), effective
    )
    walk("", body)
    given = effective.get("origins")
    if isinstance(given, Mapping):
        flat, _ = recipe({"values": given})
        origins.update({key: str(origin) for key, origin in flat.items()})
    return values, origins


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(f"the file cannot be read: {error}", where=str(path)) from error
    return value if isinstance(value, dict) else {}


def _drawn(folder: Path, events: Sequence[Event]) -> list[Drawn]:
    """The samples told of by the events, step by step."""
    return [
        Drawn(step=int(event["step"]), prompt=str(s["prompt"]), seed=int(s["seed"]), path=folder / str(s["file"]))
        for event in events
        if event["event"] == "sampled"
        for s in event.get("samples", ())
        if (folder / str(s["file"])).resolve().is_relative_to(folder.resolve())
    ]


def _shown(lock: Mapping[str, Any], values: Mapping[str, Any]) -> list[Shown]:
    """The pictures that were learned from, those of the class among them.

    The lock names files from the folder that all of them have in common, which is a data folder or above one.
    """
    given = [
        Path(str(value)).absolute()
        for key, value in values.items()
        if value and re.fullmatch(r"data\.\d+\.path|prior\.path|out", key)
    ]
    roots = [Path(str(lock["root"]))] if "root" in lock else []
    roots += dict.fromkeys(folder for path in given for folder in (path, *path.parents))
    return [
        Shown(
            file=str(entry["file"]),
            captions=tuple(entry.get("captions", ())),
            group=str(entry.get("group", "instance")),
            sha256=str(entry.get("sha256", "")),
            places=tuple(root / str(entry.get("path") or entry["file"]) for root in roots or [Path()]),
        )
        for entry in lock.get("pictures", ())
    ]
