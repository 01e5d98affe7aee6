"""A command as people paste it: comments, continued lines, variables, launchers. Nothing of it is executed."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from gesso.errors import RecipeError
from gesso.importers.files import mapping, read
from gesso.importers.rows import Row

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?-([^{}$`\"']*)|:?\?[^{}]*)?\})")
_DATE = re.compile(r"\$\(date \+([%\w:.-]+)\)")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_ENDS = (";", "&", "|", "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A script with its words, and what its launcher says: `devices` processes, and a precision or ""."""

    script: str
    words: tuple[str, ...]
    devices: int = 1
    precision: str = ""
    stops: tuple[str, ...] = field(default=())
    """What the launcher asks for that gesso does not do."""


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell text, with its variables put in. RecipeError for what only a shell can say.

    `$NAME` and `${NAME}` are known where the text assigns them, `${NAME:-this}` always; `$(date +%Y)` is the time now.
    """
    text = re.sub(r"[\\^]\r?\n", " ", text.replace("\r\n", "\n"))
    text = _DATE.sub(lambda match: time.strftime(match[1]), text)
    found: list[list[str]] = []
    variables: dict[str, str] = {}
    for words in _Words(text, variables):
        rest = list(words)
        if rest[:1] in (["export"], ["set"]):
            rest = rest[1:]
        while rest and _ASSIGNMENT.match(rest[0]):
            name, _, value = rest.pop(0).partition("=")
            variables[name] = value
        if rest:
            found.append(rest)
    return found


class _Words:
    """The commands of a text one by one, each list of words made with the variables known by then."""

    def __init__(self, text: str, variables: Mapping[str, str]) -> None:
        # The caller adds to `variables` while it is handed command after command.
        self.text, self.variables, self.at = text, variables, 0

    def __iter__(self) -> _Words:
        return self

    def __next__(self) -> list[str]:
        while self.at < len(self.text):
            words = self._command()
            if words:
                return words
        raise StopIteration

    def _command(self) -> list[str]:
        words: list[str] = []
        word: str | None = None
        while self.at < len(self.text):
            letter = self.text[self.at]
            self.at += 1
            if letter in _ENDS:
                break
            if letter in " \t":
                words, word = ([*words, word] if word is not None else words), None
            elif letter == "#" and word is None:
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif letter in "<>":
                raise _shell(letter + self.text[self.at : self.at + 20], "leave the redirection out")
            else:
                word = (word or "") + self._piece(letter)
        return [*words, word] if word is not None else words

    def _piece(self, letter: str) -> str:
        if letter == "'":
            return self._until("'")
        if letter == '"':
            inner = ""
            while self.at < len(self.text) and self.text[self.at] != '"':
                inner += self._inside()
            if self.at >= len(self.text):
                raise RecipeError('the command has an opening " without its end')
            self.at += 1
            return inner
        if letter == "\\" and self.at < len(self.text):
            self.at += 1
            return self.text[self.at - 1]
        return self._plain(letter)

    def _inside(self) -> str:
        letter = self.text[self.at]
        self.at += 1
        if letter == "\\" and self.at < len(self.text) and self.text[self.at] in '"\\$`':
            self.at += 1
            return self.text[self.at - 1]
        return self._plain(letter)

    def _plain(self, letter: str) -> str:
        if letter == "`" or (letter == "$" and self.text[self.at : self.at + 1] == "("):
            raise _shell(self.text[self.at - 1 : self.at + 30], "write what it gives in its place")
        if letter != "$":
            return letter
        match = _VARIABLE.match(self.text, self.at - 1)
        if match is None and self.text[self.at : self.at + 1] == "{":
            raise _shell(self.text[self.at - 1 : self.at + 30], "write what it gives in its place")
        if match is None:
            return letter
        name = match[1] or match[2]
        if match[3] is None and name not in self.variables:
            before = "" if name[0].isdigit() else f"put the line {name}=… in front of it, or "
            raise RecipeError(
                f"the command uses ${name}, which it does not set", todo=f"{before}write the value in its place"
            )
        self.at = match.end()
        return self.variables.get(name) or match[3] or ""

    def _until(self, quote: str) -> str:
        end = self.text.find(quote, self.at)
        if end < 0:
            raise RecipeError(f"the command has an opening {quote} without its end")
        inner, self.at = self.text[self.at : end], end + 1
        return inner


def _shell(what: str, todo: str) -> RecipeError:
    return RecipeError(f"the command has `{what.splitlines()[0]}`, which only a shell can carry out", todo=todo)


DEVICES = ("--num_processes", "--nproc_per_node", "--nproc-per-node", "--worker_num")
REFUSED = ("--use_deepspeed", "--use_fsdp", "--use_megatron_lm", "--fp8_backend")


def command(words: Sequence[str]) -> Command | None:
    """The Python script that `words` start, behind `python`, `accelerate launch`, `torchrun`, `msrun` or nothing."""
    at = next((index for index, word in enumerate(words) if word.endswith(".py")), None)
    if at is None:
        return None
    launcher = dict(_pairs(words[:at]))
    launcher = {**_configured(launcher.get("--config_file", "")), **launcher}
    count = next((launcher[flag] for flag in DEVICES if flag in launcher), "1")
    if not count.isdigit() or int(count) < 1:
        raise RecipeError(f"the launcher is to start {count} processes, must be a whole number, at least 1")
    return Command(
        script=_name(words[at]),
        words=tuple(words[at + 1 :]),
        devices=int(count) * int(launcher.get("--nnodes", "1") if launcher.get("--nnodes", "1").isdigit() else 1),
        precision=launcher.get("--mixed_precision", ""),
        stops=tuple(flag for flag in REFUSED if flag in launcher),
    )


def _configured(path: str) -> dict[str, str]:
    """What the file of `accelerate launch --config_file` says of its flags; RecipeError where there is none."""
    if not path:
        return {}
    values = mapping(read(Path(path).expanduser()), path)
    # YAML reads a bare `no` as false.
    said = {name: "no" if value is False else str(value) for name, value in values.items() if value is not None}
    kind = said.get("distributed_type", "").lower()
    refused = {f"--use_{kind}": ""} if f"--use_{kind}" in REFUSED else {}
    return refused | {f"--{name}": said[name] for name in ("mixed_precision", "num_processes") if name in said}


def _name(path: str) -> str:
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for index, word in enumerate(words):
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            following = words[index + 1] if index + 1 < len(words) else ""
            found.append((flag, value if equals else following))
    return found


def spoken(words: Sequence[str]) -> set[str]:
    """The flags among the words of a script, without dashes and values."""
    return {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}


def flags(words: Sequence[str], rows: Mapping[str, Row]) -> dict[str, Any]:
    """What the words of a script give, by flag without dashes; of one given twice the last counts.

    A flag without its value is None; a word that belongs to no flag is a key of its own, and so unknown.
    """
    given: dict[str, Any] = {}
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("--"):
            given[f'"{word}"'] = None
            continue
        name, equals, value = word[2:].partition("=")
        name = name if name in rows else name.replace("-", "_")
        row = rows.get(name)
        end = at
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        if equals:
            given[name] = [value] if row is not None and row.kind in ("texts", "numbers") else value
        elif row is None or row.kind in ("texts", "numbers"):
            given[name], at = (list(words[at:end]) if row is not None else " ".join(words[at:end])), end
        elif row.kind == "switch":
            spoken = at < end and words[at].lower() in ("true", "false")
            given[name], at = (words[at] if spoken else True), at + int(spoken)
        elif at < end:
            given[name], at = words[at], at + 1
        else:
            # A row that takes anything may be a bare switch; no other kind reads an empty tuple.
            given[name] = True if row.kind == "any" else ()
    return given
