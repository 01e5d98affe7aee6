"""Captions as text: what is hardly meant so, and the word that some of them lack."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from gesso.data.captions import plain
from gesso.data.examine.finding import Finding, shown
from gesso.data.record import Record
from gesso.data.sources.folder import PICTURES

SHARE, LEAST = 0.75, 4
"""A made-up word in this share of the captions, and in so many at least, is taken for one that all should have."""
_MARKUP = re.compile(
    r"</?(?:a|b|br|body|div|em|font|h[1-6]|html|i|img|li|p|script|span|strong|table|td|tr|u|ul)\b[^<>]*>"
    r"|&(?:amp|lt|gt|quot|nbsp|#\d+);",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff]")
_GARBLED = re.compile(r"\ufffd|[ÃÂ][\x80-\xbf]|â€")
"""A replacement character, or UTF-8 that was once read as Latin-1."""
_EMPTY = re.compile(r"[\s!-/:-@\[-`{-~…]+|nan|null|none|undefined|n/?a", re.IGNORECASE)
"""What programs write where there is nothing, and captions of punctuation alone."""
_WORD = re.compile(r"[^\W\d_][\w-]{2,}")
_VOWELS = frozenset("aeiouyàáâãäåæèéêëìíîïòóôõöøùúûü")


def texts(records: Sequence[Record]) -> Iterator[Finding]:
    """Findings on the text of captions, each caption of each place once."""
    seen: set[tuple[str, str]] = set()
    for record in records:
        for caption in record.captions:
            if (record.origin, caption) not in seen:
                seen.add((record.origin, caption))
                yield from _text(record, caption)


def _text(record: Record, caption: str) -> Iterator[Finding]:
    begun = shown(caption if len(caption) <= 60 else caption[:59] + "…")
    for found, what, todo in (
        (_MARKUP.search(caption), "has HTML in it", "keep the words and remove the rest: it would be learned as text"),
        (_CONTROL.search(caption), "has control characters in it", "remove them: they are invisible, but read"),
        (_GARBLED.search(caption), "is garbled", "write it again from a UTF-8 source: it was once read as another"),
        (_is_name(record, caption), "is the name of the file", "describe the picture instead"),
        (_EMPTY.fullmatch(caption), "says nothing", "describe the picture"),
    ):
        if found:
            yield Finding(
                level="warning",
                kind="text",
                where=record.origin,
                what=f'the caption "{begun}" {what}',
                todo=todo,
                pictures=(record.place,),
            )


def _is_name(record: Record, caption: str) -> bool:
    """Whether a caption is a file's name, such as IMG_1234; a name in words may well be a caption."""
    file = PurePosixPath(str(record.place))
    ending = PurePosixPath(caption).suffix.lower()
    if ending in PICTURES:
        return True
    return caption.casefold() == file.stem.casefold() and bool(re.search(r"[\d_]", caption)) and " " not in caption


def lacking(records: Sequence[Record], new: Iterable[str] = ()) -> Iterator[Finding]:
    """Captions without a word that nearly all others have: one of the `new` words to learn, or one that looks made up.

    Made up is a word of three letters or more without a vowel, as "sks" and "zwx" are.
    """
    origins: dict[str, tuple[Record, set[str]]] = {}
    for record in records:
        if record.reader.endswith("prompt") or not record.captions:
            continue
        text = " ".join(plain(caption, record.style) for caption in record.captions)
        # a caption file that two pictures share is one caption
        origins[record.origin or str(record.place)] = (record, {*_words(text), *_named(text, new)})
    counts = Counter(word for _, words in origins.values() for word in words)
    for word, count in counts.items():
        if count >= max(LEAST, SHARE * len(origins)) and count < len(origins):
            for origin, (record, words) in origins.items():
                if word not in words:
                    yield Finding(
                        level="warning",
                        kind="trigger",
                        where=origin,
                        what=f'"{word}" is in {count} of {len(origins)} captions, but not in this one',
                        todo=f'write it there too, or set data.trigger = "{word}" for all',
                        pictures=(record.place,),
                    )


def _words(text: str) -> set[str]:
    found = (each.casefold() for each in _WORD.findall(text))
    return {each for each in found if not _VOWELS & set(each)}


def _named(text: str, new: Iterable[str]) -> set[str]:
    return {word for word in new if word in text}


def long(records: Sequence[Record], count: Callable[[Sequence[str]], tuple[list[int], int]]) -> Iterator[Finding]:
    """Captions with more tokens than are read (`count` gives each one's tokens, and how many are read)."""
    said: dict[str, Record] = {}
    for record in records:
        for caption in record.captions:
            said.setdefault(plain(caption, record.style), record)
    if not said:
        return
    counts, limit = count(list(said))
    for record, tokens in zip(said.values(), counts, strict=True):
        if tokens > limit:
            yield Finding(
                level="warning",
                kind="long",
                where=record.origin,
                what=f"the caption has {tokens} tokens and {limit} are read: the end is cut off",
                todo="say it in fewer words, what matters first, or raise train.caption_chunks",
                pictures=(record.place,),
            )
