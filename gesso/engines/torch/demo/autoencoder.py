"""Trains the autoencoder of the tiny base model: 64×64 pictures to 4×16×16 latents and back.

`python -m gesso.engines.torch.demo.autoencoder FOLDER` trains from nothing or goes on from the newest checkpoint in
FOLDER, and leaves FOLDER/vae. Batches and noise are functions of the step alone, so a stopped run goes on as if it
had not stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gesso import keys
from gesso.arrays import Pixels, UInt8
from gesso.demo.glyphs import FONT, SIZE, SUBJECTS, every_character
from gesso.demo.pictures import scattered

WIDTHS = (16, 16, 32)
"""Channels at 64×64, 32×32 and 16×16; twice the width of (8, 16, 32) where the detail is, for a fifth more time."""
POOL = 12_000
"""Different pictures trained on; flips and exchanged colour channels make 12 of each."""
PEAK_RATE = 4e-3
WARM_UP = 100


def network(widths: Sequence[int] = WIDTHS) -> AutoencoderKL:
    """An untrained autoencoder of factor 4 (0.178 M weights at the default widths).

    One norm group: eight groups of one channel each would be an instance norm, which erases flat colour. No attention
    in the middle: at 16×16 it costs more than it brings.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def prepare(vae: AutoencoderKL) -> None:
    """Weights that a narrow, deep autoencoder can start from.

    With PyTorch's own initial weights it hardly learns: they shrink the signal a little in each of some 20 layers.
    Variance-keeping weights, residual branches that start at zero, and a posterior that starts narrow (standard
    deviation e^-2) and equal everywhere repair that.
    """
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith("conv2"):
                nn.init.zeros_(module.weight)
    spread = vae.quant_conv
    with torch.no_grad():
        spread.weight[4:] = 0.0
        spread.bias[4:] = -4.0


def rate(step: int, steps: int) -> float:
    """The learning rate: a short linear rise, then half a cosine to a hundredth of the peak."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    part = (step - WARM_UP) / max(steps - WARM_UP, 1)
    return PEAK_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))


def as_pixels(pictures: UInt8) -> Pixels:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32) / 127.5 - 1.0


def batch_at(step: int, pool: UInt8, batch: int, seed: int) -> UInt8:
    """The pictures of one step, flipped and with channels exchanged at random: uint8 [batch, 64, 64, 3]."""
    rng = keys.generator(seed, "autoencoder batch", step)
    rows = pool[rng.integers(len(pool), size=batch)]
    out = np.empty_like(rows)
    for row, picture in enumerate(rows):
        turned = picture[:, ::-1] if rng.random() < 0.5 else picture
        out[row] = turned[:, :, rng.permutation(3)] if rng.random() < 0.5 else turned
    return out


def loss_of(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> Tensor:
    """L1 + MSE + a quarter of the L1 of the picture gradients (edges) + 1e-4 × KL per latent number."""
    posterior = vae.encode(pixels).latent_dist
    back = vae.decode(posterior.mean + posterior.std * noise).sample
    error = back - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    divergence = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).mean()
    total: Tensor = error.abs().mean() + (error**2).mean() + 0.25 * edges + 1e-4 * divergence
    return total


def held_out_pictures(font: str = FONT) -> UInt8:
    """64 pictures of the held-out subjects, which training never shows."""
    return scattered(999, [subject.character for subject in SUBJECTS], range(64), font=font)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: UInt8) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB of encoding (posterior mean) and decoding."""
    pixels = torch.from_numpy(as_pixels(pictures)).to(memory_format=torch.channels_last)
    back = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    error = (((back - pixels) / 2) ** 2).mean(dim=(1, 2, 3))
    return float((-10 * torch.log10(error)).mean())


@torch.no_grad()
def latent_spread(vae: AutoencoderKL, pictures: UInt8) -> float:
    """Standard deviation of all latent numbers; its inverse is the `scaling_factor` diffusion needs."""
    pixels = torch.from_numpy(as_pixels(pictures)).to(memory_format=torch.channels_last)
    return float(vae.encode(pixels).latent_dist.mean.std())


def _save(folder: Path, step: int, vae: AutoencoderKL, optimiser: torch.optim.Adam) -> None:
    state = {f"weight/{name}": value.contiguous() for name, value in vae.state_dict().items()}
    for number, moments in optimiser.state_dict()["state"].items():
        state |= {f"adam/{number}/{name}": value.clone().contiguous() for name, value in moments.items()}
    save_file(state, folder / "checkpoint.new", metadata={"step": str(step)})
    (folder / "checkpoint.new").replace(folder / "checkpoint.safetensors")


def _restore(folder: Path, vae: AutoencoderKL, optimiser: torch.optim.Adam) -> int:
    """Weights and Adam's moments of the last checkpoint; returns its step, 0 if there is none."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    state = load_file(path)
    vae.load_state_dict({name[7:]: value for name, value in state.items() if name.startswith("weight/")})
    whole = optimiser.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("adam/"):
            _, number, kind = name.split("/")
            moments.setdefault(int(number), {})[kind] = value
    optimiser.load_state_dict({"state": moments, "param_groups": whole["param_groups"]})
    return int(next(iter(moments.values()))["step"])


def train(
    folder: Path, *, steps: int, batch: int = 16, seed: int = 1, widths: Sequence[int] = WIDTHS,
    font: str = FONT, every: int = 300,
) -> AutoencoderKL:  # fmt: skip
    """Trains to `steps`, with a checkpoint, a line in log.jsonl and a fresh FOLDER/vae `every` so many steps."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    vae = network(widths)
    prepare(vae)
    vae.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99))
    first = _restore(folder, vae, optimiser)
    pool = scattered(seed, every_character(font), range(POOL), font=font)
    unseen = held_out_pictures(font)
    started, total = time.process_time(), 0.0
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps)
        pixels = torch.from_numpy(as_pixels(batch_at(step, pool, batch, seed)))
        noise = keys.generator(seed, "autoencoder noise", step).standard_normal(
            (batch, 4, SIZE // 4, SIZE // 4), dtype=np.float32
        )
        loss = loss_of(vae, pixels.to(memory_format=torch.channels_last), torch.from_numpy(noise))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        total += loss.item()
        if (step + 1) % every == 0 or step + 1 == steps:
            _save(folder, step + 1, vae, optimiser)
            line = {
                "step": step + 1,
                "loss": round(total / every, 5),
                "psnr_seen": round(psnr(vae, pool[:64]), 2),
                "psnr_held_out": round(psnr(vae, unseen), 2),
                "cpu_seconds": round(time.process_time() - started, 1),
            }
            total = 0.0
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            vae.register_to_config(scaling_factor=round(1 / latent_spread(vae, pool[:512]), 4))
            vae.save_pretrained(folder / "vae")
    return vae


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gesso.engines.torch.demo.autoencoder", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs=3, default=WIDTHS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--font", default=FONT)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    train(given.folder, steps=given.steps, batch=given.batch, seed=given.seed, widths=given.widths, font=given.font)


if __name__ == "__main__":
    main()
