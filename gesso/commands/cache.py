"""`gesso cache [RECIPE | --size | --list | --verify | --collect | --clear]`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gesso.cli import Parser
from gesso.errors import RecipeError

if TYPE_CHECKING:
    from gesso.data.cache.care import Done, PackFacts
    from gesso.fill import Share

EXAMPLES = """\
Pictures and captions are encoded once and kept for every later run; docs/cache.md tells how. With a RECIPE this is
done ahead: the training that follows encodes nothing. Started again after a stop, it goes on where it was.

examples:
  gesso cache dog.toml
  gesso cache dog.toml --share 1/4          one of four processes that share the work
  gesso cache                               how much is kept, and where
  gesso cache --collect --max-size 20GB     remove what was used longest ago, above 20 GB
  gesso cache --verify                      read all of it, and drop what is damaged
"""
KEEP_DAYS = 30
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
ACTIONS = ("size", "list", "verify", "collect", "clear")


def arguments(parser: Parser) -> None:
    parser.rest = True
    parser.usage = (
        "gesso cache [RECIPE] [--KEY VALUE …] [--share I/N] | --size | --list | --verify | --collect | --clear"
    )
    group = parser.add_argument_group("arguments")
    group.add_argument("--share", metavar="I/N", help="encode one of N parts, so that N processes share the work")
    group.add_argument("--size", action="store_true", help="how much is kept (this is also done without arguments)")
    group.add_argument("--list", action="store_true", help="the files of the cache, with when they were last used")
    group.add_argument("--verify", action="store_true", help="read every entry, and drop those that are damaged")
    group.add_argument("--collect", action="store_true", help="remove what is not used any more")
    group.add_argument("--keep-days", metavar="N", help=f"with --collect: used within N days (default: {KEEP_DAYS})")
    group.add_argument("--max-size", metavar="SIZE", help="with --collect: keep at most so much, 20GB or 500MB")
    group.add_argument("--clear", action="store_true", help="remove the whole cache")
    group.add_argument("--path", metavar="FOLDER", help="the cache's folder (default: $GESSO_CACHE, or the user's)")
    group.add_argument("--json", action="store_true", help="answer with one JSON object on standard output")
    parser.description = (parser.description or "") + "\n\n  RECIPE  a .toml file; any key of it is a flag"


def main(options: argparse.Namespace) -> int:
    asked = [name for name in ACTIONS if getattr(options, name)]
    if len(asked) > 1:
        raise RecipeError(f"--{asked[0]} and --{asked[1]} are two things to do", todo="ask for one at a time")
    for name in ("keep_days", "max_size"):
        if getattr(options, name) is not None and asked != ["collect"]:
            raise RecipeError(f"--{name.replace('_', '-')} says what --collect is to keep", todo="add --collect")
    if options.rest:
        if asked or options.path:
            flag = asked[0] if asked else "path"
            raise RecipeError(
                f"--{flag} looks after the cache, and {options.rest[0]} asks to fill it",
                todo="do one at a time; a recipe names its cache with --cache.path",
            )
        answer, text = _fill(options)
    else:
        if options.share:
            raise RecipeError("--share is a part of a recipe's work", todo="name the recipe")
        answer, text = _care(options, asked[0] if asked else "size")
    print(json.dumps(answer, ensure_ascii=False) if options.json else text)
    return 0


def _fill(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from gesso import fill
    from gesso.gathering import store
    from gesso.recipe import flags, load
    from gesso.stop import Stop
    from gesso.trackers.console import Console

    alone, given = flags.split(options.rest)
    if len(alone) > 1:
        raise RecipeError(f"one recipe is encoded at a time, but {', '.join(alone)} are given")
    share = _share(options.share)
    loaded = load(Path(alone[0]) if alone else None, given)
    console = Console(loaded.recipe.track.console, stream=sys.stderr if options.json else None)
    with Stop() as stop:

        def progress(what: str, done: int, total: int) -> None:
            console.progress(what, done, total)
            stop.check()

        try:
            prepared = fill.fill(loaded, share, progress)
        finally:
            console.close()
    where = str(store(loaded.recipe).folder)
    answer = {**asdict(prepared), "folder": where}
    lines = [
        *prepared.notes,
        f"encoded {prepared.encoded} pictures and {prepared.captions_encoded} captions; "
        f"{prepared.reused} and {prepared.captions_reused} were there already",
        f"kept in {where}",
    ]
    return answer, "\n".join(lines)


def _share(text: str | None) -> Share:
    from gesso.fill import Share

    if text is None:
        return Share()
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    share = Share(int(found[1]), int(found[2])) if found else None
    if share is None or not 1 <= share.part <= share.of:
        raise RecipeError(f"--share {text} is not a part of a whole", todo="write 1/4, 2/4, 3/4 and 4/4")
    return share


def _care(options: argparse.Namespace, action: str) -> tuple[dict[str, Any], str]:
    from gesso.data.cache import care, default_folder
    from gesso.storage import amount
    from gesso.trackers.console import Console

    folder = Path(options.path) if options.path else default_folder()
    if action == "clear":
        freed = care.clear(folder)
        return {"folder": str(folder), "freed": freed}, f"removed {amount(freed)} from {folder}"
    if action in ("size", "list"):
        facts, total = care.facts(folder), care.size(folder)
        rows = [{**asdict(each), "made": _day(each.made), "used": _day(each.used)} for each in facts]
        entries = sum(each.entries for each in facts)
        line = f"{entries} entries in {len(facts)} files, {amount(total)}, in {folder}"
        answer = {"folder": str(folder), "entries": entries, "files": len(facts), "size": total}
        if action == "size":
            return answer, line
        return {**answer, "packs": rows}, "\n".join([*_table(facts), line])
    keep_days = _days(options) if action == "collect" else None
    max_bytes = _bytes(options.max_size) if options.max_size is not None else None
    console = Console(stream=sys.stderr)
    try:
        done = care.collect(
            folder, keep_days=keep_days, max_bytes=max_bytes, verify=action == "verify", progress=console.progress
        )
    finally:
        console.close()
    return {"folder": str(folder), **asdict(done)}, _told(done, action, folder)


def _told(done: Done, action: str, folder: Path) -> str:
    from gesso.storage import amount

    lines = []
    if action == "verify":
        lines.append(f"{done.damaged} entries are damaged" + (" and were dropped" if done.damaged else ""))
    else:
        lines.append(f"removed {done.removed} entries that were not used")
    if done.twice:
        lines.append(f"removed {done.twice} copies of entries that were stored twice")
    if done.swept:
        lines.append(f"removed {done.swept} half-written files")
    if done.busy:
        lines.append(f"{done.busy} files are being written, or cannot be locked, and were left alone")
    return "\n".join([*lines, f"{done.kept} entries remain, {amount(done.after)}, in {folder}"])


def _days(options: argparse.Namespace) -> int | None:
    if options.keep_days is None:
        return None if options.max_size is not None else KEEP_DAYS
    if not options.keep_days.isdigit():
        raise RecipeError(f"--keep-days {options.keep_days} is not a number of days", todo="write --keep-days 30")
    return int(options.keep_days)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)", text.strip(), re.IGNORECASE)
    if found is None:
        raise RecipeError(f"--max-size {text} is not a size", todo="write a number and a unit, such as 20GB or 500MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def _table(facts: Sequence[PackFacts]) -> list[str]:
    from gesso.storage import amount

    head = f"{'file':18}{'entries':>10}{'size':>12}  {'made':12}{'last used':12}"
    return [
        head,
        *(
            f"{each.name:18}{each.entries:>10}{amount(each.size):>12}  {_day(each.made):12}{_day(each.used):12}"
            + ("being written" if each.writing else "")
            for each in facts
        ),
    ]


def _day(number: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=number)).date().isoformat()
