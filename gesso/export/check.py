"""Whether an export is what was trained: its reader's networks must answer as gesso's own engine does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gesso.arrays import Float32
from gesso.errors import DeviceError, GessoError, NumbersError, StorageError
from gesso.formats import adapter, exporting, parts, stored
from gesso.formats.exporting import WHOLE, Trained

TOLERANCE = {"F32": 1e-4, "F64": 1e-4, "F16": 1e-2, "BF16": 8e-2}
"""By the type of the weights: how far apart answers may be, the norm of their difference over the norm of either."""
LOST = 0.1
"""Share of the training's effect that rounding to a small type may take before it is spoken of, and in float32 at all:
what was hardly trained must not pass for a base without it."""
ROUNDING = 1e-5
"""How far apart two ways of computing the same in float32 come out."""
Answers = Mapping[str, Float32]


def verified(
    trained: Trained, form: str, files: Sequence[Path], adapter_: Path | None, code: str
) -> tuple[float, list[str]]:
    """How far the reader's answers are from gesso's own, and what a user should know of it.

    files: what was written; adapter_: where the adapter was trained. code: of a whole model's weights, "" for the
    base's. NumbersError where they are too far apart, StorageError where the reader cannot load the file.
    """
    try:
        reader = import_module("gesso.engines.torch.reload")
    except ImportError as error:
        raise DeviceError("an export is checked with PyTorch and diffusers, which are not there") from error
    tokens = trained.words if form in ("words", "a1111") else {}
    before, wanted = reader.own(
        trained.folder, adapter=None if tokens else adapter_, tokens=tokens, whole=form in WHOLE
    )
    try:
        found = _reloaded(reader, trained, form, files)
    except GessoError:
        raise
    except Exception as error:  # whatever a loader stumbles over, the file is not good
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StorageError(f"the reader of this form cannot load the export, which is removed: {first}") from error
    code = (code or _narrowest(trained)) if form in WHOLE else "F32"
    apart, effect = _apart(found, wanted), _apart(wanted, before)
    for part in wanted:
        limit = TOLERANCE[code]
        if code not in ("F16", "BF16"):
            limit = min(limit, max(ROUNDING, LOST * effect[part]))
        if not apart.get(part, np.inf) <= limit:
            raise NumbersError(
                f"read again, the export's {part} answers {apart.get(part, np.inf):.2g} apart from what was trained, "
                f"more than {limit:.2g}; it is removed"
            )
    return max(apart.values()), _notes(trained, form, max(apart.values()), max(effect.values()), code)


def _reloaded(reader: Any, trained: Trained, form: str, files: Sequence[Path]) -> Answers:
    """What the form's own reader gives: diffusers', or the stand-alone one where diffusers has none."""
    path = files[0]
    found: Answers
    if form == "mindspore":
        found = reader.assigned(trained.folder, _values(exporting.read_mindspore(path).parts))
    elif form == "kohya" and trained.kind != "lora":
        # diffusers drops DoRA's scales and knows no LoHa or LoKr of these families.
        found = reader.assigned(trained.folder, _values(exporting.understood(trained, path)))
    elif form in ("words", "a1111"):
        found = reader.reloaded("words", path, trained.folder, files=files, tokens=trained.words)
    else:
        found = reader.reloaded("lora" if form == "kohya" else form, path, trained.folder)
    return found


def _values(own: Mapping[str, stored.Tensors]) -> dict[str, dict[str, Float32]]:
    return {part: {name: tensor.widened() for name, tensor in arrays.items()} for part, arrays in own.items()}


def _apart(one: Answers, two: Answers) -> dict[str, float]:
    """The difference of two readers' answers over the answer's own size, by part; infinite for another shape."""
    found = {}
    for part in two:
        if part not in one or one[part].shape != two[part].shape:
            found[part] = float("inf")
            continue
        with np.errstate(invalid="ignore"):
            difference = np.linalg.norm(one[part].astype(np.float64) - two[part])
        found[part] = float(difference / np.linalg.norm(two[part].astype(np.float64)))
    return found


def _narrowest(trained: Trained) -> str:
    own = parts.read(trained.folder)[1]
    codes = {tensor.code for arrays in own.values() for tensor in arrays.values()}
    return next((code for code in ("BF16", "F16") if code in codes), "F32")


def _notes(trained: Trained, form: str, apart: float, effect: float, code: str) -> list[str]:
    found = []
    if trained.config is not None and effect == 0:
        found.append("the adapter changes nothing: it was not trained yet")
    elif trained.config is not None and apart > LOST * effect and form in WHOLE:
        found.append(
            f"training changed the networks' answers by {effect:.2g}, and rounding to {code} changes them by "
            f"{apart:.2g}: --dtype fp32 keeps all of it"
        )
    if form == "kohya" and trained.kind == "dora":
        found.append(
            "only LyCORIS computes this DoRA as it was trained: ComfyUI and Forge take the norms of the base's "
            "weights (--reader comfyui is for them), A1111 those of columns, diffusers leaves the scales out; a merged "
            "model is exact in all"
            if trained.reader == "lycoris"
            else "only ComfyUI and Forge compute this file as it was trained, and only on this base"
        )
    if form == "kohya" and any(alpha != trained.sizes[name][1] for name, (_, alpha) in _sizes(trained).items()):
        found.append("all modules have one alpha now, and lora_up makes up for it: diffusers reads one alone")
    if trained.words and form not in ("words", "a1111"):
        found.append("the learned words are not in it: export them with --to words")
    if form == "a1111":
        found.append("A1111, Forge and ComfyUI call a word by its file's name")
    if form in ("single", "mindspore") and trained.about.family != "sdxl" and trained.about.prediction != "epsilon":
        found.append(f"it predicts {trained.about.prediction}, which a file in this form cannot say: tell its reader")
    return found


def _sizes(trained: Trained) -> dict[str, tuple[int, float]]:
    return exporting.packed_lora(trained)[1] if trained.kind in adapter.LORAS else trained.sizes
