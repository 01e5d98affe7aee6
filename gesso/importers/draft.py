"""A recipe in the making, and the report that grows with it: what became of every key of the source."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from gesso.base_file import SUFFIXES
from gesso.importers.rows import NOTHING, Row, read
from gesso.recipe import flags as recipe_flags
from gesso.recipe.files import toml, write
from gesso.recipe.keys import Given, allowed, keys, lookup, nest, show, tables
from gesso.recipe.rules import broken, idle
from gesso.schema import Recipe

Fate = Literal["mapped", "harmless", "differs", "unsupported", "unknown"]
STOPPING = ("unsupported", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What became of one key of the source."""

    key: str
    value: Any
    fate: Fate
    to: Mapping[str, Any]
    """Recipe keys with the values that they got from it."""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"key": self.key, "value": self.value, "fate": self.fate, "to": dict(self.to), "note": self.note}


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The outcome. `text` is the recipe as commented TOML, or empty where something stops it.

    words: where the source trains nothing, the words of the verb of gesso that does the same; `text` shows them.
    checkpoint: from which one the training is to go on, if not from the newest.
    kohya: where the finished LoRA is to be written in kohya's form too.
    """

    source: str
    entries: tuple[Entry, ...]
    text: str
    words: tuple[str, ...] = ()
    checkpoint: str = ""
    kohya: str = ""

    @property
    def stopped(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.fate in STOPPING)

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "stopped": bool(self.stopped),
            "keys": [entry.as_json() for entry in self.entries],
            "recipe": None if self.words else self.text or None,
            **({"command": list(self.words)} if self.words else {}),
            **({"checkpoint": self.checkpoint} if self.checkpoint else {}),
            **({"kohya": self.kohya} if self.kohya else {}),
        }


@dataclass(frozen=True, slots=True)
class _Setting:
    value: Any
    names: tuple[str, ...]
    note: str


class Draft:
    """Collects settings. `values` has the source's values by name, defaults included; `given` those it wrote."""

    def __init__(self, source: str, rows: Mapping[str, Row], *, dashes: bool = False, program: str = "") -> None:
        self.source, self.rows, self._program = source, dict(rows), program or source
        self.values: dict[str, Any] = {name: row.default for name, row in rows.items()}
        self.given: dict[str, Any] = {}
        self.settings: dict[str, _Setting] = {}
        self.checkpoint = self.kohya = ""
        self._own: dict[str, _Setting] = {}
        self._said: dict[str, tuple[Fate, str]] = {}
        self._notes: dict[str, list[str]] = {}
        self._extra: list[Entry] = []
        self._spell: Callable[[str], str] = (
            (lambda name: name if "." in name or name.startswith(("-", '"')) else f"--{name}")
            if dashes
            else (lambda name: name)
        )

    def take(self, given: Mapping[str, Any]) -> None:
        """Read the keys that the source wrote; those of rows that stand alone are settled here.

        A key of a list, `datasets.0.path`, has the row `datasets.path`.
        """
        for name, value in given.items():
            self.given[name] = value
            row = self.rows.get(name) or self.rows.get(plain(name)) or self._whole(plain(name))
            if row is None:
                self.say(name, "unknown", self._nearest(name))
                continue
            self.rows[name] = row
            if value == ():
                self.say(name, "unsupported", "needs a value")
                self.values[name] = row.default
                continue
            try:
                self.values[name] = read(row.kind, value)
            except ValueError as error:
                self.say(name, "unsupported", str(error))
                self.values[name] = row.default
                continue
            self._settle(name, row)

    def defaults(self) -> None:
        """Write down what the source would take for its mapped keys that are absent."""
        for name, row in list(self.rows.items()):
            if row.action == "mapped" and row.default is not None and name not in self.given and row.to:
                self.settings.setdefault(row.to, _Setting(row.default, (), ""))

    def _settle(self, name: str, row: Row) -> None:
        value = self.values[name]
        if row.action == "mapped":
            chosen = row.choices.get(value, value) if not isinstance(value, list) else value
            if row.choices and value not in row.choices:
                self.say(name, "unsupported", f"must be one of {', '.join(map(str, row.choices))}")
            elif value is None:
                self.say(name, "harmless", "asks for nothing")
            else:
                self.put(row.to, chosen, name, note=row.why)
        elif row.action == "harmless":
            self.say(name, "harmless", row.why)
        elif row.action != "joined":
            asked = not any(value == each and type(value) is type(each) for each in row.off)
            fate: Fate = "differs" if row.action == "differs" else "unsupported"
            self.say(name, fate if asked else "harmless", row.why if asked else "asks for nothing")

    def put(self, key: str, value: Any, *names: str, note: str = "") -> None:
        """Set a key of the recipe because of the source's keys `names` that were given; `note` says what to know."""
        given = tuple(dict.fromkeys(name for name in names if name in self.given))
        self.settings[key] = _Setting(value, given, note)
        for name in given:
            if note:
                self._notes.setdefault(name, []).append(note)

    def say(self, name: str, fate: Fate, note: str) -> None:
        """Say of a key that the source wrote what becomes of it; the worse word stays."""
        order = ("harmless", "differs", "unsupported", "unknown")
        before = self._said.get(name)
        if name in self.given and (before is None or order.index(fate) > order.index(before[0])):
            self._said[name] = (fate, note)

    def reword(self, name: str, note: str) -> None:
        """Say better what is wrong with a key that already stops the import."""
        self._said[name] = (self._said[name][0], note)

    def forgive(self, name: str, note: str) -> None:
        """Take back what was said of a key that turns out to act on nothing."""
        if name in self.given:
            self._said[name] = ("harmless", note)

    def stop(self, text: str, key: str = "") -> None:
        """Stop for what no single given key says: `key` names what is missing or contradictory."""
        self._extra.append(Entry(key=key or self.source, value=None, fate="unsupported", to={}, note=text))

    def own(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What of `given` is the source's. Dotted names are keys of the recipe, which win over what the source says.

        So is `engine`, which no script has: the same command for MindSpore.
        """
        rest: dict[str, Any] = {}
        for name, value in given.items():
            if ("." not in name and name != "engine") or name in self.rows or name.startswith('"'):
                rest[name] = value
                continue
            key = lookup(name)
            bare = value == "" and key is not None and key.kind == "boolean"
            found, problems = recipe_flags.read([f"--{name}" if bare else f"--{name}={value}"])
            self.given[f"--{name}"] = value
            self.values[f"--{name}"] = value
            for problem in problems:
                self.say(f"--{name}", "unsupported", problem.text)
            for place, each in found.items():
                self._own[place] = _Setting(each.value, (f"--{name}",), "")
        return rest

    def _take_own(self) -> None:
        """Put the recipe's keys that stood among the flags over what the flags became."""
        for key, setting in self._own.items():
            before = self.settings.get(key)
            self.settings[key] = setting
            if key == "train.steps" and "train.epochs" not in self._own:
                # Else the script's epochs, by default a hundred, would win over the steps that are asked for.
                before = self.settings.pop("train.epochs", before)
            for name in before.names if before else ():
                if not any(name in each.names for each in self.settings.values()):
                    self.say(name, "harmless", f"--{key} is given too, and counts")

    def fates(self) -> tuple[Fate, ...]:
        """What was said of keys so far."""
        return tuple(fate for fate, _ in self._said.values())

    def _whole(self, name: str) -> Row | None:
        """The row of a table that is dealt with as a whole, `cloud.*`: the nearest above."""
        parts = name.split(".")
        places = (".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1))
        return next((self.rows[f"{place}.*"] for place in places if f"{place}.*" in self.rows), None)

    def _nearest(self, name: str) -> str:
        """Of the keys beside it the one most alike, else of all keys."""
        if not name.strip('" '):
            return "a space stands behind a backslash at the end of a line, which ends the command there; take it out"
        place, _, last = plain(name).rpartition(".")
        found: dict[str, str] = {}
        for each in sorted(map(plain, self.rows), key=lambda each: each.rpartition(".")[0] != place):
            found.setdefault(each.rpartition(".")[2], each)
        beside = [key for key, each in found.items() if each.rpartition(".")[0] == place]
        meant = get_close_matches(last, beside, n=1, cutoff=0.6) or get_close_matches(last, found, n=1, cutoff=0.75)
        hint = f"did you mean {self._spell(found[meant[0]])}?" if meant else "leave it out"
        return f"{self.source} has no such key; {hint}"

    def finish(self) -> Imported:
        """The recipe, checked as a whole, with the report; a key that no one spoke of is a fault of gesso."""
        self._take_own()
        self._lend()
        self._drop_idle()
        self._check_each()
        if not any(fate in STOPPING for fate, _ in self._said.values()) and not self._extra:
            self._check_together()
        imported = Imported(
            source=self.source, entries=self.entries(), text="", checkpoint=self.checkpoint, kohya=self.kohya
        )
        return imported if imported.stopped else replace(imported, text=self._text())

    def entries(self) -> tuple[Entry, ...]:
        """The report: a line for every key of the source, and one for each stop that no key says."""
        stopped = bool(self._extra) or any(fate in STOPPING for fate in self.fates())
        return (*(self._entry(name, stopped) for name in self.given), *self._extra)

    def _lend(self) -> None:
        """Other trainers bring along what a model in one file lacks; gesso takes it from where the user says."""
        base = self.settings.get("model.base")
        if base and Path(str(base.value)).suffix.lower() in SUFFIXES and "model.like" not in self.settings:
            for name in base.names:
                text = "a model in one file: also set model.like to a folder or Hub id that lends its tokenizer"
                self.say(name, "differs", text)

    def _entry(self, name: str, stopped: bool) -> Entry:
        to = {key: each.value for key, each in self.settings.items() if name in each.names}
        fate, note = self._said.get(name, ("mapped", ""))
        row = self.rows.get(name)
        if fate == "mapped" and not to:
            nothing = any(self.values.get(name) == each for each in NOTHING)
            if not (stopped or nothing):
                raise AssertionError(f"{self.source}: nothing became of {name}")
            stands = "not looked at any further, for another key stops the import"
            fate, note = "harmless", "asks for nothing" if nothing else stands
        value = "***" if row is not None and row.secret and self.given[name] else self.given[name]
        if fate == "harmless" and to:
            fate, note = "mapped", ""
        notes = dict.fromkeys([note, *self._notes.get(name, ())] if fate != "unknown" else [note])
        shown = "" if fate in STOPPING else "; ".join(each for each in notes if each)
        return Entry(
            key=self._spell(name),
            value=value,
            fate=fate,
            to={} if fate in STOPPING else to,
            note=shown or note,
        )

    def _given(self) -> dict[str, Given]:
        return {key: Given(value=each.value, origin="file") for key, each in self.settings.items()}

    def _recipe(self) -> Recipe | None:
        try:
            nested = nest({key: each.value for key, each in self.settings.items()})
            return Recipe.model_validate_json(json.dumps(nested), strict=True)
        except (ValidationError, ValueError):
            return None

    def _drop_idle(self) -> None:
        """Leave out what another key makes pointless: the source carries it along without effect too."""
        for _ in range(4):
            recipe = self._recipe()
            problems = list(idle(recipe, self._given())) if recipe else []
            if not problems:
                return
            for problem in problems:
                setting = self.settings.pop(problem.keys[0], None)
                for name in setting.names if setting else ():
                    self.say(name, "harmless", problem.text)

    def _check_each(self) -> None:
        """Every value by itself, in the words of the source's key."""
        for key, setting in list(self.settings.items()):
            table, _, last = key.rpartition(".")
            needed = {"data": "path", "rules": "match", "tokens": "name"}.get(table.split(".")[0])
            rest = {f"{table.split('.')[0]}.0.{needed}": "x"} if needed else {}
            name = f"{table.split('.')[0]}.0.{last}" if needed else key
            try:
                Recipe.model_validate_json(json.dumps(nest({**rest, name: setting.value})), strict=True)
            except ValidationError as error:
                found = lookup(key)
                first = error.errors()[0]
                must = str(first["ctx"]["error"]) if first["type"] == "value_error" else ""
                must = must or (f"must be {allowed(found.schema)}" if found else str(first["msg"]))
                self._blame(setting.names, f"{key} would be {show(setting.value)}, but {must}", key)

    def _check_together(self) -> None:
        recipe = self._recipe()
        if recipe is None:
            raise AssertionError(f"{self.source}: values that are right one by one make no recipe")
        for problem in broken(recipe, self._given()):
            names = tuple(
                dict.fromkeys(name for key in problem.keys if key in self.settings for name in self.settings[key].names)
            )
            self._blame(names, problem.text, ", ".join(problem.keys))

    def _blame(self, names: Sequence[str], text: str, key: str) -> None:
        if names:
            for name in names:
                self.say(name, "unsupported", text)
        else:
            self.stop(text, key)

    def _text(self) -> str:
        ranks = {name: rank for rank, name in enumerate(keys())}
        order = {name: rank for rank, name in enumerate(tables())}

        def place(key: str) -> tuple[int, int, int]:
            parts = key.split(".")
            number = int(parts[1]) if len(parts) == 3 else 0
            plain = re.sub(r"\.\d+\.", ".", key)
            return (order.get(parts[0], -1), number, ranks[plain])

        kept = {key: each for key, each in self.settings.items() if each.names or each.value != _default(key)}
        values = {key: kept[key].value for key in sorted(kept, key=place)}
        notes = {key: self._comment(each) for key, each in kept.items()}
        return write(values, notes, (f"Written by `gesso import` from {one_line(self.source)}.",))

    def _comment(self, setting: _Setting) -> str:
        if setting.names:
            return one_line(", ".join(self._spell(name) for name in setting.names))
        return one_line(setting.note or f"default of {self._program}")


def plain(name: str) -> str:
    """The name without the numbers of lists."""
    return re.sub(r"\.\d+(?=\.|$)", "", name)


def _default(key: str) -> Any:
    found = lookup(key)
    return found.default if found else None


def one_line(text: str) -> str:
    """Text for a comment or a terminal: control characters are escaped, so that it stays one line and does nothing."""
    return re.sub(r"[\x00-\x1f\x7f\u0085\u2028\u2029]", lambda match: repr(match[0])[1:-1], text)


def shown(to: Mapping[str, Any]) -> str:
    """Recipe keys and values in words."""
    return ", ".join(f"{key} = {toml(value)}" for key, value in to.items())
