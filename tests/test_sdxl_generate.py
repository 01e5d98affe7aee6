"""`gesso generate` with a refiner and with another autoencoder draws what plain diffusers draws in the same chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from runs import gesso
from sdxl_plain import drawn, pipe
from torch_runs import pixels

from gesso.errors import RecipeError
from gesso.formats import png
from gesso.generate import Request, generate, outline, prepare

PROMPT, SEED, STEPS, GUIDANCE = "a red apple", 3, 8, 4.0


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gesso.engines.torch.demo.blank_xl import write

    folder = tmp_path_factory.mktemp("refiner")
    write(folder, refiner=True, seed=5)
    return folder


def asked(base: Path, out: Path, **keys: Any) -> Request:
    options: dict[str, Any] = {"steps": STEPS, "guidance": GUIDANCE, "seeds": (SEED,), "device": "cpu"}
    return Request(model=str(base), prompts=(PROMPT,), out=out, **{**options, **keys})


def chain(base: Path, second: Path, *, handover: float | None, **options: Any) -> Any:
    """Base to refiner as S3's example and diffusers' own documentation have it."""
    first, then = pipe(base), pipe(second, StableDiffusionXLImg2ImgPipeline)
    generator = torch.Generator("cpu").manual_seed(SEED)
    common = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": generator, **options}
    end, start = ({}, {}) if handover is None else ({"denoising_end": handover}, {"denoising_start": handover})
    latents = first(PROMPT, output_type="latent", **common, **end).images[0]
    return np.asarray(then(PROMPT, image=latents[None, :], **common, **start).images[0])


@pytest.mark.parametrize("handover", [None, 0.8, 0.4])
def test_the_chain_is_that_of_plain_diffusers(
    tmp_path: Path, blank_xl: Path, refiner: Path, handover: float | None
) -> None:
    request = asked(blank_xl, tmp_path, refiner=str(refiner), handover=handover, negative="a dog")
    made = generate(request)[0]
    assert np.array_equal(pixels(made), chain(blank_xl, refiner, handover=handover, negative_prompt="a dog"))
    alone = drawn(pipe(blank_xl), PROMPT, SEED, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    assert not np.array_equal(pixels(made), alone)
    said = png.read(made)
    assert said["refiner"] == refiner.name
    assert said.get("handover") == handover


def test_each_seed_is_drawn_as_if_alone(tmp_path: Path, blank_xl: Path, refiner: Path) -> None:
    both = generate(asked(blank_xl, tmp_path, refiner=str(refiner), handover=0.5, seeds=(1, SEED)))
    assert np.array_equal(pixels(both[1]), chain(blank_xl, refiner, handover=0.5))


def test_the_command_draws_with_a_refiner_and_another_autoencoder(
    tmp_path: Path, blank_xl: Path, refiner: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(refiner, other)
    command = ["generate", "--model", blank_xl, "--prompt", PROMPT, "--steps", STEPS, "--guidance", GUIDANCE]
    flags = ["--seed", SEED, "--device", "cpu", "--precision", "fp32", "--out", tmp_path / "out"]
    both = ["--refiner", refiner, "--handover", "0.8", "--vae", other / "vae"]
    dry = gesso(*map(str, [*command, *flags, *both, "--dry-run"]))
    assert dry.returncode == 0, dry.stderr
    assert "refiner" in dry.stdout
    assert "vae" in dry.stdout
    done = gesso(*map(str, [*command, *flags, *both]))
    assert done.returncode == 0, done.stderr
    base = tmp_path / "base"
    shutil.copytree(blank_xl, base)
    shutil.rmtree(base / "vae")
    shutil.copytree(other / "vae", base / "vae")
    assert np.array_equal(pixels(tmp_path / "out" / "00000.png"), chain(base, other, handover=0.8))


def test_bad_input_is_one_sentence(tmp_path: Path, blank: Path, blank_xl: Path, refiner: Path) -> None:
    def refused(match: str, base: Path = blank_xl, **keys: Any) -> None:
        with pytest.raises(RecipeError, match=match):
            prepare(asked(base, tmp_path, **keys))

    refused("is no refiner: it is of the kind StableDiffusionXLPipeline", refiner=str(blank_xl))
    refused("is of the family sd, which has no refiner", blank, refiner=str(refiner))
    refused("there is no model", refiner="nowhere")
    refused("--handover has no effect without --refiner", handover=0.5)
    for wrong in (0.0, 1.0, -0.1, 1.5, float("nan")):
        refused("must be above 0 and below 1", refiner=str(refiner), handover=wrong)
    refused("second stage", refiner)
    assert "refiner" in outline(prepare(asked(blank_xl, tmp_path, refiner=str(refiner))))


def test_a_refiner_of_other_latents_is_refused(tmp_path: Path, blank_xl: Path, refiner: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(refiner, other)
    path = other / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scaling_factor": 0.5}))
    with pytest.raises(RecipeError, match="another scale"):
        prepare(asked(blank_xl, tmp_path, refiner=str(other)))


def test_too_few_steps_for_two_stages_are_refused(tmp_path: Path, blank_xl: Path, refiner: Path) -> None:
    with pytest.raises(RecipeError, match="3 denoising steps leave none for the refiner"):
        generate(asked(blank_xl, tmp_path, refiner=str(refiner), steps=3))
    for handover in (0.999, 0.001):
        with pytest.raises(RecipeError, match="one of the two stages has no step"):
            generate(asked(blank_xl, tmp_path, refiner=str(refiner), steps=4, handover=handover))
    assert not list(tmp_path.glob("*.png"))
