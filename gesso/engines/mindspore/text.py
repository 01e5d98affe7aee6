"""From captions to what the denoiser is conditioned on: token ids in chunks, encoders, chunks put end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mindspore as ms
from mindspore import ops

from gesso import chunks
from gesso.arrays import Int64
from gesso.engines.mindspore import words
from gesso.engines.mindspore.models import Models
from gesso.families.family import Family


def tokens(captions: Sequence[str], models: Models, family: Family, most: int) -> dict[str, Int64]:
    """Token ids by encoder, int64 [B, K · length], as gesso/chunks.py says."""
    tokenizers = {encoder: models.get(name) for encoder, name in family.encoders}
    return chunks.tokens(captions, tokenizers, words.expanded, most, zeros=family.drops_to_zeros(models.index))


def counts(captions: Sequence[str], models: Models, family: Family, most: int) -> tuple[list[int], int]:
    """How many tokens each caption has, two marks included, and how many of them are read in `most` chunks."""
    return chunks.counts(captions, [models.get(name) for _, name in family.encoders], words.expanded, most)


def condition(cond: Mapping[str, ms.Tensor], models: Models, family: Family) -> dict[str, ms.Tensor]:
    """`cond` with what the text encoders make of token ids in place of them, where there are any."""
    ids = {name: cond[name] for name, _ in family.encoders if name in cond}
    rest = {name: value for name, value in cond.items() if name not in ids and name != chunks.GIVEN}
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
        if chunks.GIVEN in cond:
            whole = whole * cond[chunks.GIVEN].astype(whole.dtype).reshape(-1, *[1] * (whole.ndim - 1))
        made[name] = whole
    return {**rest, **made}


def _joined(value: ms.Tensor, captions: int) -> ms.Tensor:
    """[B, K · length, width] of [B · K, length, width]; of pooled vectors [B · K, width] that of each first chunk."""
    if value.ndim == 2:
        return value.reshape(captions, -1, value.shape[-1])[:, 0]
    return value.reshape(captions, -1, value.shape[-1])
