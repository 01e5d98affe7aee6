"""Adapters in peft's own layout, for the kinds that diffusers' pipelines do not load: LoHa, LoKr and OFT.

    <component>/adapter_config.json
    <component>/adapter_model.safetensors      base_model.model.<module>.hada_w1_a …, float32

`peft.PeftModel.from_pretrained(pipe.unet, "FOLDER/unet")` loads one. For a weight [out, in, …], with n the product of
all its sides but `out`, the matrices are

    loha   hada_w1_a [out, rank]  hada_w1_b [rank, n]    and the same for w2
    lokr   lokr_w1 [a, b]  lokr_w2 [out/a, n/b, …], or lokr_w2_a [out/a, rank] and lokr_w2_b [rank, n/b]
    oft    oft_R.weight [rank, s·(s − 1)/2] with rank·s = n: the upper triangles of `rank` skew matrices s × s
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gesso.arrays import Array, Float32
from gesso.errors import RecipeError, StorageError
from gesso.formats import tensors
from gesso.formats.metadata import Config, of, sized
from gesso.storage import write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KINDS = ("loha", "lokr", "oft")
_NAME = re.compile(r"(?P<module>.+)\.(?P<side>hada_w[12]_[ab]|lokr_w1|lokr_w2(?:_[ab])?|oft_R\.weight)")
_SIDES: dict[str, tuple[frozenset[str], ...]] = {
    "loha": (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),),
    "lokr": (frozenset({"lokr_w1", "lokr_w2"}), frozenset({"lokr_w1", "lokr_w2_a", "lokr_w2_b"})),
    "oft": (frozenset({"oft_R.weight"}),),
}
"""What each module has: one of these sets."""
FIXED: dict[str, dict[str, object]] = {
    "loha": {"use_effective_conv2d": False},
    "lokr": {"use_effective_conv2d": False, "decompose_both": False},
    "oft": {
        "oft_block_size": 0,
        "coft": False,
        "block_share": False,
        "use_cayley_neumann": True,
        "num_cayley_neumann_terms": 5,
    },
}
"""peft's options that gesso leaves as they are, and without which a file would mean something else."""


def has(folder: Path) -> bool:
    """Whether `folder` holds a part with an adapter of these kinds."""
    return any(folder.glob(f"*/{CONFIG}"))


def files(arrays: Mapping[str, Array], config: Config) -> dict[str, tensors.Writer]:
    """What writes each file, by relative name, for adapters in the engine's names (`unet.<module>.hada_w1_a`).

    RecipeError for names that are no such adapter's.
    """
    modules = _modules(arrays)
    if not modules:
        raise RecipeError("there is no adapter to write")
    found: dict[str, tensors.Writer] = {}
    for part in sorted({name.split(".", 1)[0] for name in modules}):
        own = {name.removeprefix(f"{part}."): config.size(name) for name in modules if name.startswith(f"{part}.")}
        plain = {
            PREFIX + name.removeprefix(f"{part}."): array.astype(np.float32)
            for name, array in arrays.items()
            if name.startswith(f"{part}.")
        }
        found[f"{part}/{CONFIG}"] = partial(write_json, value=_described(own, config))
        found[f"{part}/{WEIGHTS}"] = tensors.writer(plain)
    return found


def read(folder: Path) -> tuple[dict[str, Float32], Config]:
    """The adapters of all parts in `folder` in float32, by `<component>.<module>.hada_w1_a`.

    StorageError for a damaged file, for one of another kind, and for options of peft that gesso does not have.
    """
    arrays: dict[str, Float32] = {}
    sizes: dict[str, tuple[int, float]] = {}
    kinds, factors = set(), set()
    for path in sorted(folder.glob(f"*/{CONFIG}")):
        part, fields = path.parent.name, _fields(path)
        kind = str(fields["peft_type"]).lower()
        kinds.add(kind)
        factors.add(int(fields.get("decompose_factor", -1)))
        for name, array in tensors.load(path.parent / WEIGHTS, widen=True, finite=True).items():
            plain = f"{part}.{name.removeprefix(PREFIX)}"
            arrays[plain] = array.astype(np.float32)
        modules = _modules({name: array for name, array in arrays.items() if name.startswith(f"{part}.")}, path.parent)
        _whole(modules, kind, path.parent)
        try:
            for module in modules:
                name = module.removeprefix(f"{part}.")
                # OFT knows no alpha: a rotation has no size.
                sizes[module] = (int(fields["r"]),) * 2 if kind == "oft" else of(fields, name, "alpha")
        except (ValueError, TypeError, AttributeError, KeyError, re.error) as error:
            raise StorageError(f"the adapter's sizes cannot be read: {error}", where=str(path)) from error
    if len(kinds) != 1 or len(factors) != 1 or not sizes:
        raise StorageError(
            f"the parts' adapters are of {len(kinds)} kinds ({', '.join(sorted(kinds)) or 'none'}), must be of one",
            where=str(folder),
        )
    return arrays, Config.of(sizes, kind=kinds.pop(), factor=factors.pop())


def fit(arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Which modules do not fit a base of weights with `shapes`, by `<component>.<module>.weight`; a sentence each."""
    known = {name.replace(".text_model.", ".", 1): shape for name, shape in shapes.items()}
    wrong = []
    for module, own in sorted(_modules(arrays).items()):
        shape = known.get(f"{module.replace('.text_model.', '.', 1)}.weight")
        wanted = () if shape is None else (shape[0], math.prod(shape[1:]))
        if shape is None:
            wrong.append(f"the base has no layer {module}")
        elif any(has not in (None, wants) for has, wants in zip(_reach(own), wanted, strict=True)):
            wrong.append(f"{module} is for {_said(_reach(own))}, the base's layer is {_said(wanted)}")
    return wrong


def _described(sizes: Mapping[str, tuple[int, float]], config: Config) -> dict[str, object]:
    """adapter_config.json for one part."""
    found: dict[str, object] = {
        "peft_type": config.kind.upper(),
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "init_weights": True,
        "modules_to_save": None,
        "target_modules": sorted(sizes),
        **FIXED[config.kind],
        **sized(sizes, "alpha", anchored=True),
    }
    if config.kind == "lokr":
        found["decompose_factor"] = config.factor
    if config.kind == "oft":
        del found["alpha"]
        found["peft_version"] = "0.18.0"  # the first whose rotations are computed as now
    return found


def _fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"this is not JSON: {error}", where=str(path)) from error
    kind = str(fields.get("peft_type")).lower() if isinstance(fields, dict) else ""
    if kind not in KINDS:
        raise StorageError(
            f"this is not an adapter of the kinds {', '.join(KINDS)}",
            where=str(path),
            todo="a LoRA comes as one file, as pipe.save_lora_weights writes it",
        )
    other = [name for name, value in FIXED[kind].items() if fields.get(name, value) != value]
    other += [name for name in ("modules_to_save", "trainable_token_indices") if fields.get(name)]
    if other:
        raise StorageError(f"this adapter uses {', '.join(other)}, which gesso cannot carry over", where=str(path))
    return dict(fields)


def _modules(arrays: Mapping[str, Array], where: Path | None = None) -> dict[str, dict[str, Array]]:
    """The matrices of each module. RecipeError for another name, or StorageError where they come from a file."""
    modules: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        found = _NAME.fullmatch(name)
        if found is None:
            what = f'"{name}" is not the name of a matrix of {", ".join(KINDS)}'
            raise StorageError(what, where=str(where)) if where else RecipeError(what)
        modules.setdefault(found["module"], {})[found["side"]] = array
    return modules


def _whole(modules: Mapping[str, Mapping[str, Array]], kind: str, where: Path) -> None:
    for module, own in modules.items():
        if own.keys() not in _SIDES[kind] or any(array.ndim < 2 for array in own.values()):
            raise StorageError(
                f'the {kind} adapter of "{module}" is not whole: it has {", ".join(sorted(own))}',
                where=str(where),
                todo="export the adapter again",
            )


def _reach(own: Mapping[str, Array]) -> tuple[int | None, int]:
    """(out, product of the other sides) of the weight that a module's matrices are for; None where any will do."""
    if "hada_w1_a" in own:
        return own["hada_w1_a"].shape[0], own["hada_w1_b"].shape[1]
    if "lokr_w1" in own:
        left, right = own["lokr_w1"].shape[:2]
        if "lokr_w2" in own:
            return left * own["lokr_w2"].shape[0], right * math.prod(own["lokr_w2"].shape[1:])
        return left * own["lokr_w2_a"].shape[0], right * own["lokr_w2_b"].shape[1]
    blocks, triangle = own["oft_R.weight"].shape[:2]
    return None, blocks * (1 + math.isqrt(1 + 8 * triangle)) // 2


def _said(reach: tuple[int | None, ...]) -> str:
    out, width = reach
    return f"{width} inputs" + ("" if out is None else f" and {out} outputs")
