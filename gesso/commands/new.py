"""`gesso new PHOTOS`."""

from __future__ import annotations

import argparse
from pathlib import Path

from gesso.cli import Parser

EXAMPLES = """\
Pictures with captions beside them (dog.jpg, dog.txt) are learnt with these; others share one prompt.

examples:
  gesso new photos --trigger "sks dog" --class dog
  gesso new paintings --kind style --trigger "in the style of zmn"
  gesso new photos --base stable-diffusion-v1-5/stable-diffusion-v1-5 --out dog.toml
"""


def arguments(parser: Parser) -> None:
    group = parser.add_argument_group("arguments")
    group.add_argument("photos", metavar="PHOTOS", help="a folder of pictures; it is only read")
    group.add_argument("--base", default="tiny", help="the model to start from (default: the embedded little one)")
    group.add_argument("--trigger", default="", help='the words that will mean your subject or style, "sks dog"')
    group.add_argument("--class", dest="class_", default="", metavar="CLASS", help='what it is one of, "dog"')
    group.add_argument("--kind", choices=("subject", "style", "captioned"), help="(default: seen from the folder)")
    group.add_argument("--out", type=Path, default=Path("recipe.toml"), help="where to write (default: recipe.toml)")
    group.add_argument("--force", action="store_true", help="overwrite that file")


def main(options: argparse.Namespace) -> int:
    from gesso import new

    wish = new.Wish(
        photos=options.photos,
        base=options.base,
        trigger=options.trigger.strip(),
        class_=options.class_.strip(),
        kind=options.kind,
    )
    print(new.write(wish, options.out, force=options.force))
    return 0
