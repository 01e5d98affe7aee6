"""How soon gesso is there: `gesso --help`, and the first step of a run against diffusers' loading of the same model.

`python benchmarks/start.py [--rounds N]`. Every command is a process of its own, from its start until it says what is
waited for: `gesso train` that step 1 is done (pictures and captions are in the cache from a run before), the other that
`StableDiffusionPipeline.from_pretrained` has returned. The two alternate. Processor time is the process's until then.
A last table tells which of the model's components a first and a cached run load, and whose weights they hash.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import heading, model, pictures, ratios, spread, table

LOAD = """
import sys
from diffusers import StableDiffusionPipeline, logging
from transformers import logging as others
logging.disable_progress_bar(), others.disable_progress_bar()
StableDiffusionPipeline.from_pretrained(sys.argv[1])
print("loaded", flush=True)
"""
FORBIDDEN = ("torch", "diffusers", "transformers", "peft", "mindspore")
HELP_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds until the line that was waited for: by the clock, and of the process's processor time."""

    wall: float
    cpu: float


def until(line: str, command: Sequence[str | Path]) -> Took:
    """Run `command`; how long it took until it printed a line with `line` in it."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for said in process.stdout:
        if line in said:
            took = Took(time.perf_counter() - began, processor(process.pid))
            process.stdout.read()
            break
    else:
        raise SystemExit(f"{command[0]} ended without saying {line}")
    if process.wait():
        raise SystemExit(f"{command[0]} ended with exit code {process.returncode}")
    return took


def processor(pid: int) -> float:
    """Processor seconds of a living process so far, NaN where the system does not tell (only Linux does)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def command_help() -> dict[str, str]:
    """`gesso --help` in new processes, and whether a framework came with it."""
    listing = "import sys; from gesso.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    told = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True).stderr.split()
    imported = [name for name in FORBIDDEN if name in told]
    took = [until("gesso VERB --help", ["-m", "gesso", "--help"]) for _ in range(HELP_ROUNDS)]
    return {
        "gesso --help": "",
        "wall s": spread([each.wall for each in took]),
        "CPU s": spread([each.cpu for each in took]),
        "frameworks imported": ", ".join(imported) or "none",
    }


def first_step(recipe: list[str], base: Path, folder: Path, rounds: int) -> list[dict[str, str]]:
    """The two commands in turn, A-B-B-A."""
    took: dict[str, list[Took]] = {"train": [], "load": []}
    for round_ in range(rounds):
        for name in ("train", "load") if round_ % 2 == 0 else ("load", "train"):
            if name == "load":
                took[name].append(until("loaded", ["-c", LOAD, base]))
            else:
                out = ["--out", str(folder / f"run-{round_}"), "--track.console", "lines"]
                took[name].append(until("event=step ", ["-m", "gesso", "train", *recipe, *out]))
    train, load = took["train"], took["load"]
    wall = ratios([t.wall for t in train], [t.wall for t in load])
    cpu = ratios([t.cpu for t in train], [t.cpu for t in load])
    rows = [
        {"until": words, "wall s": spread([t.wall for t in found]), "CPU s": spread([t.cpu for t in found])}
        for words, found in (("gesso train, first step", train), ("diffusers, pipeline loaded", load))
    ]
    return [*rows, {"until": "ratio", "wall s": spread(wall), "CPU s": spread(cpu)}]


def watch(base: Path, recipe: list[str]) -> None:
    """`gesso train …`, then one line: components asked for, and those whose weights Python read (to hash them)."""
    opened: set[str] = set()

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(".safetensors"):
            path = Path(str(arguments[0]))
            if path.is_relative_to(base):
                opened.add(path.parent.name)

    from gesso.engines.torch.models import Models

    asked: set[str] = set()
    get = Models.get

    def noted(self: Models, name: str, *rest: object) -> object:
        asked.add(name)
        return get(self, name, *rest)

    Models.get = noted  # type: ignore[method-assign]
    sys.addaudithook(note)
    sys.argv = ["gesso", "train", *recipe]
    try:
        runpy.run_module("gesso", run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
    print(json.dumps({"asked": sorted(asked), "hashed": sorted(opened)}))


def components(base: Path, recipe: list[str], folder: Path, name: str) -> dict[str, str]:
    command = [sys.executable, __file__, "--watch", str(base), *recipe, "--out", str(folder / name)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = json.loads(said.splitlines()[-1])
    return {"run": name, "loaded": ", ".join(found["asked"]), "weights hashed": ", ".join(found["hashed"]) or "none"}


def main() -> None:
    if sys.argv[1:2] == ["--watch"]:
        watch(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=6)
    rounds = max(5, parser.parse_args().rounds)
    import torch

    print(heading(f"gesso's start, medians of {HELP_ROUNDS} (help) and {rounds} rounds", torch.get_num_threads()))
    print(table([command_help()]), flush=True)
    with tempfile.TemporaryDirectory(prefix="gesso-bench-") as name:
        folder = Path(name)
        os.environ["GESSO_CACHE"] = str(folder / "cache")
        base, photos = model(folder / "base"), pictures(folder / "photos")
        recipe = ["--model.base", str(base), "--data.path", str(photos), "--train.device", "cpu", "--train.steps", "1"]
        seen = [components(base, recipe, folder, run) for run in ("first run", "cached run")]
        print("\n" + table(first_step(recipe, base, folder, rounds)))
        print("\n" + table(seen))


if __name__ == "__main__":
    main()
