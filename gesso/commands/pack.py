"""`gesso pack SOURCE OUT --to FORM`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from gesso.cli import Parser
from gesso.errors import Exit, RecipeError

EXAMPLES = """\
forms: save_to_disk  an Arrow folder, for datasets.load_from_disk
       parquet       what the Hub shows, for datasets.load_dataset
       webdataset    tar files, each with an index

SOURCE is a recipe, or whatever its data.path may be (docs/data.md); it is never written to. Pictures keep their bytes,
unless --resize is given. OUT appears when it is whole; stopped or killed, the same command goes on behind the last
finished file, and ends in the same bytes. docs/pack.md tells more.

examples:
  gesso pack photos packed --to save_to_disk
  gesso pack recipe.toml shards --to webdataset --shard-size 1GB
  gesso pack photos packed --to parquet --resize 1024 --push me/photos
"""
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def arguments(parser: Parser) -> None:
    group = parser.add_argument_group("arguments")
    group.add_argument("source", help="a recipe, or a folder, file, URL or hub:user/name of pictures")
    group.add_argument("out", type=Path, help="the folder to make")
    group.add_argument("--to", required=True, metavar="FORM", help="one of the forms below")
    group.add_argument("--shard-size", default="500MB", help="size of a file, such as 200MB or 1GiB (default 500MB)")
    group.add_argument("--resize", type=int, default=0, metavar="SIDE", help="shorter side of larger pictures, pixels")
    group.add_argument("--skip-broken", action="store_true", help="leave out pictures that cannot be read; ends with 3")
    group.add_argument("--dry-run", action="store_true", help="say what would be packed")
    group.add_argument("--json", action="store_true", help="answer with a JSON object")
    group = parser.add_argument_group("a source that is no recipe")
    group.add_argument("--captions", type=Path, metavar="FILE", help="a list such as image_captions.json elsewhere")
    group.add_argument("--prompt", help="one caption for every picture that has none of its own")
    group.add_argument("--format", help="what the folder is, where two things could be meant (data.format)")
    group.add_argument("--image-column", help="column with the picture or its file name")
    group.add_argument("--caption-column", help="column with the caption")
    group.add_argument("--encoding", help="of caption files that are neither UTF-8 nor UTF-16")
    group.add_argument("--revision", help="of a hub: data set: branch, tag or commit")
    group.add_argument("--config", help="part of a hub: data set")
    group.add_argument("--max-samples", type=int, help="so many of the pictures, drawn by lot")
    group = parser.add_argument_group("Hub")
    group.add_argument("--push", default="", metavar="OWNER/NAME", help="upload it there too, with HF_TOKEN or a login")
    group.add_argument("--public", action="store_true", help="make the repository public (default private)")


def main(options: argparse.Namespace) -> int:
    from gesso import packing
    from gesso.stop import Stop
    from gesso.storage import amount
    from gesso.trackers.console import Console

    named = ("prompt", "format", "image_column", "caption_column", "encoding", "revision", "config",
             "max_samples")  # fmt: skip
    request = packing.Request(
        source=options.source,
        out=options.out,
        form=options.to,
        shard_bytes=_bytes(options.shard_size),
        resize=options.resize,
        captions=options.captions,
        skip_broken=options.skip_broken,
        push=options.push,
        public=options.public,
        table={name: getattr(options, name) for name in named if getattr(options, name) is not None},
    )
    if options.dry_run:
        ready = packing.prepare(request)
        facts = {"pictures": len(ready.records), "notes": list(ready.notes)}
        print(json.dumps(facts) if options.json else "\n".join([f"{facts['pictures']} pictures", *ready.notes]))
        return Exit.DONE
    console = Console(stream=sys.stderr)
    with Stop() as stop:

        def progress(what: str, done: int, total: int) -> None:
            console.progress(what, done, total)
            stop.check()

        try:
            done = packing.pack(request, progress)
        finally:
            console.close()
    for line in (*done.notes, *done.skipped):
        print(line, file=sys.stderr)
    if options.json:
        facts = {"pictures": done.pictures, "shards": done.shards, "bytes": done.nbytes, "kept": done.kept,
                 "skipped": list(done.skipped), "notes": list(done.notes), "page": done.page}  # fmt: skip
        print(json.dumps(facts, ensure_ascii=False))
    else:
        kept = f", {done.kept} of them from before" if done.kept else ""
        left = f"; {len(done.skipped)} left out" if done.skipped else ""
        print(f"{done.pictures} pictures in {done.shards} files ({amount(done.nbytes)}{kept}) in {options.out}{left}")
        if done.page:
            print(f"on the Hub: {done.page}")
    return Exit.DATA if done.skipped else Exit.DONE


def _bytes(given: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", given.strip().lower())
    if match is None or match[2] not in UNITS:
        raise RecipeError(f'--shard-size is "{given}"', todo="write 200MB or 1GiB")
    return round(float(match[1]) * UNITS[match[2]])
