"""The PyTorch engine: CPU, CUDA, MPS and (through torch_npu) Ascend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from gesso.engines.engine import Adapter, Metrics, Optim, SampleRequest, Trainable
from gesso.engines.torch import adapters, optimizers, sampling, state
from gesso.engines.torch.devices import choose
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
        self.parts: tuple[str, ...] = ()
        self.loras = 0

    # ---------------------------------------------------------------- load and attach

    def load(
        self,
        folder: Path,
        family: Family,
        *,
        parts: Sequence[str] = (),
        scheduler: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        # What trains is float32; under an adapter, the denoiser is frozen and may be small.
        dtypes = {} if parts else {family.denoiser: DTYPES[self.precision]}
        self.models = Models(folder, self.torch_device, scheduler, dtypes)
        self.family, self.parts = family, tuple(parts)

    def attach(self, adapter: Adapter | None, optim: Optim) -> Trainable:
        denoiser = self.family.denoiser
        if adapter is not None:
            nets = {denoiser: self.models.get(denoiser)}
            adapters.attach(nets[denoiser], adapter)
        else:
            nets = {part: self.models.get(part) for part in self.parts}
            for net in nets.values():
                net.requires_grad_(True)
        for net in nets.values():
            self._prepare(net)
        self.trained = {
            f"{part}.{adapters.public_name(name)}": parameter
            for part, net in nets.items()
            for name, parameter in net.named_parameters()
            if parameter.requires_grad
        }
        self.optim = optim
        self.optimizer = optimizers.create(optim, list(self.trained.values()))
        self.scaler = torch.amp.GradScaler(self.torch_device.type, enabled=self.precision == "fp16", init_scale=2.0**14)
        if optim.ema:
            self.averages = {name: value.detach().clone() for name, value in self.trained.items()}
        return Trainable(sizes={name: value.numel() for name, value in self.trained.items()})

    def _prepare(self, net: Any) -> None:
        """What the recipe asks of a network in training."""
        net.train()
        if self.checkpointing:
            if hasattr(net, "enable_gradient_checkpointing"):
                net.enable_gradient_checkpointing()
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
        ids = {}
        for encoder, name in self.family.encoders:
            tokenizer = self.models.get(name)
            found = tokenizer(
                list(captions), padding="max_length", truncation=True, max_length=tokenizer.model_max_length
            )
            ids[encoder] = np.asarray(found.input_ids, dtype=np.int64)
        return ids

    def token_counts(self, captions: Sequence[str]) -> tuple[list[int], int]:
        tokenizers = [self.models.get(name) for _, name in self.family.encoders]
        counts = [max(len(each(caption).input_ids) for each in tokenizers) for caption in captions]
        return counts, min(int(each.model_max_length) for each in tokenizers)

    def _condition(self, ids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.family.condition({name: self.models.get(name)(value) for name, value in ids.items()})

    # ---------------------------------------------------------------- step and evaluate

    def step(self, micro: Sequence[tuple[Batch, Coefficients]], *, lr: float, ema_decay: float, key: int) -> Pending:
        torch.manual_seed(key)
        total = torch.zeros((), device=self.torch_device)
        with self._remembering("a training step"):
            for batch, coefficients in micro:
                share = self._tensor((batch.weight * coefficients.w).astype(np.float32))
                loss = (self._errors(batch, coefficients) * share).sum()
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            norm = self._update(lr)
        if self.averages:
            values = [value.detach() for value in self.trained.values()]
            torch._foreach_lerp_(list(self.averages.values()), values, 1.0 - ema_decay)
        scale = self.scaler.scale(torch.ones((), device=self.torch_device))
        return Pending.of(torch.stack([total, norm, (~torch.isfinite(norm)).float(), scale]))

    def _update(self, lr: float) -> torch.Tensor:
        """Clip, skip a step whose gradient is not finite, and move the weights. Returns the norm before clipping."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        gradients = [value.grad for value in self.trained.values() if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if self.optim.clip:
            parameters = list(self.trained.values())
            torch.nn.utils.clip_grads_with_norm_(parameters, self.optim.clip, norm, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            # Fused optimisers leave everything as it was where found_inf is 1, without waiting for the device.
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _errors(self, batch: Batch, c: Coefficients) -> torch.Tensor:
        """Mean squared error of each row, float32 [B]."""
        x0, eps_in, eps = (self._tensor(each) for each in (batch.x0, batch.eps_in, batch.eps_target))
        column = {name: self._tensor(getattr(c, name).astype(np.float32)).view(-1, 1, 1, 1) for name in "abpq"}
        scale = self._tensor(c.c_in.astype(np.float32)).view(-1, 1, 1, 1)
        x = scale * (column["a"] * x0 + column["b"] * eps_in)
        wanted = column["p"] * x0 + column["q"] * eps
        cond = {name: self._tensor(value) for name, value in batch.cond.items()}
        with self._autocast():
            if "text_encoder" in self.parts:
                cond = self._condition(cond)
            net = self.models.get(self.family.denoiser)
            answer = self.family.predict(net, x, self._tensor(c.c_noise.astype(np.float32)), cond)
        error = (answer.float() - wanted).square()
        if batch.mask is not None:
            error = error * self._tensor(batch.mask)
        return torch.mean(error.flatten(1), dim=1)

    @torch.no_grad()
    def evaluate(self, batch: Batch, coefficients: Coefficients, *, ema: bool = False) -> Float32:
        with self._quiet(), self._averaged(ema), self._remembering("measuring held-out pictures"):
            return _numpy(self._errors(batch, coefficients))

    # ---------------------------------------------------------------- sample

    def add_lora(self, path: Path, strength: float = 1.0) -> None:
        """Load a LoRA file for sampling; several add up."""
        self.loras += 1
        sampling.add_lora(self.models, self.family, path, name=f"lora{self.loras}", strength=strength)

    def sample(self, requests: Sequence[SampleRequest], *, ema: bool = False) -> list[Picture]:
        with self._quiet(), self._averaged(ema), self._remembering("drawing samples"):
            return sampling.draw(self.models, requests, self._autocast)

    # ---------------------------------------------------------------- state

    def read(self) -> dict[str, dict[str, Array]]:
        found = {
            "weights": {name: _numpy(value) for name, value in self.trained.items()},
            "optimizer": state.read_optimizer(self.optimizer, self.trained, self.scaler),
        }
        if self.averages:
            found["ema"] = {name: _numpy(value) for name, value in self.averages.items()}
        return found

    def write(self, saved: Mapping[str, Mapping[str, Array]]) -> None:
        state.write_values(self.trained, saved["weights"], "weights")
        if "ema" in saved or self.averages:
            state.write_values(self.averages, saved.get("ema", {}), "ema")
        if "optimizer" in saved:
            state.write_optimizer(self.optimizer, self.trained, self.scaler, saved["optimizer"])

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
        return state.evaluating([self.models.get(part) for part in {*self.parts, self.family.denoiser}])

    def _averaged(self, ema: bool) -> AbstractContextManager[None]:
        return state.swapped(self.trained, self.averages) if ema and self.averages else nullcontext()

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
        if memory or (isinstance(error, RuntimeError) and "not enough memory" in str(error)):
            raise DeviceError(
                f"there is not enough memory on {self.device} for {self.what}",
                todo="set train.micro_batch = 1, train.gradient_checkpointing = true, or a smaller train.resolution; "
                "nothing that was saved is lost",
            ) from error


def _numpy(value: torch.Tensor) -> Float32:
    # Always a copy: a view of a parameter would change with later steps.
    return value.detach().float().cpu().numpy().copy()
