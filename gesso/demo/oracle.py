"""Names what a picture of the tiny world shows, or 'none': the judge of the demo and of the learning tests.

A convolutional network of 0.09 M weights that ships with gesso and runs in numpy alone. It was trained on rendered,
blurred, noisy and autoencoder-decoded pictures of the 28 things, and on many pictures that show none of them, so it
is no forced choice: an untrained model's pictures are 'none'. The ground is judged without learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from safetensors.numpy import load_file

from gesso.arrays import Float32, Picture
from gesso.demo.glyphs import GROUNDS, KNOWN, SIZE, SUBJECTS

NONE = "none"
NAMES: tuple[str, ...] = (*(thing.name for thing in KNOWN + SUBJECTS), NONE)
"""The classes in the order of the network's outputs."""
LAYERS: tuple[tuple[int, int, int], ...] = ((3, 16, 5), (16, 32, 3), (32, 64, 3), (64, 64, 3))
"""(channels in, channels out, kernel width) of the convolutions, each of stride 2: 64 → 32 → 16 → 8 → 4."""
FEATURES = LAYERS[-1][1] * (SIZE // 2 ** len(LAYERS)) ** 2
WEIGHTS = Path(__file__).parent / "assets" / "oracle.safetensors"


def as_input(pictures: Sequence[Picture]) -> Float32:
    """uint8 pictures of any size to float32 [B, 64, 64, 3] in [-1, 1]."""
    made = [
        picture
        if picture.shape[:2] == (SIZE, SIZE)
        else np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BOX))
        for picture in pictures
    ]
    scaled: Float32 = np.stack(made).astype(np.float32) / 127.5 - 1.0
    return scaled


def convolved(x: Float32, weight: Float32, bias: Float32) -> Float32:
    """One convolution of stride 2 and its ReLU: [B, H, W, in] with [out, in, k, k] to [B, H/2, W/2, out]."""
    out, _, k, _ = weight.shape
    margin = k // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    windows = sliding_window_view(padded, (k, k), axis=(1, 2))[:, ::2, ::2]
    b, h, w = windows.shape[:3]
    flat = windows.reshape(b * h * w, -1) @ weight.reshape(out, -1).T + bias
    lit: Float32 = np.maximum(flat, 0.0, dtype=np.float32)
    return lit.reshape(b, h, w, out)


class Oracle:
    """Says which of the 28 things a picture shows, and on which ground."""

    def __init__(self, weights: Path | None = None) -> None:
        self._weights = {name: value.astype(np.float32) for name, value in load_file(weights or WEIGHTS).items()}

    def probabilities(self, pictures: Sequence[Picture]) -> Float32:
        """float32 [B, 29], rows summing to one, in the order of NAMES."""
        x = as_input(pictures)
        for number in range(len(LAYERS)):
            x = convolved(x, self._weights[f"conv{number}.weight"], self._weights[f"conv{number}.bias"])
        flat = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        scores = flat @ self._weights["out.weight"].T + self._weights["out.bias"]
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)

    def name(self, pictures: Sequence[Picture]) -> list[tuple[str, float]]:
        """The likeliest name of each picture, 'none' among them, with its probability."""
        if not len(pictures):
            return []
        rows = self.probabilities(pictures)
        return [(NAMES[best], float(row[best])) for row, best in zip(rows, rows.argmax(axis=1), strict=True)]

    def chance(self, pictures: Sequence[Picture], name: str) -> Float32:
        """The probability of one name in each picture: finer than right or wrong when pictures are few."""
        return self.probabilities(pictures)[:, NAMES.index(name)]

    @staticmethod
    def ground(picture: Picture) -> str:
        """The ground whose colour is nearest to the median of the picture's border, two pixels wide."""
        edge = [picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]]
        colour = np.median(np.concatenate([part.reshape(-1, 3) for part in edge]), axis=0)
        return min(GROUNDS, key=lambda ground: float(((colour - GROUNDS[ground]) ** 2).sum()))
