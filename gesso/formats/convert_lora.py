"""LoRA files read from any form and written in one of two: what `gesso convert` does with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gesso.errors import RecipeError, StorageError
from gesso.formats import contents, kohya, layout, lora, lora_forms, parts, pickles, stored, tensors, torch_file
from gesso.formats.lora_forms import Lora
from gesso.formats.metadata import Config
from gesso.formats.single_file import NAMES

FORMS = ("diffusers", "kohya")


def read(source: Path, like: Path | None) -> Lora:
    """The LoRA in a file, or in a folder that has one, in any form; float32.

    like: the folder of its base, which tells how an SDXL's blocks are counted. Raises StorageError for a damaged file,
    for numbers that are not finite, and for a form that is not known.
    """
    file = source / lora.FILE if source.is_dir() else source
    with file.open("rb") as start:
        arrays = opened(file, start.read(64))
    contents.require_finite(arrays, "LoRA", file)
    values = {name: tensor.widened() for name, tensor in arrays.items()}
    return lora_forms.standard(values, _metadata(file), geometry=_geometry(like), path=file)


def write(found: Lora, target: Path, form: str, like: Path | None, family: str | None) -> list[str]:
    """Write it in one of FORMS, float32; what was done, a sentence each.

    family: of the base, for kohya's form, where neither `like` nor the shapes tell. Raises RecipeError where it is not
    known and for what that form has no name for.
    """
    if target.suffix != ".safetensors" and (target.suffix or form == "kohya"):
        raise RecipeError("a LoRA is a .safetensors file", where=str(target), todo="give the target that ending")
    if form == "diffusers":
        if not target.suffix:
            target.mkdir()
        lora.write(target, found.arrays, Config.of(found.sizes, kind=found.kind))
        return [f"{target}: a {found.kind} in diffusers' form, {len(found.sizes)} modules"]
    family = family or (parts.family_of(like) if like else None)
    family = family or kohya.family_of({name: array.shape for name, array in found.arrays.items()})
    if family is None:
        raise RecipeError(
            "the LoRA's shapes do not tell the family of its base, which kohya's names depend on",
            where=str(target),
            todo=f"name it with --family {'|'.join(kohya.FAMILIES)}, or the base's folder with --like",
        )
    evened, sizes = kohya.evened(found.arrays, found.sizes)
    packed = kohya.pack(evened, sizes, family, _geometry(like))
    tensors.save(target, packed, kohya.metadata(sizes, family, target.stem))
    said = [f"{target}: a {found.kind} in kohya's form for {NAMES[family]}, {len(sizes)} modules"]
    if sizes != found.sizes:
        alpha = next(iter(sizes.values()))[1]
        said.append(f"all modules have the alpha {alpha:g} now, and lora_up makes up for it: diffusers reads one alone")
    if found.kind == "dora":
        said.append("diffusers leaves DoRA's scales out of files in kohya's form; keep the diffusers form for it")
    return said


def opened(file: Path, head: bytes) -> stored.Tensors:
    """The tensors of a safetensors file, or of one of PyTorch's, whose pickle is not run; `head` is its beginning."""
    if pickles.looks_like(head) or pickles.is_old(file):
        return torch_file.read(file)
    what = contents.other(head)
    if what:
        raise StorageError(f"this is {what}", where=str(file), todo="fetch the model again")
    return stored.open_safetensors(file)


def _metadata(file: Path) -> Mapping[str, str]:
    with file.open("rb") as start:
        return {} if pickles.looks_like(start.read(64)) else tensors.header(file).metadata


def _geometry(like: Path | None) -> layout.Geometry:
    return layout.SDXL if like is None else parts.geometry(like)
