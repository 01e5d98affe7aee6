"""Captions that are longer than a text encoder reads at once are read in chunks, whose vectors are put end to end.

Each chunk has its own marks of beginning and end, as in the web interfaces in which such prompts are common. One
number of a caption, such as SDXL's pooled vector, is that of its first chunk.

Captions of unlike length meet in a batch by being repeated. Cross-attention does not see that: with every key and value
there r times, softmax(q·[k … k])·[v … v] = softmax(q·k)·v. So a caption means the same whatever stands beside it, and
no mask has to reach the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import lcm
from typing import Any

import numpy as np

from gesso.arrays import Array, Int64

GIVEN = "given"
"""Among token ids: 0 where there is no caption and the family wants zeros in place of an encoded ""; int64 [B]."""
Spell = Callable[[Sequence[str], Any], list[str]]
"""Captions as a pipeline hands them to a tokenizer of transformers: a word of several vectors as all its pieces."""


def tokens(
    captions: Sequence[str], tokenizers: Mapping[str, Any], spell: Spell, most: int, *, zeros: bool
) -> dict[str, Int64]:
    """Token ids by encoder, int64 [B, K · length], of at most `most` chunks a caption (0: all of it).

    `tokenizers` are those of the encoders that stand side by side; `zeros`: also say which captions are there (GIVEN).
    Captions of fewer than K chunks are there several times over, as said above.
    """
    pieces = {encoder: _pieces(spell(captions, each), each, most) for encoder, each in tokenizers.items()}
    # What one encoder reads in two chunks is two chunks to the other as well.
    longest = [max(len(pieces[encoder][at]) for encoder in pieces) for at in range(len(captions))]
    ids: dict[str, Int64] = {
        encoder: level([_whole(row, count, tokenizers[encoder]) for row, count in zip(rows, longest, strict=True)])
        for encoder, rows in pieces.items()
    }
    if zeros:
        ids[GIVEN] = np.array([caption != "" for caption in captions], dtype=np.int64)
    return ids


def counts(captions: Sequence[str], tokenizers: Sequence[Any], spell: Spell, most: int) -> tuple[list[int], int]:
    """How many tokens each caption has, two marks included, and how many of them are read in `most` chunks."""
    found = [max(len(each(spell([caption], each)[0]).input_ids) for each in tokenizers) for caption in captions]
    return found, min(_room(each) for each in tokenizers) * most + 2


def cut(ids: Sequence[int], room: int, most: int = 0) -> list[list[int]]:
    """Token ids without marks as chunks of up to `room` of them, at most `most` chunks (0: all), at least one."""
    chunks = [list(ids[at : at + room]) for at in range(0, len(ids), room)] or [[]]
    return chunks[:most] if most else chunks


def level(rows: Sequence[Array]) -> Array:
    """The rows as one array [B, …], each repeated along its first axis until all are of one length."""
    lengths = {len(row) if row.ndim else 1 for row in rows}
    if len(lengths) == 1:
        return np.stack(rows)
    length = lcm(*lengths)
    return np.stack([np.concatenate([row] * (length // len(row))) for row in rows])


def _room(tokenizer: Any) -> int:
    """Tokens of a chunk without its two marks."""
    return int(tokenizer.model_max_length) - 2


def _pieces(captions: Sequence[str], tokenizer: Any, most: int) -> list[list[list[int]]]:
    """The chunks of each caption, without marks."""
    found = tokenizer(captions, add_special_tokens=False).input_ids
    return [cut(ids, _room(tokenizer), most) for ids in found]


def _whole(pieces: Sequence[Sequence[int]], count: int, tokenizer: Any) -> Int64:
    """The chunks with their marks, filled up, end to end; `count` of them, empty ones behind."""
    length = int(tokenizer.model_max_length)
    first, last, filler = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[first, *piece, last] for piece in [*pieces, *[[]] * (count - len(pieces))]]
    return np.array([row + [filler] * (length - len(row)) for row in rows], dtype=np.int64).reshape(-1)
