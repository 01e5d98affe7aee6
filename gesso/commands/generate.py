"""`gesso generate --model M --prompt P --out DIR`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gesso.cli import Parser
from gesso.commands import drawing

EXAMPLES = """\
A model is "tiny", a diffusers folder, a run or checkpoint folder, or a Hub id. The same seed draws the same picture.

examples:
  gesso generate --model tiny --prompt "a red apple on a blue background" --out pics
  gesso generate --model runs/dog --prompt "a photo of sks dog" --count 4 --out pics
  gesso generate --model tiny --lora runs/dog --strength 0.8 --prompts-file prompts.txt --seed 1 --seed 2 --out pics
"""


def arguments(parser: Parser) -> None:
    parser.add_argument("--model", required=True, help="name, folder, file, run, checkpoint or Hub id")
    group = drawing.what(parser)
    group.add_argument("--out", type=Path, required=True, help="folder; numbering goes on after what is there")
    group.add_argument("--by-prompt", action="store_true", help="a folder for each prompt: OUT/<prompt>/image_0.png")
    group.add_argument("--resume", action="store_true", help="draw only what is not in OUT yet, as after a stop")
    group = drawing.how(parser)
    group.add_argument("--lora", type=Path, action="append", default=[], help="a LoRA file or run (repeatable)")
    group.add_argument("--strength", type=float, action="append", help="of all LoRAs, or of each (default 1)")
    group.add_argument("--words", type=Path, action="append", default=[], help="a file of a learned word (repeatable)")
    group.add_argument("--refiner", default="", help="SDXL: a second stage that goes on with each picture")
    group.add_argument(
        "--handover", type=float, help="share of the noise that the model removes itself, such as 0.8; without it the "
        "refiner draws the last of each finished picture anew",
    )  # fmt: skip
    group.add_argument("--dry-run", action="store_true", help="check everything, say what would be drawn and where")
    group.add_argument("--json", action="store_true", help="answer with the list of files as JSON")


def main(options: argparse.Namespace) -> int:
    from gesso.generate import drawn, outline, prepare

    ready = prepare(
        drawing.request(
            options,
            options.model,
            resume=options.resume,
            by_prompt=options.by_prompt,
            loras=tuple(options.lora),
            strengths=tuple(options.strength or ()),
            words=tuple(options.words),
            refiner=options.refiner,
            handover=options.handover,
        )
    )
    if options.dry_run and not options.json:
        print(outline(ready))
        return 0
    files = ready.files if options.dry_run else drawn(ready)
    if options.json:
        print(json.dumps([file.as_posix() for file in files], ensure_ascii=False))
        return 0
    for file in files:
        print(file.as_posix(), flush=True)
    return 0
