"""What may change between a checkpoint and the run that goes on from it: one table, which docs/resume.md shows.

The first row whose pattern fits a recipe key decides. A key that no row names is refused: a new key needs a decision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from gesso.recipe.keys import lookup

Decision = Literal["allowed", "warned", "refused", "impossible"]


@dataclass(frozen=True, slots=True)
class Rule:
    """`pattern` is a dotted recipe key, `*` standing for anything; `why` ends a sentence for the user."""

    pattern: str
    decision: Decision
    why: str


LENGTH = "schedule.steps"
"""Stands for train.steps where the learning rate's schedule stretches over them."""

BETAS = "schedule_free.betas"
"""Stands for optim.betas where the optimiser is schedule-free."""

ENGINES = "engines"
"""Stands for engine where both are real ones, each of which reads the other's checkpoints."""
REAL = ("torch", "mindspore")

TABLE: tuple[Rule, ...] = (
    Rule("train.steps", "allowed", "the run ends earlier or later"),
    Rule(LENGTH, "warned", "the learning rate follows a schedule of another length from here"),
    Rule(BETAS, "impossible", "the weights in training have another relation to their averages"),
    Rule("save.*", "allowed", "the weights do not depend on it"),
    Rule("sample.*", "allowed", "the weights do not depend on it"),
    Rule("validate.*", "allowed", "the weights do not depend on it"),
    Rule("track.*", "allowed", "the weights do not depend on it"),
    Rule("hub.*", "allowed", "the weights do not depend on it"),
    Rule("cache.*", "allowed", "the weights do not depend on it"),
    Rule("out", "allowed", "a run folder may be moved"),
    Rule("train.micro_batch", "allowed", "the global batch stays"),
    Rule("train.readers", "allowed", "no number depends on it"),
    Rule("train.gradient_checkpointing", "allowed", "it trades time for memory"),
    Rule("train.device", "allowed", "the samples stay; the last digits of the numbers differ between devices"),
    Rule("torch.threads", "allowed", "the samples stay; the last digits of the numbers may differ"),
    Rule("train.epochs", "allowed", "the run ends earlier or later"),
    Rule("optim.ema_offload", "allowed", "it trades time for the device's memory"),
    Rule("model.vae", "allowed", "`base` says whether the weights are the same"),
    Rule("model.base", "allowed", "`base` says whether the weights are the same"),
    Rule("model.revision", "allowed", "`base` says whether the weights are the same"),
    Rule("model.like", "allowed", "`base` says whether the weights are the same"),
    Rule("data.*.path", "allowed", "`data` says whether the pictures are the same"),
    Rule("data.*.revision", "allowed", "`data` says whether the pictures are the same"),
    Rule("data.*.config", "allowed", "`data` says whether the pictures are the same"),
    Rule("data.*.encoding", "allowed", "`data` says whether the captions are the same"),
    Rule("train.precision", "allowed", "`precision` says whether the numbers are the same"),
    Rule("optim.lr", "warned", "the run takes another course from here"),
    Rule("optim.schedule", "warned", "the run takes another course from here"),
    Rule("optim.warmup", "warned", "the run takes another course from here"),
    Rule("optim.cycles", "warned", "the run takes another course from here"),
    Rule("optim.power", "warned", "the run takes another course from here"),
    Rule("optim.betas*", "warned", "the run takes another course from here"),
    Rule("optim.eps", "warned", "the run takes another course from here"),
    Rule("optim.weight_decay", "warned", "the run takes another course from here"),
    Rule("optim.text_encoder*", "warned", "the run takes another course from here"),
    Rule("optim.token_lr", "warned", "the run takes another course from here"),
    Rule("optim.beta3", "warned", "the run takes another course from here"),
    Rule("optim.decouple", "warned", "the run takes another course from here"),
    Rule("optim.bias_correction", "warned", "the run takes another course from here"),
    Rule("optim.safeguard_warmup", "warned", "the run takes another course from here"),
    Rule("optim.clip", "warned", "the run takes another course from here"),
    Rule("objective.*", "warned", "the run takes another course from here, and losses do not compare"),
    Rule("torch.*", "warned", "the last digits of the numbers differ from here"),
    Rule("mindspore.*", "warned", "the last digits of the numbers differ from here"),
    Rule(ENGINES, "warned", "the last digits of the numbers differ from here, and dropout is drawn otherwise"),
    Rule("seed", "refused", "order, noise and timesteps follow from it"),
    Rule("data", "refused", "the pictures or captions are others"),
    Rule("data.*", "refused", "the pictures or captions are others"),
    Rule("prior.*", "refused", "the pictures or captions are others"),
    Rule("train.batch", "refused", "a step would be something else"),
    Rule("train.resolution", "refused", "the pictures would be seen differently"),
    Rule("train.crop", "refused", "the pictures would be seen differently"),
    Rule("train.flip", "refused", "the pictures would be seen differently"),
    Rule("train.interpolation", "refused", "the pictures would be seen differently"),
    Rule("train.bucket*", "refused", "the pictures would be seen differently"),
    Rule("train.caption_dropout", "refused", "the captions would be seen differently"),
    Rule("train.caption_chunks", "refused", "the captions would be seen differently"),
    Rule("precision", "refused", "the numbers would be others"),
    Rule("base.*", "impossible", "the checkpoint belongs to other weights"),
    Rule("model.*", "impossible", "the checkpoint belongs to other weights"),
    Rule("adapter.*", "impossible", "the checkpoint's weights have another shape or meaning"),
    Rule("rules*", "impossible", "the checkpoint's weights have another shape or meaning"),
    Rule("tokens*", "impossible", "the checkpoint's words are others"),
    Rule("optim.name", "impossible", "the optimiser's state has another meaning"),
    Rule("optim.ema", "impossible", "the averaged weights would be missing or have another meaning"),
    Rule("engine", "impossible", "the engine's state has another form"),
)


def compatible(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(warnings, refusals) for going on under the recipe `new` from a checkpoint made under `old`; sentences.

    Both are recipes as nested or dotted mappings, and beside the recipe's keys what they stand for: `data` (fingerprint
    of pictures and captions), `precision` (in effect) and `base.<component>` (identity of the model's files). A key
    that one side lacks counts as not set.
    """
    before, after = flatten(old), flatten(new)
    before, after = _with_defaults(before, after), _with_defaults(after, before)
    if _stretches(before) and _stretches(after):
        before, after = ({**each, LENGTH: each.get("train.steps")} for each in (before, after))
    if _averaging(before) and _averaging(after):
        before, after = ({**each, BETAS: each.get("optim.betas")} for each in (before, after))
    if {before.get("engine"), after.get("engine")} <= set(REAL):
        before, after = (
            {**{key: value for key, value in each.items() if key != "engine"}, ENGINES: each["engine"]}
            for each in (before, after)
        )
    warnings, refusals = [], []
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        rule = decide(key)
        if was == now or rule.decision == "allowed":
            continue
        shown = {LENGTH: "train.steps", BETAS: "optim.betas", ENGINES: "engine"}.get(key, key)
        change = f"{shown} was {_shown(was)} and is now {_shown(now)}: {rule.why}"
        if rule.decision == "warned":
            warnings.append(change)
        elif key == "data":
            refusals.append(
                f"data was another: {rule.why}; data.lock.json in that folder lists those of the run; this would be "
                "another run: put them back, or start a new run with --out"
            )
        elif key.startswith("base."):
            other_vae = key == "base.vae" and (before.get("model.vae") or "") != (after.get("model.vae") or "")
            named = "model.vae" if other_vae else "model.base"
            refusals.append(_other_base(key, rule, named, before.get(named), after.get(named)))
        else:
            refusals.append(
                f"{change}; this would be another run: put {_shown(was)} back, or start a new run with --out"
            )
    return warnings, refusals


def _with_defaults(flat: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`flat` with the schema's defaults for keys of `other` that did not exist yet when it was written."""
    tables = {key.rpartition(".")[0] for key in flat}
    known = {key: lookup(key) for key in other if key not in flat and key.rpartition(".")[0] in tables}
    return {**{key: found.default for key, found in known.items() if found}, **flat}


def _averaging(flat: Mapping[str, Any]) -> bool:
    """Whether the weights in training stand in a relation to their averages that optim.betas decides."""
    return flat.get("optim.name") == "adamw_schedule_free"


def _stretches(flat: Mapping[str, Any]) -> bool:
    """Whether the learning rate of a step depends on how many steps there are."""
    return not str(flat.get("optim.schedule") or "constant").startswith("constant") or bool(flat.get("adapter.pivot"))


def _other_base(key: str, rule: Rule, name: str, was: Any, now: Any) -> str:
    """Two hashes tell people nothing; what they know is the model's name, which the recipe key `name` holds."""
    named = f"{name} was {_shown(was)} and is now {_shown(now)}"
    if was == now:
        named = f"{name} is {_shown(now)} as before, but its files have changed"
    return (
        f"the base model's {key.removeprefix('base.')} is not the one that this run began with ({named}): {rule.why}; "
        f"set {name} to the model that it began with, or start a new run with --out"
    )


def decide(key: str) -> Rule:
    """The row of TABLE for a dotted recipe key."""
    for rule in TABLE:
        if fnmatchcase(key, rule.pattern):
            return rule
    return Rule(key, "impossible", "no rule allows this key to change")


def as_markdown() -> str:
    """TABLE as docs/resume.md shows it."""
    rows = ["| Key | When it differs | Because |", "|---|---|---|"]
    rows += [f"| `{rule.pattern}` | {rule.decision} | {rule.why} |" for rule in TABLE]
    return "\n".join(rows) + "\n"


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys; a list of tables is numbered ("data.0.path"), a list of values stays one."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{prefix}{key}."))
        elif isinstance(item, list | tuple) and any(isinstance(one, Mapping) for one in item):
            flat.update(flatten({str(number): one for number, one in enumerate(item)}, f"{prefix}{key}."))
        else:
            flat[prefix + key] = json.loads(json.dumps(item))  # a tuple and its JSON list are the same value
    return flat


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
