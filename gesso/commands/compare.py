"""`gesso compare MODEL… --prompt P --out DIR`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gesso.cli import Parser
from gesso.commands import drawing
from gesso.errors import RecipeError

EXAMPLES = """\
A run stands for its base and each of its checkpoints; any other model, or a checkpoint, for itself. Without --prompt, a
run's own sample prompts are drawn. Started again, it draws only what is missing.

examples:
  gesso compare runs/dog --out compared
  gesso compare runs/dog/checkpoint-200 runs/dog/checkpoint-400 --prompt "a sks dog" --count 4 --out compared
  gesso compare runs/dog --strength 0.5 --strength 1 --out compared
  gesso compare tiny --lora a.safetensors --lora b.safetensors --prompt "a sks dog" --out compared
"""


def arguments(parser: Parser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="runs, checkpoints, folders, Hub ids")
    drawing.what(parser).add_argument("--out", type=Path, required=True, help="folder of the page and the pictures")
    group = drawing.how(parser)
    group.add_argument(
        "--lora",
        type=Path,
        action="append",
        default=[],
        help="a column for the first model with this LoRA (repeatable)",
    )
    group.add_argument("--strength", type=float, action="append", help="a column for each, of a LoRA (repeatable)")
    group.add_argument("--dry-run", action="store_true", help="say which columns there would be")


def main(options: argparse.Namespace) -> int:
    from gesso.compare import columns, compare, prompts_of

    wanted = columns(options.models, options.strength or (), options.lora)
    if not options.prompt and options.prompts_file is None:
        options.prompt = list(prompts_of(options.models))
        if not options.prompt:
            raise RecipeError("which prompts? none of the models is a run with samples", todo="give --prompt")
    if options.strength and all(column.strength is None for column in wanted):
        raise RecipeError("--strength has no effect: none of the models has a LoRA", todo="leave it out")
    request = drawing.request(options, wanted[0].model)
    if options.dry_run:
        print("\n".join(f"{at:02d}  {column.name}" for at, column in enumerate(wanted)))
        return 0
    path = compare(request, wanted, _progress)
    print(path.as_posix())
    return 0


def _progress(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} {what}", end="\n" if done == total else "", file=sys.stderr, flush=True)
