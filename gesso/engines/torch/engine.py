"""The PyTorch engine: CPU, CUDA, MPS and (through torch_npu) Ascend."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import nn

from gesso.arrays import Array, Float32, Int64, Picture, Pixels
from gesso.data.batch import Batch
from gesso.engines.engine import Adapter, Metrics, Optim, SampleRequest, Token, Trainable
from gesso.engines.torch import adapters, loras, optimizers, sampling, state, text, words
from gesso.engines.torch.devices import choose
from gesso.engines.torch.forward import row_errors
from gesso.engines.torch.models import DTYPES, Models
from gesso.errors import DeviceError
from gesso.families.family import Family
from gesso.objective.coefficients import Coefficients
from gesso.schema import TorchEngine as Options

# What these libraries say of missing extras and of each file they read is not about the user's run.
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
diffusers.utils.logging.set_verbosity_error()


def create(options: Options, *, device: str, precision: str, checkpointing: bool = False) -> Engine:
    """The engine on `device` ("auto" for the best) in `precision` ("auto" for the device's own)."""
    if options.threads:
        torch.set_num_threads(options.threads)
    chosen, effective, description = choose(device, precision)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    return Engine(options, chosen, effective, description, checkpointing)


@dataclass(frozen=True, slots=True)
class Pending:
    """A step whose numbers may still be on their way from the device."""

    numbers: torch.Tensor
    """float32 [4]: loss, gradient norm, 1 if skipped, fp16's loss scale (else 1). Whole once `arrived` has passed."""
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, numbers: torch.Tensor) -> Pending:
        """Send the numbers on their way. Reading them later waits for their own step, not for those queued since."""
        if numbers.device.type != "cuda":
            return cls(numbers.cpu(), None)
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return cls(host, arrived)

    def read(self) -> Metrics:
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, norm, skipped, scale = self.numbers.tolist()
        return Metrics(loss=loss, grad_norm=norm, skipped=bool(skipped), searching=bool(skipped) and scale > 1.0)


class Engine:
    """One model on one device; see gesso/engines/engine.py for what each verb promises."""

    name = "torch"

    def __init__(
        self, options: Options, device: torch.device, precision: str, description: str, checkpointing: bool
    ) -> None:
        self.options, self.torch_device, self.precision, self.device = options, device, precision, description
        self.checkpointing = checkpointing
        self.lag = 8 if device.type == "cuda" else 0
        self.arithmetic = f"torch {device.type}" + (" tf32" if device.type == "cuda" and options.tf32 else "")
        self.trained: dict[str, nn.Parameter] = {}
        self.averages: dict[str, torch.Tensor] = {}
        self.averaging = False
        self.originals: dict[str, torch.Tensor] = {}
        self.parts: tuple[str, ...] = ()
        self.live: tuple[str, ...] = ()
        self.loras = 0
        self.refiner: sampling.Refiner | None = None
        self.notes: list[str] = []

    # ---------------------------------------------------------------- load and attach

    def load(
        self,
        folder: Path,
        family: Family,
        *,
        parts: Sequence[str] = (),
        scheduler: Mapping[str, object] = MappingProxyType({}),
        chunks: int = 1,
    ) -> None:
        # What trains is float32; under an adapter, the denoiser is frozen and may be small.
        dtypes = {} if parts else {family.denoiser: DTYPES[self.precision]}
        self.models = Models(folder, self.torch_device, scheduler, dtypes)
        self.family, self.parts, self.chunks = family, tuple(parts), chunks

    def attach(
        self, adapter: Adapter | None, optim: Optim, tokens: Sequence[Token] = (), *, keep_base: bool = False
    ) -> Trainable:
        nets = {part: self.models.get(part) for part in (adapter.targets if adapter else self.parts)}
        if adapter is not None:
            adapters.attach(nets, adapter)
        else:
            for net in nets.values():
                net.requires_grad_(True)
        # What gradients go through: the denoiser always, and every encoder on the way to a new word.
        encoders = [encoder for encoder, _ in self.family.encoders] if tokens else []
        self.live = tuple(dict.fromkeys((self.family.denoiser, *nets, *encoders)))
        for part in self.live:
            self._prepare(self.models.get(part))
        self.trained = {
            f"{part}.{adapters.public_name(name)}": parameter
            for part, net in nets.items()
            for name, parameter in net.named_parameters()
            if parameter.requires_grad
        }
        self.trained |= words.attach(self.models, self.family.encoders, tokens)
        self.optimizer = optimizers.create(optim, self.trained)
        self.scaler = torch.amp.GradScaler(self.torch_device.type, enabled=self.precision == "fp16", init_scale=2.0**14)
        if keep_base:  # adapters can be switched off instead
            lasting = [name for name in self.trained if adapter is None or name.startswith("tokens.")]
            self.originals = {name: self.trained[name].detach().clone() for name in lasting}
        self.averaging = optim.ema or self.optimizer.averaging
        if optim.ema:
            device = torch.device("cpu") if optim.ema_offload else self.torch_device
            self.averages = {name: value.detach().to(device, copy=True) for name, value in self.trained.items()}
        return Trainable(sizes={name: value.numel() for name, value in self.trained.items()})

    def _prepare(self, net: Any) -> None:
        """What the recipe asks of a network in training."""
        net.train()
        if self.checkpointing:
            if hasattr(net, "enable_gradient_checkpointing"):
                net.enable_gradient_checkpointing()
            elif hasattr(net, "activation_checkpointing_enable"):  # the newer transformers' name for it
                net.activation_checkpointing_enable()
            else:
                net.gradient_checkpointing_enable()
        if self.options.channels_last:
            net.to(memory_format=torch.channels_last)
        if self.options.compile:
            net.compile()

    # ---------------------------------------------------------------- encode

    @torch.no_grad()
    def encode_images(self, pixels: Pixels) -> tuple[Float32, Float32]:
        vae = self.models.get(self.family.autoencoder)
        with self._remembering("encoding pictures"):
            posterior = vae.encode(torch.from_numpy(pixels).to(self.torch_device)).latent_dist
        return _numpy(posterior.mean), _numpy(posterior.logvar)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Float32]:
        with self._remembering("encoding captions"):
            condition = self._condition({name: self._tensor(ids) for name, ids in self.tokens(captions).items()})
        return {name: _numpy(value) for name, value in condition.items()}

    def tokens(self, captions: Sequence[str]) -> dict[str, Int64]:
        return text.tokens(captions, self.models, self.family, self.chunks)

    def token_counts(self, captions: Sequence[str]) -> tuple[list[int], int]:
        return text.counts(captions, self.models, self.family, self.chunks)

    def _condition(self, cond: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return text.condition(cond, self.models, self.family)

    # ---------------------------------------------------------------- step and evaluate

    def step(
        self, micro: Sequence[tuple[Batch, Coefficients]], *, lr: Mapping[str, float], ema_decay: float, key: int
    ) -> Pending:
        torch.manual_seed(key)
        total = torch.zeros((), device=self.torch_device)
        with self._remembering("a training step"):
            for batch, coefficients in micro:
                share = self._tensor((batch.weight * coefficients.w).astype(np.float32))
                loss = (self._errors(batch, coefficients) * share).sum()
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            norm = self.optimizer.step(lr, self.scaler)
        if self.averages:
            values = [value.detach().to(self.averages[name].device) for name, value in self.trained.items()]
            torch._foreach_lerp_(list(self.averages.values()), values, 1.0 - ema_decay)
        scale = self.scaler.scale(torch.ones((), device=self.torch_device))
        return Pending.of(torch.stack([total, norm, (~torch.isfinite(norm)).float(), scale]))

    def _errors(self, batch: Batch, c: Coefficients) -> torch.Tensor:
        """The error of each row, float32 [B]."""
        return row_errors(batch, c, ask=self._ask, send=self._tensor, base=self._untrained)

    def _ask(self, x: torch.Tensor, c_noise: torch.Tensor, cond: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The denoiser's answer, float32; captions that come as token ids go through the text encoders first."""
        with self._autocast():
            net = self.models.get(self.family.denoiser)
            answer: torch.Tensor = self.family.predict(net, x, c_noise, self._condition(cond))
        return answer.float()

    @contextmanager
    def _untrained(self) -> Iterator[None]:
        """The networks as they were before training."""
        live = {name: self.trained[name] for name in self.originals}
        nets = [self.models.get(part) for part in self.live]
        with adapters.switched_off(nets), state.swapped(live, self.originals):
            yield

    @torch.no_grad()
    def evaluate(self, batch: Batch, coefficients: Coefficients, *, ema: bool = False) -> Float32:
        with self._quiet(), self._averaged(ema), self._remembering("measuring held-out pictures"):
            return _numpy(self._errors(batch, coefficients))

    # ---------------------------------------------------------------- sample

    def add_lora(self, path: Path, strength: float = 1.0) -> None:
        """Load a LoRA file for sampling; several add up."""
        self.loras += 1
        loras.add(self.models, self.family, path, name=f"lora{self.loras}", strength=strength)

    def add_refiner(self, folder: Path, handover: float | None = None) -> None:
        """Take a second stage for sampling."""
        made = Models(folder, self.torch_device, {}, {self.family.denoiser: DTYPES[self.precision]})
        self.refiner = sampling.Refiner(made, handover)

    def sample(self, requests: Sequence[SampleRequest], *, ema: bool = False, batch: int = 1) -> list[Picture]:
        with self._quiet(), self._averaged(ema), self._remembering("drawing samples"):
            return sampling.draw(
                self.models,
                self.family,
                requests,
                self._autocast,
                notes=self.notes,
                refiner=self.refiner,
                batch=batch,
            )

    # ---------------------------------------------------------------- state

    def read(self) -> dict[str, dict[str, Array]]:
        found = {
            "weights": {name: _numpy(value) for name, value in self.trained.items()},
            "optimizer": state.read_optimizer(self.optimizer.made, self.trained, self.scaler),
        }
        if self.averaging:
            found["ema"] = {name: _numpy(value) for name, value in self._averages().items()}
        return found

    def write(self, saved: Mapping[str, Mapping[str, Array]]) -> None:
        state.write_values(self.trained, saved["weights"], "weights")
        # Schedule-free averages follow from the weights and the optimiser's state.
        if self.averages or ("ema" in saved and not self.optimizer.averaging):
            state.write_values(self.averages, saved.get("ema", {}), "ema")
        if "optimizer" in saved:
            state.write_optimizer(self.optimizer.made, self.trained, self.scaler, saved["optimizer"])

    # ---------------------------------------------------------------- small things

    def _tensor(self, value: Array) -> torch.Tensor:
        found = torch.from_numpy(np.ascontiguousarray(value))
        if self.torch_device.type == "cuda":
            return found.pin_memory().to(self.torch_device, non_blocking=True)
        return found.to(self.torch_device)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.torch_device.type, DTYPES[self.precision])

    def _quiet(self) -> AbstractContextManager[None]:
        return state.evaluating([self.models.get(part) for part in self.live or (self.family.denoiser,)])

    def _averaged(self, ema: bool) -> AbstractContextManager[None]:
        return state.swapped(self.trained, self._averages()) if ema and self.averaging else nullcontext()

    def _averages(self) -> Mapping[str, torch.Tensor]:
        return self.averages or self.optimizer.averages()

    def _remembering(self, what: str) -> AbstractContextManager[None]:
        return _OutOfMemory(what, self.device)


class _OutOfMemory:
    """Turns the framework's out-of-memory error into one with a remedy."""

    def __init__(self, what: str, device: str) -> None:
        self.what, self.device = what, device

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if memory or (isinstance(error, RuntimeError) and re.search("(not enough|out of) memory", str(error))):
            raise DeviceError(
                f"there is not enough memory on {self.device} for {self.what}",
                todo="set train.micro_batch = 1, train.gradient_checkpointing = true, or a smaller train.resolution; "
                "nothing that was saved is lost",
            ) from error


def _numpy(value: torch.Tensor) -> Float32:
    # Always a copy: a view of a parameter would change with later steps.
    return value.detach().float().cpu().numpy().copy()
