"""Whole runs on MindSpore: the recipes of PyTorch's, with one line changed."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
from PIL import Image
from runs import events, hashes, pictures, recipe

from gesso.errors import Exit
from gesso.recipe import load
from gesso.run import train
from gesso.schema import MindSporeEngine

PROMPT = "a thing on a red background"
LORA = {"kind": "lora", "rank": 3, "alpha": 5.0}
WORD = [{"name": "<it>", "init": "thing", "vectors": 2}]
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora of unet and text": (
        "sd",
        {
            "adapter": {**LORA, "dropout": 0.1},
            "model": {"train": ["unet", "text_encoder"]},
            "rules": [{"match": "to_k", "skip": True}, {"match": "unet.mid_block.*", "rank": 2}],
            "optim": {"lr": 1e-3, "ema": 0.5, "schedule": "cosine", "warmup": 1},
            "validate": {"holdout": 0.2, "timesteps": 2},
        },
    ),
    "full with text encoders": (
        "xl",
        {
            "adapter": {"kind": "none"},
            "model": {"train": ["unet", "text_encoder", "text_encoder_2"]},
            "train": {"gradient_checkpointing": True, "micro_batch": 1, "caption_dropout": 0.3},
        },
    ),
    "dreambooth with words": (
        "sd",
        {
            "adapter": LORA,
            "tokens": WORD,
            "prior": {"prompt": "a thing", "pictures": 2, "sampling_steps": 2},
            "sample": {"prompts": [f"{PROMPT} <it>"]},
        },
    ),
}


def written(folder: Path, base: Path, **tables: Any) -> Path:
    """A recipe of 4 steps of 2 pictures."""
    pictures(folder / "pictures")
    if "tokens" in tables:
        for file in (folder / "pictures").glob("*.txt"):
            file.write_text(file.read_text(encoding="utf-8") + " <it>", encoding="utf-8")
    given: dict[str, Any] = {
        "engine": "mindspore",
        "train": {"steps": 4, "batch": 2},
        "sample": {"prompts": [PROMPT], "seeds": [7], "steps": 2, "guidance": 4.0},
        "optim": {"lr": 1e-3},
        "save": {"every": 2},
    }
    for name, table in tables.items():
        given[name] = {**given.get(name, {}), **table} if isinstance(table, dict) else table
    given["model"] = {"base": str(base), **given.get("model", {})}
    return recipe(folder, base, **given)


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_that_is_stopped_ends_like_one_that_is_not(
    name: str, tmp_path: Path, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gesso.engines.mindspore.executor import Engine

    family, tables = RUNS[name]
    path = written(tmp_path, bases[family], **tables)
    before = hashes(bases[family], "**/*")
    assert train(load(path)) == Exit.DONE
    assert hashes(bases[family], "**/*") == before
    out = tmp_path / "out"
    straight = out.rename(tmp_path / "straight")
    assert all(event["loss"] > 0 for event in events(straight, "stepped"))
    step, taken = Engine.step, iter(range(100))

    def stopping_step(self: Engine, *args: Any, **options: Any) -> Any:
        if next(taken) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        return step(self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "step", stopping_step)
        assert train(load(path)) == Exit.STOPPED
    assert train(load(path)) == Exit.DONE
    for pattern in ("*.safetensors", "checkpoint-4/**/*.safetensors", "samples/step-4/*.png", "unet/*", "text*/*"):
        assert hashes(out, pattern) == hashes(straight, pattern), pattern


def test_mindone_draws_the_runs_picture_from_the_model_it_left(tmp_path: Path, bases: dict[str, Path]) -> None:
    from mindone.diffusers import StableDiffusionPipeline

    from gesso.engines.mindspore.noise import Noise

    tables = {"adapter": {"kind": "none"}, "model": {"train": ["unet", "text_encoder"]}, "optim": {"lr": 1e-2}}
    assert train(load(written(tmp_path, bases["sd"], **tables))) == Exit.DONE
    out = tmp_path / "out"
    pipe = StableDiffusionPipeline.from_pretrained(str(out))
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "width": 64, "height": 64, "output_type": "np"}
    image = pipe(PROMPT, generator=Noise(7), **options)[0][0]
    drawn = np.asarray(Image.open(out / "samples/step-4/p00-s7.png").convert("RGB")).astype(int)
    first = np.asarray(Image.open(out / "samples/step-0/p00-s7.png").convert("RGB")).astype(int)
    assert np.abs(np.round(image * 255) - drawn).max() <= 1
    assert np.abs(first - drawn).max() > 5


def test_the_demo_runs_where_there_is_no_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class pictures, its layers, its verdict; what it learns is in test_mindspore_learning.py."""
    from gesso.demo import run

    question = run.Question(what="a cat on a red background", asked=(("a cat on a red background", "cat"),))
    monkeypatch.setattr(run, "questions_of", lambda _: (question,))
    monkeypatch.setattr(run, "STEPS", 8)
    out = tmp_path / "out"
    short = "--train.steps 1 --optim.warmup 0 --prior.pictures 1 --prior.sampling_steps 1 --sample.prompts []"
    flags = [*short.split(), "--validate.timesteps", "1", "--engine", "mindspore"]
    assert run.main("subject", out=str(out), flags=flags) == Exit.DONE
    assert "1 of 1" in (out / "report.html").read_text(encoding="utf-8")


def test_half_precision_follows_full(bases: dict[str, Path]) -> None:
    """fp16 on a CPU, of weights and of adapters on frozen half-precision weights: near the fp32 run."""
    for name, graphs in (("full", False), ("lora", True)):
        known = json.loads(cases.place(name, "json").read_text(encoding="utf-8"))
        case = replace(cases.CASES[name], precision="fp16", steps=4)
        numbers, _ = cases.run("mindspore", case, bases, MindSporeEngine(compile=graphs))
        assert numbers["loss"] == pytest.approx(known["loss"][:4], rel=2e-3)


def test_checkpointing_changes_nothing(bases: dict[str, Path]) -> None:
    """Gradients reach what recomputed blocks are given by name (captions) and every weight in them."""
    for name in ("full of all", "words and lora"):
        known = json.loads(cases.place(name, "json").read_text(encoding="utf-8"))
        numbers, _ = cases.run("mindspore", replace(cases.CASES[name], checkpointing=True, steps=3), bases)
        assert numbers["loss"] == pytest.approx(known["loss"][:3], rel=1e-4)
        assert numbers["norm"] == pytest.approx(known["norm"][:3], rel=1e-3)


def test_a_recipe_of_pytorchs_alone_is_refused_at_once(
    tmp_path: Path, bases: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from gesso import cli

    path = written(tmp_path, bases["sd"], adapter={"kind": "loha"}, optim={"name": "lion"})
    assert cli.main(["train", str(path)]) == Exit.RECIPE
    said = capsys.readouterr().err
    assert 'the MindSpore engine does not have adapter.kind = "loha"; it has lora, ti and none' in said
    assert 'optim.name = "lion"' in said
    path = written(tmp_path, bases["sd"], train={"precision": "bf16"}, adapter={"kind": "none"})
    assert cli.main(["train", str(path)]) == Exit.DEVICE
    assert "MindSpore on cpu cannot train in bf16" in capsys.readouterr().err
