"""`gesso import FILE_OR_COMMAND`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gesso.cli import Parser
from gesso.errors import Exit, RecipeError

if TYPE_CHECKING:
    from gesso.importers.draft import Imported

EXAMPLES = """\
Every key of the source is accounted for: mapped to the recipe, harmless with its reason, or a stop with one sentence
that says what to do. Nothing of the source is carried out. docs/import.md lists every key.

examples:
  gesso import train.sh
  gesso import kohya.toml --out dog.toml
  gesso import job.yaml --dry-run
  gesso import onetrainer.json --json
  gesso import accelerate launch train_dreambooth.py --instance_data_dir=dog --instance_prompt="a photo of sks dog" …
"""
TAKING = ("--out", "--script")
ORDER = ("unsupported", "unknown", "differs", "mapped", "harmless")
TITLES = {
    "unsupported": "stops the import",
    "unknown": "is not known",
    "differs": "gesso does it otherwise",
    "mapped": "is in the recipe",
    "harmless": "changes nothing",
}


def arguments(parser: Parser) -> None:
    parser.rest = True
    parser.usage = "gesso import FILE_OR_COMMAND [--out RECIPE] [--script NAME] [--dry-run] [--json]"
    group = parser.add_argument_group("arguments")
    group.add_argument("--dry-run", action="store_true", help="show the report and the recipe, write nothing")
    group.add_argument("--json", action="store_true", help="answer with one JSON object on standard output")
    # The words of a foreign command are left alone, so what takes a value is read from the rest.
    parser.description = (parser.description or "") + (
        "\n\n  FILE_OR_COMMAND  kohya's .toml, ai-toolkit's .yaml, OneTrainer's .json, a shell file, or a command"
        "\n  --out RECIPE     where to write; must not exist yet (default: recipe.toml)"
        "\n  --script NAME    the kohya script that a .toml is for, where its keys do not tell"
    )


def main(options: argparse.Namespace) -> int:
    from gesso.importers import translate

    words, taken = _split(options.rest)
    imported = translate(words, taken.get("--script", ""))
    out = Path(taken.get("--out", "recipe.toml"))
    nothing = bool(imported.stopped) or options.dry_run or bool(imported.words)
    if not nothing:
        _write(out, imported.text)
    if options.json:
        written = None if nothing else out.as_posix()
        print(json.dumps({**imported.as_json(), "written": written}, indent=1, ensure_ascii=False, default=str))
    else:
        print(report(imported))
        if not imported.stopped:
            begin = f" --from {imported.checkpoint}" if imported.checkpoint else ""
            print(f"\n{imported.text}" if nothing else f"\n{out} is written. Next: gesso train {out}{begin} --dry-run")
    if not imported.stopped:
        return Exit.DONE
    count = len(imported.stopped)
    what = "one key stops" if count == 1 else f"{count} keys stop"
    raise RecipeError(f"{what} the import, and nothing is written", todo="change them as said above; import again")


def report(imported: Imported) -> str:
    """What became of every key, worst first."""
    from gesso.importers.draft import one_line, shown
    from gesso.recipe.keys import show

    count = len(imported.entries)
    lines = [f"{imported.source}: {count} key{'s' if count != 1 else ''}"]
    for fate in ORDER:
        entries = [entry for entry in imported.entries if entry.fate == fate]
        if entries:
            lines += ["", TITLES[fate]]
        for entry in entries:
            bare = isinstance(entry.value, str) and entry.value and not any(map(str.isspace, entry.value))
            value = "" if entry.value is True or entry.value is None else entry.value if bare else show(entry.value)
            words = "; ".join(filter(None, (shown(entry.to), entry.note)))
            lines.append(one_line(f"  {' '.join(filter(None, (entry.key, value)))}: {words}"))
    return "\n".join(lines)


def _split(rest: list[str]) -> tuple[list[str], dict[str, str]]:
    """The words of the source, and gesso's own flags among them."""
    words: list[str] = []
    taken: dict[str, str] = {}
    at = 0
    while at < len(rest):
        flag, equals, value = rest[at].partition("=")
        at += 1
        if flag not in TAKING:
            words.append(rest[at - 1])
        elif equals:
            taken[flag] = value
        elif at < len(rest):
            taken[flag], at = rest[at], at + 1
        else:
            raise RecipeError(f"{flag} needs a value", todo="`gesso import --help` shows examples")
    return words, taken


def _write(out: Path, text: str) -> None:
    from gesso.storage import guard, write_bytes

    if out.exists():
        raise RecipeError("is there already, and is kept", where=str(out), todo="name another file with --out")
    with guard(out.parent, what=out.name, needed=len(text.encode())):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, text.encode())
