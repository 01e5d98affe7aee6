"""`gesso demo [NAME] [--key value …]`."""

from __future__ import annotations

import argparse
from difflib import get_close_matches

from gesso.cli import Parser
from gesso.errors import RecipeError

NAMES = ("subject", "captions")
EXAMPLES = """\
  subject   teach one toy from five pictures: DreamBooth with LoRA and prior preservation (the default)
  captions  teach four things from captioned pictures: text-to-image fine-tuning

Nothing is downloaded: the base model and the pictures come with gesso. Any key of a recipe is a flag.

examples:
  gesso demo
  gesso demo captions --full
  gesso demo subject --out runs/first --train.steps 100
  gesso demo --engine mindspore --out runs/demo-mindspore
"""


def arguments(parser: Parser) -> None:
    parser.rest = True
    parser.usage = "gesso demo [NAME] [--full] [--dry-run] [--out FOLDER] [--KEY VALUE …]"
    group = parser.add_argument_group("arguments")
    group.add_argument("--dry-run", action="store_true", help="check everything, say what would be done")
    group.add_argument("--full", action="store_true", help="captions: train all weights instead of a LoRA")


def main(options: argparse.Namespace) -> int:
    from gesso.recipe import flags

    alone, given = flags.split(options.rest)
    name = alone[0] if alone else NAMES[0]
    if name not in NAMES or len(alone) > 1:
        meant = get_close_matches(name, NAMES, n=1, cutoff=0.5)
        todo = (
            f"did you mean `gesso demo {meant[0]}`?" if meant and len(alone) == 1 else f"name one: {', '.join(NAMES)}"
        )
        raise RecipeError(f"there is no demo {' '.join(alone)}", todo=todo)
    if options.full and name != "captions":
        raise RecipeError(f"--full has no effect on the demo {name}", todo="use `gesso demo captions --full`")

    from gesso.demo import run

    return run.main(name, full=options.full, flags=given, dry_run=options.dry_run)
