"""What the cache costs: reading from it against training from memory, its start, its files, and what readers gain.

`python benchmarks/cache.py [--rounds N] [--entries N] [--index N] [--prepare N]`. The first table is gesso's batches
and steps on the embedded model, from entries that are all in memory and, in turns, from a store that is opened anew and
holds none. The files are compared with the plainest other way, a safetensors file an entry. The readers feed a device
that is asleep for a fixed time a step, as a processor sees a GPU.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from measure import heading, pictures, ratios, spread, table
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save

from gesso import loop, settings
from gesso.data.batches import Batches
from gesso.data.cache import Store, key
from gesso.data.cache.writer import Writer
from gesso.data.dataset import Dataset
from gesso.data.places import Member
from gesso.data.plan import Plan, by_group
from gesso.data.record import Record
from gesso.objective.objective import Objective

STEPS = 16
SLEEP_SECONDS = 0.05
LATENCY_SECONDS = 0.1
LATENTS = {"small": (4, 32, 32), "of 512 × 512 pixels": (4, 64, 64)}


def main() -> None:
    if sys.argv[1:2] == ["--only"]:
        {"start": start, "prepare": prepare}[sys.argv[2]](*sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--index", type=int, default=100_000)
    parser.add_argument("--prepare", type=int, default=10_000)
    given = parser.parse_args()
    print(heading(f"gesso's cache, medians of {given.rounds} rounds", int(os.environ.get("OMP_NUM_THREADS", 0))))
    with tempfile.TemporaryDirectory(prefix="gesso-bench-") as name:
        folder = Path(name)
        print(table([hits(folder / f"hits-{kind}", kind, given.rounds) for kind in ("lora", "none")]), flush=True)
        print("\n" + table([line for words in LATENTS for line in files(folder, words, given.entries)]), flush=True)
        print("\n" + table(starts(folder / "index", given.index)), flush=True)
        print("\n" + table(prepared(folder / "prepare", given.prepare)), flush=True)
        print("\n" + table(readers(folder / "readers", given.rounds)))


def hits(folder: Path, kind: str, rounds: int) -> dict[str, str]:
    """Steps of the loop, the store holding everything or nothing."""
    from gesso.families import find
    from gesso.gathering import pictures as records_of
    from gesso.job import Job, create_engine, make_objective
    from gesso.models import resolve
    from gesso.recipe import load

    photos = pictures(folder / "photos")
    flags = ["--data.path", str(photos), "--out", str(folder), "--adapter.kind", kind, "--train.device", "cpu"]
    recipe = load(None, [*flags, "--cache.path", str(folder / "cache")]).recipe
    source = resolve(recipe.model.base)
    family = find(source.pipeline)
    engine = create_engine(recipe)
    engine.load(source.folder, family, parts=settings.whole_parts(recipe))
    job = Job(
        recipe=recipe,
        out=folder,
        source=source,
        family=family,
        objective=make_objective(recipe, source),
        engine=engine,
    )
    held = job.dataset(records_of(recipe)[0])
    held.prepare(quiet)
    job.store.close()
    job.attach()

    def train(dataset: Dataset, steps: int = STEPS, *, learn: bool = True) -> tuple[float, float]:
        """Steps a second: by the clock, and of processor time."""
        gc.collect()
        batches, began, worked = job.batches(dataset), time.perf_counter(), time.process_time()
        for step, pieces in enumerate(batches.prefetch(0, steps)):
            if not learn:
                continue
            micro = [half for piece in pieces for half in loop.split(*piece, 0)]
            engine.step(micro, lr={"unet": 1e-4}, ema_decay=0.0, key=step).read()
        return steps / (time.perf_counter() - began), steps / (time.process_time() - worked)

    def opened(name: str) -> Dataset:
        # A new dataset: nothing of the one before is remembered, fingerprints apart.
        anew = replace(held, store=held.store if name == "memory" else Store(folder / "cache", 0))
        anew.pictures.fingerprints.update(held.pictures.fingerprints)
        return anew

    took: dict[str, list[tuple[float, float]]] = {"memory": [], "disk": []}
    alone: dict[str, list[float]] = {"memory": [], "disk": []}
    train(held)
    for round_ in range(rounds):
        for name in ("memory", "disk") if round_ % 2 == 0 else ("disk", "memory"):
            took[name].append(train(opened(name)))
            alone[name].append(1e3 / train(opened(name), 10 * STEPS, learn=False)[1])
    return {
        "trained": "LoRA, rank 16" if kind == "lora" else "full UNet",
        "steps/s from memory": spread([wall for wall, _ in took["memory"]], 1),
        "steps/s from disk": spread([wall for wall, _ in took["disk"]], 1),
        "ratio": spread(ratios([wall for wall, _ in took["disk"]], [wall for wall, _ in took["memory"]]), 3),
        "ratio of processor time": spread(
            ratios([work for _, work in took["disk"]], [work for _, work in took["memory"]]), 3
        ),
        "batch from memory, ms of processor time": spread(alone["memory"]),
        "from disk": spread(alone["disk"]),
    }


def files(folder: Path, words: str, count: int) -> list[dict[str, str]]:
    """Writing and reading entries in packs, and as a file each."""
    base = np.random.default_rng(0).standard_normal(LATENTS[words]).astype(np.float32)
    names = [key(n=f"{words} {number}") for number in range(count)]
    order = np.random.default_rng(1).permutation(count)
    packed, single = folder / f"packs-{len(words)}", folder / f"files-{len(words)}"

    def entry(number: int) -> dict[str, np.ndarray]:
        return {"mean": base + np.float32(number), "logvar": base}

    def write_packs() -> None:
        store = Store(packed, 0)
        for number, name in enumerate(names):
            store.put(name, entry(number))
        store.close()

    def read_packs() -> None:
        store = Store(packed, 0)
        for number in order:
            assert store.get(names[number]) is not None

    def write_files() -> None:
        for number, name in enumerate(names):
            path = single / name[:2] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            arrays = entry(number)
            part = path.with_suffix(".part")
            part.write_bytes(save(arrays, metadata={"sha256": digest(arrays)}))
            os.replace(part, path)

    def read_files() -> None:
        for number in order:
            with safe_open(single / names[number][:2] / names[number], framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in ("logvar", "mean")}
                assert file.metadata()["sha256"] == digest(arrays)

    return [
        {
            "latents": f"{count} {words}",
            "kept in": form,
            "written, ms each": f"{milliseconds(write, count):.3f}",
            "read, ms each": f"{milliseconds(read, count):.3f}",
            "after a cold start": f"{milliseconds(read, count):.3f}" if cold() else "not measured",
            "files": str(sum(1 for path in place.rglob("*") if path.is_file())),
            "MB on disk": f"{sum(path.stat().st_blocks for path in place.rglob('*')) * 512 / 1e6:.0f}",
        }
        for form, place, write, read in (
            ("packs", packed, write_packs, read_packs),
            ("a file each", single, write_files, read_files),
        )
    ]


def digest(arrays: dict[str, np.ndarray]) -> str:
    return sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()


def milliseconds(work: Callable[[], None], count: int) -> float:
    gc.collect()
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began) / count


def cold() -> bool:
    """Make the system forget what it holds of the disk, where this user may."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    except OSError:
        return False
    return True


def starts(folder: Path, count: int) -> list[dict[str, str]]:
    """How soon a new process knows what is in a cache of `count` small entries."""
    writer, payload = Writer(folder), save({"x": np.zeros(32, dtype=np.float32)})
    for number in range(count):
        writer.put(bytes.fromhex(key(n=str(number))), payload)
    writer.close()
    rows = [{"index": f"{count} entries", **itself("start", folder, count)}]
    for path in folder.rglob("*.index"):
        path.unlink()
    return [*rows, {"index": f"{count} entries, no index left", **itself("start", folder, count)}]


def start(folder: str, count: str) -> None:
    began = time.perf_counter()
    store = Store(Path(folder), 0)
    assert store.known(key(n="0"))
    took = time.perf_counter() - began
    began, asked = time.perf_counter(), range(0, int(count), max(1, int(count) // 10_000))
    assert all(store.known(key(n=str(number))) for number in asked)
    each = 1e6 * (time.perf_counter() - began) / len(asked)
    print(f"seconds until the first answer={took:.2f}|µs each further={each:.1f}|peak MB={peak():.0f}")


def prepared(folder: Path, count: int) -> list[dict[str, str]]:
    """Encoding `count` pictures ahead, and the start of a run that finds all of them: time and memory."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)
    with (folder / "pictures").open("wb") as file:
        for _ in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "bmp")
    return [{"prepared": f"{count} pictures, {words}", **itself("prepare", folder, count)} for words in ("new", "kept")]


def prepare(folder: str, count: str) -> None:
    bmp = (Path(folder) / "pictures").stat().st_size // int(count)
    records = [
        Record(
            path=Path(folder) / "pictures",
            inner=Member(f"{number}", number * bmp, bmp),
            captions=(f"caption {number}",),
            group="instance",
            weight=1.0,
        )
        for number in range(int(count))
    ]
    before = peak()
    began = time.perf_counter()
    store = Store(Path(folder) / "cache", 32 * 2**20)
    dataset = Dataset(records=records, width=128, height=128, seed=0, encoder=Means(), store=store)
    dataset.prepare(quiet)
    took, after = time.perf_counter() - began, peak()
    store.close()
    size = sum(path.stat().st_size for path in Path(folder, "cache").rglob("*.pack")) / 1e6
    print(f"seconds={took:.1f}|MB in the cache={size:.0f}|MB before={before:.0f}|peak MB={after:.0f}")


class Means:
    """An encoder that costs nothing."""

    image_identity = text_identity = "means"
    cache_latents = cache_text = True
    train_text = False

    def encode_images(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = np.repeat(pixels[:, :1, ::8, ::8], 4, axis=1)
        return mean, np.zeros_like(mean)

    def encode_text(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        return {"hidden": np.full((len(captions), 77, 32), len(captions[0]), dtype=np.float32)}

    def tokens(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        raise NotImplementedError


class Far(type(Path())):  # type: ignore[misc]
    """A file on storage that answers after LATENCY_SECONDS."""

    def read_bytes(self) -> bytes:
        time.sleep(LATENCY_SECONDS)
        return bytes(super().read_bytes())


def readers(folder: Path, rounds: int) -> list[dict[str, str]]:
    """Random crops for a device that takes SLEEP_SECONDS a step of 4: of large pictures, and of far-away ones."""
    return [
        *of_readers(folder / "large", "3 megapixels", Path, (2048, 1536), rounds),
        *of_readers(folder / "far", f"small, after {LATENCY_SECONDS * 1e3:.0f} ms", Far, (64, 64), rounds),
    ]


def of_readers(folder: Path, words: str, kind: type[Path], size: tuple[int, int], rounds: int) -> list[dict[str, str]]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for number in range(16):
        rough = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        rough.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:02d}.jpg", quality=90)
    records = [
        Record(path=kind(path), captions=("",), group="instance", weight=1.0) for path in sorted(folder.iterdir())
    ]
    took: dict[int, list[float]] = {count: [] for count in (1, 2, 4, 8)}
    for _ in range(rounds):
        for count in took:
            dataset = Dataset(
                records=records,
                width=min(512, size[1]),
                height=min(512, size[1]),
                crop="random",
                seed=0,
                encoder=Means(),
                store=Store(folder / "none"),
                readers=count,
            )
            plan = Plan(seed=0, rows=by_group(records), batch=4)
            batches = Batches(plan=plan, dataset=dataset, objective=Objective(), scale=1.0)
            began = time.perf_counter()
            for _ in batches.prefetch(0, 12):
                time.sleep(SLEEP_SECONDS)
            took[count].append(12 * 4 / (time.perf_counter() - began))
    return [
        {
            "random crops of pictures": words,
            "readers": str(count),
            "pictures/s": spread(found, 1),
            "ratio to one": spread(ratios(found, took[1])),
        }
        for count, found in took.items()
    ]


def itself(what: str, folder: Path, count: int) -> dict[str, str]:
    """What this file says of itself in a new process."""
    command = [sys.executable, __file__, "--only", what, str(folder), str(count)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(part.split("=", 1) for part in said.strip().split("|"))


def peak() -> float:
    """Most memory that this process has had, in MB (what getrusage says begins with its parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def quiet(what: str, done: int, total: int) -> None:
    """Nobody is told."""


if __name__ == "__main__":
    main()
