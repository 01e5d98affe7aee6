"""Trains the oracle that gesso.demo.oracle runs in numpy.

`python -m gesso.engines.torch.demo.oracle AUTOENCODER WEIGHTS` trains on pictures drawn on the fly, a third of them
through the autoencoder, and writes the fp16 weights and their marks on pictures it has not seen.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from gesso import keys
from gesso.arrays import Int64, Picture, UInt8
from gesso.demo.confusers import KINDS, THINGS, bent, blurred, noisy, nothing, other_characters, shown
from gesso.demo.glyphs import FONT, GROUNDS, SIZE, Pose, draw
from gesso.demo.oracle import FEATURES, LAYERS, NAMES, NONE, Oracle

NONE_CLASS = len(THINGS)


def network() -> nn.Module:
    """Four convolutions of stride 2 and one linear layer, named as the numpy reader expects them."""
    layers = nn.ModuleDict()
    for number, (into, out, k) in enumerate(LAYERS):
        layers[f"conv{number}"] = nn.Conv2d(into, out, k, stride=2, padding=k // 2)
    layers["out"] = nn.Linear(FEATURES, len(NAMES))
    return layers


def scores(layers: nn.Module, pictures: Tensor) -> Tensor:
    """float32 [B, 3, 64, 64] in [-1, 1] to the unnormalised log probability of each name, [B, 29]."""
    assert isinstance(layers, nn.ModuleDict)
    x = pictures
    for number in range(len(LAYERS)):
        x = torch.relu(layers[f"conv{number}"](x))
    out: Tensor = layers["out"](x.flatten(1))
    return out


class Examples:
    """Labelled pictures, a function of (seed, step): 62 % things, 38 % nothing, some of each decoded."""

    def __init__(self, vae: AutoencoderKL, seed: int, font: str = FONT) -> None:
        self.vae, self.seed, self.font = vae, seed, font
        self.others = other_characters(font)

    @torch.no_grad()
    def _decoded(self, pictures: UInt8, rng: np.random.Generator) -> UInt8:
        """Through the autoencoder, the latents a little disturbed as a model's would be."""
        pixels = torch.from_numpy(pictures.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0)
        latents = self.vae.encode(pixels).latent_dist.mean
        spread = rng.uniform(0, 0.35, (len(pictures), 1, 1, 1)) / self.vae.config.scaling_factor
        noise = spread * rng.standard_normal(latents.shape)
        return self._pictures(latents + torch.from_numpy(noise.astype(np.float32)))

    @torch.no_grad()
    def _dreams(self, count: int, rng: np.random.Generator) -> UInt8:
        """What random latents decode to, fine or smooth, faint or strong: an untrained model's pictures."""
        made = np.empty((count, 4, SIZE // 4, SIZE // 4), np.float32)
        for row in range(count):
            cells = int(rng.choice([1, 2, 4, 8, 16, 16, 16]))
            coarse = rng.standard_normal((4, cells, cells)).repeat(16 // cells, axis=1).repeat(16 // cells, axis=2)
            made[row] = coarse * rng.uniform(0.2, 3.0) + rng.normal(0, 0.7, (4, 1, 1))
        return self._pictures(torch.from_numpy(made) / self.vae.config.scaling_factor)

    def _pictures(self, latents: Tensor) -> UInt8:
        back = self.vae.decode(latents).sample.clamp(-1, 1)
        pictures: UInt8 = ((back + 1) * 127.5).round().to(torch.uint8).numpy().transpose(0, 2, 3, 1)
        return pictures

    def at(self, step: int, batch: int) -> tuple[UInt8, Int64]:
        """uint8 [batch, 64, 64, 3] and the classes int64 [batch]."""
        rng = keys.generator(self.seed, "oracle batch", step)
        classes = np.where(rng.random(batch) < 0.62, rng.integers(0, NONE_CLASS, batch), NONE_CLASS).astype(np.int64)
        pictures = np.stack([self._drawn(rng, int(one)) for one in classes])
        decode = np.flatnonzero(rng.random(batch) < 0.4)
        pictures[decode] = self._decoded(pictures[decode], rng)
        dream = np.flatnonzero((classes == NONE_CLASS) & (rng.random(batch) < 0.25))
        if len(dream):
            pictures[dream] = self._dreams(len(dream), rng)
        return pictures, classes

    def _drawn(self, rng: np.random.Generator, one: int) -> Picture:
        if one == NONE_CLASS:
            return nothing(rng, self.others, self.font)
        picture = shown(rng, THINGS[one], self.font)
        if rng.random() < 0.3:
            picture = bent(rng, picture)
        fate = rng.random()
        if fate < 0.25:
            return blurred(picture, rng.uniform(0.3, 2.0))
        return noisy(rng, picture, rng.uniform(2, 25)) if fate < 0.4 else picture


def rate(step: int, steps: int) -> float:
    """The learning rate: 50 steps up to 2e-3, then half a cosine to a hundredth of it."""
    return 2e-3 * min(1.0, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def marks(layers: nn.Module, examples: Examples, steps: Sequence[int], batch: int = 64) -> dict[str, float]:
    """Share named right on batches not trained on: over all, over things, over nothing."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for step in steps:
        pictures, classes = examples.at(step, batch)
        best = scores(layers, _input(pictures)).argmax(1).numpy()
        for guess, truth in zip(best, classes, strict=True):
            right[bool(truth == NONE_CLASS)].append(bool(guess == truth))
    return {
        "all": float(np.mean(right[True] + right[False])),
        "things": float(np.mean(right[False])),
        "nothing": float(np.mean(right[True])),
    }


def marks_by_kind(vae: AutoencoderKL, weights: Path, *, each: int = 20, font: str = FONT) -> dict[str, float]:
    """Share named right by the numpy oracle, by kind of picture, on renders in pre-training's poses and on nothings."""
    judge, examples = Oracle(weights), Examples(vae, 77, font)
    rng = keys.generator(77, "oracle report")
    truths = [thing for thing in THINGS for _ in range(each)]
    grounds = list(GROUNDS.values())
    clean = [
        draw(thing.character, grounds[number % len(grounds)], Pose.drawn(rng), font=font)
        for number, thing in enumerate(truths)
    ]
    things: dict[str, Sequence[Picture]] = {
        "rendered": clean,
        "decoded": list(examples._decoded(np.stack(clean), rng)),
        "blurred, 1 pixel": [blurred(picture, 1.0) for picture in clean],
        "noisy, 15 of 255": [noisy(rng, picture, 15.0) for picture in clean],
    }
    right = {
        kind: float(np.mean([name == truth.name for (name, _), truth in zip(judge.name(made), truths, strict=True)]))
        for kind, made in things.items()
    }
    nothings: dict[str, Sequence[Picture]] = {
        kind.__name__: [kind(rng, font) for _ in range(100)] for kind in dict.fromkeys(KINDS)
    }
    nothings["random latents"] = list(examples._dreams(100, rng))
    for kind, made in nothings.items():
        right[f"none: {kind}"] = float(np.mean([name == NONE for name, _ in judge.name(made)]))
    right["ground"] = float(
        np.mean([Oracle.ground(picture) == list(GROUNDS)[n % len(grounds)] for n, picture in enumerate(clean)])
    )
    return right


def _input(pictures: UInt8) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1.0)


def train(
    vae: AutoencoderKL, weights: Path, *, steps: int, batch: int = 64, seed: int = 1, font: str = FONT
) -> dict[str, float]:
    """Trains, writes fp16 weights, and returns the marks on 16 fresh batches; a line of marks every 200 steps."""
    torch.manual_seed(seed)
    layers, examples = network(), Examples(vae, seed, font)
    optimiser = torch.optim.AdamW(layers.parameters(), lr=rate(0, steps), weight_decay=1e-3)
    weights.parent.mkdir(parents=True, exist_ok=True)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps)
        pictures, classes = examples.at(step, batch)
        loss = nn.functional.cross_entropy(scores(layers, _input(pictures)), torch.from_numpy(classes))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            save_file({name: value.half().contiguous() for name, value in layers.state_dict().items()}, weights)
            line = {"step": step + 1, "loss": round(loss.item(), 4), **marks(layers, examples, range(10**6, 10**6 + 4))}
            with weights.with_suffix(".jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
    return marks(layers, examples, range(2 * 10**6, 2 * 10**6 + 16))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gesso.engines.torch.demo.oracle", description=__doc__)
    parser.add_argument("autoencoder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--steps", type=int, default=3000, help="0 only judges the weights that are there")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--font", default=FONT)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    vae = AutoencoderKL.from_pretrained(given.autoencoder).eval()
    if given.steps:
        print(json.dumps(train(vae, given.weights, steps=given.steps, seed=given.seed, font=given.font)))
    print(json.dumps(marks_by_kind(vae, given.weights, font=given.font), indent=1))


if __name__ == "__main__":
    main()
