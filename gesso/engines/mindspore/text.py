"""From captions to what the denoiser is conditioned on: token ids in chunks, encoders, chunks put end to end."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import mindspore as ms
from mindspore import nn, ops

from gesso import chunks
from gesso.arrays import Int64
from gesso.engines.mindspore import words
from gesso.engines.mindspore.models import Models
from gesso.families.family import Family

OUTPUTS = {
    "CLIPTextModel": ("last_hidden_state", "pooler_output", "hidden_states"),
    "CLIPTextModelWithProjection": ("text_embeds", "last_hidden_state", "hidden_states"),
}
"""What mindone's encoders answer, in this order; a graph cannot answer by name."""


def tokens(captions: Sequence[str], models: Models, family: Family, most: int) -> dict[str, Int64]:
    """Token ids by encoder, int64 [B, K · length], as gesso/chunks.py says."""
    tokenizers = {encoder: models.get(name) for encoder, name in family.encoders}
    return chunks.tokens(captions, tokenizers, words.expanded, most, zeros=family.drops_to_zeros(models.index))


def counts(captions: Sequence[str], models: Models, family: Family, most: int) -> tuple[list[int], int]:
    """How many tokens each caption has, two marks included, and how many of them are read in `most` chunks."""
    return chunks.counts(captions, [models.get(name) for _, name in family.encoders], words.expanded, most)


def condition(cond: Mapping[str, ms.Tensor], models: Models, family: Family) -> dict[str, ms.Tensor]:
    """`cond` with what the text encoders make of token ids in place of them, where there are any."""
    return Reading(models, family)(cond) if reads(cond, family) else dict(cond)


def reads(names: Container[str], family: Family) -> bool:
    """Whether there are token ids among what the denoiser is conditioned on."""
    return family.encoders[0][0] in names


class Reading(nn.Cell):  # type: ignore[misc]
    """The text encoders of a family, in the Python that MindSpore's compiler of graphs takes too."""

    def __init__(self, models: Models, family: Family) -> None:
        super().__init__(auto_prefix=False)
        nets = [models.get(name) for name, _ in family.encoders]
        self.encoders = tuple(name for name, _ in family.encoders)
        self.lengths = tuple(int(models.get(name).model_max_length) for _, name in family.encoders)
        self.nets = nn.CellList(nets, auto_prefix=False)
        fields = {name: OUTPUTS[type(net).__name__] for name, net in zip(self.encoders, nets, strict=True)}
        asked = family.condition({name: Asked(name) for name in self.encoders})
        self.names = tuple(asked)
        self.chosen = tuple(
            tuple(
                (self.encoders.index(path[0]), fields[path[0]].index(path[1]), *path[2:])
                for path in (each.path for each in (value if isinstance(value, tuple) else (value,)))
            )
            for value in asked.values()
        )

    def construct(self, cond: Mapping[str, ms.Tensor]) -> dict[str, ms.Tensor]:
        outputs = []
        for at in range(len(self.encoders)):
            ids = cond[self.encoders[at]].reshape(-1, self.lengths[at])
            outputs.append(self.nets[at](ids, output_hidden_states=True, return_dict=False))
        known = {}
        for name in cond:
            if name != chunks.GIVEN and name not in self.encoders:
                known[name] = cond[name]
        for at in range(len(self.names)):
            whole = _joined(_picked(outputs, self.chosen[at]), cond[self.encoders[0]].shape[0])
            if chunks.GIVEN in cond:
                whole = whole * cond[chunks.GIVEN].astype(whole.dtype).reshape((-1,) + (1,) * (whole.ndim - 1))
            known[self.names[at]] = whole
        return known


class Asked:
    """Stands for an encoder's answer, and remembers what of it is asked for."""

    def __init__(self, *path: Any) -> None:
        self.path = path

    def __getattr__(self, name: str) -> Asked:
        return Asked(*self.path, name)

    def __getitem__(self, at: int) -> Asked:
        return Asked(*self.path, at)


def _picked(outputs: Sequence[Any], chosen: Sequence[tuple[int, ...]]) -> ms.Tensor:
    values = []
    for path in chosen:
        value = outputs[path[0]]
        for at in path[1:]:
            value = value[at]
        values.append(value)
    return values[0] if len(values) == 1 else ops.concat(values, -1)


def _joined(value: ms.Tensor, captions: int) -> ms.Tensor:
    """[B, K · length, width] of [B · K, length, width]; of pooled vectors [B · K, width] that of each first chunk."""
    if value.ndim == 2:
        return value.reshape(captions, -1, value.shape[-1])[:, 0]
    return value.reshape(captions, -1, value.shape[-1])
