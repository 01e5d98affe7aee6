"""What gesso's loop costs per step over a bare PyTorch loop that trains the same weights on the same pictures.

`python benchmarks/loop_overhead.py [--rounds N]`. The bare loop is what a person would write: latents and text
embeddings as tensors in memory, noise and timesteps from PyTorch's generator, fused AdamW, clipping, the loss read
every step. Gesso's side is `gesso.loop.train` whole: its batches from the cache, its events written as JSON lines
and for TensorBoard. Blocks of steps alternate (bare, gesso, gesso, bare, …). Before any is timed, both take three
steps on the same noise, and their losses must agree.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from measure import heading, model, pictures, ratios, spread, table
from torch.nn import functional

from gesso import loop, settings
from gesso.data.batches import Batches
from gesso.data.plan import Plan, Slot, by_group
from gesso.engines.torch import adapters
from gesso.events import Started, Stepped
from gesso.families import find
from gesso.job import Job, create_engine, make_objective
from gesso.job import pictures as records_of
from gesso.listeners import Listeners
from gesso.models import resolve
from gesso.rates import Course, Rate
from gesso.recipe import load

LR = 1e-4
TOLERANCE = 1e-5
CASES = (("lora", 4, 24), ("none", 4, 24), ("lora", 16, 8), ("none", 16, 8))
"""Adapter, batch, steps in a block."""


@dataclass(frozen=True, slots=True)
class Took:
    """Milliseconds a step: by the clock, and of this process's processor time (all its threads)."""

    wall: float
    cpu: float


def clocked(work: Callable[[], object], steps: int) -> Took:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(1e3 * (time.perf_counter() - wall) / steps, 1e3 * (time.process_time() - cpu) / steps)


class Gesso:
    """gesso's own parts, put together as gesso/run.py does."""

    def __init__(self, folder: Path, recipe_flags: list[str]) -> None:
        loaded = load(None, recipe_flags)
        self.recipe = loaded.recipe
        source = resolve(self.recipe.model.base)
        family = find(source.pipeline)
        self.engine = create_engine(self.recipe)
        self.engine.load(source.folder, family, parts=() if self.recipe.adapter.kind != "none" else ("unet",))
        self.job = Job(
            recipe=self.recipe,
            out=folder,
            source=source,
            family=family,
            objective=make_objective(self.recipe, source),
            engine=self.engine,
        )
        self.dataset = self.job.dataset(records_of(self.recipe)[0])
        self.dataset.prepare(lambda what, done, total: None)
        self.scale, _ = family.scale(source.config(family.autoencoder))
        self.trainable = self.job.attach()
        self.batches = Batches(
            plan=Plan(seed=0, rows=by_group(self.dataset.records), batch=self.recipe.train.batch),
            dataset=self.dataset,
            objective=self.job.objective,
            scale=self.scale,
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.listeners = Listeners(folder, self.recipe.track)

    def plan(self, steps: int) -> loop.Plan:
        """Steps and nothing else: no sample, no checkpoint."""

        def never(*_: object) -> object:
            raise AssertionError("nothing is sampled or saved here")

        return loop.Plan(
            started=Started(run="benchmark", steps=steps, batch=self.recipe.train.batch, pictures=0),
            engine=self.engine,
            batches=self.batches,
            courses={"unet": Course(rate=Rate(lr=LR), steps=range(steps))},
            steps=steps,
            seed=0,
            micro_batch=0,
            save_when=loop.Every(steps=0, active=False),
            keep_samples=never,  # type: ignore[arg-type]
            save=never,  # type: ignore[arg-type]
            finish=list,
            stop=str,
        )

    def train(self, steps: int) -> list[float]:
        """The losses of `steps` steps."""
        losses = []
        for event in loop.train(self.plan(steps)):
            self.listeners.handle(event)
            if isinstance(event, Stepped):
                losses.append(event.loss)
        return losses


class Bare:
    """A plain loop over the same weights; the adapter is placed by the same call, so that both begin alike."""

    def __init__(self, base: Path, gesso: Gesso) -> None:
        self.net = UNet2DConditionModel.from_pretrained(base / "unet")
        if (adapter := settings.adapter(gesso.recipe, gesso.job.family)) is not None:
            adapters.attach({"unet": self.net}, adapter)
        self.net.train()
        self.parameters = [value for value in self.net.parameters() if value.requires_grad]
        if sum(value.numel() for value in self.parameters) != gesso.trainable.total:
            raise SystemExit("the two loops would not train the same weights")
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=1e-2, fused=True)
        self.scheduler = DDPMScheduler.from_pretrained(base / "scheduler")
        self.batch = gesso.recipe.train.batch
        slots = [Slot(row=row, epoch=0) for row in range(len(gesso.dataset.records))]
        mean, logvar = map(torch.from_numpy, gesso.dataset.latents(slots))
        self.latents = (mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)) * gesso.scale
        captions = [gesso.dataset.caption(slot) for slot in slots]
        self.text = torch.from_numpy(gesso.dataset.condition(captions)["encoder_hidden_states"])

    def step(self, x0: torch.Tensor, eps: torch.Tensor, times: torch.Tensor, text: torch.Tensor) -> float:
        noisy = self.scheduler.add_noise(x0, eps, times)
        answer = self.net(noisy, times, encoder_hidden_states=text, return_dict=False)[0]
        loss = functional.mse_loss(answer, eps)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def train(self, steps: int) -> None:
        for rows in self._rows(steps):
            x0 = self.latents[rows]
            self.step(x0, torch.randn_like(x0), torch.randint(0, 1000, (len(x0),)), self.text[rows])

    def _rows(self, steps: int) -> Iterator[torch.Tensor]:
        left: list[torch.Tensor] = []
        for _ in range(steps):
            left = left or list(torch.split(torch.randperm(len(self.latents)), self.batch))
            yield left.pop()


def agreement(bare: Bare, gesso: Gesso, steps: int = 3) -> float:
    """The largest relative difference of the losses of the first steps, on gesso's noise and timesteps."""
    theirs = []
    for step in range(steps):
        ((batch, c),) = gesso.batches.step(step)
        arrays = (batch.x0, batch.eps_in, c.c_noise.astype(np.int64), batch.cond["encoder_hidden_states"])
        theirs.append(bare.step(*map(torch.from_numpy, arrays)))
    return max(abs(a - b) / b for a, b in zip(gesso.train(steps), theirs, strict=True))


def measure(base: Path, photos: Path, folder: Path, kind: str, batch: int, steps: int, rounds: int) -> dict[str, str]:
    """One row of the table."""
    flags = ["--model.base", str(base), "--data.path", str(photos), "--out", str(folder)]
    flags += ["--adapter.kind", kind, "--train.batch", str(batch), "--train.device", "cpu", "--track.console", "none"]
    gesso = Gesso(folder, flags)
    bare = Bare(base, gesso)
    difference = agreement(bare, gesso)
    if not difference <= TOLERANCE:
        raise SystemExit(f"{kind}, batch {batch}: the losses differ by {difference:.1e}; there is nothing to compare")
    took: dict[str, list[Took]] = {"bare": [], "gesso": []}
    work = {"bare": bare.train, "gesso": gesso.train}
    for round_ in range(rounds):
        for name in ("bare", "gesso") if round_ % 2 == 0 else ("gesso", "bare"):
            took[name].append(clocked(lambda name=name: work[name](steps), steps))  # type: ignore[misc]
    wall = {name: [each.wall for each in found] for name, found in took.items()}
    cpu = {name: [each.cpu for each in found] for name, found in took.items()}
    return {
        "trained": "LoRA, rank 16" if kind == "lora" else "full UNet",
        "batch": str(batch),
        "bare ms/step": spread(wall["bare"], 1),
        "gesso ms/step": spread(wall["gesso"], 1),
        "ratio, wall": spread(ratios(wall["gesso"], wall["bare"]), 3),
        "ratio, CPU": spread(ratios(cpu["gesso"], cpu["bare"]), 3),
        "losses differ": f"{difference:.0e}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=8)
    rounds = max(5, parser.parse_args().rounds)
    print(heading(f"gesso's loop against a bare PyTorch loop, medians of {rounds} rounds", torch.get_num_threads()))
    with tempfile.TemporaryDirectory(prefix="gesso-bench-") as name:
        folder = Path(name)
        os.environ["GESSO_CACHE"] = str(folder / "cache")
        base, photos = model(folder / "base"), pictures(folder / "photos")
        rows = [
            measure(base, photos, folder / f"{kind}-{batch}", kind, batch, steps, rounds)
            for kind, batch, steps in CASES
        ]
    print(table(rows))


if __name__ == "__main__":
    main()
