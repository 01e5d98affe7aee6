"""Runs of 20 steps that each engine carries out on the same weights, samples, noise and timesteps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import HERE, PIPELINES

from gesso.arrays import Array, Picture
from gesso.data.batch import Batch
from gesso.engines.engine import Adapter, Engine, Optim, SampleRequest, Token
from gesso.families import find
from gesso.formats import adapter
from gesso.formats import lora as lora_file
from gesso.formats.metadata import Config
from gesso.keys import generator
from gesso.objective.coefficients import Coefficients
from gesso.objective.losses import Loss
from gesso.objective.objective import Objective
from gesso.objective.own import from_scheduler
from gesso.objective.weightings import Weighting
from gesso.schema import Table, TorchEngine

STEPS, ROWS, SIDE = 20, 3, 16
CAPTIONS = ("a cat", "an apple on a red background", "", "a toy of <it>", "seven <it>")
UNET = ("to_q", "to_v", "to_out.0")
TEXT = ("q_proj", "out_proj")
LINEAR = {"unet": UNET}
REST = ("conv1", "conv2", "proj_in", "conv_shortcut", "ff.net.0.proj", "ff.net.2")
"""What the demo's recipe adapts besides attention, and more."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One method on one family."""

    family: str = "sd"
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of adapters; without any, `parts` learn themselves."""
    parts: tuple[str, ...] = ()
    tokens: tuple[Token, ...] = ()
    objective: Objective = field(default_factory=Objective)
    optim: Optim = field(default_factory=Optim)
    lr: Mapping[str, float] = field(default_factory=lambda: {"unet": 1e-3})
    teacher: bool = False
    micro: int = ROWS
    precision: str = "fp32"
    checkpointing: bool = False
    mask: bool = False
    steps: int = STEPS


PLAIN = TorchEngine()  # steps that are not compiled, of either engine
WORD = (Token(name="<it>", init="thing", vectors=2),)
BOTH = {"unet": 1e-3, "text_encoder": 5e-4}
ALL = {**BOTH, "text_encoder_2": 5e-4}
FULL = {"unet": 2e-4, "text_encoder": 1e-4, "text_encoder_2": 1e-4}
V = Objective(
    schedule=from_scheduler(
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, zero_snr=True, edm_style=False
    ),
    prediction="v_prediction",
    weighting=Weighting(name="min_snr"),
)
CASES: dict[str, Case] = {
    "lora": Case(targets=LINEAR),
    "lora of the rest": Case(targets={"unet": REST}, mask=True),
    "lora of all": Case(targets={**LINEAR, "text_encoder": TEXT}, lr=BOTH, micro=1),
    "full": Case(parts=("unet",), lr=FULL),
    "full of all": Case(parts=("unet", "text_encoder"), lr=FULL),
    "full, adam": Case(parts=("unet",), lr=FULL, optim=Optim(name="adam", weight_decay=0.1, clip=0.5)),
    "full, sgd": Case(parts=("unet",), lr={"unet": 1e-2}, optim=Optim(name="sgd", clip=0.0)),
    "words": Case(tokens=WORD, lr={"tokens": 1e-2}),
    "words and lora": Case(targets=LINEAR, tokens=WORD, lr={"unet": 1e-3, "tokens": 1e-3}),
    "teacher": Case(parts=("unet",), lr=FULL, teacher=True),
    "teacher of lora": Case(targets=LINEAR, teacher=True),
    "huber and dream": Case(targets=LINEAR, objective=Objective(loss=Loss(name="huber"), dream=1.0)),
    "sd2 v": Case(family="sd2", targets={**LINEAR, "text_encoder": TEXT}, lr=BOTH, objective=V),
    "xl lora of all": Case(family="xl", targets={**LINEAR, "text_encoder": TEXT, "text_encoder_2": TEXT}, lr=ALL),
    "xl full": Case(family="xl", parts=("unet", "text_encoder", "text_encoder_2"), lr=FULL),
    "xl words": Case(family="xl", tokens=WORD, lr={"tokens": 1e-2}),
}

EXCHANGED = ("lora of all", "xl lora of all")
"""Cases whose adapters each engine reads from the other's file."""


def place(name: str, kind: str) -> Path:
    """The file of a case or family in fixtures/."""
    stem = HERE / "fixtures" / name.replace(",", "").replace(" ", "-")
    return stem.with_suffix(f".{kind}") if kind in ("json", "safetensors") else Path(f"{stem}-{kind}.safetensors")


def run(
    name: str, case: Case, bases: Mapping[str, Path], options: Table = PLAIN
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Loss and gradient norm of every step, what the start and the end say of one batch; and adapters and words."""
    engine = begun(name, case, bases, options)
    numbers: dict[str, Any] = {"loss": [], "norm": []}
    for step in range(case.steps):
        result = take(engine, case, step)
        numbers["loss"].append(result.loss)
        numbers["norm"].append(result.grad_norm)
    batch, c = made(engine, case, STEPS)
    numbers["errors"] = engine.evaluate(batch, c).tolist()
    weights = engine.read()["weights"]
    numbers["sizes"] = {key: float(np.linalg.norm(value.astype(np.float64))) for key, value in weights.items()}
    kept = {key: value for key, value in weights.items() if "lora" in key or key.startswith("tokens.")}
    return numbers, kept


def begun(name: str, case: Case, bases: Mapping[str, Path], options: Table = PLAIN) -> Engine:
    """The engine `name` with all attached, and starting values of adapters that do not depend on it."""
    create = import_module(f"gesso.engines.{name}.engine").create
    engine: Engine = create(options, device="cpu", precision=case.precision, checkpointing=case.checkpointing)
    family = find(PIPELINES[case.family])
    engine.load(bases[case.family], family, parts=case.parts)
    lora = Adapter(rank=2, alpha=3.0, targets=case.targets) if case.targets else None
    engine.attach(lora, case.optim, case.tokens, keep_base=case.teacher)
    weights = engine.read()["weights"]
    for key, value in weights.items():
        if "lora" in key:
            noise = generator(0, f"start {key}").standard_normal(value.shape, dtype=np.float32)
            weights[key] = noise * np.float32(0.5 if "lora_A" in key else 0.05)
    engine.write({"weights": weights, **({"ema": weights} if case.optim.ema else {})})
    return engine


def take(engine: Engine, case: Case, step: int) -> Any:
    """One step; its numbers."""
    batch, c = made(engine, case, step)
    micro = [(batch.rows(at, at + case.micro), c.rows(at, at + case.micro)) for at in range(0, ROWS, case.micro)]
    own = {key.split(".")[0] for key in engine.read()["weights"]} if step == 0 else set(case.lr)
    lr = {key: value for key, value in case.lr.items() if key in own or step}
    return engine.step(micro, lr=lr, ema_decay=0.9, key=step).read()


def made(engine: Engine, case: Case, step: int) -> tuple[Batch, Coefficients]:
    """What a step learns from."""
    rng = generator(1, "case", step)
    captions = [CAPTIONS[at] for at in rng.integers(0, len(CAPTIONS) if case.tokens else 3, ROWS)]
    captions = [CAPTIONS[3], *captions[1:]] if case.tokens else captions
    text = bool(case.tokens) or any(part.startswith("text_encoder") for part in (*case.targets, *case.parts))
    cond: dict[str, Array] = {**(engine.tokens(captions) if text else engine.encode_text(captions))}
    if case.family == "xl":
        cond["time_ids"] = np.tile(np.array([64, 64, 0, 8, 64, 64], dtype=np.float32), (ROWS, 1))
    x0, eps = rng.standard_normal((2, ROWS, 4, SIDE, SIDE), dtype=np.float32)
    batch = Batch(
        x0=x0,
        eps_in=eps,
        eps_target=eps,
        cond=cond,
        weight=np.full(ROWS, 1 / ROWS, dtype=np.float32),
        ids=np.arange(ROWS),
    )
    if case.teacher:
        batch = replace(batch, teacher=np.array([0.0, 1.0, 0.0], dtype=np.float32))
    if case.mask:
        batch = replace(batch, mask=rng.random((ROWS, 1, SIDE, SIDE), dtype=np.float32))
    return batch, case.objective.at(rng.integers(20, 980, ROWS))


SCHEDULERS = ("", "DDIM", "DDPM", "Euler", "Euler a", "DPM++ 2M Karras", "UniPC", "Heun", "PLMS", "LMS")


def answers(name: str, family: str, base: Path) -> dict[str, Array]:
    """What the engine makes of captions and pictures, and what it draws from the model as it is."""
    engine = loaded(name, family, base)
    pixels = generator(2, "pixels").uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    mean, logvar = engine.encode_images(pixels)
    found: dict[str, Array] = {"mean": mean, "logvar": logvar, **engine.encode_text(CAPTIONS[:3])}
    found |= {f"tokens {key}": value for key, value in engine.tokens([*CAPTIONS[:2], "long " * 40]).items()}
    kinds = SCHEDULERS if family == "sd" else SCHEDULERS[:1]
    for kind, picture in zip(kinds, engine.sample([replace(REQUEST, scheduler=kind) for kind in kinds]), strict=True):
        found[f"picture {kind}"] = picture
    return found


def with_lora(name: str, family: str, base: Path, file: Path) -> Picture:
    """The picture that a model draws with a LoRA file."""
    engine = loaded(name, family, base)
    engine.add_lora(file)
    return engine.sample([REQUEST])[0]


def loaded(name: str, family: str, base: Path, options: Table = PLAIN) -> Engine:
    create = import_module(f"gesso.engines.{name}.engine").create
    engine: Engine = create(options, device="cpu", precision="fp32")
    engine.load(base, find(PIPELINES[family]))
    return engine


def write_lora(file: Path, weights: Mapping[str, Array]) -> None:
    """The adapters of a case, rank 2 and alpha 3, as a run leaves them."""
    sizes = dict.fromkeys(adapter.modules(weights), (2, 3.0))
    lora_file.write(file, weights, Config.of(sizes))


REQUEST = SampleRequest(prompt="a cat", seed=7, width=64, height=64, steps=6, guidance=4.0)


def plainly(pipe: Any, generator: Any) -> Array:
    """The picture of REQUEST by a pipeline that gesso has no part in, int [64, 64, 3]."""
    pipe.set_progress_bar_config(disable=True)
    found = pipe(
        REQUEST.prompt,
        generator=generator,
        num_inference_steps=REQUEST.steps,
        guidance_scale=REQUEST.guidance,
        width=REQUEST.width,
        height=REQUEST.height,
        output_type="np",
        return_dict=False,
    )
    return np.asarray(np.round(found[0][0] * 255), dtype=np.int64)
