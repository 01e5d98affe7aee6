"""What the verbs that draw pictures have in common: what to draw, how, and on what."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gesso.cli import Parser
from gesso.errors import RecipeError

if TYPE_CHECKING:
    from gesso.generate import Request


def what(parser: Parser) -> argparse._ArgumentGroup:
    """Add the options that say what is drawn."""
    group = parser.add_argument_group("what to draw")
    group.add_argument("--prompt", action="append", default=[], help="what to draw (repeatable)")
    group.add_argument("--prompts-file", type=Path, metavar="FILE", help="a text file with one prompt a line")
    group.add_argument("--negative", default="", help="what not to draw")
    group.add_argument(
        "--seed", type=int, action="append", help="draw each prompt with this seed (repeatable; default 0)"
    )
    group.add_argument("--count", type=int, default=1, help="pictures of each prompt, from --seed on (default 1)")
    group.add_argument("--image", type=Path, metavar="FILE", help="a picture to begin with (img2img)")
    group.add_argument("--denoise", type=float, help="how much of it is drawn anew, up to 1 (default 0.6)")
    return group


def how(parser: Parser) -> argparse._ArgumentGroup:
    """Add the options that say how it is drawn."""
    group = parser.add_argument_group("how")
    group.add_argument("--steps", type=int, default=25, help="denoising steps (default 25)")
    group.add_argument("--guidance", type=float, default=7.5, help="guidance scale (default 7.5)")
    group.add_argument("--width", type=int, help="pixels (default: the model's own)")
    group.add_argument("--height", type=int, help="pixels (default: the model's own)")
    group.add_argument("--scheduler", default="", help='such as "DDIM", "Euler a" or "DPM++ 2M Karras"')
    group.add_argument("--like", default="", help="of a model in one file: the folder or Hub id it is arranged like")
    group.add_argument("--vae", default="", help="another autoencoder: folder, Hub id, or a model that has one")
    group.add_argument("--batch", type=int, default=1, help="pictures drawn at once: quicker on a GPU (default 1)")
    group.add_argument("--engine", choices=("torch", "mindspore"), default="torch", help="what draws (torch)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, npu")
    group.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="(default auto)")
    return group


def request(options: argparse.Namespace, model: str, **own: Any) -> Request:
    """What the common options ask for, with what else a verb has."""
    from gesso.generate import MOST, Request

    seeds = tuple(options.seed or (0,))
    if options.count < 1:
        raise RecipeError(f"--count is {options.count}, must be at least 1")
    if options.count > MOST:
        raise RecipeError(f"--count is {options.count}, must be at most {MOST:,}")
    if options.count > 1 and len(seeds) > 1:
        raise RecipeError("--count and several --seed are both given", todo="name each seed, or one seed to count from")
    same = ("negative", "steps", "guidance", "width", "height", "scheduler", "image", "denoise", "like", "vae", "batch")
    return Request(
        model=model,
        prompts=(*options.prompt, *_prompts(options.prompts_file)),
        out=options.out,
        seeds=tuple(range(seeds[0], seeds[0] + options.count)) if options.count > 1 else seeds,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
        **{name: getattr(options, name) for name in same},
        **own,
    )


def _prompts(file: Path | None) -> list[str]:
    """One prompt a line; empty lines are left out."""
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise RecipeError(f"the prompts cannot be read: {reason}", where=str(file)) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise RecipeError("the file has no prompt", where=str(file), todo="write one a line")
    return prompts
