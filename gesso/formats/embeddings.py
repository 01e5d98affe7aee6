"""Files of learned words that `pipe.load_textual_inversion` reads, one a word, as diffusers takes no more from a file.

    learned_embeds.safetensors      the first word; learned_embeds-2.safetensors, … the others
        "<dog>"  float32 [vectors, width]                             with one text encoder (SD 1.x, 2.x)
        "clip_l" and "clip_g"  float32 [vectors, width of each]       with two (SDXL; its refiner has the second alone)

A1111's form is the same for SDXL, and "emb_params" for the others; there a file is a word, and its name the word's.

SDXL's form has no place for the word's name; it stands in the metadata, as `token`. The forms are those of
https://huggingface.co/docs/diffusers/using-diffusers/textual_inversion_inference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gesso.arrays import Array, Float32
from gesso.errors import StorageError
from gesso.formats import tensors
from gesso.words import full_name

FILE = "learned_embeds.safetensors"
KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""What each text encoder's vectors are called in SDXL's form."""
A1111 = "emb_params"
"""What the vectors are called in A1111's form of SD 1.x and 2.x."""
_OTHERS = re.compile(r"learned_embeds-(\d+)\.safetensors")


def writers(weights: Mapping[str, Array]) -> dict[str, tensors.Sized]:
    """What writes each file, by its name, from vectors by `tokens.<encoder>.<word>`, in the order of the words."""
    words: dict[str, dict[str, Array]] = {}
    for name, value in weights.items():
        _, encoder, word = name.split(".", 2)
        words.setdefault(word, {})[encoder] = value.astype(np.float32)
    made = {}
    for number, (word, own) in enumerate(words.items(), start=1):
        arrays = {KEYS[part]: value for part, value in own.items()}
        if own.keys() == {"text_encoder"}:
            arrays = {word: own["text_encoder"]}
        file = FILE if number == 1 else FILE.replace(".", f"-{number}.", 1)
        made[file] = tensors.writer(arrays, {"format": "pt", "token": word})
    return made


def a1111(weights: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """The tensors of each word's file in A1111's form, by word, from vectors by `tokens.<encoder>.<word>`."""
    made: dict[str, dict[str, Array]] = {}
    encoders: dict[str, set[str]] = {}
    for name in weights:
        _, encoder, word = name.split(".", 2)
        encoders.setdefault(word, set()).add(encoder)
    for name, value in weights.items():
        _, encoder, word = name.split(".", 2)
        key = A1111 if encoders[word] == {"text_encoder"} else KEYS[encoder]
        made.setdefault(word, {})[key] = value.astype(np.float32)
    return made


def files(folder: Path) -> list[Path]:
    """The files of learned words in a folder, in order; none where there are none."""
    numbered = {int(found[1]): path for path in folder.glob("*") if (found := _OTHERS.fullmatch(path.name))}
    first = [folder / FILE] if (folder / FILE).is_file() else []
    return first + [numbered[number] for number in sorted(numbered)]


def read(paths: Iterable[Path]) -> dict[str, Float32]:
    """The vectors of the words in files, float32 [vectors, width], by `tokens.<encoder>.<word>`.

    Also takes files that others wrote in these forms, a word of one vector as [width] included. Raises StorageError
    for a damaged file, a word that two files have, and a file without the word's name.
    """
    found: dict[str, Float32] = {}
    for path in paths:
        for name, value in _read(path).items():
            if name in found:
                raise StorageError(
                    f'two files have the word "{name.split(".", 2)[2]}"', where=str(path), todo="leave one of them out"
                )
            found[name] = value
    return found


def _read(path: Path) -> dict[str, Float32]:
    arrays = tensors.load(path, widen=True, finite=True)
    if not arrays or any(value.ndim not in (1, 2) or not value.size for value in arrays.values()):
        raise StorageError("these are not learned words: each is one tensor of [vectors, width]", where=str(path))
    word = tensors.header(path).metadata.get("token", "")
    if arrays.keys() == {A1111}:
        return {full_name("text_encoder", word or path.stem): np.atleast_2d(arrays[A1111]).astype(np.float32)}
    if arrays.keys() <= set(KEYS.values()) and word not in arrays:
        if not word:
            raise StorageError(
                "this file of a word for SDXL does not say the word's name",
                where=str(path),
                todo='add it to the metadata of the file, as "token"',
            )
        named = {full_name(encoder, word): arrays[key] for encoder, key in KEYS.items() if key in arrays}
    else:
        named = {full_name("text_encoder", name): value for name, value in arrays.items()}
    return {name: np.atleast_2d(value).astype(np.float32) for name, value in named.items()}


def usage(paths: Sequence[Path], folder: str) -> str:
    """Python lines that load such files into `pipe`, a pipeline of diffusers, from `folder`; "" for no files."""
    if not paths:
        return ""
    heads = {path.name: tensors.header(path) for path in paths}
    if any(head.metadata["token"] not in head.tensors for head in heads.values()):
        files = {head.metadata["token"]: f"{folder}/{name}" for name, head in heads.items()}
        line = '    pipe.load_textual_inversion(vectors["{}"], token=word, text_encoder=pipe.{}, tokenizer=pipe.{})\n'
        return (
            "from safetensors.torch import load_file\n\n"
            f"for word, file in {json.dumps(files, ensure_ascii=False)}.items():\n"
            "    vectors = load_file(file)\n"
            + line.format("clip_l", "text_encoder", "tokenizer")
            + line.format("clip_g", "text_encoder_2", "tokenizer_2")
        )
    named = folder if len(paths) == 1 else [f"{folder}/{path.name}" for path in paths]
    return f"pipe.load_textual_inversion({json.dumps(named, ensure_ascii=False)})\n"


def vectors(weights: Mapping[str, Array]) -> dict[str, int]:
    """Each word with its number of vectors. StorageError where the encoders differ in it."""
    counts: dict[str, set[int]] = {}
    for name, value in weights.items():
        counts.setdefault(name.split(".", 2)[2], set()).add(len(value))
    for word, own in counts.items():
        if len(own) > 1:
            raise StorageError(f'the word "{word}" has {" and ".join(map(str, sorted(own)))} vectors')
    return {word: own.pop() for word, own in counts.items()}


def fit(weights: Mapping[str, Array], widths: Mapping[str, int]) -> None:
    """StorageError unless every word has vectors of the right width for each text encoder in `widths`, and no other."""
    for word in vectors(weights):
        own = {
            name.split(".", 2)[1]: value.shape[1] for name, value in weights.items() if name.split(".", 2)[2] == word
        }
        if own != widths:
            has, takes = (", ".join(f"{part}: {width}" for part, width in each.items()) for each in (own, widths))
            raise StorageError(
                f'the word "{word}" was learned for another base: its vectors are as wide as {has}; the model takes '
                f"{takes}",
                todo="use it with the base that it was trained on, or a relative of that base",
            )
