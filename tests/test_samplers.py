"""Schedulers by every name, and the pictures drawn with them: those of plain diffusers, pixel for pixel."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch_runs import pixels

from gesso.errors import RecipeError
from gesso.formats import png
from gesso.generate import Request, generate
from gesso.samplers import EDM, SHORT, SPACED, SPACINGS, names, read, short

CLASSES = sorted({kind for kind, _ in SHORT.values()})
NEEDS_TORCHSDE = "DPMSolverSDEScheduler"
STEPS = 6


def test_every_spelling_is_the_same() -> None:
    for name in ("DPM++ 2M", "dpm++_2m", "DPM++2M", "DPMSolverMultistepScheduler", "dpmsolvermultistep"):
        assert (read(name).kind, dict(read(name).options)) == ("DPMSolverMultistepScheduler", {})
    assert dict(read("DPM++ 2M SDE Karras").options) == {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    assert read("Euler a").kind == read("euler_a").kind == "EulerAncestralDiscreteScheduler"


def test_every_name_has_a_class_and_every_class_its_options() -> None:
    for name, (kind, options) in {**SHORT, **EDM}.items():
        takes = inspect.signature(getattr(diffusers, kind).__init__).parameters
        assert options.keys() <= takes.keys(), name
        assert short(name) == name
        assert read(short(kind)).kind == kind
    for kind in sorted({*CLASSES} - {NEEDS_TORCHSDE}):  # without its library diffusers has but a stand-in
        takes = inspect.signature(getattr(diffusers, kind).__init__).parameters
        assert all((option in takes) == (kind in SPACED) for option in SPACINGS.values()), kind


@pytest.mark.parametrize(
    ("name", "own", "says"),
    [
        ("Euller", "", 'did you mean "Euler"'),
        ("", "", "there is no scheduler"),
        ("Karras", "", "there is no scheduler"),
        ("DDIM Karras", "", "cannot space its noise levels as Karras"),
        ("EDM Euler", "PNDMScheduler", "is no EDM model"),
        ("DDIM", "EDMDPMSolverMultistepScheduler", "noise levels are EDM's"),
    ],
)
def test_what_is_none_or_does_not_fit_is_refused(name: str, own: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        read(name, own)
    assert all(each in str(caught.value) for each in names(own)) or "Karras" in name


def test_a_models_own_class_always_fits() -> None:
    assert read("CogVideoXDDIMScheduler", "CogVideoXDDIMScheduler").kind == "CogVideoXDDIMScheduler"


@pytest.mark.parametrize("name", [*CLASSES, "DPM++ 2M Karras", "DPM++ 2M SDE", "UniPC exponential", "Euler beta"])
def test_each_draws_what_diffusers_draws(tmp_path: Path, blank: Path, name: str) -> None:
    request = Request(
        model=str(blank), prompts=("a cat",), out=tmp_path, seeds=(3,), steps=STEPS, guidance=4.0, scheduler=name
    )
    if name == NEEDS_TORCHSDE:
        with pytest.raises(RecipeError, match="pip install torchsde"):
            generate(request)
        return
    (made,) = generate(request)
    plain = diffusers.StableDiffusionPipeline.from_pretrained(blank, safety_checker=None)
    sampler = read(name)
    plain.scheduler = getattr(diffusers, sampler.kind).from_config(plain.scheduler.config, **sampler.options)
    plain.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 4.0}
    picture = plain("a cat", generator=torch.Generator("cpu").manual_seed(3), **options).images[0]
    assert np.array_equal(pixels(made), np.asarray(picture))
    assert f"Sampler: {short(name)}," in png.parameters(png.read(made))


@pytest.mark.parametrize("kind", [kind for kind, _ in EDM.values()])
def test_edm_models_draw_with_edm_schedulers(tmp_path: Path, kind: str) -> None:
    from gesso.engines.torch.demo.blank_xl import write

    write(tmp_path / "base", edm=True)
    for name in EDM:
        request = Request(model=str(tmp_path / "base"), prompts=("a",), out=tmp_path / "out", steps=4, scheduler=name)
        (made,) = generate(request)
        plain = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "base")
        plain.scheduler = getattr(diffusers, read(name).kind).from_config(plain.scheduler.config)
        plain.set_progress_bar_config(disable=True)
        options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 7.5}
        picture = plain("a", generator=torch.Generator("cpu").manual_seed(0), **options).images[0]
        assert np.array_equal(pixels(made), np.asarray(picture))
