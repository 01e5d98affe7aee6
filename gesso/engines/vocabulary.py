"""How a tokenizer of transformers learns new words, for every engine: it needs no framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gesso import words
from gesso.arrays import Float32
from gesso.engines.engine import Token
from gesso.errors import RecipeError


def known(token: Token, tokenizer: Any, values: Float32) -> Float32:
    """The vectors of the words that `token` begins as, [count, width], out of an encoder's table [words, width].

    None for a random beginning; RecipeError for an `init` that is no known word.
    """
    ids = tokenizer(token.init, add_special_tokens=False).input_ids if token.init else []
    unknown = [each for each in ids if each >= len(values) or each in tokenizer.all_special_ids]
    if token.init and (not ids or unknown):
        raise RecipeError(
            f'tokens: init = "{token.init}" of "{token.name}" is no word that the text encoder knows',
            todo='give it words such as "dog" to begin as, or leave init out for a random beginning',
        )
    return values[ids]


def extend(tokenizer: Any, tokens: Sequence[Token]) -> int:
    """Add every piece of every word; the id of the first.

    RecipeError for words that the tokenizer knows already, does not keep whole, or has no room for.
    """
    for token in tokens:
        taken = next((piece for piece in words.pieces(token) if _is_known(piece, tokenizer)), None)
        if taken is not None:
            raise RecipeError(
                f'tokens: the text encoder already knows the word "{taken}"',
                todo=f'choose a name that is new, such as "<{token.name.strip("<>")}-1>"',
            )
    room = int(tokenizer.model_max_length) - 2  # all but the marks of beginning and end
    for token in tokens:
        if token.vectors > room:
            raise RecipeError(
                f'tokens: "{token.name}" has {token.vectors} vectors, but a caption has room for {room}',
                todo="give it fewer; 1 to 4 are usual",
            )
    pieces = [piece for token in tokens for piece in words.pieces(token)]
    first = len(tokenizer)
    tokenizer.add_tokens(pieces)
    ids = tokenizer.convert_tokens_to_ids(pieces)
    if ids != list(range(first, first + len(pieces))):
        raise RecipeError(f"tokens: the tokenizer does not take {pieces} as {len(pieces)} new words")
    for token in tokens:
        read = tokenizer.tokenize(f"a {token.name} and {token.name}, a")
        if read.count(token.name) != 2:
            seen = " ".join(str(each).removesuffix("</w>") for each in tokenizer.tokenize(token.name))
            raise RecipeError(
                f'tokens: the tokenizer reads "{token.name}" as "{seen}"',
                todo="write the word in small letters and plain signs",
            )
    return first


def _is_known(piece: str, tokenizer: Any) -> bool:
    read = tokenizer(piece, add_special_tokens=False).input_ids
    return piece in tokenizer.get_vocab() or (len(read) == 1 and read[0] != tokenizer.unk_token_id)
