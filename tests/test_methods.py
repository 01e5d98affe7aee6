"""Every method, whole: all that should learn moves and nothing else, two roads end alike, and what was made draws.

A method is a recipe; each is a row of METHODS. Runs take six steps on random models, Stable Diffusion's and XL's form.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import events, hashes, pictures
from torch_runs import PROMPT, go, pixels, torch_recipe

from gesso.engines.torch.engine import Engine
from gesso.errors import Exit
from gesso.generate import Request, generate


@dataclass(frozen=True, kw_only=True)
class Method:
    """Tables of a recipe, and what must learn: the beginnings of the names of trained parameters."""

    tables: Mapping[str, Any]
    learns: tuple[str, ...]
    families: tuple[str, ...] = ("sd", "xl")
    rests: tuple[str, ...] = field(default=())
    """Of these, nothing may have moved after the run's first half (pivotal tuning's adapters)."""


SD_TEXT, XL_TEXT = ["text_encoder"], ["text_encoder", "text_encoder_2"]
WORD = {"tokens": [{"name": "<it>", "init": "thing", "vectors": 2}], "sample": {"prompts": [f"{PROMPT} <it>"]}}
LORA = {"kind": "lora", "rank": 3, "alpha": 5.0}


def adapter(kind: str, **more: Any) -> dict[str, Any]:
    sizes = {"rank": 4} if kind == "oft" else {"rank": 3, "alpha": 5.0}
    return {"adapter": {"kind": kind, **sizes, **more}}


METHODS: dict[str, Method] = {
    **{kind: Method(tables=adapter(kind), learns=("unet.",)) for kind in ("lora", "dora", "loha", "lokr", "oft")},
    "lora of the text encoders": Method(
        tables={"adapter": LORA, "model": {"train": ["text"]}, "optim": {"text_encoder_lr": 1e-3}},
        learns=("text_encoder.", "text_encoder_2."),
    ),
    "lora of all, by rules": Method(
        tables={
            "adapter": LORA,
            "model": {"train": ["unet", "text"]},
            "rules": [
                {"match": "unet.mid_block.*", "rank": 2, "alpha": 3.0},
                {"match": "to_k", "skip": True},
                {"match": "text_encoder.*q_proj", "rank": 5},
            ],
            "optim": {"text_encoder_lr": 1e-3, "text_encoder_weight_decay": 0.1},
        },
        learns=("unet.", "text_encoder.", "text_encoder_2."),
    ),
    "dora of the text encoders": Method(
        tables={**adapter("dora"), "model": {"train": ["unet", "text"]}},
        learns=("unet.", "text_encoder.", "text_encoder_2."),
    ),
    "full": Method(tables={"adapter": {"kind": "none"}}, learns=("unet.",)),
    "full with text encoders": Method(
        tables={
            "adapter": {"kind": "none"},
            "model": {"train": ["unet", "text"]},
            "optim": {"text_encoder_lr": 1e-4},
            "train": {"gradient_checkpointing": True},
        },
        learns=("unet.", "text_encoder.", "text_encoder_2."),
    ),
    "textual inversion": Method(
        tables={"adapter": {"kind": "ti"}, **WORD, "train": {"gradient_checkpointing": True}}, learns=("tokens.",)
    ),
    "pivotal tuning": Method(
        tables={"adapter": {**LORA, "pivot": 0.5}, **WORD, "optim": {"token_lr": 1e-2}},
        learns=("tokens.", "unet."),
        rests=("unet.",),
    ),
    "words and lora together": Method(tables={"adapter": LORA, **WORD}, learns=("tokens.", "unet.")),
    "averages, offloaded": Method(
        tables={"adapter": LORA, "optim": {"ema": 0.5, "ema_offload": True}}, learns=("unet.",), families=("sd",)
    ),
    "schedule-free": Method(
        tables={"adapter": {"kind": "none"}, "optim": {"name": "adamw_schedule_free", "warmup": 2}},
        learns=("unet.",),
        families=("sd",),
    ),
    "prodigy": Method(
        tables={"adapter": LORA, "optim": {"name": "prodigy", "lr": 1.0}}, learns=("unet.",), families=("sd",)
    ),
    "dream and pyramid noise": Method(
        tables={
            "adapter": LORA,
            "objective": {
                "dream": True,
                "loss": "huber",
                "pyramid_noise": 0.4,
                "noise_offset": 0.1,
                "noise_offset_random": True,
                "input_perturbation": 0.1,
                "input_perturbation_random": True,
            },
        },
        learns=("unet.",),
        families=("sd",),
    ),
    "v-prediction at zero terminal SNR": Method(
        tables={"adapter": LORA, "objective": {"prediction": "v_prediction", "zero_snr": True, "weighting": "min_snr"}},
        learns=("unet.",),
        families=("sd", "xl"),
    ),
    "EDM-style": Method(
        tables={"adapter": LORA, "objective": {"edm_style": True, "times": "logit_normal"}},
        learns=("unet.",),
        families=("xl",),
    ),
    "an EDM model": Method(
        tables={"adapter": LORA, "model": {"train": ["unet", "text"]}},
        learns=("unet.", "text_encoder.", "text_encoder_2."),
        families=("edm",),
    ),
    "held to the base": Method(
        tables={"adapter": {"kind": "none"}, "prior": {"prompt": "a thing", "kind": "teacher"}},
        learns=("unet.",),
        families=("sd",),
    ),
}
CASES = [(name, family) for name, method in METHODS.items() for family in method.families]


@pytest.fixture(scope="session")
def bases(blank: Path, blank_xl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from gesso.engines.torch.demo.blank_xl import write

    edm = tmp_path_factory.mktemp("blank_edm")
    write(edm, edm=True)
    return {"sd": blank, "xl": blank_xl, "edm": edm}


def written(folder: Path, base: Path, method: Method, family: str) -> Path:
    """The recipe of a method; "text" among its parts stands for the text encoders of the family."""
    tables: dict[str, Any] = {name: dict(t) if isinstance(t, Mapping) else t for name, t in method.tables.items()}
    if "model" in tables:
        text = SD_TEXT if family == "sd" else XL_TEXT
        parts = [each for part in tables["model"]["train"] for each in (text if part == "text" else [part])]
        tables["model"] = {"base": str(base), "train": parts}
    if tables["adapter"]["kind"] == "ti":
        tables["adapter"] = {"kind": "ti"}
    pictures(folder / "pictures")
    if "tokens" in tables:
        for file in (folder / "pictures").glob("*.txt"):
            file.write_text(file.read_text(encoding="utf-8") + " <it>", encoding="utf-8")
    tables["save"] = {"every": 3}
    tables["sample"] = {"every": 3, **tables.get("sample", {})}
    return torch_recipe(folder, base, **tables)


def idle(name: str, family: str) -> bool:
    """What XL's answer does not depend on: it reads the first encoder, and the second's states, one layer early."""
    last = ("text_encoder.encoder.layers.1.", "text_encoder.final_layer_norm.")
    return family != "sd" and name.startswith(last)


@pytest.mark.parametrize(("name", "family"), CASES, ids=[f"{name} ({family})" for name, family in CASES])
def test_a_method_is_whole(
    tmp_path: Path, bases: dict[str, Path], name: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = METHODS[name]
    path = written(tmp_path, bases[family], method, family)
    before = hashes(bases[family], "**/*")
    what_should_learn_moves(path, method, family, monkeypatch)
    assert hashes(bases[family], "**/*") == before
    saved_files_draw_the_runs_pictures(tmp_path, method)
    two_roads_one_end(path, monkeypatch)


def what_should_learn_moves(path: Path, method: Method, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, and what rests does not; in float32."""
    weights: list[dict[str, Any]] = []
    attach, step = Engine.attach, Engine.step

    def noted_attach(self: Engine, *args: Any, **options: Any) -> Any:
        made = attach(self, *args, **options)
        weights.append(dict(self.read()["weights"]))
        return made

    def noted_step(self: Engine, *args: Any, **options: Any) -> Any:
        result = step(self, *args, **options)
        weights.append(dict(self.read()["weights"]))
        return result

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "attach", noted_attach)
        patched.setattr(Engine, "step", noted_step)
        assert go(path) == Exit.DONE
    start, half, end = weights[0], weights[3], weights[-1]
    own = [prefix for prefix in method.learns if not (family == "sd" and prefix == "text_encoder_2.")]
    assert {key.split(".")[0] for key in end} == {prefix.rstrip(".") for prefix in own}
    assert [key for key in end if np.array_equal(start[key], end[key]) and not idle(key, family)] == []
    assert {value.dtype for value in end.values()} == {np.dtype(np.float32)}
    for prefix in method.rests:
        assert all(np.array_equal(start[key], half[key]) for key in start if key.startswith(prefix))
        assert any(not np.array_equal(start[key], half[key]) for key in start if not key.startswith(prefix))
        resting = [key for key in end if not key.startswith(prefix)]
        assert all(np.array_equal(half[key], end[key]) for key in resting)


def saved_files_draw_the_runs_pictures(folder: Path, method: Method) -> None:
    """From the result and from a checkpoint."""
    out = folder / "out"
    settings = json.loads((out / "effective.json").read_text(encoding="utf-8"))
    for place, at in ((out, 6), (out / "checkpoint-3", 3)):
        if at == 3 and "optim" in method.tables and method.tables["optim"].keys() & {"ema", "name"}:
            continue  # a checkpoint's own weights are those of training; samples are the averages'
        request = Request(
            model=str(place),
            prompts=tuple(settings["sample.prompts"]["value"]),
            out=folder / f"drawn-{at}",
            seeds=(7,),
            steps=settings["sample.steps"]["value"],
            guidance=settings["sample.guidance"]["value"],
        )
        assert np.array_equal(pixels(generate(request)[0]), pixels(out / f"samples/step-{at}/p00-s7.png")), at


def two_roads_one_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after three steps and started again, the run that is there ends in the same bytes."""
    out = path.parent / "out"
    straight = out.rename(path.parent / "straight")
    step, taken = Engine.step, iter(range(100))

    def stopping_step(self: Engine, *args: Any, **options: Any) -> Any:
        if next(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        return step(self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "step", stopping_step)
        assert go(path) == Exit.STOPPED
    assert sorted(each.name for each in out.glob("checkpoint-*")) == ["checkpoint-3"]
    assert go(path) == Exit.DONE
    for pattern in ("*.safetensors", "checkpoint-6/**/*.safetensors", "samples/step-6/*.png", "unet/*", "text*/*"):
        assert hashes(out, pattern) == hashes(straight, pattern), pattern
    last = [(event["step"], event["loss"]) for event in events(straight, "stepped")][-3:]
    assert [(event["step"], event["loss"]) for event in events(out, "stepped")][-3:] == last
