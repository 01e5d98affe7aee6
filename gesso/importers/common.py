"""What several sources share: batches, schedules, precision, counting pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gesso.errors import GessoError
from gesso.importers.draft import Draft
from gesso.importers.rows import differs, harmless, stops

ATTENTION = harmless("gesso uses PyTorch's own memory-saving attention")
WORKERS = harmless("gesso encodes pictures once and needs no loader processes")
CACHED = harmless("gesso keeps encoded pictures and captions by itself")
SPEED = harmless("it saves time or memory and changes no result")
LOGS = harmless("it only logs; gesso writes events.jsonl, TensorBoard and a report")
OTHER_NAMES = "gesso writes diffusers' names and safetensors; `gesso convert` makes other forms of it"
UPLOADS = differs("set hub.push for an upload of the finished run; `gesso export OUT --push OWNER/NAME` does it later")
TRACKERS = differs(
    "gesso writes TensorBoard events; set track.wandb to tell Weights & Biases", "text", off=(None, "", "tensorboard")
)
SECRET = harmless("gesso takes it from a login or from the environment, and keeps none", secret=True)
TAGS = stops("gesso does not change captions so; leave it out, or write them as you want them")
MASKS = stops("gesso reads a mask as dog-masklabel.png beside dog.jpg; copy the masks there, and set data.masks")
MASK_SHAPES = stops("gesso does not change masks; set it to false", "switch")
RESIZED: dict[Any, str] = {
    "lanczos": "lanczos", "lanczos4": "lanczos", "bicubic": "bicubic", "cubic": "bicubic", "bilinear": "bilinear",
    "linear": "bilinear",
}  # fmt: skip
"""train.interpolation by the names that sources give it."""
ALL_KEPT = 1000
"""Checkpoints to keep where a source keeps all of them."""
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "k_lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "k_euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "k_euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm_2": "KDPM2DiscreteScheduler",
    "k_dpm_2": "KDPM2DiscreteScheduler",
    "dpm_2_a": "KDPM2AncestralDiscreteScheduler",
    "k_dpm_2_a": "KDPM2AncestralDiscreteScheduler",
    "dpmsolver": "DPMSolverMultistepScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "dpmsingle": "DPMSolverSinglestepScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "uni_pc": "UniPCMultistepScheduler",
}
"""Samplers by the names that sources give them."""


def batch(draft: Draft, size: str, accumulation: str, devices: int = 1) -> int:
    """train.batch and train.micro_batch of pictures per device × accumulation × devices; returns the batch."""
    for name in (size, accumulation):
        found = draft.values.get(name)
        if found is not None and found < 1:
            draft.say(name, "unsupported", f"is {found}, must be at least 1")
        draft.values[name] = max(1 if found is None else found, 1)
    each, times = draft.values[size], draft.values[accumulation]
    total = int(each * times * devices)
    count = f" x {devices} devices" if devices > 1 else ""
    note = f"{each} pictures x {times} accumulated{count}" if total > each else ""
    draft.put("train.batch", total, size, accumulation, note=note)
    if total == each:
        return total
    if draft.settings.get("adapter.dropout") and draft.settings["adapter.dropout"].value:
        draft.say(size, "differs", "the whole batch goes at once, for adapter.dropout does not mix with micro-batches")
    else:
        draft.put("train.micro_batch", int(each), size)
    return total


def least(draft: Draft, numbers: Mapping[str, int]) -> None:
    """Stop for numbers below what they may be."""
    for name, lowest in numbers.items():
        found = draft.values.get(name)
        if name in draft.given and isinstance(found, int | float) and found < lowest:
            draft.say(name, "unsupported", f"is {found}, must be at least {lowest}")


def mixed(draft: Draft, marks: Collection[str], other: str, theirs: Collection[str]) -> None:
    """Stop for flags of another maker's script of the same name, beside the `marks` by which this one was known."""
    mark = next((name for name in draft.given if name in marks), "")
    for name in draft.given:
        if mark and name not in draft.rows and name in theirs:
            text = f"the {draft.source} of {other} has it, and that of another maker has --{mark}; keep to one of them"
            draft.say(name, "unsupported", text)
            draft.reword(name, text)


def schedule(draft: Draft, name: str, warmup: str, steps: int | None) -> None:
    """optim.schedule and optim.warmup; the libraries' "constant" takes no warm-up, and one below 1 is a share."""
    kind = str(draft.values.get(name) or "constant")
    if kind not in SCHEDULES:
        draft.say(name, "unsupported", f"gesso has no schedule {kind}; use one of {', '.join(SCHEDULES)}")
        draft.say(warmup, "harmless", "belongs to a schedule that gesso does not have")
        return
    draft.put("optim.schedule", kind, name)
    count = draft.values.get(warmup) or 0
    if kind == "constant":
        draft.say(warmup, "harmless", "the schedule constant takes no warm-up there; constant_with_warmup does")
        return
    if isinstance(count, float) and 0 < count < 1:
        if steps is None:
            draft.say(warmup, "unsupported", "is a share of the steps, which cannot be counted here; give it in steps")
            return
        count = int(count * steps)
    draft.put("optim.warmup", int(count), warmup)


def min_snr(draft: Draft, name: str) -> None:
    """objective.weighting and gamma; 0 is off."""
    gamma = draft.values.get(name)
    if not gamma:
        draft.say(name, "harmless", "0 is taken for off")
        return
    draft.put("objective.weighting", "min_snr", name)
    draft.put("objective.gamma", gamma, name)


def folder(draft: Draft, index: int, path: str, *names: str) -> None:
    """data.N.path, as a plain folder even where its name says repeats to gesso, which the source reads otherwise."""
    draft.put(f"data.{index}.path", path, *names)
    if re.match(r"\d+_", Path(path).name):
        draft.put(f"data.{index}.format", "folder", *names)


def class_folder(draft: Draft, name: str) -> None:
    """prior.path, where there are pictures; what is missing gesso draws, and not into the user's folder."""
    if pictures(draft.values[name]):
        draft.put("prior.path", draft.values[name], name)
    else:
        draft.say(name, "differs", "no pictures are there yet; gesso draws them into class/ of the run folder")


def pictures(folder: Any) -> int | None:
    """How many pictures lie in a folder; None where it cannot be told from here."""
    from gesso.data.sources.folder import scan

    try:
        return len(scan(str(folder)).pictures) or None
    except GessoError:
        return None


def count_steps(epochs: float, rows: int, total: int) -> int:
    return max(1, math.ceil(epochs * rows / total))


def is_edm(base: str) -> bool:
    """Whether a model is trained by EDM: told by its scheduler's configuration, or by the one well-known name."""
    config = Path(base).expanduser() / "scheduler" / "scheduler_config.json"
    try:
        return "EDM" in config.read_text(encoding="utf-8") if config.is_file() else "playground-v2.5" in base
    except (OSError, UnicodeDecodeError):
        return False


def side(draft: Draft, name: str, value: Any) -> int | None:
    """The side of a square from 512, "512", "512,512" or [512, 512]; says why there is none."""
    parts = value if isinstance(value, list | tuple) else str(value).replace("x", ",").split(",")
    try:
        sides = [int(str(part).strip()) for part in parts]
    except ValueError:
        draft.say(name, "unsupported", f"{value} is no resolution; write one whole number, such as 512")
        return None
    if len(set(sides)) != 1:
        draft.say(name, "unsupported", "gesso trains squares of one size so far; write one whole number, such as 512")
        return None
    return sides[0]
