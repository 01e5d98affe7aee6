"""The engine: a handful of verbs that execute what the rest of gesso has decided.

Only numpy arrays, names and paths cross this seam. An engine never draws a random number that matters, never decides an
order, and never blocks per step: `step` returns at once and `StepResult.read()` waits.

A new engine is a module `gesso/engines/<name>/` whose `engine.py` has a function `create` that makes one. It is
done when the contract tests (tests/test_engine_contract.py) pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from gesso.arrays import Array, Float32, Int64, Picture, Pixels
from gesso.data.batch import Batch
from gesso.families.family import Family
from gesso.objective.coefficients import Coefficients


@dataclass(frozen=True, slots=True)
class Metrics:
    """The numbers of one step: weighted loss of the global batch, norm of its gradient before clipping."""

    loss: float
    grad_norm: float
    skipped: bool = False
    searching: bool = False
    """Skipped because fp16's loss scale is still above what the gradients bear; it is being lowered."""


class StepResult(Protocol):
    """The promise of a step's numbers."""

    def read(self) -> Metrics:
        """Wait for the device, then give the numbers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Something else for some layers of an adapter; None leaves a value as it is. `skip` takes the layers out."""

    match: str
    """An ending or regular expression of a layer's name, with or without its part ("unet.mid_block.*")."""
    rank: int | None = None
    alpha: float | None = None
    """The rank of this rule when only that is given."""
    dropout: float | None = None
    skip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Adapters to train instead of the weights themselves, on each of the parts that `targets` names.

    `targets` are, for each part, endings or regular expressions of the names of its layers; each must match a layer.
    `rules` come in order, each must match a layer that has an adapter, and of two for one layer the later counts.
    `init` seeds the adapter's own starting values.
    """

    kind: str = "lora"
    """lora, dora, loha, lokr or oft."""
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    factor: int = -1
    init: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A new word of the text encoders, `vectors` long, that begins as the mean of the words in `init`.

    Where those are as many tokens as it has vectors, each vector begins as one of them; without any, as noise of the
    size of the others, from `seed`.
    """

    name: str
    init: str = ""
    vectors: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Optim:
    """The optimiser by name with its constants; the learning rates come with every step."""

    name: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    beta3: float | None = None
    eps: float = 1e-8
    weight_decay: float = 1e-2
    text_weight_decay: float = 1e-2
    """Of the text encoders; the words of textual inversion have none."""
    decouple: bool = True
    bias_correction: bool = True
    safeguard_warmup: bool = True
    clip: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    ema: bool = False
    ema_offload: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One picture to draw with the family's own pipeline."""

    prompt: str
    seed: int
    negative: str = ""
    width: int = 512
    height: int = 512
    steps: int = 25
    guidance: float = 7.5
    scheduler: str = ""
    """A scheduler by any name of gesso/samplers.py; "" keeps the model's own."""
    image: Picture | None = field(default=None, repr=False, compare=False)
    """A picture of `width` × `height` to begin with, instead of noise alone."""
    denoise: float = 1.0
    """Share of the noise that is laid over `image` and taken off again."""

    def as_dict(self) -> dict[str, Any]:
        """What there is to say of it in words and numbers."""
        said = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "image"}
        return said if self.image is not None else {key: value for key, value in said.items() if key != "denoise"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """What `attach` made trainable: parameter names with their number of values."""

    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


class Engine(Protocol):
    """Load, attach, encode, step, evaluate, sample, read and write. One engine serves one run."""

    name: str
    device: str
    """For people: "cpu, 2 threads", "NVIDIA H100, 80 GB"."""
    precision: str
    """The effective precision: fp32, bf16 or fp16."""
    arithmetic: str
    """What the last digits of encoded values depend on, such as "torch cuda tf32": it is part of the cache's keys."""
    lag: int
    """How many steps the loop may run ahead of reading their numbers."""
    notes: list[str]
    """What the user should know, a sentence each. Whoever says them takes them out."""

    def load(
        self,
        folder: Path,
        family: Family,
        *,
        parts: Sequence[str] = (),
        scheduler: Mapping[str, object] = MappingProxyType({}),
        chunks: int = 1,
    ) -> None:
        """Take the model in diffusers layout at `folder`; `parts` names what will train, `scheduler` what is changed in
        the scheduler's configuration, so that samples are drawn as the model is trained. Captions are cut after
        `chunks` times what the text encoder reads at once (gesso/chunks.py); prompts of samples never are.

        Weights are read when first needed, so that a run on cached latents never loads the autoencoder.
        """
        ...

    def attach(
        self, adapter: Adapter | None, optim: Optim, tokens: Sequence[Token] = (), *, keep_base: bool = False
    ) -> Trainable:
        """Add the adapters, or unfreeze the parts given to `load`, add the new words, and make the optimiser.

        The words alone learn when there is neither an adapter nor a part. All that is trained is float32. `keep_base`
        keeps what batches with teacher rows need: the weights as they are now.
        """
        ...

    def encode_images(self, pixels: Pixels) -> tuple[Float32, Float32]:
        """Mean and log-variance of the latent posterior, unscaled, float32 [B, C, H, W] each."""
        ...

    def encode_text(self, captions: Sequence[str]) -> dict[str, Float32]:
        """What the denoiser needs of each caption, by name, float32 [B, …]."""
        ...

    def tokens(self, captions: Sequence[str]) -> dict[str, Int64]:
        """Token ids by name, for captions whose encoder is being trained, int64 [B, chunks · length]."""
        ...

    def token_counts(self, captions: Sequence[str]) -> tuple[list[int], int]:
        """How many tokens each caption has before any cut, and how many are read in all the chunks allowed."""
        ...

    def step(
        self, micro: Sequence[tuple[Batch, Coefficients]], *, lr: Mapping[str, float], ema_decay: float, key: int
    ) -> StepResult:
        """One optimiser step over micro-batches that together are the global batch; `key` seeds dropout.

        `lr` is the learning rate of each group that learns: parts, and "tokens". A group that it leaves out rests:
        neither its weights nor the optimiser's state of them change.
        """
        ...

    def evaluate(self, batch: Batch, coefficients: Coefficients, *, ema: bool = False) -> Float32:
        """Mean squared error of each row, without gradient, unweighted, float32 [B]; `ema`: of the averaged weights."""
        ...

    def add_lora(self, path: Path, strength: float = 1.0) -> None:
        """Load a LoRA file for sampling; several add up."""
        ...

    def add_refiner(self, folder: Path, handover: float | None = None) -> None:
        """Take the second stage in diffusers layout at `folder` for sampling.

        It goes on where the model has removed the share `handover` of the noise, or, without it, adds a little noise
        to what the model has drawn and draws that anew. RecipeError where the engine has no such stage.
        """
        ...

    def sample(self, requests: Sequence[SampleRequest], *, ema: bool = False, batch: int = 1) -> list[Picture]:
        """Draw pictures with diffusers' own pipeline from the weights as they now are, up to `batch` of them at once.

        One at a time, no picture depends on its neighbours.
        """
        ...

    def read(self) -> dict[str, dict[str, Array]]:
        """Everything a checkpoint needs, by file: "weights", "optimizer", "ema"; copies, never views.

        "weights" has `<part>.<parameter>` (full) or peft's own names `unet.<module>.lora_A.weight` (adapters)."""
        ...

    def write(self, state: Mapping[str, Mapping[str, Array]]) -> None:
        """Put back what `read` gave. A missing or unexpected name is an error."""
        ...
