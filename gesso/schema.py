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


Colour = Annotated[str, Field(pattern=r"^(white|black|#[0-9a-fA-F]{6})$", examples=["white", "black", "#rrggbb"])]


class Table(BaseModel):
    """One table of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Model(Table):
    base: str = Field("tiny", min_length=1, description="what to start from: a name, a Hub id, a folder or a file")
    revision: str = Field("", description="revision of a Hub id; empty for its main branch")
    like: str = Field(
        "", description="for a base in one file: a folder or Hub id that lends configurations, tokenizer, scheduler"
    )
    vae: str = Field(
        "", description="another autoencoder: a folder, a Hub id, or a model that has one; its own if empty"
    )
    train: tuple[Literal["unet", "text_encoder", "text_encoder_2"], ...] = Field(
        ("unet",), min_length=1, description="which parts learn: by their adapter, or wholly where there is none"
    )


class AdapterTable(Table):
    kind: Literal["lora", "dora", "loha", "lokr", "oft", "ti", "none"] = Field(
        "lora", description='"ti" trains the words of [[tokens]] alone, "none" is full fine-tuning'
    )
    rank: Count = Field(16, description="rank of the adapter's matrices; for oft the number of blocks")
    alpha: Positive | None = Field(None, description="scale times rank; the rank itself when left out")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="dropout in front of the adapter")
    targets: tuple[str, ...] = Field(
        (),
        description="the denoiser's layers that get an adapter: endings or regular expressions; the family's if none",
    )
    text_targets: tuple[str, ...] = Field((), description="the same for the text encoders in model.train")
    factor: Annotated[int, Field(ge=-1)] = Field(-1, description="size of lokr's smaller factor; -1 for the most even")
    pivot: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="share of the steps in which the words of [[tokens]] learn before the adapter does; 0: together",
    )


class RuleTable(Table):
    """[[rules]]: each says something else of some layers; of two rules for one layer the later counts."""

    match: str = Field(
        min_length=1,
        description='layers by ending or regular expression, with or without their part: "unet.mid_block.*"',
    )
    rank: Count | None = Field(None, description="rank of these layers")
    alpha: Positive | None = Field(None, description="alpha of these layers; their rank when only that is given")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(None, description="dropout of these layers")
    skip: bool = Field(False, description="no adapter on these layers")


class TokenTable(Table):
    """[[tokens]]: each is a new word, to be learned (textual inversion)."""

    name: str = Field(min_length=1, description='the new word as captions have it, such as "<dog>"')
    init: str = Field("", description="the known words that it begins as; random when empty")
    vectors: Count = Field(1, description="how many vectors of the text encoder the word stands for")


class DataTable(Table):
    path: str = Field(
        min_length=1,
        description='a folder of pictures, one file of them, "hub:user/name", or a URL of shards (docs/data.md)',
    )
    revision: str = Field("", description="branch, tag or commit of a hub: data set; its main branch if empty")
    config: str = Field("", description="which part of a hub: data set that has several; its default one if empty")
    group: Literal["instance", "class"] = Field(
        "instance", description='"class" for pictures of the class, which are to keep it as it is (prior preservation)'
    )
    prompt: str | None = Field(None, description="one caption for every picture that has none of its own")
    repeats: Count = Field(1, description="how often each picture counts in an epoch")
    weight: Positive = Field(1.0, description="multiplies the loss of these pictures")
    encoding: str = Field("", description="encoding of caption files that are neither UTF-8 nor UTF-16")
    format: Literal["auto", "folder", "kohya", "save_to_disk", "parquet", "webdataset"] = Field(
        "auto", description="what the folder is, where two things could be meant; otherwise seen from its contents"
    )
    image_column: str = Field("", description="column with the picture or its file name; the usual one if empty")
    caption_column: str = Field("", description="column with the caption; the usual one if empty")
    max_samples: Natural = Field(0, description="so many of the pictures, drawn by lot; 0 for all")
    masks: bool = Field(
        False, description="the loss counts where dog-masklabel.png is white, or where the picture is opaque"
    )
    unmasked_weight: Share = Field(0.0, description="what the loss counts outside of masks")
    background: Colour = Field("white", description='behind what is transparent: "white", "black" or "#rrggbb"')
    trigger: str = Field("", description="a word in front of every caption that does not have it")
    prefix: str = Field("", description="text put in front of every caption as it is, spaces included")
    suffix: str = Field("", description="text put behind every caption as it is, spaces included")
    shuffle: bool = Field(False, description="the caption's tags in another order each time")
    keep_tokens: Natural = Field(0, description="tags at the front that a shuffle leaves where they are")
    tag_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of the tags behind keep_tokens that are left out, others each time"
    )
    separator: str = Field(",", min_length=1, description="what stands between tags")
    wildcards: bool = Field(False, description="one of the choices in {red|blue}, drawn each time")


class Prior(Table):
    prompt: str = Field("", description='the class in words, such as "a photo of a dog"; empty for no preservation')
    kind: Literal["pictures", "teacher"] = Field(
        "pictures",
        description='"pictures" learns class pictures beside yours; "teacher" needs none: the model is held to what it '
        "answered before training",
    )
    captions: str = Field(
        "", description="for teacher: a text file of other captions to keep, one a line, beside the class prompt"
    )
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
    loss: Literal["l2", "huber", "smooth_l1"] = Field("l2", description="how an error counts")
    huber_c: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.1, description="error from which huber and smooth_l1 turn from square to linear"
    )
    huber_schedule: Literal["constant", "exponential", "snr"] = Field(
        "snr", description="how huber_c changes with the noise: 1 at no noise, huber_c at the most, or the same always"
    )
    edm_style: bool = Field(
        False,
        description="noise as x0 + sigma*eps, error of x0 over sigma squared; with epsilon it equals the usual loss",
    )
    dream: bool = Field(False, description="DREAM: a first answer without gradient corrects the noise (epsilon only)")
    dream_detail: NonNegative = Field(1.0, description="power p of DREAM's strength (1 - alpha_bar)^(p/2)")
    zero_snr: bool | None = Field(
        None, description="rescale the schedule to zero terminal SNR; the model's own if unset"
    )
    times: Literal["uniform", "earlier", "later", "range", "only", "logit_normal", "mode"] = Field(
        "uniform", description="which timesteps are favoured; only draws no others than times_begin to times_end"
    )
    times_multiplier: Positive = Field(1.0, description="how many times as often favoured timesteps are drawn")
    times_portion: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.25, description="share of timesteps favoured by earlier and later"
    )
    times_begin: Natural = Field(0, description="first timestep of range and only")
    times_end: Count = Field(1000, description="first timestep no longer in range and only")
    times_mean: float = Field(0.0, description="mean of logit_normal")
    times_std: Positive = Field(1.0, description="standard deviation of logit_normal")
    times_scale: float = Field(1.29, ge=-1.0, le=1.75, description="scale of mode")
    noise_offset: NonNegative = Field(0.0, description="strength of the shift of whole channels; 0.05 to 0.1 is usual")
    noise_offset_random: bool = Field(False, description="draw the offset's strength for each picture, from 0 to it")
    pyramid_noise: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="what each coarser layer of pyramid noise counts of the one before; 0 for none, 0.3 to 0.8 usual",
    )
    pyramid_levels: Annotated[int, Field(ge=2, le=10)] = Field(6, description="layers of pyramid noise")
    input_perturbation: NonNegative = Field(
        0.0, description="disturbance of the mixed-in noise (others: IP noise gamma); 0.1 in the paper"
    )
    input_perturbation_random: bool = Field(
        False, description="draw the disturbance's strength for each picture, from 0 to it"
    )


class Train(Table):
    steps: Count = Field(1000, description="optimiser steps")
    epochs: Positive | None = Field(None, description="instead of steps: how often each picture is seen")
    batch: Count = Field(4, description="pictures in a step, over all devices")
    micro_batch: Natural = Field(0, description="pictures on a device at once; 0 for the whole batch")
    resolution: Side | None = Field(
        None, description="side of the square picture in pixels; the model's own when left out"
    )
    crop: Literal["center", "random"] = Field("center", description="which part of a picture that does not fit")
    flip: bool = Field(False, description="mirror half of the pictures")
    interpolation: Literal["lanczos", "bicubic", "bilinear"] = Field(
        "lanczos", description="how pictures are resized; each is antialiased"
    )
    buckets: bool = Field(
        False, description="keep each picture's shape, nearly: train it at the fitting one of several sizes"
    )
    bucket_step: Side | None = Field(
        None, description="sides of buckets are multiples of it, in pixels; 64 when left out, less below 512 pixels"
    )
    bucket_min: Side | None = Field(
        None, description="shortest side of a bucket in pixels; half the resolution when left out"
    )
    bucket_max: Side | None = Field(
        None, description="longest side of a bucket in pixels; twice the resolution when left out"
    )
    bucket_enlarge: bool = Field(True, description="enlarge pictures that have fewer pixels than a bucket")
    caption_dropout: Share = Field(0.0, description="share of captions replaced by the empty caption")
    caption_chunks: Count = Field(
        1, description="so many times the text encoder's 75 tokens are read of a caption; what is over is cut off"
    )
    readers: Natural = Field(0, description="threads that read and decode pictures; 0 for one on each processor")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="precision of the forward pass")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory, at the cost of time")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, npu")


class OptimTable(Table):
    name: Literal[
        "adamw", "adam", "sgd", "adamw_8bit", "adafactor", "lion", "prodigy", "adamw_schedule_free", "muon"
    ] = Field("adamw", description="the optimiser")
    lr: Positive = Field(
        1e-4, description="learning rate of all that has none of its own; 1 for prodigy, which finds one"
    )
    text_encoder_lr: Positive | None = Field(None, description="learning rate of text_encoder; lr when left out")
    text_encoder_2_lr: Positive | None = Field(
        None, description="learning rate of text_encoder_2; that of text_encoder when left out"
    )
    token_lr: Positive | None = Field(None, description="learning rate of the words of [[tokens]]; lr when left out")
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
    text_encoder_weight_decay: NonNegative | None = Field(
        None, description="the same for the text encoders; weight_decay when left out"
    )
    beta3: Share | None = Field(None, description="prodigy's decay of its step size; the root of betas[1] if left out")
    decouple: bool = Field(True, description="prodigy: weight decay as in AdamW")
    bias_correction: bool = Field(True, description="prodigy: Adam's bias correction")
    safeguard_warmup: bool = Field(True, description="prodigy: no growth of its estimate during warm-up")
    clip: NonNegative = Field(1.0, description="largest norm of the whole gradient; 0 for no clipping")
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="decay of the averaged weights, which are then the result; 0 for none"
    )
    ema_offload: bool = Field(False, description="keep the averaged weights in the computer's memory, not the device's")


class SampleTable(Table):
    prompts: tuple[str, ...] = Field((), description="what to draw during the run")
    prompts_file: str = Field("", description="a text file with more prompts, one a line")
    every: Natural = Field(
        0, description="draw at step 0, every so many steps and at the end; 0 for start and end only"
    )
    every_epochs: NonNegative = Field(0.0, description="the same in epochs of your pictures, instead of every")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="each prompt is drawn once with each seed")
    steps: Count = Field(25, description="denoising steps")
    guidance: NonNegative = Field(7.5, description="guidance scale")
    negative: str = Field("", description="what not to draw")
    width: Side | None = Field(None, description="pixels; the training resolution when left out")
    height: Side | None = Field(None, description="pixels; the training resolution when left out")
    scheduler: str = Field(
        "", description='a scheduler, such as "DDIM" or "DPM++ 2M Karras"; the model\'s own when left out'
    )


class Validate(Table):
    path: str = Field("", description="a folder of held-out pictures; empty for none")
    prompt: str | None = Field(None, description="one caption for held-out pictures that have none of their own")
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of the training pictures held out instead"
    )
    every: Natural = Field(
        0, description="measure at step 0, every so many steps and at the end; 0 for start and end only"
    )
    every_epochs: NonNegative = Field(0.0, description="the same in epochs of your pictures, instead of every")
    timesteps: Count = Field(8, description="noise levels measured for each picture, evenly spaced")


class Save(Table):
    every: Natural = Field(500, description="checkpoint every so many steps and at the end; 0 for the end only")
    every_epochs: NonNegative = Field(0.0, description="the same in epochs of your pictures, instead of every")
    keep: Count = Field(3, description="checkpoints that remain; the newest are kept")
    on_full: Literal["stop", "wait"] = Field("stop", description="when the disk is full: stop, or wait for room")


class Track(Table):
    tensorboard: bool = Field(True, description="write TensorBoard events under logs/")
    wandb: str = Field("", description="project on Weights & Biases that is told of the run; empty for none")
    console: Literal["auto", "live", "lines", "none"] = Field("auto", description="progress on the terminal")


class Hub(Table):
    push: str = Field("", description="OWNER/NAME on the Hub that the finished run is uploaded to; empty for none")
    private: bool = Field(True, description="make the repository private, if it is not there yet")


class Cache(Table):
    path: str = Field("", description="where encoded pictures and captions are kept; empty for the user's cache folder")
    latents: bool = Field(True, description="keep encoded pictures (never done with random crops)")
    text: bool = Field(True, description="keep encoded captions")


class TorchEngine(Table):
    threads: Natural = Field(0, description="CPU threads; 0 leaves PyTorch's own choice")
    tf32: bool = Field(True, description="TensorFloat-32 for matrix products on NVIDIA GPUs")
    channels_last: bool = Field(False, description="NHWC memory layout for convolutions")
    compile: bool = Field(False, description="torch.compile the denoiser")


class MindSporeEngine(Table):
    compile: bool | None = Field(
        None,
        description="make graphs of a training step: a slow first one, then quicker ones, and more memory; when left "
        "out, where there is no dropout, and no gradient_checkpointing, buckets or caption_chunks in train",
    )


class Recipe(Table):
    """A whole run."""

    engine: Literal["torch", "mindspore", "reference"] = Field(
        "torch", description="what executes the run (docs/mindspore.md)"
    )
    out: str = Field("runs/gesso", min_length=1, description="the run folder")
    seed: int = Field(0, ge=0, description="every random choice follows from it")
    model: Model = Model()
    adapter: AdapterTable = AdapterTable()
    data: tuple[DataTable, ...] = Field((), description="where the pictures are")
    rules: tuple[RuleTable, ...] = Field((), description="what is different for some layers of the adapter")
    tokens: tuple[TokenTable, ...] = Field((), description="new words to learn")
    prior: Prior = Prior()
    objective: ObjectiveTable = ObjectiveTable()
    train: Train = Train()
    optim: OptimTable = OptimTable()
    sample: SampleTable = SampleTable()
    validate_: Validate = Field(Validate(), alias="validate")
    save: Save = Save()
    track: Track = Track()
    hub: Hub = Hub()
    cache: Cache = Cache()
    torch: TorchEngine = TorchEngine()
    mindspore: MindSporeEngine = MindSporeEngine()

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    def as_toml(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
