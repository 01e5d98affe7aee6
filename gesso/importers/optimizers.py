"""Optimisers by the names that other trainers give them, with their libraries' defaults where those are not gesso's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gesso.importers.draft import Draft
from gesso.importers.rows import read


@dataclass(frozen=True, slots=True)
class Known:
    """gesso's name, what the library takes by default for gesso's keys, and a remark."""

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


_NO_DECAY = {"weight_decay": 0.0}
_PRODIGY = {**_NO_DECAY, "bias_correction": False, "safeguard_warmup": False}
_LION = {**_NO_DECAY, "betas": [0.9, 0.99]}
_PAGED = "gesso does not page its states out"
KNOWN = {
    "adam": Known("adam", _NO_DECAY),
    "adamw": Known("adamw"),
    "adamw8bit": Known("adamw_8bit"),
    "adamw8": Known("adamw_8bit"),
    "adamw_8bit": Known("adamw_8bit"),
    "pagedadamw": Known("adamw", note=_PAGED),
    "pagedadamw32bit": Known("adamw", note=_PAGED),
    "pagedadamw8bit": Known("adamw_8bit", note=_PAGED),
    "lion": Known("lion", _LION),
    "sgd": Known("sgd", {**_NO_DECAY, "betas": [0.0, 0.999]}),
    "prodigy": Known("prodigy", _PRODIGY),
    "adafactor": Known("adafactor", _NO_DECAY),
    "adamwschedulefree": Known("adamw_schedule_free", _NO_DECAY),
    "schedule_free_adamw": Known("adamw_schedule_free", _NO_DECAY),
    "muon": Known("muon"),
}
"""By the name in lower case."""
NUMBERS = {"weight_decay": "weight_decay", "eps": "eps", "beta3": "beta3"}
SWITCHES = {
    "decouple": "decouple",
    "use_bias_correction": "bias_correction",
    "bias_correction": "bias_correction",
    "safeguard_warmup": "safeguard_warmup",
}
UNTOUCHED = {
    "d_coef": 1.0, "d0": 1e-6, "relative_step": False, "scale_parameter": False, "warmup_init": False, "momentum": 0.0,
    "amsgrad": False, "growth_rate": float("inf"), "nesterov": False, "clip_threshold": 1.0, "decay_rate": -0.8,
    "r": 0.0, "weight_lr_power": 2.0, "dampening": 0.0, "slice_p": 1, "maximize": False,
}  # fmt: skip
"""Options that gesso leaves at the library's default; the same value may be written."""


def choose(draft: Draft, name: str, key: str, arguments: Mapping[str, tuple[str, Any]]) -> None:
    """optim.name and what goes with it.

    `name` is the optimiser as the source calls it under `key`; `arguments` are its options: name → (source key, value).
    """
    known = KNOWN.get(name.lower().replace(" ", ""))
    if known is None:
        names = ", ".join(dict.fromkeys(each.name for each in KNOWN.values()))
        draft.say(key, "unsupported", f"gesso has no optimiser {name}; take one of {names}")
        if key not in draft.given:
            draft.stop(f"gesso has no optimiser {name}", key)
        for _, (source, _) in arguments.items():
            draft.say(source, "harmless", "belongs to an optimiser that gesso does not have")
        return
    draft.put("optim.name", known.name, key, note=known.note)
    for option, value in known.defaults.items():
        draft.put(f"optim.{option}", value, note=f"default of {name}")
    betas: dict[int, tuple[str, Any]] = {}
    for option, (source, value) in arguments.items():
        _argument(draft, option, source, value, betas)
    if betas:
        pair = list(known.defaults.get("betas", [0.9, 0.999]))
        for index, (_, value) in betas.items():
            pair[index] = value
        draft.put("optim.betas", pair, *(source for source, _ in betas.values()))
    if known.name == "adafactor" and not {"relative_step", "scale_parameter"} <= set(arguments):
        missing = [each for each in ("relative_step", "scale_parameter") if each not in arguments]
        draft.stop(
            f"{name} sets its learning rate itself unless told {' and '.join(f'{each}=False' for each in missing)}; "
            "gesso's adafactor takes optim.lr, so say so there",
            key,
        )


def _argument(draft: Draft, option: str, source: str, value: Any, betas: dict[int, tuple[str, Any]]) -> None:
    try:
        if option in NUMBERS:
            draft.put(f"optim.{NUMBERS[option]}", read("number", value), source)
        elif option in SWITCHES:
            draft.put(f"optim.{SWITCHES[option]}", read("switch", value), source)
        elif option in ("beta1", "beta2"):
            betas[int(option[-1]) - 1] = (source, read("number", value))
        elif option == "betas":
            pair = value if isinstance(value, list | tuple) else str(value).strip("()[] ").split(",")
            if len(pair) != 2:
                raise ValueError("betas are two numbers, such as 0.9,0.999")
            betas.update({index: (source, read("number", str(each).strip())) for index, each in enumerate(pair)})
        elif option in UNTOUCHED:
            expected = UNTOUCHED[option]
            same = read("switch" if isinstance(expected, bool) else "number", value) == expected
            why = "gesso takes it so too" if same else f"gesso has no {option}; leave it out, or set it to {expected}"
            draft.say(source, "harmless" if same else "unsupported", why)
        else:
            draft.say(source, "unsupported", f"gesso has no {option} of an optimiser; leave it out")
    except ValueError as error:
        draft.say(source, "unsupported", f"{option}: {error}")
