"""Noise policies: what is mixed in, and what is aimed at.

pyramid        coarser and coarser noise is added, in both        Whitaker 2023, "multi-resolution noise"
offset         each channel is shifted as a whole, in both        Guttenberg 2023, crosslabs.org "offset noise"
perturbation   the mixed-in noise alone is disturbed              Ning et al. 2023, arXiv:2301.11706, equation 8
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gesso.arrays import Array, Float32, Float64, Latents
from gesso.keys import generator, normals, uniforms

Place = tuple[int, ...]
"""Where in a run a picture is seen, such as (epoch, row)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Gaussian noise with its usual alterations; 0 leaves each out."""

    offset: float = 0.0
    offset_random: bool = False
    """Draw the strength for each picture, from 0 to `offset`."""
    pyramid: float = 0.0
    """What each coarser layer counts less, as a factor below 1."""
    layers: int = 6
    """Layers of the pyramid, the plain noise included."""
    perturbation: float = 0.0
    perturbation_random: bool = False

    def draw(self, seed: int, places: Sequence[Place], shape: tuple[int, ...]) -> tuple[Latents, Latents]:
        """(eps_in, eps_target), float32 [B, *shape] for B places; shape is (C, H, W)."""
        eps = normals(seed, "noise", places, shape)
        if self.pyramid:
            eps = np.stack([self._on_pyramid(row, seed, place) for row, place in zip(eps, places, strict=True)])
        if self.offset:
            strength = _strength(self.offset, self.offset_random, seed, "noise-offset-strength", places)
            eps = eps + strength * normals(seed, "noise-offset", places, (shape[0], 1, 1))
        if not self.perturbation:
            return eps, eps
        strength = _strength(self.perturbation, self.perturbation_random, seed, "noise-perturbation-strength", places)
        return eps + strength * normals(seed, "noise-perturbation", places, shape), eps

    def _on_pyramid(self, plain: Float32, seed: int, place: Place) -> Float32:
        """One picture's noise [C, H, W] with coarser layers on it, of standard deviation 1 again.

        Layer i is Gaussian at 1/r^i of the size, r drawn from [2, 4) for each picture, and counts discount^i.
        """
        channels, height, width = plain.shape
        ratio = 2.0 + 2.0 * generator(seed, "noise-pyramid-ratio", *place).random()
        total = plain.astype(np.float64)
        for layer in range(1, self.layers):
            size = (channels, max(1, int(height / ratio**layer)), max(1, int(width / ratio**layer)))
            coarse = normals(seed, "noise-pyramid", [(*place, layer)], size)[0]
            total += self.pyramid**layer * enlarged(coarse, height, width)
            if size[1:] == (1, 1):
                break
        return np.asarray(total / total.std(), dtype=np.float32)


def enlarged(field: Array, height: int, width: int) -> Float64:
    """[C, h, w] by bilinear interpolation, edges held: torch's interpolate without align_corners; float64."""
    down, across = _between(field.shape[1], height), _between(field.shape[2], width)
    return np.asarray(down @ field @ across.T)


def _between(small: int, large: int) -> Float64:
    """[large, small]: which share each of `small` points has in each of `large` points over the same length."""
    at = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0.0, small - 1.0)
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(small)))


def _strength(most: float, drawn: bool, seed: int, stream: str, places: Sequence[Place]) -> Float32 | float:
    """The strength of an alteration: the same for all, or one for each picture, float32 [B, 1, 1, 1]."""
    if not drawn:
        return most
    return (most * uniforms(seed, stream, places)).astype(np.float32).reshape(-1, 1, 1, 1)
