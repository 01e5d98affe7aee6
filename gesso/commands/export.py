"""`gesso export SOURCE --to FORM --out PATH`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gesso.cli import Parser

EXAMPLES = """\
forms: folder     a diffusers pipeline                      (an adapter is merged into its base)
       single     one file for A1111, Forge, ComfyUI        (the same)
       mindspore  a .ckpt for MindSpore; SD 1 and 2         (the same)
       lora       diffusers' LoRA file
       kohya      a LoRA for kohya, A1111, Forge, ComfyUI
       words      learned words for diffusers
       a1111      learned words for A1111, Forge, ComfyUI

Every export is read again by its form's reader, and is only left where the networks answer as they were trained. A
model card is written beside it. docs/export.md says what can be exported as what.

examples:
  gesso export runs/dog --to kohya --out dog.safetensors
  gesso export runs/dog --to single --out dog.safetensors --dtype fp16
  gesso export runs/dog --to folder --out dog
  gesso export lora.safetensors --base stable-diffusion-v1-5 --to kohya --out lora_kohya.safetensors
  gesso export runs/dog --to lora --out dog --push me/dog
"""


def arguments(parser: Parser) -> None:
    group = parser.add_argument_group("arguments")
    group.add_argument("source", help="a run, a checkpoint in one, or a model; with --base also an adapter or words")
    group.add_argument("--to", required=True, metavar="FORM", help="one of the forms below")
    group.add_argument("--out", type=Path, required=True, help="a file with the form's suffix, or a folder")
    group.add_argument("--base", default="", help="the model that an adapter named by itself is for")
    group.add_argument("--dtype", default="", help="of a whole model's weights: fp32, fp16 or bf16 (default: its own)")
    group.add_argument("--title", default="", help="what it is called (default: the run's name)")
    group.add_argument("--author", default="", help="who made it, for the card and the file (default nobody)")
    group.add_argument("--description", default="", help="a few words for the card and the file (default none)")
    group.add_argument("--date", default="", help="a date for the card and the file, like 2026-01-31 (default none)")
    group.add_argument("--tags", action="store_true", help="kohya's form: say how often each tag of a caption occurs")
    group.add_argument("--checksum", action="store_true", help="end a MindSpore checkpoint with its CRC-32")
    group.add_argument(
        "--reader", default="lycoris", metavar="NAME",
        help="whose way of computing a DoRA in kohya's form: lycoris (default) or comfyui, also for Forge",
    )  # fmt: skip
    group.add_argument("--dry-run", action="store_true", help="check everything, say what would be written")
    group.add_argument("--json", action="store_true", help="answer with a JSON object")
    group = parser.add_argument_group("Hub")
    group.add_argument("--push", default="", metavar="OWNER/NAME", help="upload it there too, with HF_TOKEN or a login")
    group.add_argument("--public", action="store_true", help="make the repository public (default private)")


def main(options: argparse.Namespace) -> int:
    from gesso import export

    request = export.Request(
        source=options.source,
        form=options.to,
        out=options.out,
        base=options.base,
        dtype=options.dtype,
        title=options.title,
        author=options.author,
        description=options.description,
        date=options.date,
        tags=options.tags,
        checksum=options.checksum,
        reader=options.reader,
        push=options.push,
        public=options.public,
    )
    if options.dry_run:
        lines = export.outline(request)
        print(json.dumps(lines, ensure_ascii=False) if options.json else "\n".join(lines))
        return 0
    done = export.export(request)
    if options.json:
        found = {
            "files": [path.as_posix() for path in done.files],
            "apart": done.apart,
            "notes": list(done.notes),
            "page": done.page,
        }
        print(json.dumps(found, ensure_ascii=False))
    else:
        print("\n".join(export.said(done, request)))
    return 0
