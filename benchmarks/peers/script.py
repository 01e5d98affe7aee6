"""Runs one of diffusers' training scripts in this process, and notes when each step was and what its loss was.

`python script.py SCRIPT NOTES [--draws FILE] [--precomputes] [--pairs N M] -- FLAGS…`. Nothing of the script is
changed: names that it imports are replaced before it runs. With `--draws`, the order of the pictures, the noise of the
posterior, the noise, the timesteps and the beginning of the adapters are those that gesso drew (ours.py) instead of
its own; the pictures, captions, encoders, loss and optimiser remain the script's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import datasets
import diffusers
import numpy as np
import torch
import transformers
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from indices import indices
from transformers.integrations.peft import PeftAdapterMixin as TextPeftAdapterMixin

assert datasets  # imported before the stand-in is there, so that it does not take it for the real torchvision
PARTS = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}


def stand_in() -> None:
    """Put the stand-in for torchvision on the path where the real one is missing."""
    transformers.utils.is_torchvision_available()  # answers from memory from now on
    if importlib.util.find_spec("torchvision") is None:
        sys.path.append(str(Path(__file__).parent / "standins"))


class Notes:
    """When each step's loss was there, by the clock and in this process's processor time, and the loss."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []

    def listen(self) -> None:
        backward = accelerate.Accelerator.backward

        def noted(accelerator: Any, loss: torch.Tensor, **rest: Any) -> None:
            self.times.append(time.perf_counter())
            self.cpu.append(time.process_time())
            self.losses.append(loss.item())
            backward(accelerator, loss, **rest)

        accelerate.Accelerator.backward = noted


class Fed:
    """What gesso drew, handed to the script in place of what it would draw."""

    def __init__(self, draws: Path, precomputes: bool, pairs: tuple[int, int] | None) -> None:
        self.draws, self.pairs = dict(np.load(draws)), pairs
        self.eps, self.timesteps = (iter(torch.from_numpy(self.draws[name])) for name in ("eps", "timesteps"))
        self.posterior = self._by_row() if precomputes else iter(torch.from_numpy(self.draws["posterior"]))

    def _by_row(self) -> Iterator[torch.Tensor]:
        """For a script that encodes every picture beforehand, in their order; one epoch only."""
        _, batch = ids = self.draws["ids"].shape
        rows = self.draws["posterior"].reshape(-1, *self.draws["posterior"].shape[2:])
        rows = rows[np.argsort(self.draws["ids"].reshape(-1), kind="stable")]
        assert len(np.unique(self.draws["ids"])) == np.prod(ids), "more than one epoch"
        return iter(torch.from_numpy(rows).split(batch))

    def feed(self) -> None:
        self._randoms()
        self._data()
        for mixin in (PeftAdapterMixin, TextPeftAdapterMixin):
            mixin.add_adapter = self._beginning(mixin.add_adapter)

    def _randoms(self) -> None:
        randint = torch.randint

        def noise(like: torch.Tensor, **rest: Any) -> torch.Tensor:
            return _fitting(next(self.eps), like.shape)

        def timesteps(low: int, high: int, size: tuple[int, ...], **rest: Any) -> torch.Tensor:
            if high != 1000:
                return randint(low, high, size, **rest)
            drawn = _fitting(next(self.timesteps), size)
            # EDM-style training draws places in the scheduler's list, which begins with the last timestep.
            return drawn if "device" in rest else high - 1 - drawn

        def sample(posterior: Any, generator: object = None) -> torch.Tensor:
            return posterior.mean + posterior.std * _fitting(next(self.posterior), posterior.mean.shape)

        torch.randn_like, torch.randint = noise, timesteps
        DiagonalGaussianDistribution.sample = sample
        random.choice = lambda found: found[0]  # of several captions or templates the first

    def _data(self) -> None:
        from torchvision import transforms

        order = indices(self.draws["ids"], self.pairs)
        loader, iterdir, listdir = torch.utils.data.DataLoader.__init__, Path.iterdir, os.listdir

        def ordered(self_: Any, *arguments: Any, shuffle: bool = False, **rest: Any) -> None:
            loader(self_, *arguments, **rest, **({"sampler": order} if shuffle else {}))

        torch.utils.data.DataLoader.__init__ = ordered
        Path.iterdir = lambda folder: iter(sorted(iterdir(folder)))
        os.listdir = lambda *folder: sorted(listdir(*folder))
        transforms.RandomHorizontalFlip = lambda p=0.5: lambda picture: picture

    def _beginning(self, add: Callable[..., Any]) -> Callable[..., Any]:
        """An adapter begins with the values that gesso's had."""

        def added(net: Any, *arguments: Any, **rest: Any) -> Any:
            found = add(net, *arguments, **rest)
            for name, value in net.named_parameters():
                if "lora_" in name:
                    public = f"{PARTS[type(net).__name__]}.{name.replace('.default.', '.')}"
                    value.data.copy_(torch.from_numpy(self.draws[f"weights/{public}"]))
            return found

        return added


def _fitting(value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if tuple(value.shape) != tuple(shape):
        raise SystemExit(f"the script wants numbers of the shape {tuple(shape)}, gesso drew {tuple(value.shape)}")
    return value.clone()


def main() -> None:
    at = sys.argv.index("--")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("script", type=Path)
    parser.add_argument("notes", type=Path)
    parser.add_argument("--draws", type=Path)
    parser.add_argument("--precomputes", action="store_true")
    parser.add_argument("--pairs", type=int, nargs=2, metavar=("PICTURES", "CLASS_PICTURES"))
    arguments, flags = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    stand_in()
    diffusers.utils.check_min_version = lambda version: None
    notes = Notes()
    notes.listen()
    if arguments.draws:
        Fed(arguments.draws, arguments.precomputes, arguments.pairs).feed()
    sys.argv = [str(arguments.script), *flags]
    try:
        runpy.run_path(str(arguments.script), run_name="__main__")
    finally:
        arguments.notes.write_text(json.dumps(vars(notes)), encoding="utf-8")


if __name__ == "__main__":
    main()
