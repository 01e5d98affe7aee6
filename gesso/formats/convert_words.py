"""Files of a learned word: from diffusers' form to that of A1111, Forge and ComfyUI, and back."""

from __future__ import annotations

from pathlib import Path

from gesso.errors import RecipeError, StorageError
from gesso.formats import contents, embeddings, pickles, stored, tensors, torch_file
from gesso.storage import guard
from gesso.words import full_name

FORMS = ("diffusers", "a1111")


def is_one(file: Path) -> bool:
    """Whether a file that can be read without running anything holds one learned word."""
    return file.is_file() and _arrays(file) is not None


def convert(source: Path, target: Path, form: str | None) -> list[str]:
    """Write the word in one of FORMS, by default the other one; what was done, a sentence each.

    A word without a name of its own is called as its file. RecipeError for another form.
    """
    arrays = _arrays(source)
    assert arrays is not None
    contents.require_finite(arrays, "word", source)
    token = "" if _is_pickle(source) else tensors.header(source).metadata.get("token", "")
    a1111 = arrays.keys() <= {embeddings.A1111, "*"} or (not token and arrays.keys() <= set(embeddings.KEYS.values()))
    form = form or ("diffusers" if a1111 else "a1111")
    if form not in FORMS:
        raise RecipeError(f"this is a learned word, which has no form {form}", todo=f"use {' or '.join(FORMS)}")
    if target.suffix != ".safetensors":
        raise RecipeError("a learned word is one .safetensors file", where=str(target))
    values = {name: tensor.widened() for name, tensor in arrays.items()}
    encoders = {key: encoder for encoder, key in embeddings.KEYS.items()}
    paired = values.keys() <= encoders.keys()
    word = token or (source.stem if a1111 or paired else next(iter(values)))
    named = {full_name(encoders[key] if paired else "text_encoder", word): value for key, value in values.items()}
    with guard(target, what="the word"):
        target.parent.mkdir(parents=True, exist_ok=True)
    if form == "a1111":
        made = embeddings.a1111(named)[word]
        tensors.save(target, made, {"format": "pt", "token": word})
        return [f'{target}: the word "{word}" in A1111\'s form, where it is called "{target.stem}"']
    embeddings.writers(named)[embeddings.FILE](target)
    return [f'{target}: the word "{word}" in diffusers\' form']


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as opened:
        return pickles.looks_like(opened.read(64))


def _arrays(file: Path) -> stored.Tensors | None:
    """The tensors of the word; None where the file is something else."""
    try:
        arrays = torch_file.read(file) if _is_pickle(file) else stored.open_safetensors(file)
    except (StorageError, OSError):
        return None  # whoever reads it as something else says what is wrong with it
    if arrays.keys() == {"*"} and arrays["*"].code in stored.FLOATS and len(arrays["*"].shape) in (1, 2):
        return arrays
    return arrays if contents.describe(arrays, {})["kind"] == "word" else None
