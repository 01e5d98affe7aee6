"""Whole runs on the PyTorch engine, from the recipe to files that plain diffusers draws the same pictures from."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from runs import events, gesso, hashes, pictures
from torch_runs import FULL, GUIDANCE, LORA, PROMPT, STEPS, again, drawn, go, pixels, plain, torch_recipe, watch

from gesso.engines.torch.engine import Engine
from gesso.errors import Exit, RecipeError
from gesso.generate import Request, generate

LATER = {"times": "later", "times_multiplier": 3.0}
KILLED = """
import os, signal, sys
from gesso.engines.torch.engine import Engine
plain, last = Engine.step, int(sys.argv.pop(1))
def step(self, *micro, **options):
    global last
    last -= 1
    if not last:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *micro, **options)
Engine.step = step
from gesso.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "pictures")
    return tmp_path


@pytest.fixture(params=["lora", "full"])
def adapter(request: pytest.FixtureRequest) -> dict[str, Any]:
    return LORA if request.param == "lora" else FULL


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_full_run_is_a_pipeline_that_draws_its_own_samples(folder: Path, blank: Path, ema: float) -> None:
    out = folder / "out"
    path = torch_recipe(folder, blank, adapter=FULL, optim={"ema": ema}, sample={"every": 4})
    assert go(path) == Exit.DONE
    last = pixels(out / "samples/step-6/p00-s7.png")
    assert not np.array_equal(last, pixels(out / "samples/step-0/p00-s7.png")), "nothing was learned"
    assert np.array_equal(pixels(out / "samples/step-0/p00-s7.png"), drawn(plain(blank)))
    assert np.array_equal(last, drawn(plain(out)))
    assert np.array_equal(last, again(out, folder / "drawn"))
    middle = UNet2DConditionModel.from_pretrained(out / "checkpoint-4" / "unet")
    pipe = plain(blank)
    pipe.unet = middle.eval()
    sample = pixels(out / "samples/step-4/p00-s7.png")
    # With averages a sample shows them, as does what is drawn later; unet/ has what training goes on with.
    assert np.array_equal(sample, drawn(pipe)) == (not ema)
    assert np.array_equal(again(out / "checkpoint-4", folder / "middle"), sample)


def test_a_lora_run_draws_its_own_samples_in_plain_diffusers(folder: Path, blank: Path) -> None:
    """With alpha ≠ rank, which readers without gesso's metadata would scale wrongly."""
    out = folder / "out"
    assert go(torch_recipe(folder, blank, adapter=LORA, sample={"every": 4})) == Exit.DONE
    assert not np.array_equal(pixels(out / "samples/step-6/p00-s7.png"), pixels(out / "samples/step-0/p00-s7.png"))
    for place, step in ((out, 6), (out / "checkpoint-4", 4)):
        pipe = plain(blank)
        pipe.load_lora_weights(place)
        sample = pixels(out / f"samples/step-{step}/p00-s7.png")
        assert np.array_equal(sample, drawn(pipe))
        assert np.array_equal(sample, again(place, folder / f"drawn-{step}"))


@pytest.mark.parametrize("optim", [{"ema": 0.5}, {"name": "adamw_schedule_free", "lr": 1e-2}])
def test_a_checkpoint_with_averages_draws_its_own_samples(folder: Path, blank: Path, optim: dict[str, Any]) -> None:
    out = folder / "out"
    path = torch_recipe(
        folder,
        blank,
        adapter=LORA,
        optim=optim,
        sample={"every": 4},
        model={"base": str(blank), "train": ["unet", "text_encoder"]},
    )
    assert go(path) == Exit.DONE
    assert (out / "checkpoint-4" / "ema.safetensors").is_file()
    sample = pixels(out / "samples/step-4/p00-s7.png")
    pipe = plain(blank)
    pipe.load_lora_weights(out / "checkpoint-4")
    assert not np.array_equal(sample, drawn(pipe)), "the weights are not the averages"
    assert np.array_equal(sample, again(out / "checkpoint-4", folder / "drawn"))
    lora = out / "checkpoint-4" / "pytorch_lora_weights.safetensors"
    assert np.array_equal(sample, again(lora, folder / "drawn-too"))


def test_two_roads_one_end(folder: Path, blank: Path, adapter: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps straight, and stopped by SIGTERM at 2, killed after checkpoint 4, finished: the same bytes.

    Everything that is drawn is on: crops, mirrors, captions left out, dropout, noise of every kind. A full run trains
    the text encoder as well, and the moments lie in memory as the weights do, which fused optimisers rely on.
    """
    both = {"model": {"base": str(blank), "train": ["unet", "text_encoder"]}} if adapter["kind"] == "none" else {}
    path = torch_recipe(
        folder,
        blank,
        adapter={**adapter, "dropout": 0.2} if adapter["kind"] == "lora" else adapter,
        optim={"ema": 0.9, "schedule": "cosine", "warmup": 2},
        train={"crop": "random", "flip": True, "caption_dropout": 0.3},
        objective={"weighting": "min_snr", "noise_offset": 0.1, "input_perturbation": 0.1, **LATER},
        torch={"channels_last": True},
        validate={"holdout": 0.2, "every": 2},
        save={"every": 4},
        sample={"every": 2},
        **both,
    )
    out, straight = folder / "out", folder / "straight"
    assert go(path) == Exit.DONE
    out.rename(straight)

    step, taken = Engine.step, iter(range(100))

    def stop_at_2(self: Engine, *micro: Any, **options: Any) -> Any:
        if next(taken) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        return step(self, *micro, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "step", stop_at_2)
        assert go(path) == Exit.STOPPED
    assert sorted(found.name for found in out.glob("checkpoint-*")) == ["checkpoint-2"]
    command = [sys.executable, "-c", KILLED, "3", "train", str(path)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(found.name for found in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert go(path) == Exit.DONE

    assert [event["step"] for event in events(out, "started")] == [0, 2, 4]
    for pattern in ("**/*.safetensors", "**/*.png", "*/*.json", "README.md", "*.toml", "*.lock.json"):
        one, other = hashes(straight, pattern), hashes(out, pattern)
        there = {name: value for name, value in other.items() if not name.startswith("checkpoint-2/")}
        assert one, pattern
        assert there == one
    for name in ("stepped", "validated"):
        kept = {e["step"]: (e["loss"], e.get("grad_norm"), e.get("error")) for e in events(straight, name)}
        assert {e["step"]: (e["loss"], e.get("grad_norm"), e.get("error")) for e in events(out, name)} == kept


def test_micro_batches_are_the_same_run(folder: Path, blank: Path, adapter: dict[str, Any]) -> None:
    path = torch_recipe(folder, blank, adapter=adapter, train={"steps": 4, "batch": 4}, optim={"lr": 1e-3})
    losses = []
    for size in (4, 2, 1):
        out = folder / f"micro-{size}"
        go(path, "--train.micro_batch", str(size), "--out", out)
        losses.append([event["loss"] for event in events(out, "stepped")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_class_pictures_drawn_or_found_are_the_same_run(folder: Path, blank: Path) -> None:
    """In half precision too: whether the model was used for drawing beforehand must not change how it trains."""
    path = torch_recipe(
        folder,
        blank,
        adapter=LORA,
        train={"precision": "bf16", "steps": 3},
        prior={"prompt": "a thing", "pictures": 2, "sampling_steps": 2},
    )
    go(path)
    found = folder / "found"
    found.mkdir()
    shutil.copytree(folder / "out/class", found / "class")
    go(path, "--out", found)
    assert hashes(found, "class/**/*.png") == hashes(folder / "out", "class/**/*.png")
    assert hashes(found, "*.safetensors") == hashes(folder / "out", "*.safetensors")
    losses = [[event["loss"] for event in events(out, "stepped")] for out in (folder / "out", found)]
    assert losses[0] == losses[1]


@pytest.mark.slow  # half precision on a CPU
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_draws_the_same_outside_of_training(
    folder: Path, blank: Path, adapter: dict[str, Any], precision: str
) -> None:
    """A LoRA's base is held in half precision both times. A full run trains float32 weights, so rounding differs."""
    path = torch_recipe(folder, blank, adapter=adapter, train={"precision": precision, "steps": 2})
    assert go(path) == Exit.DONE
    request = Request(
        model=str(folder / "out"),
        prompts=(PROMPT,),
        out=folder / "drawn",
        seeds=(7,),
        steps=STEPS,
        guidance=GUIDANCE,
        precision=precision,
    )
    found = pixels(generate(request)[0]).astype(int)
    last = pixels(folder / "out/samples/step-2/p00-s7.png").astype(int)
    assert np.abs(found - last).max() <= (0 if adapter["kind"] == "lora" else 8), "of 255"


def test_the_held_out_loss_is_a_measure(folder: Path, blank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on unchanged weights, and its error the standard error of the mean over pictures, by hand."""
    pictures(folder / "pictures", 6)
    seen = watch(monkeypatch)
    path = torch_recipe(
        folder,
        blank,
        adapter=FULL,
        optim={"lr": 1e-30},
        validate={"holdout": 0.5, "every": 3, "timesteps": 4},
        train={"micro_batch": 2, "flip": True, "caption_dropout": 0.5},
    )
    assert go(path) == Exit.DONE
    found = events(folder / "out", "validated")
    assert [event["step"] for event in found] == [0, 3, 6]
    assert len({(event["loss"], event["error"]) for event in found}) == 1
    assert len(seen.measured) == 3 * 2 * 4, "three pictures in two batches at four levels, three times"
    rows: dict[int, list[float]] = {}
    for batch, c, errors in seen.measured[:8]:
        assert np.array_equal(c.w, np.ones(len(c)))
        for row, error in zip(batch.ids, errors, strict=True):
            rows.setdefault(int(row), []).append(float(error))
    means = [sum(values) / 4 for values in rows.values()]
    mean = sum(means) / 3
    deviation = (sum((value - mean) ** 2 for value in means) / 2) ** 0.5
    assert found[0]["loss"] == pytest.approx(mean, rel=1e-12)
    assert found[0]["error"] == pytest.approx(deviation / 3**0.5, rel=1e-9)
    assert deviation > 0
    assert list(found[0]["by_timestep"]) == ["125", "375", "625", "875"]


def test_a_device_that_is_not_there_is_said(folder: Path, blank: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = gesso("train", torch_recipe(folder, blank), "--train.device", "cuda")
    assert done.returncode == Exit.DEVICE
    assert 'there is no device "cuda" here' in done.stderr
    assert "cpu" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "out" / "unet").exists()


def test_a_lora_or_a_checkpoint_is_no_base_by_mistake(folder: Path, blank: Path) -> None:
    """A run on top of a LoRA would leave the LoRA out; it says so instead."""
    path = torch_recipe(folder, blank, adapter=LORA, train={"steps": 1})
    go(path)
    with pytest.raises(RecipeError, match="LoRA"):
        go(path, "--model.base", folder / "out", "--out", folder / "second")
    assert not (folder / "second").exists()
