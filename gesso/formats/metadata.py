"""What files of adapters say of them besides their values, and how that travels inside a LoRA file.

diffusers (since 0.34) takes the JSON under "lora_adapter_metadata" in the file's metadata, keeps the keys
that start with a component's name and a dot, and hands the rest to peft's LoraConfig as keyword arguments. An argument
that the reader's peft does not know makes the whole file unreadable, so only those are written that peft 0.15 and every
later version take.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gesso.errors import StorageError

KEY = "lora_adapter_metadata"
UNKNOWN = ("use_rslora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication")
"""What peft can do that other numbers than the matrices, rank and alpha decide on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraShape:
    """A LoRA's size: the output of each module is scaled by its alpha/rank. Names are without the component."""

    sizes: Mapping[str, tuple[int, float]]
    """(rank, alpha) of each module."""
    dora: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Adapters' kind and size: each is scaled by its alpha/rank. Modules are named `<component>.<module>`."""

    rank: int
    alpha: float
    kind: str = "lora"
    """lora, dora, loha, lokr or oft."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Of the modules whose rank is another."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Of the modules whose alpha is another."""
    factor: int = -1
    """Size of lokr's smaller factor; -1 for the most even."""

    @classmethod
    def of(cls, sizes: Mapping[str, tuple[int, float]], *, kind: str = "lora", factor: int = -1) -> Config:
        """The configuration in which each module has its (rank, alpha); what most of them have is the default."""
        rank, alpha = Counter(sizes.values()).most_common(1)[0][0]
        return cls(
            rank=rank,
            alpha=alpha,
            kind=kind,
            ranks={module: own for module, (own, _) in sizes.items() if own != rank},
            alphas={module: own for module, (_, own) in sizes.items() if own != alpha},
            factor=factor,
        )

    def size(self, module: str) -> tuple[int, float]:
        """(rank, alpha) of a module."""
        return self.ranks.get(module, self.rank), self.alphas.get(module, self.alpha)


def pack(components: Mapping[str, LoraShape]) -> dict[str, str]:
    """safetensors metadata for adapters on the named components ("unet", "text_encoder")."""
    fields: dict[str, object] = {}
    for component, shape in components.items():
        own = {
            "bias": "none",
            "peft_type": "LORA",
            "target_modules": sorted(shape.sizes),
            "use_dora": shape.dora,
            "use_rslora": False,
            "rank_pattern": {},  # mindone's reader asks for both patterns, empty or not
            "alpha_pattern": {},
            **sized(shape.sizes, "lora_alpha", anchored=not component.startswith("text_encoder")),
        }
        fields.update({f"{component}.{name}": value for name, value in own.items()})
    return {"format": "pt", KEY: json.dumps(fields, indent=2, sort_keys=True)}


def sized(sizes: Mapping[str, tuple[int, float]], alpha: str, *, anchored: bool) -> dict[str, object]:
    """peft's keys for modules of (rank, alpha): what most of them have, and patterns where others have something else.

    A pattern is a regular expression of the name's end; `anchored`, of the whole name. Text encoders' names are longer
    in some versions of transformers, so that theirs must not be.
    """
    rank, usual = (Counter(column).most_common(1)[0][0] for column in zip(*sizes.values(), strict=True))
    start = "^" if anchored else ""
    patterns: dict[str, dict[str, object]] = {
        "rank_pattern": {start + re.escape(name): own for name, (own, _) in sorted(sizes.items()) if own != rank},
        "alpha_pattern": {
            start + re.escape(name): _whole(own) for name, (_, own) in sorted(sizes.items()) if own != usual
        },
    }
    return {"r": rank, alpha: _whole(usual), **{name: found for name, found in patterns.items() if found}}


def of(fields: Mapping[str, Any], module: str, alpha: str) -> tuple[int, float]:
    """(rank, alpha) of a module by peft's keys, as peft itself finds them."""
    rank = int(_pattern(fields.get("rank_pattern"), module, fields["r"]))
    return rank, float(_pattern(fields.get("alpha_pattern"), module, fields.get(alpha, fields["r"])))


def unpack(metadata: Mapping[str, str], modules: Mapping[str, Sequence[str]], path: Path) -> dict[str, LoraShape]:
    """What `pack` or diffusers wrote, for those components of `modules` that the metadata speaks of.

    `modules` names each component's modules; `path` is for messages.
    """
    if not metadata.get(KEY):
        return {}
    try:
        fields = json.loads(metadata[KEY])
        found = {}
        for component, names in modules.items():
            if f"{component}.r" not in fields:
                continue
            own = {key.removeprefix(f"{component}."): v for key, v in fields.items() if key.startswith(f"{component}.")}
            special = [name for name in UNKNOWN if own.get(name)]
            if special:
                raise StorageError(
                    f"this LoRA uses {', '.join(special)}, which gesso cannot carry over",
                    where=str(path),
                    todo="load it with diffusers, or export it as a plain LoRA",
                )
            sizes = {name: of(own, name, "lora_alpha") for name in names}
            found[component] = LoraShape(sizes=sizes, dora=bool(own.get("use_dora")))
    except (ValueError, TypeError, AttributeError, KeyError, re.error) as error:
        raise StorageError(f"its adapter metadata cannot be read: {error}", where=str(path)) from error
    return found


def _whole(alpha: float) -> float:
    return int(alpha) if float(alpha).is_integer() else alpha  # peft declares a whole number


def _pattern(patterns: Mapping[str, Any] | None, module: str, usual: Any) -> Any:
    """The value of the first pattern that matches the end of the module's name."""
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), usual)
