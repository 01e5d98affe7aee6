"""New words in the tokenizers and text encoders: vectors of their own beside the encoder's table, which stays as it is.

What a word is called, and how it begins, is decided in gesso/words.py; how a tokenizer learns it, in
gesso/engines/vocabulary.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindone.diffusers.loaders import TextualInversionLoaderMixin
from mindspore import nn, ops

from gesso import words
from gesso.engines import vocabulary
from gesso.engines.engine import Token
from gesso.engines.mindspore.models import Models


class Table(nn.Cell):  # type: ignore[misc]
    """An embedding that also knows the ids from `first` on; those rows are parameters of their own, one a word."""

    def __init__(self, known: Any, first: int, new: Sequence[ms.Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.known, self.first, self.count = known, first, len(new)
        for at, parameter in enumerate(new):
            self.insert_param_to_cell(f"new_{at}", parameter)

    def construct(self, input: ms.Tensor) -> ms.Tensor:
        """Vectors [..., width] for token ids [...]."""
        new = input >= self.first
        known = self.known(ops.masked_fill(input, new, 0))
        table = ops.concat([getattr(self, f"new_{at}") for at in range(self.count)])
        own = ops.gather(table, ops.relu(input - self.first), 0).astype(known.dtype)
        share = new.astype(known.dtype).expand_dims(-1)
        return share * own + (1 - share) * known


def attach(models: Models, encoders: Sequence[tuple[str, str]], tokens: Sequence[Token]) -> dict[str, ms.Parameter]:
    """Teach every tokenizer the names, and give every encoder float32 vectors for them; `tokens.<encoder>.<word>`.

    `encoders` are pairs of component names, (text encoder, tokenizer). RecipeError for names that the tokenizer has
    already or does not keep whole, and for `init` words that are none.
    """
    words.check(tokens)
    found: dict[str, ms.Parameter] = {}
    for encoder, tokenizer in encoders if tokens else ():
        net, reader = models.get(encoder), models.get(tokenizer)
        inside = net.text_model.embeddings
        values = models.parameters(encoder)[_table(models, encoder)].asnumpy().astype(np.float32)
        starts = {
            token.name: words.begin(token, encoder, vocabulary.known(token, reader, values), values) for token in tokens
        }
        first = vocabulary.extend(reader, tokens)
        own = {
            words.full_name(encoder, name): ms.Parameter(ms.Tensor(start), name=words.full_name(encoder, name))
            for name, start in starts.items()
        }
        inside.token_embedding = Table(inside.token_embedding, first, list(own.values()))
        found |= own
    return found


def expanded(captions: Sequence[str], tokenizer: Any) -> list[str]:
    """The captions as mindone's pipelines hand them to the tokenizer: "<dog>" as "<dog> <dog>_1" and so on."""
    return [str(TextualInversionLoaderMixin().maybe_convert_prompt(caption, tokenizer)) for caption in captions]


def _table(models: Models, encoder: str) -> str:
    return next(name for name in models.parameters(encoder) if name.endswith("token_embedding.weight"))
