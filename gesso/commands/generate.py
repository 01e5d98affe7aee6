"""`gesso generate --model M --prompt P --out DIR`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gesso.cli import Parser
from gesso.errors import RecipeError

if TYPE_CHECKING:
    from gesso.generate import Request

EXAMPLES = """\
A model is "tiny", a diffusers folder, a run or checkpoint folder, or a Hub id. The same seed draws the same picture.

examples:
  gesso generate --model tiny --prompt "a red apple on a blue background" --out pics
  gesso generate --model runs/dog --prompt "a photo of sks dog" --count 4 --out pics
  gesso generate --model tiny --lora runs/dog --strength 0.8 --prompts-file prompts.txt --seed 1 --seed 2 --out pics
"""


def arguments(parser: Parser) -> None:
    group = parser.add_argument_group("what to draw")
    group.add_argument("--model", required=True, help="name, folder, run, checkpoint or Hub id")
    group.add_argument("--prompt", action="append", default=[], help="what to draw (repeatable)")
    group.add_argument("--prompts-file", type=Path, metavar="FILE", help="a text file with one prompt a line")
    group.add_argument("--negative", default="", help="what not to draw")
    group.add_argument(
        "--seed", type=int, action="append", help="draw each prompt with this seed (repeatable; default 0)"
    )
    group.add_argument("--count", type=int, default=1, help="pictures of each prompt, from --seed on (default 1)")
    group.add_argument("--out", type=Path, required=True, help="folder; numbering goes on after what is there")
    group = parser.add_argument_group("how")
    group.add_argument("--steps", type=int, default=25, help="denoising steps (default 25)")
    group.add_argument("--guidance", type=float, default=7.5, help="guidance scale (default 7.5)")
    group.add_argument("--width", type=int, help="pixels (default: the model's own)")
    group.add_argument("--height", type=int, help="pixels (default: the model's own)")
    group.add_argument("--scheduler", default="", help="a diffusers scheduler class (default: the model's own)")
    group.add_argument("--lora", type=Path, action="append", default=[], help="a LoRA file or run (repeatable)")
    group.add_argument("--strength", type=float, action="append", help="of all LoRAs, or of each (default 1)")
    group.add_argument("--words", type=Path, action="append", default=[], help="a file of a learned word (repeatable)")
    group.add_argument("--vae", default="", help="another autoencoder: folder, Hub id, or a model that has one")
    group.add_argument("--refiner", default="", help="SDXL: a second stage that goes on with each picture")
    group.add_argument(
        "--handover", type=float, help="share of the noise that the model removes itself, such as 0.8; without it the "
        "refiner draws the last of each finished picture anew",
    )  # fmt: skip
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, npu")
    group.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="(default auto)")
    group.add_argument("--dry-run", action="store_true", help="check everything, say what would be drawn and where")
    group.add_argument("--json", action="store_true", help="answer with the list of files as JSON")


def main(options: argparse.Namespace) -> int:
    from gesso.generate import generate, outline, prepare

    request = _request(options)
    if options.dry_run and not options.json:
        print(outline(prepare(request)))
        return 0
    files = prepare(request).files if options.dry_run else generate(request)
    if options.json:
        print(json.dumps([file.as_posix() for file in files], ensure_ascii=False))
    else:
        print("\n".join(file.as_posix() for file in files))
    return 0


def _request(options: argparse.Namespace) -> Request:
    from gesso.generate import Request

    seeds = tuple(options.seed or (0,))
    if options.count < 1:
        raise RecipeError(f"--count is {options.count}, must be at least 1")
    if options.count > 1 and len(seeds) > 1:
        raise RecipeError("--count and several --seed are both given", todo="name each seed, or one seed to count from")
    return Request(
        model=options.model,
        prompts=(*options.prompt, *_prompts(options.prompts_file)),
        out=options.out,
        seeds=tuple(range(seeds[0], seeds[0] + options.count)) if options.count > 1 else seeds,
        steps=options.steps,
        guidance=options.guidance,
        negative=options.negative,
        width=options.width,
        height=options.height,
        scheduler=options.scheduler,
        loras=tuple(options.lora),
        strengths=tuple(options.strength or ()),
        words=tuple(options.words),
        vae=options.vae,
        refiner=options.refiner,
        handover=options.handover,
        device=options.device,
        precision=options.precision,
    )


def _prompts(file: Path | None) -> list[str]:
    """One prompt a line; empty lines are left out."""
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise RecipeError(f"the prompts cannot be read: {reason}", where=str(file)) from error
    return [line.strip() for line in lines if line.strip()]
