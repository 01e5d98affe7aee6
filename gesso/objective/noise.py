"""Noise policies: what is mixed in, and what is aimed at.

offset         each channel is shifted as a whole, in both        Guttenberg 2023, crosslabs.org "offset noise"
perturbation   the mixed-in noise alone is disturbed              Ning et al. 2023, arXiv:2301.11706, equation 8
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gesso.arrays import Latents
from gesso.keys import normals


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Gaussian noise with its two usual alterations; 0 leaves each out."""

    offset: float = 0.0
    perturbation: float = 0.0

    def draw(self, seed: int, places: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> tuple[Latents, Latents]:
        """(eps_in, eps_target), float32 [B, *shape] for B places; shape is (C, H, W)."""
        eps = normals(seed, "noise", places, shape)
        if self.offset:
            eps = eps + self.offset * normals(seed, "noise-offset", places, (shape[0], 1, 1))
        if not self.perturbation:
            return eps, eps
        return eps + self.perturbation * normals(seed, "noise-perturbation", places, shape), eps
