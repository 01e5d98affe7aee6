"""`gesso doctor`."""

from __future__ import annotations

import argparse
import json

from gesso.cli import Parser

EXAMPLES = """\
Ends with 0 if this computer is fit to train, and with 4 if something must be mended first.

examples:
  gesso doctor
  gesso doctor --json
  gesso doctor --engine mindspore
"""


def arguments(parser: Parser) -> None:
    group = parser.add_argument_group("arguments")
    group.add_argument(
        "--engine", choices=("torch", "mindspore"), default="torch", help="the engine to look for (torch)"
    )
    group.add_argument("--json", action="store_true", help="answer with one JSON object")


def main(options: argparse.Namespace) -> int:
    from gesso import doctor

    found = doctor.examine(options.engine)
    print(json.dumps(found.as_json(), indent=1, ensure_ascii=False) if options.json else found.text())
    return found.exit
