"""How like the training pictures a picture is, and whether it is nearly one of them: numpy alone, no model.

Forms: histograms of gradient directions in the four quarters of a picture at three sizes (Dalal & Triggs 2005,
"Histograms of oriented gradients for human detection"). Colours: a joint histogram, compared as Hellinger does. Both
forgive small shifts. They do not know what is shown; they know whether it has the forms and colours of what was shown.

Copies: a picture whose thumbnail, mirrored or not, is far nearer to a training picture's than different real pictures
of the same thing are to each other (Meehan, Chaudhuri & Dasgupta 2020, arXiv:2004.05675, compare the same distances).
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist

from gesso.arrays import Float64, Picture

SIDES = (64, 32, 16)
DIRECTIONS = 8
SHADES = 4
"""Steps of each colour channel in the histogram."""
THUMB = 16
SAME = 0.01
"""Root mean square difference up to which two real pictures are one: saved twice, or resized."""
CLOSE = 0.5
"""Share of the least distance of pictures that are no copies, below which a drawn one is (docs/log.md)."""


def features(picture: Picture) -> Float64:
    """Forms and colours of uint8 [H, W, 3] as float64 [160], each of the two with norm 1."""
    return np.concatenate([_forms(picture), _colours(picture)])


def thumbnail(picture: Picture) -> Float64:
    """float64 [16, 16, 3] from 0 to 1."""
    small = Image.fromarray(picture).resize((THUMB, THUMB), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) / 255.0


def distances(one: Float64, others: Float64) -> Float64:
    """Euclidean distance of features [N, F] to the nearest of [M, F], float64 [N]."""
    found: Float64 = cdist(one, others).min(1)
    return found


def apart(one: Float64, others: Float64) -> Float64:
    """Root mean square difference of thumbnails [N, …] to each of [M, …], as it is or mirrored, float64 [N, M]."""
    seen, size = one.reshape(len(one), -1), math.sqrt(one[0].size)
    both = [cdist(seen, each.reshape(len(others), -1)) for each in (others, others[:, :, ::-1])]
    found: Float64 = np.minimum(*both) / size
    return found


def near(known: Float64, new: Float64, before: Float64) -> float:
    """The distance below which a thumbnail is a copy: CLOSE of the least that pictures have which are none.

    These are different real pictures: thumbnails [N, …] of training pictures to one another, and [M, …] of held-out
    pictures to those; what shows the same (SAME) counts as one picture. And they are `before` [B, …], what the base
    draws of the same captions: a right ground alone brings a picture near, where few pictures have few grounds. A base
    that draws copies by the real pictures' measure knows them already, and says nothing. 0 where there are no two.
    """
    between = apart(np.concatenate([known, new]) if len(new) else known, known)
    np.fill_diagonal(between, 0.0)  # no picture is held against its own mirror image
    different = between[between > SAME]
    if not len(different):
        return 0.0
    least, drawn = float(different.min()), float(apart(before, known).min()) if len(before) else math.inf
    return CLOSE * (min(least, drawn) if drawn >= CLOSE * least else least)


def _forms(picture: Picture) -> Float64:
    found = []
    for side in SIDES:
        grey = Image.fromarray(picture).convert("L").resize((side, side), Image.Resampling.BOX)
        down, right = np.gradient(np.asarray(grey, dtype=np.float64))
        strength, turned = np.hypot(down, right), np.arctan2(down, right) % (2 * np.pi) / (2 * np.pi)
        direction = np.minimum((turned * DIRECTIONS).astype(int), DIRECTIONS - 1)
        half = side // 2
        for part in (np.s_[:half, :half], np.s_[:half, half:], np.s_[half:, :half], np.s_[half:, half:]):
            found.append(np.bincount(direction[part].ravel(), strength[part].ravel(), minlength=DIRECTIONS))
    return _unit(np.concatenate(found))


def _colours(picture: Picture) -> Float64:
    shade = picture.reshape(-1, 3).astype(int) * SHADES // 256
    counts = np.bincount(shade @ [SHADES * SHADES, SHADES, 1], minlength=SHADES**3)
    return _unit(np.sqrt(counts))


def _unit(values: Float64) -> Float64:
    norm = float(np.linalg.norm(values))
    return values / norm if norm > 0 else values
