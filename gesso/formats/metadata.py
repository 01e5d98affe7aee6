"""The configuration that travels inside a LoRA file, as diffusers reads it.

diffusers (since 0.34) takes the JSON under "lora_adapter_metadata" in the file's metadata, keeps the keys
that start with a component's name and a dot, and hands the rest to peft's LoraConfig as keyword arguments. An argument
that the reader's peft does not know makes the whole file unreadable, so only those are written that peft 0.15 and every
later version take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gesso.errors import StorageError

KEY = "lora_adapter_metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraShape:
    """A LoRA's size: its output is scaled by alpha/rank. `targets` are module names without the component."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()


def pack(components: Mapping[str, LoraShape]) -> dict[str, str]:
    """safetensors metadata for adapters on the named components ("unet", "text_encoder")."""
    fields: dict[str, object] = {}
    for component, shape in components.items():
        alpha = int(shape.alpha) if float(shape.alpha).is_integer() else shape.alpha  # peft declares a whole number
        own = {
            "bias": "none",
            "lora_alpha": alpha,
            "peft_type": "LORA",
            "r": shape.rank,
            "target_modules": sorted(shape.targets),
            "use_dora": False,
            "use_rslora": False,
        }
        fields.update({f"{component}.{name}": value for name, value in own.items()})
    return {"format": "pt", KEY: json.dumps(fields, indent=2, sort_keys=True)}


def unpack(metadata: Mapping[str, str], components: Sequence[str], path: Path) -> dict[str, LoraShape]:
    """What `pack` wrote, for those of `components` that the metadata speaks of; `path` is for messages."""
    if not metadata.get(KEY):
        return {}
    try:
        fields = json.loads(metadata[KEY])
        found = {}
        for component in components:
            if f"{component}.r" not in fields:
                continue
            own = {key.removeprefix(f"{component}."): v for key, v in fields.items() if key.startswith(f"{component}.")}
            special = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if own.get(name)]
            if special:
                raise StorageError(
                    f"this LoRA uses {', '.join(special)}, which gesso cannot carry over",
                    where=str(path),
                    todo="load it with diffusers, or export it as a plain LoRA with one rank and one alpha",
                )
            targets = own.get("target_modules") or ()
            found[component] = LoraShape(
                rank=int(own["r"]),
                alpha=float(own.get("lora_alpha", own["r"])),
                targets=(targets,) if isinstance(targets, str) else tuple(targets),
            )
    except (ValueError, TypeError, AttributeError) as error:
        raise StorageError(f"its adapter metadata cannot be read: {error}", where=str(path)) from error
    return found
