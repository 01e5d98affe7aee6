"""From captions to what the denoiser is conditioned on: token ids in chunks, encoders, chunks put end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gesso import chunks
from gesso.arrays import Int64
from gesso.engines.torch import words
from gesso.engines.torch.models import Models
from gesso.families.family import Family


def encoders(models: Models, family: Family) -> list[tuple[str, str]]:
    """The family's text encoders and tokenizers that this model has: SDXL's second stage has but the second ones."""
    return [(encoder, name) for encoder, name in family.encoders if (models.index.get(encoder) or [None])[0]]


def tokens(captions: Sequence[str], models: Models, family: Family, most: int) -> dict[str, Int64]:
    """Token ids by encoder, int64 [B, K · length], as gesso/chunks.py says."""
    tokenizers = {encoder: models.get(name) for encoder, name in encoders(models, family)}
    return chunks.tokens(captions, tokenizers, words.expanded, most, zeros=family.drops_to_zeros(models.index))


def condition(cond: Mapping[str, torch.Tensor], models: Models, family: Family) -> dict[str, torch.Tensor]:
    """`cond` with what the text encoders make of token ids in place of them, where there are any."""
    pairs = encoders(models, family)
    ids = {name: cond[name] for name, _ in pairs if name in cond}
    rest = {name: value for name, value in cond.items() if name not in ids and name != chunks.GIVEN}
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
        if chunks.GIVEN in cond:
            whole = whole * cond[chunks.GIVEN].view(-1, *[1] * (whole.dim() - 1))
        made[name] = whole
    return {**rest, **made}


def counts(captions: Sequence[str], models: Models, family: Family, most: int) -> tuple[list[int], int]:
    """How many tokens each caption has, two marks included, and how many of them are read in `most` chunks."""
    return chunks.counts(captions, [models.get(name) for _, name in encoders(models, family)], words.expanded, most)


def _joined(value: torch.Tensor, captions: int) -> torch.Tensor:
    """[B, K · length, width] of [B · K, length, width]; of pooled vectors [B · K, width] that of each first chunk."""
    if value.dim() == 2:
        return value.view(captions, -1, value.shape[-1])[:, 0]
    return value.reshape(captions, -1, value.shape[-1])
