"""New words in the tokenizers and text encoders: vectors of their own beside the encoder's table, which stays as it is.

What a word is called, and how it begins, is decided in gesso/words.py; how a tokenizer learns it, in
gesso/engines/vocabulary.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import nn
from torch.nn import functional as F

from gesso import words
from gesso.engines import vocabulary
from gesso.engines.engine import Token
from gesso.engines.torch.models import Models

# CLIP configurations with eos_token_id 2 (SD 1.x, SDXL) make the encoder pool where the highest id stands, which is
# then a new word instead of the end of the text. transformers does so, diffusers therefore draws so, and training must
# do the same: SDXL is given the pooled vector.


class Table(nn.Embedding):
    """An embedding that also knows the ids from `first` on; those rows are parameters of their own, one a word.

    The known rows are the original's parameter, under its name. Since no gradient and no decay can reach them by way
    of a new word, nothing has to be masked or put back.
    """

    def __init__(self, known: nn.Embedding, first: int, new: Sequence[nn.Parameter]) -> None:
        super().__init__(known.num_embeddings, known.embedding_dim, known.padding_idx, _weight=known.weight)
        self.weight = known.weight
        self.first, self.new = first, nn.ParameterList(new)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Vectors [..., width] in the table's type for token ids [...]."""
        new = input >= self.first
        known = F.embedding(input.masked_fill(new, 0), self.weight)
        own = F.embedding((input - self.first).clamp(min=0), torch.cat(list(self.new)))
        return torch.where(new.unsqueeze(-1), own.to(known.dtype), known)


def attach(models: Models, encoders: Sequence[tuple[str, str]], tokens: Sequence[Token]) -> dict[str, nn.Parameter]:
    """Teach every tokenizer the names, and give every encoder float32 vectors for them; `tokens.<encoder>.<word>`.

    `encoders` are pairs of component names, (text encoder, tokenizer). RecipeError for names that the tokenizer has
    already or does not keep whole, and for `init` words that are none.
    """
    words.check(tokens)
    found: dict[str, nn.Parameter] = {}
    for encoder, tokenizer in encoders if tokens else ():
        net, reader = models.get(encoder), models.get(tokenizer)
        table = net.get_input_embeddings()
        values = table.weight.detach().float().cpu().numpy()
        starts = {
            token.name: words.begin(token, encoder, vocabulary.known(token, reader, values), values) for token in tokens
        }
        first = vocabulary.extend(reader, tokens)
        own = {name: nn.Parameter(torch.from_numpy(start).to(models.device)) for name, start in starts.items()}
        net.set_input_embeddings(Table(table, first, list(own.values())))
        found |= {words.full_name(encoder, name): value for name, value in own.items()}
    return found


def expanded(captions: Sequence[str], tokenizer: Any) -> list[str]:
    """The captions as diffusers' pipelines hand them to the tokenizer: "<dog>" as "<dog> <dog>_1" and so on."""
    return [str(TextualInversionLoaderMixin().maybe_convert_prompt(caption, tokenizer)) for caption in captions]
