"""diffusers' own training scripts against gesso: the same model, the same pictures, the same training.

`python benchmarks/peers/run.py --scripts DIFFUSERS/examples [--only WORD …] [--losses | --speed]`. Losses: the script
trains on what gesso drew (order, noise, timesteps, beginning of the adapters), and the losses of all steps must agree.
Speed: each trains by itself, in turns (script, gesso, gesso, script, …). See README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import tomlkit
from cases import PROMPT, SD, SDXL, WORD, Case
from PIL import Image
from safetensors.numpy import load_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from measure import heading, ratios, spread, table  # noqa: E402

TOLERANCE = 1e-5
SIDE, HEIGHT = 64, 80
"""Pixels of what is trained on, and of the pictures' longer side: they are cropped, and not resized."""
PICTURES, CLASS_PICTURES = 32, 33
"""Without a common divisor; see indices.py."""
STEPS = 8
"""Of the comparison of losses: one epoch of pictures in batches of 4."""
WARM_UP = 5
"""Steps at the beginning whose time does not count."""


class Failed(Exception):
    """A process that ended with an error; the message is the last line it said."""


@dataclass(frozen=True, slots=True)
class Took:
    """Of one training: seconds a step after the warm-up, by the clock and of processor time; seconds by the clock and
    peak memory (MiB) of its whole process."""

    step: float
    cpu: float
    whole: float
    memory: float


def run(command: Sequence[str | Path], log: Path) -> tuple[float, float]:
    """Run Python with `command`; seconds it took, and the largest memory it held, MiB."""
    began = time.perf_counter()
    with log.open("wb") as said:
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line or "error" in line]
        raise Failed(f"{log.stem}: {(errors or lines or ['nothing was said'])[-1].strip()}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return time.perf_counter() - began, usage.ru_maxrss / unit


class Bench:
    """The folders that every case uses, and the two ways to train in them."""

    runner = "script.py"
    extra: Mapping[str, object] = MappingProxyType({})
    """Of gesso's recipes, beside what the cases say."""

    def __init__(self, folder: Path, scripts: Path) -> None:
        self.folder, self.scripts, self.runs = folder, scripts, 0
        self.captioned = pictures(folder / "captioned", PICTURES, captions=True)
        self.plain = pictures(folder / "plain", PICTURES)
        self.classes = pictures(folder / "class", CLASS_PICTURES)

    def base(self, case: Case) -> Path:
        """The model: gesso's embedded one, or an untrained SDXL of the same size; with the case's own scheduler."""
        changed = "".join(f"-{value}" for value in case.scheduler.values())
        base = self.folder / f"base-{case.model}{changed}"
        if not base.exists():
            self.blank(case, base)
            path = base / "scheduler" / "scheduler_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **case.scheduler}), encoding="utf-8")
        return base

    def blank(self, case: Case, base: Path) -> None:
        """Put the model into `base`, a new folder."""
        if case.model == "sdxl":
            run(["-m", "gesso.engines.torch.demo.blank_xl", base], self.folder / "base.log")
        else:
            shutil.copytree(HERE.parents[1] / "gesso" / "demo" / "assets" / "tiny", base)

    def fresh(self) -> Path:
        """A new folder for one training."""
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir()
        os.environ["GESSO_CACHE"] = str(folder / "gesso-cache")
        os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets-cache")
        return folder

    def recipe(self, case: Case, folder: Path, steps: int) -> Path:
        """gesso's side of a case, as a file."""
        own = {name: dict(value) if isinstance(value, Mapping) else value for name, value in case.recipe.items()}
        data = {"path": str(self.captioned)} if case.captioned else {"path": str(self.plain), "prompt": PROMPT}
        if "tokens" in own:
            data["prompt"] = f"a photo of a {WORD}"
        if case.prior:
            own["prior"] |= {"path": str(self.classes), "pictures": CLASS_PICTURES}
        whole = {
            "out": str(folder / "gesso"),
            **own,
            "model": {"base": str(self.base(case)), **own.get("model", {})},
            "data": [data],
            "train": {
                "steps": steps,
                "batch": case.batch,
                "resolution": SIDE,
                "device": "cpu",
                "precision": "fp32",
            },
            "optim": {"lr": case.lr, **own.get("optim", {})},
            "save": {"every": 0},
            "track": {"console": "none"},
            **self.extra,
        }
        path = folder / "recipe.toml"
        path.write_text(tomlkit.dumps(whole), encoding="utf-8")
        return path

    def flags(self, case: Case, folder: Path, steps: int) -> list[str | Path]:
        """The script's side of a case."""
        shared = {
            "--pretrained_model_name_or_path": self.base(case),
            "--output_dir": folder / "script",
            "--resolution": SIDE,
            "--train_batch_size": case.batch,
            "--max_train_steps": steps,
            "--learning_rate": case.lr,
            "--lr_scheduler": "constant",
            "--lr_warmup_steps": 0,
            "--checkpointing_steps": 10**6,
            "--mixed_precision": "no",
            "--seed": 0,
        }
        if case.captioned:
            shared |= {"--train_data_dir": self.captioned}
        elif "tokens" in case.recipe:
            shared |= {"--train_data_dir": self.plain, "--save_steps": 10**6}
        else:
            shared |= {"--instance_data_dir": self.plain, "--instance_prompt": PROMPT}
        if case.prior:
            shared |= {"--class_data_dir": self.classes, "--num_class_images": CLASS_PICTURES}
        return [*(str(word) for pair in shared.items() for word in pair), "--center_crop", *case.flags]

    def script(self, case: Case, folder: Path, steps: int, *rest: str | Path) -> tuple[list[float], Took]:
        """Train by the script; its losses, and what it took."""
        notes = folder / "notes.json"
        command = [HERE / self.runner, self.scripts / f"{case.script}.py", notes, *rest]
        whole, memory = run([*command, "--", *self.flags(case, folder, steps)], folder / "script.log")
        return json.loads(notes.read_text(encoding="utf-8"))["losses"], took(notes, whole, memory)

    def gesso(self, case: Case, folder: Path, steps: int, draws: Path | None = None) -> tuple[list[float], Took]:
        """Train by gesso; its losses, and what it took."""
        recipe = self.recipe(case, folder, steps)
        notes = folder / "notes.json"
        whole, memory = run([HERE / "ours.py", recipe, notes, *([draws] if draws else [])], folder / "gesso.log")
        events = map(json.loads, (folder / "gesso" / "events.jsonl").read_text("utf-8").splitlines())
        return [event["loss"] for event in events if event["event"] == "stepped"], took(notes, whole, memory)


def took(notes: Path, whole: float, memory: float) -> Took:
    """From what a side noted of its steps; NaN where there were none after the warm-up."""
    found = json.loads(notes.read_text(encoding="utf-8"))
    step, cpu = (
        float(np.mean(np.diff(found[name])[WARM_UP:])) if len(found[name]) > WARM_UP + 1 else float("nan")
        for name in ("times", "cpu")
    )
    return Took(step, cpu, whole, memory)


def pictures(folder: Path, count: int, *, captions: bool = False) -> Path:
    """`count` pictures of coloured noise, with a metadata.jsonl where captions are wanted."""
    folder.mkdir()
    rng = np.random.default_rng(count)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, SIDE, 3)).astype(np.uint8)).save(folder / f"{number:02d}.png")
    if captions:
        lines = [{"file_name": f"{number:02d}.png", "text": f"a photo of thing {number}"} for number in range(count)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


def learned(case: Case, base: Path, folder: Path) -> str:
    """How far apart the two have moved the UNet's weights, as a share of how far they moved; "–" for words alone."""
    kind = case.recipe["adapter"]["kind"]
    if kind == "ti":
        return "–"
    name = "pytorch_lora_weights.safetensors" if kind == "lora" else "unet/diffusion_pytorch_model.safetensors"
    ours = load_file(folder / "gesso" / name)
    # Some of the scripts write peft's names, some an older form of them.
    theirs = {key.replace(".lora.up.", ".lora_B."): value for key, value in load_file(folder / "script" / name).items()}
    if kind == "lora":  # its half that begins as zeros
        names = [key for key in theirs if key.startswith("unet.") and key.endswith(".lora_B.weight")]
        before = {key: np.zeros_like(theirs[key]) for key in names}
    else:
        names, before = list(theirs), load_file(base / name)
    apart, moved = (
        sum(float(np.square(one[key].astype(np.float64) - two[key]).sum()) for key in names)
        for one, two in ((ours, theirs), (theirs, before))
    )
    return f"{np.sqrt(apart / moved):.0e}"


def losses(bench: Bench, case: Case) -> dict[str, str]:
    """One row of the table of losses."""
    folder = bench.fresh()
    row = {"method": f"{case.model} · {case.name}", "batch": str(case.batch)}
    try:
        ours, _ = bench.gesso(case, folder, STEPS, folder / "draws.npz")
        options: list[str | Path] = ["--draws", folder / "draws.npz"]
        options += ["--precomputes"] if case.precomputes else []
        options += ["--pairs", str(PICTURES), str(CLASS_PICTURES)] if case.prior else []
        theirs = bench.script(case, folder, STEPS, *options)[0]
    except Failed as error:
        return {**row, "step 1": "–", f"{STEPS} steps": "–", "weights": "–", "verdict": f"failed: {error}"[:150]}
    differences = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
    equal = max(differences) <= TOLERANCE
    return {
        **row,
        "step 1": f"{differences[0]:.0e}",
        f"{STEPS} steps": f"{max(differences):.0e}",
        "weights": learned(case, bench.base(case), folder),
        "verdict": "equal" if equal else "DIFFERS",
    }


COLUMNS = (
    "script steps/s",
    "gesso steps/s",
    "steps/s, ratio",
    "processor time a step, ratio",
    "whole process, ratio of time",
    "script peak MiB",
    "gesso peak MiB",
    "peak, ratio",
)


def speed(bench: Bench, case: Case, steps: int, rounds: int) -> dict[str, str]:
    """One row of the table of speeds; ratios are gesso/script, round by round."""
    ours, theirs = list[Took](), list[Took]()
    row = {"method": f"{case.model} · {case.name}", "batch": str(case.batch)}
    try:
        for round_ in range(rounds):
            for by_gesso in (False, True) if round_ % 2 == 0 else (True, False):
                folder = bench.fresh()
                (ours if by_gesso else theirs).append(
                    (bench.gesso if by_gesso else bench.script)(case, folder, steps)[1]
                )
                shutil.rmtree(folder)
    except Failed as error:
        return {**row, **dict.fromkeys(COLUMNS, "–"), COLUMNS[0]: f"failed: {error}"[:150]}
    cells = [
        spread([1 / t.step for t in theirs], 1),
        spread([1 / t.step for t in ours], 1),
        spread(ratios([t.step for t in theirs], [t.step for t in ours])),
        spread(ratios([t.cpu for t in ours], [t.cpu for t in theirs])),
        spread(ratios([t.whole for t in ours], [t.whole for t in theirs])),
        spread([t.memory for t in theirs], 0),
        spread([t.memory for t in ours], 0),
        spread(ratios([t.memory for t in ours], [t.memory for t in theirs])),
    ]
    return {**row, **dict(zip(COLUMNS, cells, strict=True))}


def chosen(only: Sequence[str]) -> Iterator[Case]:
    """The cases whose model, script or name has one of the words; all without words."""
    for case in (*SD, *SDXL):
        if not only or any(word in f"{case.model} {case.script} {case.name}" for word in only):
            yield case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--scripts", type=Path, required=True, help="the folder examples/ of a checkout of diffusers")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="cases whose model, script or name has it"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of the speed: how often each side runs")
    parser.add_argument("--steps", type=int, default=45, help="of the speed: how long each run is")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--losses", action="store_true", help="the losses alone")
    what.add_argument("--speed", action="store_true", help="the speed alone")
    arguments = parser.parse_args()
    cases = list(chosen(arguments.only))
    missing = {case.script for case in cases if not (arguments.scripts / f"{case.script}.py").is_file()}
    if missing or not cases:
        parser.error(f"not below {arguments.scripts}: {', '.join(sorted(missing))}" if missing else "no case has it")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    failed = False
    with tempfile.TemporaryDirectory(prefix="gesso-peers-") as name:
        bench = Bench(Path(name), arguments.scripts.absolute())
        print(heading("diffusers' training scripts and gesso", int(os.environ["OMP_NUM_THREADS"])), flush=True)
        if not arguments.speed:
            rows = []
            for case in cases:
                rows.append(losses(bench, case))
                print(" · ".join(rows[-1].values()), flush=True)
                expected = ("DIFFERS", "failed: script:") if case.fault else ("equal",)
                failed |= not rows[-1]["verdict"].startswith(expected)
            print(table(rows))
            print(*(f"{case.model} · {case.name}: {case.fault}" for case in cases if case.fault), "", sep="\n")
        if not arguments.losses:
            rows = []
            for case in (case for case in cases if case.speed):
                rows.append(speed(bench, case, arguments.steps, arguments.rounds))
                print(" · ".join(rows[-1].values()), flush=True)
            print(table(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
