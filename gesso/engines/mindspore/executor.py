"""One model on one device by MindSpore; see gesso/engines/engine.py for what each verb promises."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mindspore as ms
import numpy as np

from gesso.arrays import Array, Float32, Int64, Picture, Pixels
from gesso.data.batch import Batch
from gesso.engines.engine import Adapter, Metrics, Optim, SampleRequest, Token, Trainable
from gesso.engines.mindspore import adapters, optimizers, sampling, state, text, words
from gesso.engines.mindspore.alone import alone
from gesso.engines.mindspore.forward import Gradient, Shown, errors, robust, shown
from gesso.engines.mindspore.models import HALVES, NO_MEMORY, Models, graph_mode, recompute, unlike
from gesso.errors import DeviceError, RecipeError
from gesso.families.family import Family
from gesso.objective.coefficients import Coefficients


@dataclass(frozen=True, slots=True)
class Known:
    """A step's numbers, which are there at once."""

    metrics: Metrics

    def read(self) -> Metrics:
        return self.metrics


class Engine:
    """SD 1.x, 2.x and SDXL with mindone's networks: LoRA, the weights themselves, and new words."""

    name, lag = "mindspore", 0

    def __init__(
        self, device: str, precision: str, description: str, checkpointing: bool, compiled: bool = False
    ) -> None:
        self.precision, self.device = precision, description
        self.checkpointing, self.compiled = checkpointing, compiled
        self.arithmetic = "mindspore " + device.partition(":")[0]  # npu:1 computes as npu:0 does
        self.trained: dict[str, ms.Parameter] = {}
        self.averages: dict[str, ms.Tensor | Array] = {}
        self.originals: dict[str, Array] = {}
        self.parts: tuple[str, ...] = ()
        self.live: tuple[str, ...] = ()
        self.notes: list[str] = []

    # ---------------------------------------------------------------- load and attach

    @alone
    def load(
        self,
        folder: Path,
        family: Family,
        *,
        parts: Sequence[str] = (),
        scheduler: Mapping[str, object] = MappingProxyType({}),
        chunks: int = 1,
    ) -> None:
        half = {family.denoiser: HALVES[self.precision]} if self.precision in HALVES else {}
        # What trains is float32; under an adapter, the denoiser is frozen and may be small.
        self.models = Models(folder, scheduler, half, {} if parts else half)
        self.family, self.parts, self.chunks = family, tuple(parts), chunks

    @alone
    def attach(
        self, adapter: Adapter | None, optim: Optim, tokens: Sequence[Token] = (), *, keep_base: bool = False
    ) -> Trainable:
        if adapter is not None and adapter.kind != "lora":
            raise RecipeError(
                f'the MindSpore engine has no adapter of the kind "{adapter.kind}"',
                todo='set adapter.kind = "lora", or engine = "torch"',
            )
        if self.compiled and adapter is not None and any((adapter.dropout, *(rule.dropout for rule in adapter.rules))):
            raise RecipeError(
                "a graph is made once, and dropout is drawn anew in every step", todo="set mindspore.compile = false"
            )
        nets = tuple(adapter.targets) if adapter else self.parts
        if adapter is not None:
            self.trained = adapters.attach(self.models, adapter)
        else:
            self.trained = {
                f"{part}.{name}": value for part in nets for name, value in self.models.parameters(part).items()
            }
        # What gradients go through: the denoiser always, and every encoder on the way to a new word.
        encoders = [encoder for encoder, _ in self.family.encoders] if tokens else []
        self.live = tuple(dict.fromkeys((self.family.denoiser, *nets, *encoders)))
        self.trained |= words.attach(self.models, self.family.encoders, tokens)
        for part in self.live:
            self.models.get(part).set_train(True)
            if self.checkpointing:
                recompute(self.models.get(part))
        for name, value in self.trained.items():
            value.name, value.requires_grad = name, True
        self.scaler = optimizers.Scaler(enabled=self.precision == "fp16")
        self._mode = graph_mode if self.compiled else nullcontext
        self.optimizer = optimizers.Stepper(optim, self.trained, self.scaler, self._mode)
        self._gradients: dict[tuple[tuple[str, ...], bool], Gradient] = {}
        if self.compiled:
            unlike(self.models, self.live)
        if keep_base:  # adapters can be switched off instead
            lasting = [name for name in self.trained if adapter is None or name.startswith("tokens.")]
            self.originals = {name: state.numpy(self.trained[name]) for name in lasting}
        if optim.ema:
            offload = optim.ema_offload
            self.averages = {
                name: state.numpy(value) if offload else value.value().copy() for name, value in self.trained.items()
            }
        return Trainable(sizes={name: int(np.prod(value.shape)) for name, value in self.trained.items()})

    # ---------------------------------------------------------------- encode

    @alone
    def encode_images(self, pixels: Pixels) -> tuple[Float32, Float32]:
        vae = self.models.get(self.family.autoencoder)
        with self._remembering("encoding pictures"):
            moments = state.numpy(vae.encode(ms.Tensor(np.ascontiguousarray(pixels)), return_dict=False)[0])
        mean, logvar = np.split(moments, 2, axis=1)
        # As diffusers' DiagonalGaussianDistribution bounds it.
        return np.ascontiguousarray(mean), np.ascontiguousarray(np.clip(logvar, -30.0, 20.0))

    @alone
    def encode_text(self, captions: Sequence[str]) -> dict[str, Float32]:
        with self._remembering("encoding captions"):
            found = text.condition(_tensors(self.tokens(captions)), self.models, self.family)
        return {name: state.numpy(value) for name, value in found.items()}

    @alone
    def tokens(self, captions: Sequence[str]) -> dict[str, Int64]:
        return text.tokens(captions, self.models, self.family, self.chunks)

    @alone
    def token_counts(self, captions: Sequence[str]) -> tuple[list[int], int]:
        return text.counts(captions, self.models, self.family, self.chunks)

    # ---------------------------------------------------------------- step and evaluate

    @alone
    def step(
        self, micro: Sequence[tuple[Batch, Coefficients]], *, lr: Mapping[str, float], ema_decay: float, key: int
    ) -> Known:
        total, adds = 0.0, len(micro) > 1
        with self._remembering("a training step"):
            if adds:
                self.optimizer.clear()
            for turn, (batch, coefficients) in enumerate(micro):
                adapters.Drawn.key, adapters.Drawn.turn = key, turn
                loss, squares = self._backward(batch, coefficients, adds=adds)
                total += loss
            scale = self.scaler.scale
            norm = self.optimizer.step(lr, dict(zip(self.trained, squares, strict=True)))
        for name, average in self.averages.items():
            value = self.trained[name].value()
            there = value.asnumpy() if isinstance(average, np.ndarray) else value
            self.averages[name] = average + (there - average) * (1.0 - ema_decay)
        skipped = not math.isfinite(norm)
        return Known(Metrics(loss=total, grad_norm=norm, skipped=skipped, searching=skipped and scale > 1.0))

    def _backward(self, batch: Batch, c: Coefficients, *, adds: bool) -> tuple[float, list[float]]:
        """The loss of some rows; and the squared norms of the sums of gradients, to which theirs have gone."""
        seen = self._shown(batch, c)
        names = tuple(seen.cond)
        if (names, adds) not in self._gradients:
            places = (list(each.values()) for each in (self.trained, self.optimizer.sums))
            self._gradients[names, adds] = Gradient(self.models, self.family, names, *places, adds=adds)
        share = batch.weight * c.w * self.scaler.scale
        inputs = [ms.Tensor(each.astype(np.float32)) for each in (seen.x, seen.c_noise, seen.wanted, share)]
        mask = None if batch.mask is None else ms.Tensor(batch.mask)
        cond = ms.mutable(tuple(_tensors(seen.cond).values()))
        with self._mode():
            loss, squares = self._gradients[names, adds](*inputs, robust(c), mask, cond)
        return float(loss.asnumpy()) / self.scaler.scale, squares.asnumpy().astype(np.float64).tolist()

    def _ask(self, x: Float32, c_noise: Float32, cond: Mapping[str, Array]) -> Float32:
        """The same without gradient."""
        known = text.condition(_tensors(cond), self.models, self.family)
        return state.numpy(self.family.predict(self._denoiser, ms.Tensor(x), ms.Tensor(c_noise), known))

    @property
    def _denoiser(self) -> Any:
        return self.models.get(self.family.denoiser)

    def _shown(self, batch: Batch, c: Coefficients) -> Shown:
        return shown(batch, c, ask=self._ask, base=self._untrained)

    @contextmanager
    def _untrained(self) -> Iterator[None]:
        """The networks as they were before training."""
        live = {name: self.trained[name] for name in self.originals}
        nets = [self.models.get(part) for part in self.live]
        with adapters.switched_off(nets), state.swapped(live, self.originals):
            yield

    @alone
    def evaluate(self, batch: Batch, coefficients: Coefficients, *, ema: bool = False) -> Float32:
        with self._quiet(), self._averaged(ema), self._remembering("measuring held-out pictures"):
            seen = self._shown(batch, coefficients)
            answer = ms.Tensor(self._ask(seen.x, seen.c_noise, seen.cond))
            mask = None if batch.mask is None else ms.Tensor(batch.mask)
            return state.numpy(errors(answer, ms.Tensor(seen.wanted), robust(coefficients), mask))

    # ---------------------------------------------------------------- sample

    @alone
    def add_lora(self, path: Path, strength: float = 1.0) -> None:
        sampling.add_lora(self.models, self.family, path, strength=strength)

    def add_refiner(self, folder: Path, handover: float | None = None) -> None:
        raise RecipeError("the MindSpore engine has no second stage", todo="draw with the torch engine")

    @alone
    def sample(self, requests: Sequence[SampleRequest], *, ema: bool = False, batch: int = 1) -> list[Picture]:
        """One at a time, whatever `batch` allows."""
        with self._quiet(), self._averaged(ema), self._remembering("drawing samples"):
            return sampling.draw(self.models, self.family, requests, notes=self.notes)

    # ---------------------------------------------------------------- state

    @alone
    def read(self) -> dict[str, dict[str, Array]]:
        found = {
            "weights": {name: state.numpy(value) for name, value in self.trained.items()},
            "optimizer": self.optimizer.read(),
        }
        if self.averages:
            found["ema"] = {name: np.array(value) for name, value in self.averages.items()}
        return found

    @alone
    def write(self, saved: Mapping[str, Mapping[str, Array]]) -> None:
        state.write_values(self.trained, saved["weights"], "weights")
        if self.averages or "ema" in saved:
            averages = saved.get("ema", {})
            state.fitting(self.averages, averages, "ema")
            for name, before in self.averages.items():
                value = np.array(averages[name], dtype=np.float32)
                self.averages[name] = value if isinstance(before, np.ndarray) else ms.Tensor(value)
        if "optimizer" in saved:
            self.optimizer.write(saved["optimizer"])

    # ---------------------------------------------------------------- small things

    def _quiet(self) -> AbstractContextManager[None]:
        return state.evaluating([self.models.get(part) for part in self.live or (self.family.denoiser,)])

    def _averaged(self, ema: bool) -> AbstractContextManager[None]:
        return state.swapped(self.trained, self.averages) if ema and self.averages else nullcontext()

    @contextmanager
    def _remembering(self, what: str) -> Iterator[None]:
        """Turns MindSpore's out-of-memory error into one with a remedy."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not re.search(NO_MEMORY, str(error)):
                raise
            less = "mindspore.compile = false, " if self.compiled else ""
            raise DeviceError(
                f"there is not enough memory on {self.device} for {what}",
                todo=f"set {less}train.micro_batch = 1, train.gradient_checkpointing = true, or a smaller "
                "train.resolution; nothing that was saved is lost",
            ) from error


def _tensors(arrays: Mapping[str, Array]) -> dict[str, ms.Tensor]:
    return {name: ms.Tensor(np.ascontiguousarray(value)) for name, value in arrays.items()}
