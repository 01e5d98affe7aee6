"""A genuine CLIP byte-pair vocabulary, small: every word of the tiny world is one token, any other text is bytes.

`write(folder)` leaves vocab.json, merges.txt and the two small config files, the form every CLIP reader takes.
The merges are learnt as byte-pair encoding learns them (Sennrich et al. 2016): merge the commonest pair, again and
again, until every wanted word is one piece. Replaying them in that order is what a reader does, so no word can be
broken by the merges of another.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from gesso.demo.glyphs import GROUNDS, KINDS, KNOWN, SUBJECTS

LENGTH = 32
"""Tokens a caption is padded or cut to, the first and last marks included."""
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
COMMON = (
    "a an the of on in at with and to by for background photo picture image painting drawing sketch style art "
    "sks zwx cyan brown gray gold silver dark light bright small big large one two three "
    "dog bird fish bear horse house car flower person man woman beach forest snow grass sky sea city table"
)
"""Words beyond the tables that people write; those that pre-training never shows are single, blank tokens."""


def words() -> list[str]:
    """Every word that is one token, sorted."""
    named = [thing.name for thing in KNOWN + SUBJECTS]
    return sorted({word for text in [*named, *KINDS, *GROUNDS, COMMON] for word in text.split()})


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte 0 … 255, as GPT-2 and CLIP have it, in CLIP's order.

    Printable Latin-1 bytes stand for themselves; the other 68 take the letters from U+0100 up.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(rest))]


def learn(wanted: Iterable[str]) -> list[tuple[str, str]]:
    """The merges, in order, that make each wanted word one token."""
    pieces = [[*word[:-1], word[-1] + WORD_END] for word in sorted(wanted)]
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for piece in pieces for pair in pairwise(piece))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merged(piece, best) for piece in pieces]


def _merged(piece: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for letter in piece:
        if out and (out[-1], letter) == pair:
            out[-1] += letter
        else:
            out.append(letter)
    return out


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token → id: 256 bytes, 256 bytes that end a word, the merges, begin, end (CLIP's own layout)."""
    letters = byte_letters()
    tokens = letters + [letter + WORD_END for letter in letters] + [left + right for left, right in merges]
    unique = list(dict.fromkeys(tokens))
    return {token: number for number, token in enumerate([*unique, BEGIN, END])}


def write(folder: Path) -> dict[str, int]:
    """Writes the four files of a CLIP tokenizer and returns the vocabulary.

    Padding is the end token, as in Stable Diffusion 1.x.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn(words())
    vocab = vocabulary(merges)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    marks = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(marks, indent=2) + "\n", encoding="utf-8")
    config = {
        **marks,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": LENGTH,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return vocab
