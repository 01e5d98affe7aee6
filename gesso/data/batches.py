"""The batch of each step: a pure function of the step number, whatever was asked before.

    x0 = ((mean + exp(logvar / 2)·eps_vae) − shift)·scale           Rombach et al. 2022, arXiv:2112.10752, appendix G

Instance rows are weighted as the objective says; class rows count plainly, `prior_weight` times (DreamBooth's loss,
Ruiz et al. 2023, arXiv:2208.12242, equation 2): each half is a mean over its own rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gesso.arrays import Float32, Latents
from gesso.data.batch import Batch
from gesso.data.buckets import Size
from gesso.data.dataset import Dataset
from gesso.data.plan import GROUPS, Plan, Slot
from gesso.data.readers import Readers, number
from gesso.families.family import Scale
from gesso.keys import normals
from gesso.objective.coefficients import Coefficients
from gesso.objective.objective import Objective

AHEAD = 2
"""Steps computed while one is executed."""

Piece = tuple[Batch, Coefficients]
Step = tuple[Piece, ...]
"""What a step learns from, one piece for each size of picture in it."""


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Plan × dataset × objective. `scale` and `shift` are as `Family.scale` gives them."""

    plan: Plan
    dataset: Dataset
    objective: Objective
    scale: Scale
    shift: Scale = 0.0
    prior_weight: float = 1.0
    teacher: bool = False
    """Class rows aim at what the base model answers, instead of at a picture."""

    def step(self, step: int) -> Step:
        """What step 0, 1, … learns from: the whole global batch, class rows after instance rows in each piece."""
        slots = self.plan.step(step)
        places = range(len(slots))
        alike = _by_size([self.dataset.size(slot.row) for slot in slots], places)
        return tuple(self._piece([slots[at] for at in some], [at >= self.plan.batch for at in some]) for some in alike)

    def _piece(self, slots: Sequence[Slot], of_class: Sequence[bool]) -> Piece:
        """What is learned from slots whose pictures have one size, class rows after instance rows."""
        instances = len(of_class) - sum(of_class)
        # Instance and class rows are drawn apart even where a row number and an epoch should agree.
        places = [(s.epoch, s.row, GROUPS.index(self.dataset.records[s.row].group)) for s in slots]
        mean, logvar = self.dataset.latents(slots)
        posterior = normals(self.plan.seed, "posterior", places, mean.shape[1:])
        x0 = _scaled(mean + np.exp(np.float32(0.5) * np.clip(logvar, -30.0, 20.0)) * posterior, self.scale, self.shift)
        eps_in, eps_target = self.objective.noise.draw(self.plan.seed, places, mean.shape[1:])
        batch = Batch(
            x0=x0,
            eps_in=eps_in,
            eps_target=eps_target,
            cond={
                **self.dataset.condition([self.dataset.caption(slot) for slot in slots]),
                **self.dataset.sizes(slots),
            },
            weight=self._weights(slots),
            ids=np.array([slot.row for slot in slots], dtype=np.int64),
            mask=self.dataset.mask(slots, *mean.shape[2:]),
            teacher=np.array(of_class, dtype=np.float32) if self.teacher else None,
        )
        timesteps = self.objective.draw(self.plan.seed, places)
        weighted, plain = self.objective.at(timesteps[:instances]), self.objective.plain(timesteps[instances:])
        return batch, weighted.joined(plain)

    def prefetch(self, start: int, stop: int) -> Generator[Step]:
        """`step(start)` … `step(stop − 1)`, two of them computed ahead in a thread of its own.

        Readers have the pictures ready for it. What goes wrong in the threads is raised here, at the step it belongs
        to. Closing the iterator ends them.
        """
        worker = ThreadPoolExecutor(1, thread_name_prefix="gesso-batches")
        readers = Readers(self.dataset.pictures, self.dataset.readers)
        # A step may be smaller than the number of readers: then they read for several.
        further = AHEAD + -(-2 * number(self.dataset.readers) // self.plan.batch)

        def expect(step: int) -> None:  # what goes wrong here is met again at the step itself
            readers.expect(self.dataset.wanted(self.plan.step(step)) if step < stop else ())

        try:
            for step in range(start, min(start + further, stop)):
                worker.submit(expect, step)
            ahead = deque(worker.submit(self.step, step) for step in range(start, min(start + AHEAD, stop)))
            for step in range(start, stop):
                worker.submit(expect, step + further)
                result = ahead.popleft().result()
                if step + AHEAD < stop:
                    ahead.append(worker.submit(self.step, step + AHEAD))
                yield result
        finally:
            worker.shutdown(wait=True, cancel_futures=True)
            readers.close()

    def _weights(self, slots: Sequence[Slot]) -> Float32:
        records = [self.dataset.records[slot.row] for slot in slots]
        group = {"instance": 1.0, "class": self.prior_weight}
        return np.array([r.weight * group[r.group] / self.plan.batch for r in records], dtype=np.float32)


def held_out(
    dataset: Dataset, *, objective: Objective, scale: Scale, shift: Scale = 0.0, seed: int, timesteps: int, batch: int
) -> list[Piece]:
    """Every record of `dataset` at `timesteps` evenly spaced noise levels, in batches of up to `batch` rows a level.

    Pictures of one size go together.

    Nothing varies from one call to the next: the latent is the posterior's mean, the caption the first one, the noise
    Gaussian and a function of (seed, row), the same at every level. Coefficients are unweighted; masks are the
    picture's own.
    """
    total = objective.schedule.timesteps
    # The middles of equal slices of the schedule: neither its first nor its last level, which say the least.
    levels = sorted({int((i + 0.5) * total / timesteps) for i in range(timesteps)})
    steps = []
    every = range(len(dataset.records))
    alike = _by_size([dataset.size(row) for row in every], every)
    for rows in [some[start : start + batch] for some in alike for start in range(0, len(some), batch)]:
        slots = [Slot(row=row, epoch=0) for row in rows]
        mean, _ = dataset.latents(slots)
        eps = normals(seed, "held-out", [(row,) for row in rows], mean.shape[1:])
        whole = Batch(
            x0=_scaled(mean, scale, shift),
            eps_in=eps,
            eps_target=eps,
            cond={**dataset.condition([dataset.plain_caption(row) for row in rows]), **dataset.sizes(slots)},
            weight=np.full(len(rows), 1.0 / len(rows), dtype=np.float32),
            ids=np.array(rows, dtype=np.int64),
            mask=dataset.mask(slots, *mean.shape[2:]),
        )
        steps += [(whole, objective.measured(np.full(len(rows), level, dtype=np.int64))) for level in levels]
    return steps


def _by_size(sizes: Sequence[Size], items: Iterable[int]) -> list[list[int]]:
    """The items whose sizes agree, in order."""
    alike: dict[Size, list[int]] = {}
    for size, item in zip(sizes, items, strict=True):
        alike.setdefault(size, []).append(item)
    return list(alike.values())


def _scaled(latents: Float32, scale: Scale, shift: Scale) -> Latents:
    scaled: Latents = (latents - np.asarray(shift, np.float32)) * np.asarray(scale, np.float32)
    return scaled
