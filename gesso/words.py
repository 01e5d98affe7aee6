"""New words of the text encoders (textual inversion): how they are written, how they begin, whether they are used.

Gal et al. 2022, "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion",
arXiv:2208.01618. A word of n vectors is n tokens, "<dog>", "<dog>_1", …, as diffusers' load_textual_inversion names
them; a prompt has the first alone, and whoever reads the prompt puts the others behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

import numpy as np

from gesso.arrays import Array, Float32
from gesso.engines.engine import Token
from gesso.errors import RecipeError
from gesso.keys import generator

PREFIX = "tokens"
"""The learned vectors are `tokens.<encoder>.<word>`, float32 [vectors, width]."""


def pieces(token: Token) -> list[str]:
    """The tokens that a word stands for, one a vector."""
    return [token.name, *(f"{token.name}_{number}" for number in range(1, token.vectors))]


def full_name(encoder: str, word: str) -> str:
    """What the vectors of `word` in `encoder` are called among the trained values."""
    return f"{PREFIX}.{encoder}.{word}"


def parted(weights: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """(the words, the rest) of trained values by name."""
    own = {name: value for name, value in weights.items() if name.startswith(f"{PREFIX}.")}
    return own, {name: value for name, value in weights.items() if name not in own}


def check(tokens: Sequence[Token]) -> None:
    """RecipeError for names that no tokenizer could keep apart; what a tokenizer itself says of them comes later."""
    for token in tokens:
        if token.name.split() != [token.name] or not token.name.isprintable():
            what = "has white space or invisible signs in it" if token.name.strip() else "is empty"
            raise RecipeError(
                f'tokens: the name "{token.name}" {what}', todo='a word is written without spaces, such as "<dog>"'
            )
        if token.vectors < 1:
            raise RecipeError(f'tokens: "{token.name}" has {token.vectors} vectors, must have at least 1')
    for one, other in permutations(tokens, 2):
        if one.name == other.name:
            raise RecipeError(f'tokens: "{one.name}" is there twice', todo="give each word a name of its own")
        if one.name in other.name:
            # Prompts are rewritten by replacing text, in no fixed order: the shorter would break the longer.
            raise RecipeError(
                f'tokens: "{one.name}" is part of "{other.name}", and would be found in it',
                todo='choose names of which none is part of another, such as "<dog>" and "<cat>"',
            )


def unused(tokens: Sequence[Token], captions: Iterable[str]) -> list[str]:
    """The words that stand in none of `captions` (and prompts), as they are written; such a word cannot learn."""
    idle = [token.name for token in tokens]
    for caption in captions:  # of millions, as few are read as it takes
        idle = [name for name in idle if name not in caption]
        if not idle:
            break
    return idle


def check_used(tokens: Sequence[Token], captions: Iterable[str]) -> None:
    """RecipeError where a word stands in none of `captions`."""
    idle = unused(tokens, captions)
    if idle:
        raise RecipeError(
            f"tokens: no caption has {' or '.join(idle)}, so that nothing would be learned",
            todo=f'write it into the captions, or set data.prompt = "a photo of {idle[0]}"',
        )


def begin(token: Token, encoder: str, known: Float32, table: Float32) -> Float32:
    """The vectors that `token` begins with, float32 [vectors, width].

    known: the vectors of its `init` in this encoder, [count, width]; their mean, or one each where `count` is the
    number of vectors. Without any, normal noise with the standard deviation of `table`, the encoder's own [words,
    width], drawn from the token's seed, its name and the encoder's.
    """
    if len(known) == token.vectors:
        return known.astype(np.float32)
    if len(known):
        mean = known.mean(axis=0, dtype=np.float64).astype(np.float32)
        return np.repeat(mean[None], token.vectors, axis=0)
    size = float(table.std(dtype=np.float64))
    noise = generator(token.seed, f"word {encoder} {token.name}").standard_normal((token.vectors, table.shape[1]))
    return (size * noise).astype(np.float32)
