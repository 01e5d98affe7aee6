"""What one step learns from: the one thing that the data side makes and an engine takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gesso.arrays import Array, Float32, Int64, Latents


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one step learns from. B rows; every array has B as its first axis.

    x0: float32 [B, C, H, W], latents already scaled for the denoiser.
    eps_in, eps_target: float32 [B, C, H, W], the noise mixed in and the noise aimed at (equal unless a policy differs).
    cond: what the denoiser is conditioned on, by name; token ids when a text encoder trains.
    weight: float32 [B], each row's share of the step's loss: 1/B in a plain batch, times the row's own weight.
        The loss of a step is sum over rows of weight · w · mean squared error, however the rows are split.
    mask: float32 [B, 1, H, W] from 0 to 1, or None: the mean is that of mask · squared error over all of a row's
        values, so that a picture whose mask lets half of it through counts half.
    teacher: float32 [B] or None; 1 where the target is what the base model answers as it was before training.
    ids: int64 [B], row numbers in the data, for messages.
    """

    x0: Latents
    eps_in: Latents
    eps_target: Latents
    cond: Mapping[str, Array]
    weight: Float32
    ids: Int64
    mask: Float32 | None = None
    teacher: Float32 | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def rows(self, start: int, stop: int) -> Batch:
        """The rows start…stop as a batch of their own (a micro-batch)."""
        at = slice(start, stop)
        return Batch(
            x0=self.x0[at],
            eps_in=self.eps_in[at],
            eps_target=self.eps_target[at],
            cond={name: value[at] for name, value in self.cond.items()},
            weight=self.weight[at],
            ids=self.ids[at],
            mask=None if self.mask is None else self.mask[at],
            teacher=None if self.teacher is None else self.teacher[at],
        )
