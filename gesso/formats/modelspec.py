"""What a safetensors file says of itself: ModelSpec 1.0.1 (https://github.com/Stability-AI/ModelSpec) and kohya's keys.

Nothing of this machine is in it: no path, no user, and a date only where it is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from gesso.errors import RecipeError
from gesso.formats.stored import Tensors, data, head, order

_STABILITY = "https://github.com/Stability-AI/generative-models"
_ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2", "sdxl": "stable-diffusion-xl-v1-base"}
_SIDES = {"sd1": 512, "sd2": 512, "sdxl": 1024}
_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_MODULES = {"lora": "networks.lora", "dora": "lycoris.kohya", "loha": "lycoris.kohya", "lokr": "lycoris.kohya"}
_ALGORITHMS: dict[str, dict[str, str]] = {
    "dora": {"algo": "lora", "dora_wd": "True", "wd_on_output": "True"},
    "loha": {"algo": "loha"},
    "lokr": {"algo": "lokr"},
}
_LEGACY = (0x100000, 0x110000)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is to be said of a file. `prediction`: epsilon, v_prediction or sample; `side`: pixels, 0 for the usual."""

    family: str
    title: str
    prediction: str = "epsilon"
    side: int = 0
    trigger: str = ""
    base: str = ""
    """The base model's name, as other people know it: its Hub id, or the last part of its place here."""
    date: str = ""
    """ISO 8601; "" for none, so that equal runs give equal bytes."""
    author: str = ""
    description: str = ""
    licence: str = ""
    training: Mapping[str, str] = field(default_factory=dict)
    """What kohya's keys say of the run (kohya_facts.py)."""


def model(about: About, tensors: Tensors) -> dict[str, str]:
    """The metadata of a whole model."""
    return {"format": "pt", **_common(about, "", tensors)}


def adapter(about: About, kind: str, sizes: Mapping[str, tuple[int, float]], tensors: Tensors) -> dict[str, str]:
    """The metadata of a LoRA, DoRA, LoHa or LoKr in kohya's form; `sizes` has (rank, alpha) of each module.

    kohya's own scripts write "Dynamic" where modules differ.
    """
    ranks, alphas = ({f"{size[which]:g}" for size in sizes.values()} for which in (0, 1))
    found = _common(about, "/lora", tensors)
    arguments = _ALGORITHMS.get(kind)
    trained = {
        "ss_base_model_version": _VERSIONS[about.family],
        "ss_network_alpha": alphas.pop() if len(alphas) == 1 else "Dynamic",
        "ss_network_dim": ranks.pop() if len(ranks) == 1 else "Dynamic",
        "ss_network_module": _MODULES[kind],
        **({"ss_network_args": json.dumps(arguments, sort_keys=True)} if arguments else {}),
        "ss_output_name": about.title,
        **({"ss_sd_model_name": about.base} if about.base else {}),
        **({"ss_training_comment": about.description} if about.description else {}),
        "ss_v2": str(about.family == "sd2"),
        **about.training,
    }
    hashes = {
        "sshs_model_hash": found["modelspec.hash_sha256"].removeprefix("0x"),
        "sshs_legacy_hash": legacy_digest(tensors, trained),
    }
    return {"format": "pt", **trained, **hashes, **found}


def word(about: About, token: str, tensors: Tensors) -> dict[str, str]:
    """The metadata of a learned word."""
    return {"format": "pt", "token": token, **_common(about, "/textual-inversion", tensors)}


def _common(about: About, kind: str, tensors: Tensors) -> dict[str, str]:
    if about.family not in _ARCHITECTURES:
        raise RecipeError(f"ModelSpec has no architecture for {about.family}")
    side = about.side or _SIDES[about.family]
    architecture = _ARCHITECTURES[about.family]
    if about.family == "sd2":
        architecture += "-768-v" if about.prediction == "v_prediction" else "-512"
    # kohya's scripts, which most readers follow, name the original code for whole files and whatever is of SDXL.
    original = about.family == "sdxl" or kind != "/lora"
    found = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}{kind}",
        "modelspec.implementation": _STABILITY if original else "diffusers",
        "modelspec.title": about.title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.hash_sha256": digest(tensors),
    }
    if kind != "/textual-inversion":
        found["modelspec.prediction_type"] = "v" if about.prediction == "v_prediction" else about.prediction
    optional = {
        "author": about.author,
        "date": about.date,
        "description": about.description,
        "license": about.licence,
        "trigger_phrase": about.trigger,
    }
    return found | {f"modelspec.{key}": value for key, value in optional.items() if value}


def digest(tensors: Tensors) -> str:
    """SHA-256 over the bytes of all tensors as they lie in the file, "0x…": ModelSpec's hash, and kohya's."""
    total = hashlib.sha256()
    for name in order(tensors):
        total.update(data(tensors[name], name))
    return f"0x{total.hexdigest()}"


def legacy_digest(tensors: Tensors, trained: Mapping[str, str]) -> str:
    """The hash by which older readers know a LoRA: eight digits of the SHA-256 of 64 KiB of it.

    They lie 1 MiB into the file that has of its metadata the `ss_` keys alone, which do not change any more.
    """
    begin, end = _LEGACY
    total = hashlib.sha256()
    at = 0
    for part in chain([memoryview(head(tensors, trained))], (data(tensors[name], name) for name in order(tensors))):
        total.update(part[max(begin - at, 0) : max(end - at, 0)])
        at += len(part)
    return total.hexdigest()[:8]
