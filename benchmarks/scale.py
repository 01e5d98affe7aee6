"""Ten million rows: how long a start and a resumption take, and what memory they need.

    python benchmarks/scale.py [--rows 10000000] [--shards 1000] [--kept 200000] [--full]

Makes shards with an index beside each, as `gesso pack` writes it, in which many rows show the same few pictures, and
looks at them as a run does: the data is read, its order is asked for from step 0 and from a step in the third epoch.
Then the run itself, `gesso train` on the reference engine with nothing kept in the cache: from the start through a few
steps, again from where it ended, and from a checkpoint in the third epoch. Each in a process of its own, whose largest
resident memory is printed beside that of a set of 100 rows: the difference is what the rows cost. --kept adds runs that
encode a quarter of so many different pictures, and all of them, into a cache. Then every row of an epoch is counted, by
1, 2, 4 and 8 readers that share the steps; --full counts the whole epoch of all rows and not of a hundredth of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from gesso.checkpoint import MANIFEST, STATE, Checkpoints
from gesso.data import index
from gesso.data.plan import Plan, by_group
from gesso.data.sources import read
from gesso.engines.reference import model as reference
from gesso.schema import DataTable

BATCH, SEED = 64, 7
STEPS = 4
SIDE, PICTURES = 32, 16
STRIDE = 4096
"""Bytes from one picture of a shard to the next."""
READERS = (1, 2, 4, 8)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--shards", type=int, default=1000)
    arguments.add_argument("--kept", type=int, default=0, help="also a run of so many rows that keeps what is encoded")
    arguments.add_argument("--full", action="store_true")
    arguments.add_argument("--look", nargs=2, metavar=("FOLDER", "STEP"), help=argparse.SUPPRESS)
    arguments.add_argument("--run", nargs=2, metavar=("RECIPE", "STEPS"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.look:
        print(json.dumps(look(Path(given.look[0]), int(given.look[1]))))
    elif given.run:
        print(json.dumps(run(*given.run)))
    else:
        with tempfile.TemporaryDirectory(prefix="gesso-scale-") as name:
            told(Path(name), given.rows, given.shards, given.kept)
        rows = given.rows if given.full else given.rows // 100
        agree = "identical" if readers_agree(rows) else "NOT identical"
        print(f"an epoch of {rows:,} rows: {agree} for {READERS} readers")


def told(work: Path, rows: int, shards: int, kept: int) -> None:
    few, many = work / "few", work / "many"
    made(few, 100, 1)
    begun = time.perf_counter()
    made(many, rows, shards)
    print(f"{rows:,} rows in {shards} shards, made in {time.perf_counter() - begun:.0f} s", flush=True)
    third = 2 * rows // BATCH + 12_345
    for what, step in (("data at step 0", 0), (f"data at step {third:,}", third)):
        line(what, looked("--look", str(many), str(step)), looked("--look", str(few), "0"))
    least = runs(few, 100)
    for what, seen in runs(many, rows).items():
        line(f"run: {what}", seen, least[what])
    for count in (kept // 4, kept) if kept else ():
        made(work / f"kept-{count}", count, 4, count // 4)
        for what, seen in runs(work / f"kept-{count}", count, kept=True).items():
            line(f"run that keeps {count:,}: {what}", seen, least[what])


def line(what: str, seen: dict[str, float], least: dict[str, float]) -> None:
    print(
        f"{what:40} {seen['seconds']:6.2f} s, of the processor {seen['processor']:6.2f} s (a set of 100: "
        f"{least['seconds']:.2f}, {least['processor']:.2f})   {seen['megabytes']:6.0f} MB (a set of 100: "
        f"{least['megabytes']:.0f} MB), without mapped files {seen['own']:.0f} MB ({least['own']:.0f} MB)",
        flush=True,
    )


def made(folder: Path, rows: int, shards: int, pictures: int = PICTURES) -> None:
    """Shards with so many rows in all, an index beside each; the rows of a shard show `pictures` different ones."""
    folder.mkdir()
    for number, places in enumerate(np.array_split(np.arange(rows), shards)):
        path, count = folder / f"{number:05d}.tar", len(places)
        drawn = [bitmap(number * pictures + each) for each in range(min(pictures, count))]
        with path.open("wb") as file:
            for at, data in enumerate(drawn):
                file.seek(at * STRIDE + 512)
                file.write(data)
            file.truncate(max(count, len(drawn) + 1) * STRIDE)  # the rest is a hole
        of = np.arange(count, dtype=np.int64) % len(drawn)
        names = b"".join(b"%010d.bmp" % place for place in places)
        captions = b"".join(b"picture number %010d" % place for place in places)
        order = np.arange(1, count + 1, dtype=np.int64)
        columns = {
            "offset": of * STRIDE + 512,
            "size": np.full(count, len(drawn[0]), np.int64),
            "names": np.frombuffer(names, np.uint8),
            "name_end": order * 14,
            "captions": np.frombuffer(captions, np.uint8),
            "caption_end": order * 25,
            "captions_end": order,
            "sha256": np.stack([np.frombuffer(hashlib.sha256(data).digest(), np.uint8) for data in drawn])[of],
            "width": np.full(count, SIDE, np.int32),
            "height": np.full(count, SIDE, np.int32),
        }
        index.save_columns(Path(index.beside(str(path))), columns, {"shard_size": path.stat().st_size})


def bitmap(number: int) -> bytes:
    """A picture of its own for each number, SIDE × SIDE pixels, uncompressed."""
    pixels = np.random.default_rng(number).integers(0, 256, 3 * SIDE * SIDE, dtype=np.uint8).tobytes()
    size = 54 + len(pixels)
    head = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", size, 0, 0, 54, 40, SIDE, SIDE, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    return head + pixels


def look(folder: Path, step: int) -> dict[str, float]:
    """What a run asks of its data before its first picture: seconds, and megabytes of memory.

    "megabytes" is the most that was resident, pages of mapped indexes with it, which the system takes back when it
    needs them; "own" is what is held without those. From Linux' /proc.
    """
    begun = time.perf_counter()
    records = read(DataTable(path=str(folder)))
    plan = Plan(seed=SEED, rows=by_group(records), batch=BATCH)
    for slot in plan.step(step):
        record = records[slot.row]
        assert str(record.place).endswith(f"{slot.row:010d}.bmp"), (slot, record)
        assert record.captions == (f"picture number {slot.row:010d}",)
    return {"seconds": time.perf_counter() - begun, "processor": time.process_time(), **memory()}


def looked(*arguments: str) -> dict[str, float]:
    """What this program says in a process of its own, and, where it does not say it, how long it took by the clock."""
    begun = time.perf_counter()
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"seconds": time.perf_counter() - begun, **json.loads(done.stdout.splitlines()[-1])}


def run(recipe: str, steps: str) -> dict[str, float]:
    """`gesso train` in this process: seconds of the processor, and megabytes."""
    from gesso.cli import main as gesso

    code = gesso(["train", recipe, "--train.steps", steps])
    assert code == 0, code
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"processor": used.ru_utime + used.ru_stime, **memory()}


def memory() -> dict[str, float]:
    """ "megabytes" is the most that was resident, "own" what is held without mapped files, from Linux' /proc."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak, own = (int(status[name].split()[0]) / 1024 for name in ("VmHWM", "RssAnon"))
    return {"megabytes": peak, "own": own}


def runs(folder: Path, rows: int, *, kept: bool = False) -> dict[str, dict[str, float]]:
    """A run's start with STEPS steps, and its resumption, from its end and from the third epoch, on the data there."""
    work = folder.parent / f"run-{folder.name}"
    base = reference.write(work / "base")
    recipe = work / "recipe.toml"
    folder_of_cache = f'path = "{work / "cache"}"' if kept else ""
    recipe.write_text(
        f'engine = "reference"\nout = "{work / "out"}"\nadapter.kind = "none"\nmodel.base = "{base}"\n'
        f'train = {{steps = {STEPS}, batch = {BATCH}}}\ntrack = {{tensorboard = false, console = "none"}}\n'
        f"[cache]\nlatents = {str(kept).lower()}\ntext = {str(kept).lower()}\n{folder_of_cache}\n"
        f'[[data]]\npath = "{folder}"\n'
    )
    found = {"start": looked("--run", str(recipe), str(STEPS))}
    found["resume"] = looked("--run", str(recipe), str(2 * STEPS))
    third = 2 * rows // BATCH + 12_345
    checkpoints = Checkpoints(work / "out")
    last, _ = checkpoints.newest()
    assert last is not None
    of_state = [path for path in last.folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, STATE)]
    copies = {str(path.relative_to(last.folder)): partial(shutil.copyfile, path) for path in of_state}
    checkpoints.save(third, copies, last.state)
    found["resume in the third epoch"] = looked("--run", str(recipe), str(third + STEPS))
    return found


def readers_agree(rows: int, batch: int = BATCH, readers: tuple[int, ...] = READERS) -> bool:
    """Whether an epoch holds every row once, and is the same stream however many readers share its steps."""
    steps = -(-rows // batch)
    streams = []
    for count in readers:
        stream = np.full(steps * batch, -1, np.int64)
        for reader in range(count):
            for step, seen in _share(rows, batch, range(reader, steps, count)):
                stream[step * batch : (step + 1) * batch] = seen
        streams.append(stream[:rows])
    whole = bool((np.bincount(streams[0], minlength=rows) == 1).all())
    return whole and all(np.array_equal(streams[0], stream) for stream in streams)


def _share(rows: int, batch: int, steps: range) -> Iterator[tuple[int, list[int]]]:
    plan = Plan(seed=SEED, rows={"instance": range(rows)}, batch=batch)
    for step in steps:
        yield step, [slot.row for slot in plan.step(step)]


if __name__ == "__main__":
    main()
