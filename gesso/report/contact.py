"""Contact sheets: many pictures on one, for READMEs, documentation and reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gesso.arrays import Picture
from gesso.errors import DataError

PAPER, INK = (255, 255, 255), (60, 56, 50)
GAP = 8
LETTERS = 14


def sheet(
    pictures: Sequence[Picture],
    *,
    columns: int,
    labels: Sequence[str] = (),
    headers: Sequence[str] = (),
    rows: Sequence[str] = (),
    scale: int = 1,
    gap: int = GAP,
) -> Picture:
    """`pictures`, each uint8 [height, width, 3], row by row in `columns` on white, uint8 [H, W, 3].

    `labels` stand below each picture, `headers` above each column, `rows` above each row; text that is too long is cut
    with "…". `scale` enlarges pixel by pixel. The largest picture gives the size of a cell; smaller ones are centred.
    """
    if not pictures or columns < 1 or scale < 1:
        raise DataError("a contact sheet needs at least one picture, one column and a scale of at least 1")
    tall, wide = (scale * max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    lines = -(-len(pictures) // columns)
    letters = max(LETTERS, min(wide // 12, 28))
    font = ImageFont.load_default(letters)
    strip = letters + letters // 2
    top = gap + (strip if headers else 0)
    pitch = (strip if rows else 0) + tall + (strip if labels else 0) + gap
    canvas = Image.new("RGB", (gap + columns * (wide + gap), top + lines * pitch), PAPER)
    pen = ImageDraw.Draw(canvas)

    def text(words: str, x: int, y: int, room: int) -> None:
        pen.text((x, y), cut(words, font, room), fill=INK, font=font)

    for column, header in enumerate(headers[:columns]):
        text(header, gap + column * (wide + gap), gap // 2, wide)
    for row, words in enumerate(rows[:lines]):
        text(words, gap, top + row * pitch, canvas.width - 2 * gap)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        x, y = gap + column * (wide + gap), top + row * pitch + (strip if rows else 0)
        big = Image.fromarray(picture)
        big = big.resize((big.width * scale, big.height * scale), Image.Resampling.NEAREST)
        canvas.paste(big, (x + (wide - big.width) // 2, y + (tall - big.height) // 2))
        if number < len(labels):
            text(labels[number], x, y + tall + letters // 8, wide)
    return np.asarray(canvas, dtype=np.uint8).copy()


def cut(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """`words` on one line no longer than `room` pixels."""
    words = " ".join(words.split())
    if font.getlength(words) <= room:
        return words
    while words and font.getlength(words + "…") > room:
        words = words[:-1]
    return words.rstrip() + "…"
