"""From captions to what the denoiser is conditioned on: token ids in chunks, encoders, chunks put end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gesso import chunks
from gesso.arrays import Int64
from gesso.engines.torch import words
from gesso.engines.torch.models import Models
from gesso.families.family import Family

GIVEN = "given"
"""Among token ids: 0 where there is no caption and the family wants zeros in place of an encoded ""; int64 [B]."""


def encoders(models: Models, family: Family) -> list[tuple[str, str]]:
    """The family's text encoders and tokenizers that this model has: SDXL's second stage has but the second ones."""
    return [(encoder, name) for encoder, name in family.encoders if (models.index.get(encoder) or [None])[0]]


def tokens(captions: Sequence[str], models: Models, family: Family, most: int) -> dict[str, Int64]:
    """Token ids by encoder, int64 [B, K · length], of at most `most` chunks a caption (0: all of it).

    Captions of fewer than K chunks are there several times over, as gesso/chunks.py says.
    """
    pairs = encoders(models, family)
    tokenizers = {encoder: models.get(name) for encoder, name in pairs}
    cut = {encoder: _cut(captions, tokenizer, most) for encoder, tokenizer in tokenizers.items()}
    # Encoders stand side by side: what one of them reads in two chunks is two chunks to the other as well.
    counts = [max(len(cut[encoder][at]) for encoder in cut) for at in range(len(captions))]
    ids = {
        encoder: chunks.level(
            [_whole(pieces, count, tokenizers[encoder]) for pieces, count in zip(rows, counts, strict=True)]
        )
        for encoder, rows in cut.items()
    }
    if family.drops_to_zeros(models.index):
        ids[GIVEN] = np.array([caption != "" for caption in captions], dtype=np.int64)
    return ids


def condition(cond: Mapping[str, torch.Tensor], models: Models, family: Family) -> dict[str, torch.Tensor]:
    """`cond` with what the text encoders make of token ids in place of them, where there are any."""
    pairs = encoders(models, family)
    ids = {name: cond[name] for name, _ in pairs if name in cond}
    rest = {name: value for name, value in cond.items() if name not in ids and name != GIVEN}
    if not ids:
        return rest
    lengths = {encoder: int(models.get(name).model_max_length) for encoder, name in pairs}
    outputs = {
        name: models.get(name)(value.reshape(-1, lengths[name]), output_hidden_states=True)
        for name, value in ids.items()
    }
    made = {}
    for name, value in family.condition(outputs).items():
        each = torch.cat(value, dim=-1) if isinstance(value, tuple) else value
        whole = _joined(each, len(next(iter(ids.values()))))
        made[name] = whole * cond[GIVEN].view(-1, *[1] * (whole.dim() - 1)) if GIVEN in cond else whole
    return {**rest, **made}


def counts(captions: Sequence[str], models: Models, family: Family, most: int) -> tuple[list[int], int]:
    """How many tokens each caption has, two marks included, and how many of them are read in `most` chunks."""
    tokenizers = [models.get(name) for _, name in encoders(models, family)]
    found = [max(words.count(caption, each) for each in tokenizers) for caption in captions]
    return found, min(int(each.model_max_length) - 2 for each in tokenizers) * most + 2


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


def _joined(value: torch.Tensor, captions: int) -> torch.Tensor:
    """[B, K · length, width] of [B · K, length, width]; of pooled vectors [B · K, width] that of each first chunk."""
    if value.dim() == 2:
        return value.view(captions, -1, value.shape[-1])[:, 0]
    return value.reshape(captions, -1, value.shape[-1])
