"""`gesso caption FOLDER --model MODEL`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gesso.cli import Parser
from gesso.errors import Exit

if TYPE_CHECKING:
    from gesso.captioning import Request

EXAMPLES = """\
models: BLIP, BLIP-2, ViT-GPT2, Florence-2, Qwen2-VL, Qwen2.5-VL, WD taggers; a folder or a Hub id
forms:  txt, caption                           a file beside each picture
        metadata.jsonl .csv .parquet, image_captions.json, img_txt.csv
                                               one list in the folder, with relative names

A picture that has a caption keeps it. Stopped or killed, the same command goes on where it was. Ends with 3 if some
picture cannot be read. docs/caption.md tells more.

examples:
  gesso caption photos --model Salesforce/blip-image-captioning-base
  gesso caption photos --model Salesforce/blip2-opt-2.7b --dtype fp16 --beams 5 --to image_captions.json
  gesso caption photos --model florence-community/Florence-2-base --prompt "<DETAILED_CAPTION>" --trigger sks
  gesso caption photos --model SmilingWolf/wd-vit-tagger-v3 --general 0.4
"""


def arguments(parser: Parser) -> None:
    group = parser.add_argument_group("arguments")
    group.add_argument("folder", help="a folder of pictures, with the folders in it")
    group.add_argument("--model", required=True, help="a captioner: a folder or a Hub id")
    group.add_argument("--revision", default="", help="of a Hub id: branch, tag or commit")
    group.add_argument("--to", default="txt", metavar="FORM", help="one of the forms below (default txt)")
    group.add_argument("--out", type=Path, metavar="FOLDER", help="where captions go (default: the pictures' folder)")
    group.add_argument("--limit", type=int, default=0, help="so many pictures at most (default all)")
    group.add_argument("--dry-run", action="store_true", help="say what would be done")
    group.add_argument("--json", action="store_true", help="answer with a JSON object")
    group = parser.add_argument_group("what is said")
    group.add_argument("--prompt", help="what the model is asked; it is no part of the caption")
    group.add_argument("--max-tokens", type=int, default=0, help="longest caption (default 64; Florence, Qwen 256)")
    group.add_argument("--beams", type=int, default=0, help="beams of the search (default: the model's own, mostly 1)")
    group.add_argument("--temperature", type=float, default=0.0, help="draw words by lot (default 0: the likeliest)")
    group.add_argument("--seed", type=int, help="of --temperature (default 0)")
    group.add_argument("--general", type=float, help="tagger: least probability of a tag (default 0.35)")
    group.add_argument("--character", type=float, help="tagger: of a character's name (default 0.85)")
    group.add_argument("--trigger", default="", help="a word in front of every caption that does not have it")
    group.add_argument("--prefix", default="", help="text in front of every caption, spaces included")
    group.add_argument("--suffix", default="", help="text behind every caption, spaces included")
    group = parser.add_argument_group("how")
    group.add_argument("--batch", type=int, default=4, help="pictures at once (default 4)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, npu")
    group.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="(default auto)")


def main(options: argparse.Namespace) -> int:
    from gesso import captioning
    from gesso.stop import Stop
    from gesso.trackers.console import Console

    request = _request(options)
    if options.dry_run:
        ready = captioning.outline(request)
        facts = {"pictures": len(ready.pictures), "kept": ready.kept, "kind": captioning.KINDS[ready.kind].name}
        print(json.dumps(facts) if options.json else _outlined(ready, facts))
        return Exit.DONE
    console = Console(stream=sys.stderr)
    with Stop() as stop:

        def progress(what: str, done: int, total: int) -> None:
            console.progress(what, done, total)
            stop.check()

        try:
            done = captioning.caption(request, progress)
        finally:
            console.close()
    for line in (*done.notes, *done.failed):
        print(line, file=sys.stderr)
    if options.json:
        print(json.dumps({"written": done.written, "kept": done.kept, "failed": list(done.failed)}, ensure_ascii=False))
    else:
        failed = f", {len(done.failed)} without one" if done.failed else ""
        print(f"{done.written} captions written to {done.place}, {done.kept} kept{failed}")
    return Exit.DATA if done.failed else Exit.DONE


def _outlined(ready: object, facts: dict[str, object]) -> str:
    notes = "".join(f"\n{note}" for note in getattr(ready, "notes", ()))
    return f"{facts['pictures']} pictures would be captioned by {facts['kind']}; {facts['kept']} are already{notes}"


def _request(options: argparse.Namespace) -> Request:
    from gesso.captioning import Asked, Request
    from gesso.data.captions import Style

    return Request(
        folder=options.folder,
        model=options.model,
        revision=options.revision,
        out=options.out,
        form=options.to,
        batch=options.batch,
        limit=options.limit,
        words=Style(trigger=options.trigger, prefix=options.prefix, suffix=options.suffix),
        asked=Asked(
            prompt=options.prompt,
            beams=options.beams,
            tokens=options.max_tokens,
            temperature=options.temperature,
            seed=options.seed,
            general=options.general,
            character=options.character,
            device=options.device,
            precision=options.dtype,
        ),
    )
