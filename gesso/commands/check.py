"""`gesso check RECIPE` or `gesso check FOLDER`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tomllib
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gesso.cli import Parser
from gesso.errors import RecipeError

if TYPE_CHECKING:
    from gesso.check import Check
    from gesso.data.examine.finding import Finding
    from gesso.recipe import Loaded
    from gesso.report.check import Content

EXAMPLES = """\
Reads every picture and every caption, names everything that is wrong in one report, and says what the run will take.
Changes nothing, and writes nothing but the page. Ends with 0 where a run can start, with 3 where it would stop.
Any key of a recipe is a flag: docs/recipe.md. What is looked at: docs/check.md.

examples:
  gesso check dog.toml
  gesso check photos --prompt "a photo of sks dog"
  gesso check photos --train.resolution 512 --html /tmp/photos.html
  gesso check dog.toml --time
"""
PAGE = "check.html"
SHOWN = 8
"""Findings of one kind on the terminal; the page has the others."""
WIDTH = 14


def arguments(parser: Parser) -> None:
    parser.rest = True
    parser.usage = "gesso check RECIPE|FOLDER [--KEY VALUE …] [--html=FILE] [--no-html] [--time] [--json]"
    group = parser.add_argument_group("arguments")
    group.add_argument("--time", action="store_true", help="take a few real steps, to tell how long the run will be")
    group.add_argument("--no-html", action="store_true", help="write no page")
    group.add_argument("--json", action="store_true", help="answer with one JSON object on standard output")
    parser.description = (parser.description or "") + (
        "\n\n  RECIPE  a .toml file, or the folder of a run\n  FOLDER  pictures, or any other data set of docs/data.md"
        f"\n  --html  where the page goes (default: {PAGE} in this folder)\n  --prompt  the same as --data.prompt"
    )


def main(options: argparse.Namespace) -> int:
    from gesso import check
    from gesso.report.check import page
    from gesso.trackers.console import Console

    words, html = _html(options.rest)
    loaded, name = _loaded(words)
    place = None if options.no_html else _place(html, loaded)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the report alone
        console = Console("auto", stream=sys.stderr)
        found = check.check(loaded.recipe, timed=options.time, progress=console.progress)
        console.close()
    content = check.content(found, name)
    if place is not None:
        _write(place, page(content))
    if options.json:
        print(json.dumps(_answer(found, content, place), ensure_ascii=False))
    else:
        print("\n".join(_lines(content, place, asked=not options.no_html)))
    return found.exit


def _html(rest: list[str]) -> tuple[list[str], str]:
    """(the other words, what --html names); --prompt becomes --data.prompt."""
    words: list[str] = []
    html, at = "", 0
    while at < len(rest):
        flag, equals, value = rest[at].partition("=")
        if flag == "--html":
            at += not equals
            if not equals and at >= len(rest):
                raise RecipeError("--html needs the name of a file", todo="write --html check.html")
            html = value or rest[at]
        else:
            words.append("--data.prompt" + equals + value if flag == "--prompt" else rest[at])
        at += 1
    return words, html


def _loaded(words: list[str]) -> tuple[Loaded, str]:
    """The recipe, and what the report is about."""
    from gesso.recipe import flags, load

    alone, given = flags.split(words)
    if len(alone) > 1 or not (alone or given):
        raise RecipeError(
            f"one recipe or folder is looked at at a time, but {', '.join(alone)} are given"
            if alone
            else "which recipe, or which pictures?",
            todo="`gesso check --help` shows examples",
        )
    if not alone:
        return load(None, given), "the flags' pictures"
    path = Path(alone[0]).expanduser()
    if (path / "recipe.toml").is_file() or (path.suffix.lower() == ".toml" and not _is_data(path)):
        return load(path, given), path.as_posix()
    # a run folder that is never made, beside the pictures: a run may not lie among them
    out = path.resolve().parent / "runs" / (path.resolve().stem or "pictures")
    return load(None, ["--data.path", alone[0], "--out", str(out), *given]), path.as_posix()


def _is_data(path: Path) -> bool:
    """Whether a TOML file describes a data set in kohya's way."""
    try:
        return "datasets" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # whatever is wrong with it is then said of the recipe


def _place(html: str, loaded: Loaded) -> Path | None:
    """Where the page goes: never among the pictures, and never over a file that is not such a page."""
    from gesso.report.check import MARK

    place = Path(html or PAGE)
    folders = [Path(table.path).expanduser().resolve() for table in loaded.recipe.data]
    if any(place.resolve().is_relative_to(folder) for folder in folders):
        if html:
            raise RecipeError(
                "the page would lie among the pictures, where gesso never writes",
                where=html,
                todo="name another place with --html",
            )
        return None
    if place.exists() and (not place.is_file() or MARK.encode() not in place.read_bytes()[:4096]):
        raise RecipeError("there is something else in this place", where=str(place), todo="name another with --html")
    return place


def _write(place: Path, text: str) -> None:
    from gesso.storage import guard, write_bytes

    with guard(place.parent, what="the page"):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, text.encode("utf-8"))


def _answer(found: Check, content: Content, place: Path | None) -> dict[str, Any]:
    """What a script would ask."""
    from gesso.data.examine.finding import shown

    return {
        "exit": int(found.exit),
        "verdict": content.verdict,
        "page": None if place is None else place.as_posix(),
        "findings": [
            {
                "level": each.level,
                "kind": each.kind,
                "where": shown(each.where),
                "what": shown(each.what),
                "todo": each.todo,
                "pictures": [shown(str(place)) for place in each.pictures],
            }
            for each in found.findings
        ],
        "facts": dict(content.facts),
        "buckets": [asdict(bucket) for bucket in content.buckets],
        "forecast": found.told.numbers,
    }


def _lines(content: Content, place: Path | None, *, asked: bool) -> list[str]:
    from gesso.data import buckets

    lines = [*_problems(content), content.verdict, ""]
    lines += [f"  {name:{WIDTH}}{value}" for name, value in content.facts]
    lines += [f"  {'Size' if not at else '':{WIDTH}}{line}" for at, line in enumerate(buckets.lines(content.buckets))]
    lines += [f"  {each.name:{WIDTH}}{each.value}  ({each.how})" for each in content.forecast]
    if place is not None:
        lines += ["", f"page: {place}"]
    elif asked:
        lines += ["", "no page is written among the pictures: name a place for it with --html"]
    return lines


def _problems(content: Content) -> list[str]:
    """Problems first, those of one kind together."""
    from gesso.data.examine.finding import KINDS

    signs = {"error": "STOP", "warning": "look", "note": "note"}
    lines = []
    for (level, kind), group in groupby(content.findings, key=lambda each: (each.level, each.kind)):
        some: list[Finding] = list(group)
        lines.append(f"{signs[level]}  {KINDS[kind]}" + (f" ({len(some)})" if len(some) > 1 else ""))
        for at, each in enumerate(some[:SHOWN]):
            lines.append(f"        {each}")
            following = some[at + 1].todo if at + 1 < min(len(some), SHOWN) else None
            if each.todo and each.todo != following:
                lines.append(f"          to do: {each.todo}")
        if len(some) > SHOWN:
            lines.append(f"        … and {len(some) - SHOWN} more, which the page and --json list")
        lines.append("")
    return lines
