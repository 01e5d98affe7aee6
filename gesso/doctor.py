"""What this computer can do, what is missing, and how to mend it.

Only the standard library is imported here, for a missing library is the very thing to be found; the framework is asked
in a process of its own, so that one that crashes does not take the doctor with it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from gesso import __version__
from gesso.data.cache import default_folder
from gesso.errors import Exit

VARIABLES = (
    "GESSO_CACHE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "CUDA_VISIBLE_DEVICES",
    "ASCEND_RT_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)
TORCH_SIDE = ("accelerate", "diffusers", "huggingface-hub", "numpy", "peft", "torch", "transformers")
"""What gesso needs for the PyTorch engine, or of which the MindSpore engine has its own versions."""
PIP = f"{Path(sys.executable).name} -m pip install"
GIB = 2**30
LEAST_DISK, LEAST_MEMORY = 1 * GIB, 1 * GIB
USUAL_MEMORY = 8 * GIB
PATIENCE_SECONDS = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at. `state` is "ok", "note" or "problem"; `fix` is a line to copy or to follow."""

    about: str
    text: str
    state: str = "ok"
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything looked at, and what devices can train."""

    findings: tuple[Finding, ...]
    devices: tuple[dict[str, Any], ...] = ()

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(each for each in self.findings if each.state == "problem")

    @property
    def exit(self) -> int:
        return Exit.DEVICE if self.problems else Exit.DONE

    def as_json(self) -> dict[str, Any]:
        return {
            "gesso": __version__,
            "fit": not self.problems,
            "devices": list(self.devices),
            "findings": [asdict(each) for each in self.findings],
        }

    def text(self) -> str:
        signs = {"ok": "ok  ", "note": "note", "problem": "BAD "}
        lines = [f"gesso {__version__}"]
        for each in self.findings:
            lines.append(f"  {signs[each.state]}  {each.about:17}{each.text}")
            if each.fix:
                lines.append(f"        {'':17}to mend it: {each.fix}")
        count = len(self.problems)
        end = (
            f"{count} problem{'s' if count > 1 else ''} to mend before training."
            if count
            else "This computer is fit to train."
        )
        return "\n".join([*lines, end])


def examine(engine: str = "torch") -> Report:
    """Look at everything that the engine needs; takes as long as importing its framework does."""
    found, devices = _devices() if engine == "torch" else _mindspore()
    without = TORCH_SIDE if engine == "mindspore" else ()
    found = [*found, *_other(engine)]
    findings = (*_python(), *_libraries(without), *found, *_base(), *_memory(), *_disks(), *_variables())
    return Report(findings=findings, devices=tuple(devices))


def _other(engine: str) -> Iterator[Finding]:
    """That the environment is the other engine's, where it looks so."""
    own, other = ("torch", "mindspore") if engine == "torch" else ("mindspore", "torch")
    try:
        here = version(other)
    except PackageNotFoundError:
        return
    try:
        version(own)
    except PackageNotFoundError:
        text = f'{other} {here} is here, and {own} is not: this environment is for engine = "{other}"'
        yield Finding(about="engine", text=text, state="note", fix=f"gesso doctor --engine {other}")


def _python() -> Iterator[Finding]:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info >= (3, 14):
        yield Finding(about="Python", text=f"{text}; gesso is tested with 3.11 to 3.13", state="note")
    else:
        yield Finding(about="Python", text=text)


def _libraries(without: Sequence[str] = ()) -> Iterator[Finding]:
    try:
        needed = requires("gesso") or []
    except PackageNotFoundError:
        fix = f"{PIP} --editable FOLDER-OF-GESSO"
        yield Finding(about="gesso", text="is not installed, so its libraries are not checked", state="note", fix=fix)
        return
    for line in sorted(line for line in needed if ";" not in line):
        if re.split(r"[^\w.-]", line)[0] not in without:
            yield library(line)


def library(requirement: str) -> Finding:
    """Whether the library of a requirement such as "torch<3,>=2.10" is here, in such a version."""
    match = re.match(r"[\w.-]+", requirement)
    name = match[0] if match else requirement
    fix = f'{PIP} --upgrade "{requirement}"'
    try:
        here = version(name)
    except PackageNotFoundError:
        return Finding(about=name, text="is not installed", state="problem", fix=fix)
    for sign, bound in re.findall(r"(>=|<)\s*([\d.]+)", requirement):
        if (numbers(here) < numbers(bound)) == (sign == ">="):
            must = f"at least {bound}" if sign == ">=" else f"below {bound}"
            return Finding(about=name, text=f"{here}, but must be {must}", state="problem", fix=fix)
    return Finding(about=name, text=here)


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare: "2.13.0+cpu" is (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _devices() -> tuple[list[Finding], list[dict[str, Any]]]:
    answer = _asked("gesso.engines.torch.devices", "PyTorch")
    if isinstance(answer, Finding):
        return [answer], []
    devices: list[dict[str, Any]] = answer
    found = [*_can_train(devices)]
    if shutil.which("nvidia-smi") and not any(each["name"].startswith("cuda") for each in devices):
        text = "an NVIDIA driver is here, but PyTorch sees no GPU"
        fix = "install a CUDA build of PyTorch, or unset CUDA_VISIBLE_DEVICES"
        found.append(Finding(about="cuda", text=text, state="note", fix=fix))
    return found, devices


def _mindspore() -> tuple[list[Finding], list[dict[str, Any]]]:
    answer = _asked("gesso.engines.mindspore.examine", "MindSpore")
    if isinstance(answer, Finding):
        return [answer], []
    devices: list[dict[str, Any]] = answer["devices"]
    return [*(Finding(**each) for each in answer["findings"]), *_can_train(devices)], devices


def _can_train(devices: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    for each in devices:
        yield Finding(about=each["name"], text=f"{each['description']}; {', '.join(each['precisions'])}")


def _asked(module: str, framework: str) -> Any:
    """The JSON that a module of an engine prints in a process of its own, or what kept it from that."""
    here = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            env={**os.environ, "PYTHONPATH": paths},
        )
    except subprocess.TimeoutExpired:
        text = f"{framework} did not answer within {PATIENCE_SECONDS} s"
        return Finding(about="devices", text=text, state="problem", fix="look for a device driver that hangs")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        fix = "mend the libraries above, then run gesso doctor again"
        return Finding(about="devices", text=f"{framework} does not start: {last}", state="problem", fix=fix)
    return json.loads(done.stdout.strip().splitlines()[-1])


def _base() -> Iterator[Finding]:
    folder = Path(__file__).parent / "demo" / "assets" / "tiny"
    if (folder / "model_index.json").is_file():
        yield Finding(about="base tiny", text="embedded, ready")
    else:
        yield Finding(about="base tiny", text="is missing", state="problem", fix="install gesso again")


def _memory() -> Iterator[Finding]:
    total, free = memory()
    if total is None:
        return
    text = f"{total / GIB:.1f} GiB" + (f", {free / GIB:.1f} GiB free" if free is not None else "")
    if total < LEAST_MEMORY:
        yield Finding(
            about="memory", text=text, state="problem", fix="training needs at least 1 GiB; use a larger machine"
        )
    elif total < USUAL_MEMORY:
        fix = "on a GPU of its own memory this does not matter; else use --train.micro-batch 1"
        yield Finding(about="memory", text=f"{text}; enough for tiny, little for SD 1.5", state="note", fix=fix)
    else:
        yield Finding(about="memory", text=text)


def memory() -> tuple[int | None, int | None]:
    """(total, free) bytes of main memory for this process, a container's limit included; None where not to be known."""
    total: int | None = None
    free: int | None = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit = next(iter(_lines(Path("/sys/fs/cgroup/memory.max"))), "max")
    if limit.isdigit() and total is not None and int(limit) < total:
        total = int(limit)
        used = next(iter(_lines(Path("/sys/fs/cgroup/memory.current"))), "")
        free = max(total - int(used), 0) if used.isdigit() else free
    return total, free


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _disks() -> Iterator[Finding]:
    for about, folder in (("this folder", Path.cwd()), ("cache", default_folder())):
        yield _disk(about, folder)


def _disk(about: str, folder: Path) -> Finding:
    """Free space, and a real file written and removed: permissions alone do not tell of full or read-only disks."""
    place = next((each for each in (folder, *folder.parents) if each.is_dir()), Path.cwd())
    free = shutil.disk_usage(place).free
    text = f"{folder}, {free / GIB:.1f} GiB free"
    fix = "start in another folder" if about == "this folder" else "set GESSO_CACHE to a folder that can be written"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".gesso-doctor-") as file:
            file.write(b"gesso")
            file.flush()
    except OSError as error:
        return Finding(about=about, text=f"{text}; cannot be written: {error.strerror}", state="problem", fix=fix)
    if free < LEAST_DISK:
        return Finding(about=about, text=f"{text}; at least 1 GiB is needed", state="problem", fix=fix)
    return Finding(about=about, text=text)


def _variables() -> Iterator[Finding]:
    for name in VARIABLES:
        if name in os.environ:
            yield Finding(about="environment", text=f"{name}={shown(name, os.environ[name])}", state="note")


def shown(name: str, value: str) -> str:
    """A variable's value without secrets: a token is only said to be there, an address loses its password."""
    if "TOKEN" in name:
        return "(set; not shown)" if value else "(empty)"
    return re.sub(r"//[^/@]*@", "//(not shown)@", value)
