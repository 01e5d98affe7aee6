"""`gesso train RECIPE [--key value …]`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gesso.cli import Parser
from gesso.errors import GessoError, LockedError, RecipeError

if TYPE_CHECKING:
    from gesso.recipe import Loaded

EXAMPLES = """\
Any key of a recipe is a flag, and wins over the file; docs/recipe.md describes all of them.
Starting the same command again goes on where the run stopped.

examples:
  gesso train dog.toml
  gesso train dog.toml --train.steps 400 --out runs/dog2
  gesso train dog.toml --dry-run
  gesso train --data.path photos --data.prompt "a photo of sks dog" --out runs/dog
  gesso train runs/dog
  gesso train runs/dog --from runs/dog/checkpoint-300
"""


def arguments(parser: Parser) -> None:
    parser.rest = True
    parser.usage = "gesso train [RECIPE] [--KEY VALUE …] [--from CHECKPOINT] [--dry-run] [--json]"
    group = parser.add_argument_group("arguments")
    # RECIPE is read from what argparse leaves, or it would take the value of a recipe's flag for it.
    group.add_argument("--dry-run", action="store_true", help="check everything, say what would be done")
    group.add_argument(
        "--from", dest="checkpoint", type=Path, metavar="CHECKPOINT", help="go on from this one, not from the newest"
    )
    group.add_argument("--json", action="store_true", help="answer with one JSON object on standard output")
    parser.description = (parser.description or "") + "\n\n  RECIPE  a .toml file, or the folder of a run to go on with"


def main(options: argparse.Namespace) -> int:
    from gesso.recipe import flags, load

    alone, given = flags.split(options.rest)
    if len(alone) > 1:
        raise RecipeError(
            f"one recipe is carried out at a time, but {', '.join(alone)} are given",
            todo="a value with spaces stands in quotes; a list is one value or a repeated flag",
        )
    if not alone and not given:
        raise RecipeError("which recipe?", todo="`gesso new PHOTOS` writes one; `gesso train --help` shows examples")
    loaded = load(Path(alone[0]) if alone else None, given)
    with _logged(Path(loaded.recipe.out)):
        if not options.json:
            return _train(loaded, options)
        # Standard output is for the answer alone.
        with contextlib.redirect_stdout(sys.stderr):
            code = _train(loaded, options)
    print(json.dumps(_answer(loaded, code, dry_run=options.dry_run), ensure_ascii=False))
    return code


def _train(loaded: Loaded, options: argparse.Namespace) -> int:
    from gesso import run

    return run.train(loaded, dry_run=options.dry_run, checkpoint=options.checkpoint)


def _answer(loaded: Loaded, code: int, *, dry_run: bool) -> dict[str, Any]:
    """What a script would ask: the run folder, the exit code, the last event, the recipe as it took effect."""
    recipe = loaded.recipe.as_toml()
    if dry_run:
        return {"out": loaded.recipe.out, "exit": code, "dry_run": True, "recipe": recipe}
    lines = (Path(loaded.recipe.out) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1]) if lines else None
    return {"out": loaded.recipe.out, "exit": code, "dry_run": False, "last": last, "recipe": recipe}


@contextlib.contextmanager
def _logged(out: Path) -> Iterator[None]:
    """Errors leave their traceback in OUT/run.log, where there is a run folder that is ours."""
    try:
        yield
    except LockedError:
        raise
    except Exception as error:
        log = out / "run.log"
        with contextlib.suppress(OSError):  # a full or lost disk may be the very error that is being told
            if out.is_dir():
                with log.open("a", encoding="utf-8") as file:
                    file.write("".join(traceback.format_exception(error)))
                if not isinstance(error, GessoError):
                    error.add_note(f"{log} has the details")
        raise
