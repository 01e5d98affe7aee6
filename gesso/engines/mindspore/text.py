"""From captions to what the denoiser is conditioned on: token ids in chunks, encoders, chunks put end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops

from gesso import chunks
from gesso.arrays import Int64
from gesso.engines.mindspore import words
from gesso.engines.mindspore.models import Models
from gesso.families.family import Family

GIVEN = "given"
"""Among token ids: 0 where there is no caption and the family wants zeros in place of an encoded ""; int64 [B]."""


def tokens(captions: Sequence[str], models: Models, family: Family, most: int) -> dict[str, Int64]:
    """Token ids by encoder, int64 [B, K · length], of at most `most` chunks a caption (0: all of it).

    Captions of fewer than K chunks are there several times over, as gesso/chunks.py says.
    """
    tokenizers = {encoder: models.get(name) for encoder, name in family.encoders}
    cut = {encoder: _cut(captions, tokenizer, most) for encoder, tokenizer in tokenizers.items()}
    # Encoders stand side by side: what one of them reads in two chunks is two chunks to the other as well.
    longest = [max(len(cut[encoder][at]) for encoder in cut) for at in range(len(captions))]
    ids = {
        encoder: chunks.level(
            [_whole(pieces, count, tokenizers[encoder]) for pieces, count in zip(rows, longest, strict=True)]
        )
        for encoder, rows in cut.items()
    }
    if family.drops_to_zeros(models.index):
        ids[GIVEN] = np.array([caption != "" for caption in captions], dtype=np.int64)
    return ids


def counts(captions: Sequence[str], models: Models, family: Family, most: int) -> tuple[list[int], int]:
    """How many tokens each caption has, two marks included, and how many of them are read in `most` chunks."""
    tokenizers = [models.get(name) for _, name in family.encoders]
    found = [
        max(len(each(words.expanded([caption], each)[0]).input_ids) for each in tokenizers) for caption in captions
    ]
    return found, min(int(each.model_max_length) - 2 for each in tokenizers) * most + 2


def condition(cond: Mapping[str, ms.Tensor], models: Models, family: Family) -> dict[str, ms.Tensor]:
    """`cond` with what the text encoders make of token ids in place of them, where there are any."""
    ids = {name: cond[name] for name, _ in family.encoders if name in cond}
    rest = {name: value for name, value in cond.items() if name not in ids and name != GIVEN}
    if not ids:
        return rest
    lengths = {encoder: int(models.get(name).model_max_length) for encoder, name in family.encoders}
    outputs = {
        name: models.get(name)(value.reshape(-1, lengths[name]), output_hidden_states=True, return_dict=True)
        for name, value in ids.items()
    }
    made = {}
    for name, value in family.condition(outputs).items():
        whole = _joined(ops.concat(value, -1) if isinstance(value, tuple) else value, len(next(iter(ids.values()))))
        if GIVEN in cond:
            whole = whole * cond[GIVEN].astype(whole.dtype).reshape(-1, *[1] * (whole.ndim - 1))
        made[name] = whole
    return {**rest, **made}


def _cut(captions: Sequence[str], tokenizer: Any, most: int) -> list[list[list[int]]]:
    """The chunks of each caption, without marks."""
    room = int(tokenizer.model_max_length) - 2
    found = tokenizer(words.expanded(captions, tokenizer), add_special_tokens=False).input_ids
    return [chunks.cut(ids, room, most) for ids in found]


def _whole(pieces: Sequence[Sequence[int]], count: int, tokenizer: Any) -> Int64:
    """The chunks with their marks, filled up, end to end; `count` of them, empty ones behind."""
    length = int(tokenizer.model_max_length)
    first, last, filler = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[first, *piece, last] for piece in [*pieces, *[[]] * (count - len(pieces))]]
    return np.array([row + [filler] * (length - len(row)) for row in rows], dtype=np.int64).reshape(-1)


def _joined(value: ms.Tensor, captions: int) -> ms.Tensor:
    """[B, K · length, width] of [B · K, length, width]; of pooled vectors [B · K, width] that of each first chunk."""
    if value.ndim == 2:
        return value.reshape(captions, -1, value.shape[-1])[:, 0]
    return value.reshape(captions, -1, value.shape[-1])
