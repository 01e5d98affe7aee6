"""The recipe: every key a user may write, its type, its default, and one sentence about it.

This one schema stands behind the TOML file, the command line, Python and the documentation (docs/recipe.md is made from
it). Values are frozen; an unknown key is an error. Durations are optimiser steps, the batch is the global batch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


def _multiple_of_8(value: int) -> int:
    if value % 8:
        raise ValueError(f"must be divisible by 8; the nearest are {value // 8 * 8} and {value // 8 * 8 + 8}")
    return value


Side = Annotated[int, Field(ge=8), AfterValidator(_multiple_of_8)]


class Table(BaseModel):
    """One table of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Model(Table):
    base: str = Field("tiny", min_length=1, description="what to start from: a name, a Hub id, a folder or a file")
    revision: str = Field("", description="revision of a Hub id; empty for its main branch")
    train: tuple[Literal["unet", "text_encoder"], ...] = Field(
        ("unet",), min_length=1, description="which parts learn when there is no adapter"
    )


class AdapterTable(Table):
    kind: Literal["lora", "none"] = Field("lora", description='"lora", or "none" for full fine-tuning')
    rank: Count = Field(16, description="rank of the adapter's matrices")
    alpha: Positive | None = Field(None, description="scale times rank; the rank itself when left out")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="dropout in front of the adapter")
    targets: tuple[str, ...] = Field(
        (),
        description="module names that get an adapter, as endings or regular expressions; the family's when left out",
    )


class DataTable(Table):
    path: str = Field(min_length=1, description="a folder of pictures")
    prompt: str | None = Field(None, description="one caption for every picture that has none of its own")
    repeats: Count = Field(1, description="how often each picture counts in an epoch")
    weight: Positive = Field(1.0, description="multiplies the loss of these pictures")
    encoding: str = Field("", description="encoding of caption files that are neither UTF-8 nor UTF-16")


class Prior(Table):
    prompt: str = Field("", description='the class in words, such as "a photo of a dog"; empty for no preservation')
    path: str = Field("", description="your own class pictures; drawn with the base model when left out or too few")
    pictures: Count = Field(100, description="how many class pictures there are to be")
    weight: NonNegative = Field(1.0, description="the class half of the loss, as a multiple of the instance half")
    sampling_steps: Count = Field(25, description="denoising steps for each class picture")
    guidance: NonNegative = Field(7.5, description="guidance scale for class pictures")


class ObjectiveTable(Table):
    prediction: Literal["auto", "epsilon", "v_prediction", "sample"] = Field(
        "auto", description="what the network predicts; auto keeps the model's own"
    )
    weighting: Literal["uniform", "min_snr", "soft_min_snr", "debiased", "p2"] = Field(
        "uniform", description="how much each noise level counts"
    )
    gamma: NonNegative = Field(0.0, description="the weighting's constant; 0 for the usual one (5 for min_snr)")
    zero_snr: bool | None = Field(
        None, description="rescale the schedule to zero terminal SNR; the model's own if unset"
    )
    times: Literal["uniform", "earlier", "later", "range"] = Field(
        "uniform", description="which timesteps are favoured"
    )
    times_multiplier: Positive = Field(1.0, description="how many times as often favoured timesteps are drawn")
    times_portion: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.25, description="share of timesteps favoured by earlier and later"
    )
    times_begin: Natural = Field(0, description="first timestep favoured by range")
    times_end: Count = Field(1000, description="first timestep no longer favoured by range")
    noise_offset: NonNegative = Field(0.0, description="strength of the shift of whole channels; 0.05 to 0.1 is usual")
    input_perturbation: NonNegative = Field(0.0, description="disturbance of the mixed-in noise; 0.1 in the paper")


class Train(Table):
    steps: Count = Field(1000, description="optimiser steps")
    batch: Count = Field(4, description="pictures in a step, over all devices")
    micro_batch: Natural = Field(0, description="pictures on a device at once; 0 for the whole batch")
    resolution: Side | None = Field(
        None, description="side of the square picture in pixels; the model's own when left out"
    )
    crop: Literal["center", "random"] = Field("center", description="which part of a picture that is not square")
    flip: bool = Field(False, description="mirror half of the pictures")
    caption_dropout: Share = Field(0.0, description="share of captions replaced by the empty caption")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="precision of the forward pass")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory, at the cost of time")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, npu")


class OptimTable(Table):
    name: Literal["adamw", "adam", "sgd"] = Field("adamw", description="the optimiser")
    lr: Positive = Field(1e-4, description="learning rate")
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"] = (
        Field("constant", description="how the learning rate changes; warmup applies to every one of them")
    )
    warmup: Natural = Field(0, description="steps over which the learning rate rises from 0")
    cycles: Count = Field(1, description="restarts of cosine_with_restarts")
    power: Positive = Field(1.0, description="power of polynomial")
    betas: tuple[Share, Share] = Field(
        (0.9, 0.999), description="decay of the two moments; sgd takes the first as its momentum"
    )
    eps: Positive = Field(1e-8, description="added to the root of the second moment")
    weight_decay: NonNegative = Field(
        1e-2, description="pull of all weights to 0; decoupled in adamw, added to the gradient in adam and sgd"
    )
    clip: NonNegative = Field(1.0, description="largest norm of the whole gradient; 0 for no clipping")
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="decay of the averaged weights, which are then the result; 0 for none"
    )


class SampleTable(Table):
    prompts: tuple[str, ...] = Field((), description="what to draw during the run")
    every: Natural = Field(
        0, description="draw at step 0, every so many steps and at the end; 0 for start and end only"
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="each prompt is drawn once with each seed")
    steps: Count = Field(25, description="denoising steps")
    guidance: NonNegative = Field(7.5, description="guidance scale")
    negative: str = Field("", description="what not to draw")
    width: Side | None = Field(None, description="pixels; the training resolution when left out")
    height: Side | None = Field(None, description="pixels; the training resolution when left out")
    scheduler: str = Field("", description="a diffusers scheduler class; the model's own when left out")


class Validate(Table):
    path: str = Field("", description="a folder of held-out pictures; empty for none")
    prompt: str | None = Field(None, description="one caption for held-out pictures that have none of their own")
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of the training pictures held out instead"
    )
    every: Natural = Field(
        0, description="measure at step 0, every so many steps and at the end; 0 for start and end only"
    )
    timesteps: Count = Field(8, description="noise levels measured for each picture, evenly spaced")


class Save(Table):
    every: Natural = Field(500, description="checkpoint every so many steps and at the end; 0 for the end only")
    keep: Count = Field(3, description="checkpoints that remain; the newest are kept")
    on_full: Literal["stop", "wait"] = Field("stop", description="when the disk is full: stop, or wait for room")


class Track(Table):
    tensorboard: bool = Field(True, description="write TensorBoard events under logs/")
    console: Literal["auto", "live", "lines", "none"] = Field("auto", description="progress on the terminal")


class Cache(Table):
    path: str = Field("", description="where encoded pictures and captions are kept; empty for the user's cache folder")
    latents: bool = Field(True, description="keep encoded pictures (never done with random crops)")
    text: bool = Field(True, description="keep encoded captions")


class TorchEngine(Table):
    threads: Natural = Field(0, description="CPU threads; 0 leaves PyTorch's own choice")
    tf32: bool = Field(True, description="TensorFloat-32 for matrix products on NVIDIA GPUs")
    channels_last: bool = Field(False, description="NHWC memory layout for convolutions")
    compile: bool = Field(False, description="torch.compile the denoiser")


class Recipe(Table):
    """A whole run."""

    engine: Literal["torch", "reference"] = Field("torch", description="what executes the run")
    out: str = Field("runs/gesso", min_length=1, description="the run folder")
    seed: int = Field(0, ge=0, description="every random choice follows from it")
    model: Model = Model()
    adapter: AdapterTable = AdapterTable()
    data: tuple[DataTable, ...] = Field((), description="where the pictures are")
    prior: Prior = Prior()
    objective: ObjectiveTable = ObjectiveTable()
    train: Train = Train()
    optim: OptimTable = OptimTable()
    sample: SampleTable = SampleTable()
    validate_: Validate = Field(Validate(), alias="validate")
    save: Save = Save()
    track: Track = Track()
    cache: Cache = Cache()
    torch: TorchEngine = TorchEngine()

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    def as_toml(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
