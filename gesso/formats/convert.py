"""From one form of a model or LoRA file to another. Models stream: one tensor at a time is in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gesso.errors import RecipeError, StorageError
from gesso.formats import (
    contents,
    convert_lora,
    convert_words,
    layout,
    lora,
    lora_forms,
    lora_math,
    mindspore,
    mindspore_names,
    parts,
    pickles,
    pipeline,
    single_file,
    stored,
    unsafe_pickle,
)
from gesso.formats.lora_forms import Lora
from gesso.formats.single_file import NAMES, Unpacked
from gesso.storage import amount, guard

MODELS = ("folder", "single", "mindspore")
_EMPTY = stored.of(np.zeros(0, np.float32))
_SUFFIXES = {".safetensors": "single", ".ckpt": "mindspore", "": "folder"}
_OTHERS = (".bin", ".pt", ".pth", ".pkl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to convert. `like` is a pipeline folder of the same family, which lends what a file of weights lacks."""

    source: Path
    target: Path
    form: str | None = None
    """One of MODELS or convert_lora.FORMS; None to go by the target's name."""
    like: Path | None = None
    family: str | None = None
    """Of a LoRA's base, where its shapes do not tell."""
    add: tuple[tuple[Path, float], ...] = ()
    """LoRAs and their strengths, merged into a model or joined with a LoRA."""
    minus: Path | None = None
    """The model that the source was trained from: their difference becomes a LoRA."""
    rank: int | None = None
    """Of the LoRA that is written, at most."""
    checksum: bool = False
    """End a MindSpore checkpoint with its CRC-32."""
    unsafe_pickle: bool = False
    """Read bare pickles and PyTorch's files before 1.6, in a limited process of their own."""


def convert(request: Request) -> list[str]:
    """Carry it out; what was done, a sentence each. The target appears whole, and what is there already is left alone.

    Raises RecipeError for forms that do not go together, StorageError for a source that is damaged, not finite, or a
    pickle.
    """
    if request.target.exists():
        raise RecipeError("this is there already", where=str(request.target), todo="choose another name with --to")
    _check(request)
    _room_for(request.target)
    with TemporaryDirectory(prefix="gesso-") as folder:
        return _converted(_without_pickles(request, Path(folder)) if request.unsafe_pickle else request)


def _without_pickles(request: Request, folder: Path) -> Request:
    """The request with safetensors files in `folder` in place of bare pickles."""

    def read(path: Path) -> Path:
        with suppress(OSError), path.open("rb") as opened:
            head = opened.read(64)
            if (pickles.looks_like(head) and not head.startswith(b"PK")) or pickles.is_old(path):
                return unsafe_pickle.read(path, folder)
        return path

    return replace(
        request,
        source=read(request.source),
        add=tuple((read(path), strength) for path, strength in request.add),
        minus=read(request.minus) if request.minus else None,
    )


def _converted(request: Request) -> list[str]:
    if convert_words.is_one(request.source):
        return convert_words.convert(request.source, request.target, request.form)
    found = model_in(request.source)
    if found is None:
        return _from_lora(request)
    if request.minus is not None:
        return _difference(found, request)
    if request.rank is not None:
        raise RecipeError("a whole model has no rank", todo="name the model that it was trained from with --minus")
    return _from_model(_with_loras(found, request), request)


def _check(request: Request) -> None:
    odd = next((strength for _, strength in request.add if not math.isfinite(strength)), None)
    if odd is not None:
        raise RecipeError(f"the strength is {odd}, must be a finite number")
    if request.rank is not None and request.rank < 1:
        raise RecipeError(f"the rank is {request.rank}, must be at least 1")
    if request.minus is not None and request.add:
        raise RecipeError("a difference is taken or LoRAs are added, not both at once", todo="do one after the other")
    if request.minus is not None and request.rank is None:
        raise RecipeError("the difference of two models becomes a LoRA of some rank", todo="say which with --rank")


def _room_for(target: Path) -> None:
    """Refuse a name that says of the target what it will not be; make the folder that it is to lie in."""
    if target.suffix.lower() in _OTHERS:
        raise RecipeError(
            f"{target.suffix} files are PyTorch's, which are programs; gesso writes none",
            where=str(target),
            todo="end the name with .safetensors, with .ckpt for MindSpore, or with nothing for a folder",
        )
    with guard(target, what=target.name):
        target.parent.mkdir(parents=True, exist_ok=True)


def _with_loras(found: Unpacked, request: Request) -> Unpacked:
    """The model with the LoRAs in its weights."""
    like = request.like or (request.source if request.source.is_dir() else None)
    loras = [(convert_lora.read(path, like), strength) for path, strength in request.add]
    if len(loras) > 1:
        loras = [(lora_math.joined(loras), 1.0)]
    own = found.parts
    for each, strength in loras:
        own = lora_math.merged(own, each, strength)
    return replace(found, parts=own)


def _difference(found: Unpacked, request: Request) -> list[str]:
    assert request.minus is not None
    assert request.rank is not None
    base = model_in(request.minus)
    if base is None or base.family != found.family:
        raise RecipeError("these are not two models of one family", where=str(request.minus))
    made, kept, left_out = lora_math.extracted(found.parts, base.parts, request.rank)
    said = _written(made, "diffusers", request)
    said.append(f"it holds {kept:.1%} of the squared change of these layers")
    if left_out:
        said.append(f"changed, but not for a LoRA to hold: {_some(left_out)}")
    return said


def _from_lora(request: Request) -> list[str]:
    if request.minus is not None:
        raise RecipeError("the source is a LoRA, from which no model can be taken away", where=str(request.source))
    found = convert_lora.read(request.source, request.like)
    default = "diffusers" if found.form == "kohya" or request.add or request.rank else "kohya"
    if request.add:
        others = [(convert_lora.read(path, request.like), strength) for path, strength in request.add]
        found = lora_math.joined([(found, 1.0), *others])
    kept = 1.0
    if request.rank is not None:
        found, kept = lora_math.resized(found, request.rank)
    said = _written(found, default, request)
    return said if request.rank is None else [*said, f"it keeps {kept:.1%} of the squared change"]


def _written(found: Lora, default: str, request: Request) -> list[str]:
    form = request.form or default
    if form not in convert_lora.FORMS:
        raise RecipeError(f"this is a LoRA, which has no form {form}", todo=f"use {' or '.join(convert_lora.FORMS)}")
    _only_mindspore(request, form)
    return convert_lora.write(found, request.target, form, request.like, request.family)


def _only_mindspore(request: Request, form: str) -> None:
    if request.checksum and form != "mindspore":
        raise RecipeError(f"--checksum is for MindSpore's checkpoints, not for the form {form}", todo="leave it out")


def model_in(source: Path) -> Unpacked | None:
    """The parts of the whole model in a file or folder, no tensor read; None where the source is a LoRA."""
    if source.is_dir():
        if (source / pipeline.INDEX).is_file():
            family, own = parts.read(source)
            return Unpacked(family=family, parts=own, flags=parts.flags(source, family))
        if (source / lora.FILE).is_file():
            return None
        raise RecipeError("this folder is no pipeline and has no LoRA", where=str(source))
    if source.exists() and not source.is_file():
        raise StorageError("this is neither a file nor a folder", where=str(source))
    try:
        with source.open("rb") as opened:
            head = opened.read(64)
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", where=str(source)) from error
    if mindspore.looks_like(head):
        return mindspore_names.unpack(mindspore.read(source).tensors)
    arrays = convert_lora.opened(source, head)
    return None if lora_forms.form_of(arrays) else single_file.unpack(arrays)


def _from_model(found: Unpacked, request: Request) -> list[str]:
    form = request.form or _SUFFIXES.get(request.target.suffix.lower(), "folder")
    if form not in MODELS:
        raise RecipeError(f"the source is a whole model, which has no form {form}", todo=f"use {', '.join(MODELS)}")
    if request.family:
        raise RecipeError("--family is for LoRAs; of a whole model it is known", todo="leave it out")
    _only_mindspore(request, form)
    for part, own in found.parts.items():
        contents.require_finite(own, part, request.source)
    if form == "folder":
        like = request.like or (request.source if request.source.is_dir() else None)
        if like is None:
            raise RecipeError(
                "a pipeline folder needs configurations and a tokenizer, which a file of weights does not hold",
                todo=f"name a folder of {NAMES[found.family]} to take them from with --like",
            )
        parts.write(found, like, request.target)
        family, again = parts.read(request.target)
    elif form == "single":
        made = single_file.pack(found.parts, found.family) | dict.fromkeys(found.flags, _EMPTY)
        stored.save_safetensors(request.target, made, {"format": "pt"})
        back = single_file.unpack(stored.open_safetensors(request.target))
        family, again = back.family, {part: dict(own) for part, own in back.parts.items()}
    else:
        made = mindspore_names.pack(found.parts, found.family)
        mindspore.write(request.target, made, checksum=request.checksum)
        back = mindspore_names.unpack(mindspore.read(request.target, verify=False).tensors)
        family, again = back.family, {part: dict(own) for part, own in back.parts.items()}
    if family != found.family or _outline(again) != _outline(found.parts):
        raise StorageError("the file was written, but does not read back as what was put in", where=str(request.target))
    count, size = sum(map(len, again.values())), sum(stored.nbytes(own) for own in again.values())
    said = [f"{request.target}: {NAMES[family]}, {count} tensors, {amount(size)}"]
    if found.dropped:
        said.append(f"left out, as no pipeline uses it: {_some(found.dropped)}")
    return said


def _outline(own: single_file.Parts) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Names, types and shapes, in today's names."""
    return {
        part: {layout.modern(name): (tensor.code, tensor.shape) for name, tensor in arrays.items()}
        for part, arrays in own.items()
    }


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
