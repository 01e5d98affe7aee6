"""`gesso inspect FILE …`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gesso.cli import Parser
from gesso.errors import Exit

EXAMPLES = """\
Nothing of a file is executed, and nothing is believed that its header claims: pickles are only listed. Ends with 0 if
everything is whole, and with 5 if a file is damaged, holds numbers that are not finite, or would run code.

examples:
  gesso inspect model.safetensors
  gesso inspect lora.safetensors sd_v2.ckpt --json
  gesso inspect runs/dog
"""


def arguments(parser: Parser) -> None:
    group = parser.add_argument_group("arguments")
    group.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a file or folder (several may follow)")
    group.add_argument("--quick", action="store_true", help="read headers alone, not the numbers and the checksum")
    group.add_argument("--json", action="store_true", help="answer with a JSON list, one object a file")


def main(options: argparse.Namespace) -> int:
    from gesso.formats import identify

    found = [identify.identify(path, values=not options.quick) for path in options.files]
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print("\n".join(identify.text(each) for each in found))
    return Exit.STORAGE if any(each["problems"] for each in found) else Exit.DONE
