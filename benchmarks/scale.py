"""Ten million rows: how long a start and a resumption take, and what memory they need.

    python benchmarks/scale.py [--rows 10000000] [--shards 1000] [--full]

Makes shards that are holes in files (the pictures are never read) with an index beside each, as `gesso pack` writes it,
and looks at them as a run does: the data is read, its order is asked for from step 0 and from a step in the third
epoch. Each in a process of its own, whose largest resident memory is printed beside that of a set of 100 rows: the
difference is what the rows cost. Then every row of an epoch is counted, by 1, 2, 4 and 8 readers that share the steps;
--full counts the whole epoch of all rows and not of a hundredth of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gesso.data import index
from gesso.data.plan import Plan, by_group
from gesso.data.sources import read
from gesso.schema import DataTable

BATCH, SEED = 64, 7
READERS = (1, 2, 4, 8)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--shards", type=int, default=1000)
    arguments.add_argument("--full", action="store_true")
    arguments.add_argument("--look", nargs=2, metavar=("FOLDER", "STEP"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.look:
        print(json.dumps(look(Path(given.look[0]), int(given.look[1]))))
        return
    with tempfile.TemporaryDirectory(prefix="gesso-scale-") as name:
        few, many = Path(name) / "few", Path(name) / "many"
        made(few, 100, 1)
        begun = time.perf_counter()
        made(many, given.rows, given.shards)
        print(
            f"{given.rows:,} rows in {given.shards} shards, their indexes made in {time.perf_counter() - begun:.0f} s"
        )
        third = 2 * given.rows // BATCH + 12_345
        least = looked(few, 0)
        for what, step in (("start", 0), (f"resume at step {third:,}", third)):
            seen = looked(many, step)
            print(
                f"{what:28} {seen['seconds']:6.2f} s (a set of 100: {least['seconds']:.2f} s)   "
                f"{seen['megabytes']:6.0f} MB (a set of 100: {least['megabytes']:.0f} MB), "
                f"without mapped files {seen['own']:.0f} MB ({least['own']:.0f} MB)"
            )
    rows = given.rows if given.full else given.rows // 100
    print(f"an epoch of {rows:,} rows: {'identical' if readers_agree(rows) else 'NOT identical'} for {READERS} readers")


def made(folder: Path, rows: int, shards: int) -> None:
    """Shards with so many rows in all: files of holes, an index beside each."""
    folder.mkdir()
    for number, places in enumerate(np.array_split(np.arange(rows), shards)):
        path, count = folder / f"{number:05d}.tar", len(places)
        with path.open("wb") as file:
            file.truncate(count * 2048)
        names = b"".join(b"%010d.jpg" % place for place in places)
        captions = b"".join(b"picture number %010d" % place for place in places)
        order = np.arange(1, count + 1, dtype=np.int64)
        columns = {
            "offset": np.arange(count, dtype=np.int64) * 2048 + 512,
            "size": np.full(count, 1000, np.int64),
            "names": np.frombuffer(names, np.uint8),
            "name_end": order * 14,
            "captions": np.frombuffer(captions, np.uint8),
            "caption_end": order * 25,
            "captions_end": order,
            "sha256": np.zeros((count, 32), np.uint8),
            "width": np.full(count, 512, np.int32),
            "height": np.full(count, 512, np.int32),
        }
        index.save_columns(Path(index.beside(str(path))), columns, {"shard_size": count * 2048})


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
        assert str(record.place).endswith(f"{slot.row:010d}.jpg"), (slot, record)
        assert record.captions == (f"picture number {slot.row:010d}",)
    seconds = time.perf_counter() - begun
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak, own = (int(status[name].split()[0]) / 1024 for name in ("VmHWM", "RssAnon"))
    return {"seconds": seconds, "megabytes": peak, "own": own}


def looked(folder: Path, step: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--look", str(folder), str(step)]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
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
