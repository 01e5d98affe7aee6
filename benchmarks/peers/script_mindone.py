"""Runs one of mindone's training scripts in this process, and notes when each step was and what its loss was.

`python script_mindone.py SCRIPT NOTES [--draws FILE [--precomputes] [--pairs N M]] [--corrected] -- FLAGS…`. Nothing of
the script is changed: names that it imports are replaced before it runs. It gets gesso's operators for a CPU, without
which mindone does not run there; stand-ins for libraries that are not installed; and one learning rate more than it
asks for: it looks one up after the last step, and would end with an error.

With `--draws` it also gets what gesso drew (ours.py), and runs eagerly, where it can be handed numbers: the scripts
demand graphs, which compute the same. `--corrected` gives it an AdamW with bias correction.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_v", "3")
STAND_INS = ("datasets", "tensorboardX", "ml_dtypes")
if any(importlib.util.find_spec(name) is None for name in STAND_INS):  # after what is installed, which comes first
    sys.path.append(str(Path(__file__).parent / "standins_mindone"))

import mindspore as ms  # noqa: E402
import mindspore.dataset  # noqa: E402
import numpy as np  # noqa: E402
import randoms_mindone as randoms  # noqa: E402
from indices import by_picture, indices  # noqa: E402
from mindspore import mint, nn, ops  # noqa: E402

from gesso.engines.mindspore import devices  # noqa: E402

devices.select("cpu")

from mindone.diffusers import optimization, training_utils  # noqa: E402
from mindone.diffusers.loaders.peft import PeftAdapterMixin  # noqa: E402
from mindone.diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # noqa: E402


class Notes:
    """When each step began, by the clock and in this process's processor time, and its loss."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []

    def listen(self) -> None:
        call = nn.Cell.__call__

        def noted(step: Any, *arguments: Any, **rest: Any) -> Any:
            self.times.append(time.perf_counter())
            self.cpu.append(time.process_time())
            found = call(step, *arguments, **rest)
            self.losses.append(float(found[0].asnumpy()))
            return found

        training_utils.TrainStep.__call__ = noted


def mend() -> None:
    """What the scripts need to run on a CPU to their end."""
    mint.randn_like, mint.randn, mint.randint = randoms.randn_like, randoms.randn, randoms.randint
    rates = optimization.get_scheduler

    def one_more(*arguments: Any, **rest: Any) -> list[float]:
        found = rates(*arguments, **rest)
        return [*found, found[-1]]

    optimization.get_scheduler = one_more


class Corrected(nn.AdamWeightDecay):  # type: ignore[misc]
    """AdamW as Loshchilov and Hutter 2019 (arXiv:1711.05101, algorithm 2) have it, eagerly: with bias correction."""

    def construct(self, gradients: Any) -> bool:
        rate, count = float(self.get_lr().asnumpy()), int(self.global_step.asnumpy()) + 1
        beta1, beta2 = (float(beta.asnumpy()) for beta in (self.beta1, self.beta2))
        for parameter, m, v, gradient in zip(self._parameters, self.moments1, self.moments2, gradients, strict=True):
            ops.assign(m, beta1 * m + (1 - beta1) * gradient)
            ops.assign(v, beta2 * v + (1 - beta2) * gradient.square())
            step = (m / (1 - beta1**count)) / ((v / (1 - beta2**count)).sqrt() + float(self.eps.asnumpy()))
            ops.assign(parameter, parameter - rate * (step + float(self.weight_decay) * parameter))
        ops.assign(self.global_step, self.global_step + 1)
        return True


class Ordered:
    """The rows of `source` in the order of `indices`; a row may be there several times, or not at all."""

    def __init__(self, source: Any, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, at: int) -> Any:
        return self.source[self.indices[at]]


class Fed:
    """What gesso drew, handed to the script in place of what it would draw."""

    def __init__(self, draws: Path, precomputes: bool, pairs: tuple[int, int] | None) -> None:
        self.draws, self.pairs = dict(np.load(draws)), pairs
        self.eps, self.timesteps = (iter(self.draws[name]) for name in ("eps", "timesteps"))
        posterior = self.draws["posterior"]
        self.posterior = by_picture(self.draws["ids"], posterior) if precomputes else iter(posterior)

    def feed(self) -> None:
        set_context, generator = ms.set_context, mindspore.dataset.GeneratorDataset
        order = indices(self.draws["ids"], self.pairs)

        def eagerly(**options: Any) -> None:
            set_context(**{**options, "mode": ms.PYNATIVE_MODE})

        def ordered(source: Any, *, shuffle: bool = False, shard_id: int = 0, num_shards: int = 1, **rest: Any) -> Any:
            return generator(Ordered(source, order), shuffle=False, **rest)

        def sample(posterior: Any, parameters: ms.Tensor, generator: Any = None) -> ms.Tensor:
            mean, _, _, std = posterior.init(parameters)
            return mean + std * _next(self.posterior, mean.shape)

        ms.set_context, mindspore.dataset.GeneratorDataset = eagerly, ordered
        DiagonalGaussianDistribution.sample = sample
        mint.randn_like = lambda like, dtype=None: _next(self.eps, like.shape)
        mint.randint = lambda low, high, size, dtype=None: _next(self.timesteps, size)
        random.choice = lambda found: found[0]  # of several templates the first
        mindspore.dataset.vision.RandomHorizontalFlip = lambda prob=0.5: lambda picture: picture
        Path.iterdir = _sorted(Path.iterdir)  # type: ignore[method-assign]
        os.listdir = _sorted(os.listdir)
        PeftAdapterMixin.add_adapter = self._beginning(PeftAdapterMixin.add_adapter)

    def _beginning(self, add: Callable[..., Any]) -> Callable[..., Any]:
        """An adapter begins with the values that gesso's had."""

        def added(net: Any, *arguments: Any, **rest: Any) -> Any:
            found = add(net, *arguments, **rest)
            for name, value in net.parameters_and_names():
                if "lora_" in name:
                    value.set_data(ms.Tensor(self.draws[f"weights/unet.{name.replace('.default.', '.')}"]))
            return found

        return added


def _next(drawn: Iterator[np.ndarray], shape: tuple[int, ...]) -> ms.Tensor:
    value = next(drawn)
    if tuple(value.shape) != tuple(shape):
        raise SystemExit(f"the script wants numbers of the shape {tuple(shape)}, gesso drew {tuple(value.shape)}")
    return ms.Tensor(value)


def _sorted(entries: Callable[..., Iterable[Any]]) -> Callable[..., list[Any]]:
    return lambda *folder: sorted(entries(*folder))


def main() -> None:
    at = sys.argv.index("--")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("script", type=Path)
    parser.add_argument("notes", type=Path)
    parser.add_argument("--draws", type=Path)
    parser.add_argument("--precomputes", action="store_true")
    parser.add_argument("--pairs", type=int, nargs=2, metavar=("PICTURES", "CLASS_PICTURES"))
    parser.add_argument("--corrected", action="store_true")
    arguments, flags = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    notes = Notes()
    notes.listen()
    mend()
    if arguments.draws:
        Fed(arguments.draws, arguments.precomputes, arguments.pairs).feed()
    if arguments.corrected:
        nn.AdamWeightDecay = Corrected
    sys.argv = [str(arguments.script), *flags]
    try:
        runpy.run_path(str(arguments.script), run_name="__main__")
    finally:
        arguments.notes.write_text(json.dumps(vars(notes)), encoding="utf-8")


if __name__ == "__main__":
    main()
