"""The reference engine: a linear network with a hand-written gradient, in numpy.

It implements the whole Protocol, so that the loop, resume, events, the command line and every fault are tested in
seconds, and so that an engine's author can read what each verb must do. For a row with latents x [C, H, W],

    answer = (W + B·A)·x + b + V·(1, c_noise/1000, mean of the caption's vector)          per pixel
    loss   = Σ_rows weight · w · mean((answer − target)²)

W [C, C] and b, V are trained when there is no adapter, A [r, C] and B [C, r] when there is a LoRA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from gesso.arrays import Array, Float32, Int64, Picture, Pixels
from gesso.data.batch import Batch
from gesso.engines.engine import Adapter, Metrics, Optim, SampleRequest, Token, Trainable
from gesso.engines.reference.model import CHANNELS
from gesso.errors import NumbersError, RecipeError, StorageError
from gesso.families.family import Family
from gesso.formats import lora, pipeline
from gesso.keys import generator
from gesso.objective.coefficients import Coefficients, mix, per_row, target
from gesso.schema import TorchEngine

FACTOR, LENGTH = 8, 8
NAME = "unet.linear"


def create(options: TorchEngine, *, device: str, precision: str, checkpointing: bool = False) -> Engine:
    """The engine; it knows one device and one precision."""
    return Engine()


@dataclass(frozen=True, slots=True)
class Known:
    """A step's numbers, which are there at once."""

    metrics: Metrics

    def read(self) -> Metrics:
        return self.metrics


class Engine:
    """See gesso/engines/engine.py for what each verb promises."""

    name, device, precision, arithmetic, lag = "reference", "numpy", "fp32", "numpy", 0

    def __init__(self) -> None:
        self.notes: list[str] = []

    def load(
        self,
        folder: Path,
        family: Family,
        *,
        parts: Sequence[str] = (),
        scheduler: Mapping[str, object] = MappingProxyType({}),
        chunks: int = 1,
    ) -> None:
        if chunks > 1:
            raise RecipeError("the reference engine reads captions whole", todo="leave train.caption_chunks out")
        found = pipeline.read_part(folder / family.denoiser)
        self.weights: dict[str, Array] = {f"unet.{name}": value for name, value in found.items()}

    def attach(
        self, adapter: Adapter | None, optim: Optim, tokens: Sequence[Token] = (), *, keep_base: bool = False
    ) -> Trainable:
        if tokens or (adapter and (adapter.kind != "lora" or adapter.rules)) or optim.name != "adamw":
            raise RecipeError(
                "the reference engine knows LoRA, full fine-tuning and AdamW, but no new words",
                todo='set engine = "torch"',
            )
        self.optim, self.scale = optim, 0.0
        self.base = {name: value.copy() for name, value in self.weights.items()} if keep_base else {}
        if adapter is not None:
            rng, rank = generator(adapter.init, "reference-adapter"), adapter.rank
            self.scale = adapter.alpha / rank
            down = rng.standard_normal((rank, CHANNELS), dtype=np.float32) / np.float32(rank)
            self.weights[f"{NAME}.lora_A.weight"] = down
            self.weights[f"{NAME}.lora_B.weight"] = np.zeros((CHANNELS, rank), dtype=np.float32)
        self.trained = sorted(name for name in self.weights if ("lora" in name) == (adapter is not None))
        self.moments = {f"{m}/{name}": np.zeros_like(self.weights[name]) for m in "mv" for name in self.trained}
        self.taken = 0
        self.averages = {name: self.weights[name].copy() for name in self.trained} if optim.ema else {}
        return Trainable(sizes={name: self.weights[name].size for name in self.trained})

    # ---------------------------------------------------------------- encode

    def encode_images(self, pixels: Pixels) -> tuple[Float32, Float32]:
        """Means over 8 × 8 pixels, with their lightness as the fourth channel."""
        b, c, h, w = pixels.shape
        small = pixels.reshape(b, c, h // FACTOR, FACTOR, w // FACTOR, FACTOR).mean((3, 5))
        mean = np.concatenate([small, small.mean(1, keepdims=True)], axis=1).astype(np.float32)
        return mean, np.full_like(mean, -6.0)

    def encode_text(self, captions: Sequence[str]) -> dict[str, Float32]:
        vectors = [generator(0, "caption", int.from_bytes(_digest(text), "little")) for text in captions]
        return {"encoder_hidden_states": np.stack([v.standard_normal(LENGTH, dtype=np.float32) for v in vectors])}

    def tokens(self, captions: Sequence[str]) -> dict[str, Int64]:
        ids = [list(_digest(text)) for text in captions]
        return {"text_encoder": np.array(ids, dtype=np.int64)}

    def token_counts(self, captions: Sequence[str]) -> tuple[list[int], int]:
        return [len(text.split()) + 2 for text in captions], 77

    # ---------------------------------------------------------------- step and evaluate

    def step(
        self, micro: Sequence[tuple[Batch, Coefficients]], *, lr: Mapping[str, float], ema_decay: float, key: int
    ) -> Known:
        gradient = {name: np.zeros_like(self.weights[name]) for name in self.trained}
        loss = 0.0
        for batch, coefficients in micro:
            share = batch.weight * coefficients.w
            error, inputs = self._forward(batch, coefficients)
            loss += float((np.square(error).mean((1, 2, 3)) * share).sum())
            # d loss / d answer, then the chain rule through the linear map.
            back = 2.0 * error * per_row(share, error) / error[0].size
            for name, value in self._gradients(back, *inputs).items():
                gradient[name] += value.astype(np.float32)
        if "unet" not in lr:  # all rests
            gradient = {}
        norm = float(np.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in gradient.values())))
        if not np.isfinite(norm):
            return Known(Metrics(loss=loss, grad_norm=norm, skipped=True))
        scale = min(1.0, self.optim.clip / (norm + 1e-6)) if self.optim.clip else 1.0
        if gradient:
            self._adamw({name: value * np.float32(scale) for name, value in gradient.items()}, lr["unet"])
        for name, average in self.averages.items():
            average += np.float32(1.0 - ema_decay) * (self.weights[name] - average)
        return Known(Metrics(loss=loss, grad_norm=norm))

    def _forward(self, batch: Batch, c: Coefficients) -> tuple[Array, tuple[Array, Array]]:
        x = per_row(c.c_in, batch.x0) * mix(c, batch.x0, batch.eps_in)
        states = batch.cond.get("encoder_hidden_states", batch.cond.get("text_encoder"))
        assert states is not None
        known = np.stack([np.ones(len(x)), c.c_noise / 1000.0, states.reshape(len(x), -1).mean(1)], axis=1)
        wanted = target(c, batch.x0, batch.eps_target)
        if batch.teacher is not None:
            taught = batch.teacher > 0
            wanted[taught] = _answer(self.base, 0.0, x[taught], known[taught])
        error = _answer(self.weights, self._delta(), x, known) - wanted
        return error if batch.mask is None else error * np.sqrt(batch.mask), (x, known)

    def _delta(self) -> Array:
        if not self.scale:
            return np.zeros((CHANNELS, CHANNELS), dtype=np.float32)
        up, down = self.weights[f"{NAME}.lora_B.weight"], self.weights[f"{NAME}.lora_A.weight"]
        return np.asarray(np.float32(self.scale) * (up @ down))

    def _gradients(self, back: Array, x: Array, known: Array) -> dict[str, Array]:
        of_linear = np.einsum("bchw,bdhw->cd", back, x)
        if self.scale:
            up, down = self.weights[f"{NAME}.lora_B.weight"], self.weights[f"{NAME}.lora_A.weight"]
            return {
                f"{NAME}.lora_A.weight": self.scale * up.T @ of_linear,
                f"{NAME}.lora_B.weight": self.scale * of_linear @ down.T,
            }
        flat = back.sum((2, 3))
        return {f"{NAME}.weight": of_linear, f"{NAME}.bias": flat.sum(0), f"{NAME}.condition": flat.T @ known}

    def _adamw(self, gradient: Mapping[str, Float32], lr: float) -> None:
        self.taken += 1
        first, second = self.optim.betas
        for name, value in gradient.items():
            m, v = self.moments[f"m/{name}"], self.moments[f"v/{name}"]
            m += np.float32(1 - first) * (value - m)
            v += np.float32(1 - second) * (np.square(value) - v)
            size = (m / (1 - first**self.taken)) / (np.sqrt(v / (1 - second**self.taken)) + self.optim.eps)
            self.weights[name] -= np.float32(lr) * (size + self.optim.weight_decay * self.weights[name]).astype(
                np.float32
            )

    def evaluate(self, batch: Batch, coefficients: Coefficients, *, ema: bool = False) -> Float32:
        live = self.weights
        self.weights = {**live, **(self.averages if ema else {})}
        error, _ = self._forward(batch, coefficients)
        self.weights = live
        return np.asarray(np.square(error).mean((1, 2, 3)), dtype=np.float32)

    # ---------------------------------------------------------------- sample and state

    def add_lora(self, path: Path, strength: float = 1.0) -> None:
        arrays, config = lora.read(path)
        self.scale = strength * config.alpha / config.rank
        self.weights.update(arrays)

    def add_refiner(self, folder: Path, handover: float | None = None) -> None:
        raise RecipeError("the reference engine has no second stage", todo="draw with the torch engine")

    def sample(self, requests: Sequence[SampleRequest], *, ema: bool = False, batch: int = 1) -> list[Picture]:
        """A flat picture whose colour is what the weights make of the prompt."""
        weights = {**self.weights, **(self.averages if ema else {})}
        with np.errstate(over="ignore"):
            colour = sum(float(np.abs(value).sum()) for value in weights.values())
        if not np.isfinite(colour):
            raise NumbersError("the picture is not finite", todo="lower optim.lr")
        pictures = []
        for request in requests:
            noise = generator(request.seed, "sample", int.from_bytes(_digest(request.prompt), "little"))
            level = int((colour * 1000 + noise.integers(256)) % 256)
            pictures.append(np.full((request.height, request.width, 3), level, dtype=np.uint8))
        return pictures

    def read(self) -> dict[str, dict[str, Array]]:
        optimizer: dict[str, Array] = {name: value.copy() for name, value in self.moments.items()}
        optimizer["taken"] = np.array(self.taken, dtype=np.int64)
        found = {"weights": {name: self.weights[name].copy() for name in self.trained}, "optimizer": optimizer}
        return {**found, "ema": {k: v.copy() for k, v in self.averages.items()}} if self.averages else found

    def write(self, state: Mapping[str, Mapping[str, Array]]) -> None:
        if sorted(state["weights"]) != self.trained:
            raise StorageError("the checkpoint's weights do not fit this model")
        self.weights.update({name: np.array(value) for name, value in state["weights"].items()})
        self.averages = {name: np.array(value) for name, value in state.get("ema", {}).items()}
        if "optimizer" in state:
            optimizer = dict(state["optimizer"])
            self.taken = int(optimizer.pop("taken"))
            self.moments = {name: np.array(value) for name, value in optimizer.items()}


def _answer(weights: Mapping[str, Array], delta: Array | float, x: Array, known: Array) -> Array:
    linear = weights[f"{NAME}.weight"] + delta
    shift = weights[f"{NAME}.bias"] + known @ weights[f"{NAME}.condition"].T
    return np.asarray(np.einsum("cd,bdhw->bchw", linear, x) + shift[:, :, None, None])


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=LENGTH).digest()
