"""mindone's own training scripts against gesso with `engine = "mindspore"`, on a CPU.

`python benchmarks/peers/run_mindone.py --scripts MINDONE/examples/diffusers [--only WORD …] [--losses | --speed]`, in
the environment of docs/mindspore.md. As run.py does it with diffusers' scripts, and the README says.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from cases_mindone import SD, SDXL, WORD, Case
from run import CLASS_PICTURES, HERE, PICTURES, TOLERANCE, Bench, Failed, Took, learned
from safetensors.numpy import load_file

sys.path.insert(0, str(HERE.parents[1] / "tests" / "mindspore"))
import tiny_models
from measure import heading, ratios, spread, table

STEPS = 6
GRAPHS: Mapping[str, object] = {"engine": "mindspore"}
EAGER = {**GRAPHS, "mindspore": {"compile": False}}
LIBRARIES = ("mindspore", "mindone", "transformers", "numpy")


class Mindone(Bench):
    """The same folders, with the random models of the MindSpore tests and mindone's scripts."""

    runner = "script_mindone.py"

    extra = GRAPHS

    def blank(self, case: Case, base: Path) -> None:
        tiny_models.write(base, "xl" if case.model == "sdxl" else "sd")


def losses(bench: Mindone, case: Case) -> dict[str, str]:
    """One row of the table of losses: the script by itself, and with a bias correction in its AdamW."""
    folder = bench.fresh()
    row = {"method": f"{case.model} · {case.name}"}
    columns = ("step 1", f"{STEPS} steps", f"{STEPS} steps, bias corrected", "weights, bias corrected", "verdict")
    try:
        ours, _ = bench.gesso(case, folder, STEPS, folder / "draws.npz")
        options: list[str | Path] = ["--draws", folder / "draws.npz"]
        options += ["--precomputes"] if case.precomputes else []
        options += ["--pairs", str(PICTURES), str(CLASS_PICTURES)] if case.prior else []
        plain = _differences(ours, bench.script(case, folder, STEPS, *options)[0])
        shutil.rmtree(folder / "script")
        corrected = _differences(ours, bench.script(case, folder, STEPS, *options, "--corrected")[0])
    except Failed as error:
        return {**row, **dict.fromkeys(columns, "–"), columns[-1]: f"failed: {error}"[:150]}
    cells = [f"{plain[0]:.0e}", f"{max(plain):.0e}", f"{max(corrected):.0e}"]
    cells += [_word(folder) if case.recipe["adapter"]["kind"] == "ti" else learned(case, bench.base(case), folder)]
    cells += ["equal" if max(corrected) <= TOLERANCE else "DIFFERS"]
    return {**row, **dict(zip(columns, cells, strict=True))}


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]


def _word(folder: Path) -> str:
    """How far apart the two have moved the word's vector, as a share of how far it moved."""
    ours, theirs = (load_file(folder / side / "learned_embeds.safetensors")[WORD] for side in ("gesso", "script"))
    before = np.load(folder / "draws.npz")[f"weights/tokens.text_encoder.{WORD}"]
    return f"{np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - before):.0e}"


def speed(bench: Mindone, case: Case, steps: int, rounds: int) -> dict[str, str]:
    """One row of the table of speeds; ratios are gesso/script, round by round."""
    took: dict[str, list[Took]] = {"script": [], "gesso": [], "eager": []}
    row = {"method": f"{case.model} · {case.name}"}
    try:
        for round_ in range(rounds):
            for side in ("script", "gesso", "eager") if round_ % 2 == 0 else ("eager", "gesso", "script"):
                folder = bench.fresh()
                bench.extra = GRAPHS if side == "gesso" else EAGER
                train = bench.script if side == "script" else bench.gesso
                took[side].append(train(case, folder, steps)[1])
                print(f"{case.model} · {case.name} · {side}: {took[side][-1]}", flush=True)
                shutil.rmtree(folder)
    except Failed as error:
        return {**row, "script steps/s": f"failed: {error}"[:150]}
    theirs, ours, eager = took.values()
    steps_a_second = {f"{side} steps/s": spread([1 / t.step for t in found]) for side, found in took.items()}
    return {
        **row,
        **steps_a_second,
        "steps/s, gesso/script": spread(ratios([t.step for t in theirs], [t.step for t in ours])),
        "eager/script": spread(ratios([t.step for t in theirs], [t.step for t in eager])),
        "processor time a step, gesso/script": spread(ratios([t.cpu for t in ours], [t.cpu for t in theirs])),
        "eager/script ": spread(ratios([t.cpu for t in eager], [t.cpu for t in theirs])),
        "whole process, gesso/script": spread(ratios([t.whole for t in ours], [t.whole for t in theirs])),
        "eager/script  ": spread(ratios([t.whole for t in eager], [t.whole for t in theirs])),
        "peak MiB": " / ".join(spread([t.memory for t in found], 0).split()[0] for found in took.values()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--scripts", type=Path, required=True, help="examples/diffusers of a checkout of mindone")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="cases whose model, script or name has it"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the speed: how often each side runs")
    parser.add_argument("--steps", type=int, default=30, help="of the speed: how long each run is")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--losses", action="store_true", help="the losses alone")
    what.add_argument("--speed", action="store_true", help="the speed alone")
    arguments = parser.parse_args()
    scripts = arguments.scripts.absolute()
    cases = [
        case
        for case in (*SD, *SDXL)
        if not arguments.only or any(word in f"{case.model} {case.script} {case.name}" for word in arguments.only)
    ]
    missing = {case.script for case in cases if not (arguments.scripts / f"{case.script}.py").is_file()}
    if missing or not cases:
        parser.error(f"not below {arguments.scripts}: {', '.join(sorted(missing))}" if missing else "no case has it")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "GLOG_v": "3"}
    failed = False
    with tempfile.TemporaryDirectory(prefix="gesso-mindone-") as name:
        os.chdir(name)  # MindSpore leaves folders where it runs
        bench = Mindone(Path(name), scripts)
        print(
            heading("mindone's training scripts and gesso", int(os.environ["OMP_NUM_THREADS"]), LIBRARIES), flush=True
        )
        for measure, wanted in ((losses, not arguments.speed), (speed, not arguments.losses)):
            rows = []
            for case in cases if wanted else ():
                if measure is speed and not case.speed:
                    continue
                if measure is speed:
                    rows.append(speed(bench, case, arguments.steps, arguments.rounds))
                else:
                    rows.append(losses(bench, case))
                    failed |= not rows[-1]["verdict"].startswith("DIFFERS" if case.fault else "equal")
                print(" · ".join(rows[-1].values()), flush=True)
            if rows:
                print(table(rows), "", sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
