"""`gesso convert SOURCE --to TARGET`."""

from __future__ import annotations

import argparse
from pathlib import Path

from gesso.cli import Parser
from gesso.errors import RecipeError, printable

EXAMPLES = """\
The source's form is told by its content. The target's is told by its name: model.safetensors is a single file,
model.ckpt a MindSpore checkpoint, anything else a diffusers folder. A LoRA changes from diffusers' names to kohya's and
back, a learned word from diffusers' form to A1111's. No bit of a model changes, except where a LoRA is merged into it.

examples:
  gesso convert runs/dog --to dog.safetensors
  gesso convert sd_v2_base.ckpt --to sd2 --like stable-diffusion-2-base
  gesso convert runs/dog --to dog_kohya.safetensors --form kohya
  gesso convert kohya.safetensors --to pytorch_lora_weights.safetensors
  gesso convert base --add dog.safetensors --strength 0.8 --to merged.safetensors
  gesso convert tuned --minus base --rank 32 --to lora.safetensors
  gesso convert big.safetensors --rank 8 --to small.safetensors
"""


def arguments(parser: Parser) -> None:
    group = parser.add_argument_group("arguments")
    group.add_argument("source", type=Path, help="a pipeline folder, single file, MindSpore checkpoint or LoRA")
    group.add_argument("--to", type=Path, required=True, metavar="TARGET", help="where to; must not exist yet")
    group.add_argument("--form", help="folder, single, mindspore; kohya or diffusers for a LoRA, a1111 for a word")
    group.add_argument("--like", type=Path, metavar="FOLDER", help="a pipeline folder of the same family and size")
    group.add_argument("--family", choices=("sd1", "sd2", "sdxl"), help="a LoRA's base, where its shapes do not tell")
    group = parser.add_argument_group("LoRA arithmetic")
    group.add_argument("--add", type=Path, action="append", default=[], metavar="LORA", help="merge it in (repeatable)")
    group.add_argument("--strength", type=float, action="append", help="of each --add (default 1)")
    group.add_argument("--minus", type=Path, metavar="MODEL", help="write the difference from this model as a LoRA")
    group.add_argument("--rank", type=int, help="the LoRA's rank: of the difference, or to cut a LoRA down to")
    group = parser.add_argument_group("PyTorch")
    group.add_argument(
        "--unsafe-pickle", action="store_true",
        help="read a bare pickle, or a file of PyTorch before 1.6, in a limited process of its own",
    )  # fmt: skip
    group = parser.add_argument_group("MindSpore")
    group.add_argument("--checksum", action="store_true", help="end a MindSpore checkpoint with its CRC-32")


def main(options: argparse.Namespace) -> int:
    from gesso.formats.convert import Request, convert

    strengths = options.strength or [1.0] * len(options.add)
    if len(strengths) != len(options.add):
        raise RecipeError(f"there are {len(options.add)} --add, but {len(strengths)} --strength")
    request = Request(
        source=options.source,
        target=options.to,
        form=options.form,
        like=options.like,
        family=options.family,
        add=tuple(zip(options.add, strengths, strict=True)),
        minus=options.minus,
        rank=options.rank,
        checksum=options.checksum,
        unsafe_pickle=options.unsafe_pickle,
    )
    print(printable("\n".join(convert(request))))
    return 0
