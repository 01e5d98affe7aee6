"""Schedulers by every name, and the pictures drawn with them: those of plain diffusers, pixel for pixel."""

from __future__ import annotations

import inspect
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch_runs import pixels

from gesso.errors import RecipeError
from gesso.formats import png
from gesso.generate import Request, generate, prepare
from gesso.samplers import ALSO, EDM, NO_PICTURES, OTHERS, SHORT, SPACED, SPACINGS, names, read, short

CLASSES = sorted({kind for kind, _ in SHORT.values()})
NEEDS_TORCHSDE = "DPMSolverSDEScheduler"
STEPS = 6


def test_every_spelling_is_the_same() -> None:
    spellings = ("DPM++ 2M", "dpm++_2m", "DPM++2M", "DPMSolverMultistepScheduler", "dpmsolvermultistep", "dpmpp_2m")
    for name in (*spellings, "DPM-Solver", "dpm_solver", "dpm_solver_pp", "DPM-Solver++", "DPM-Solver multistep"):
        assert (read(name).kind, dict(read(name).options)) == ("DPMSolverMultistepScheduler", {})
    assert dict(read("DPM++ 2M SDE Karras").options) == {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    for name in ("Euler a", "euler_a", "euler_ancestral", "Euler Ancestral Discrete"):
        assert read(name).kind == "EulerAncestralDiscreteScheduler"
    assert read("DPM-Solver++ singlestep").kind == read("DPM-Solver singlestep").kind == "DPMSolverSinglestepScheduler"
    assert {name: read(name).kind for name in ALSO} == {name: read(meant).kind for name, meant in ALSO.items()}


def test_every_scheduler_of_diffusers_draws_or_says_why_not() -> None:
    own = "DDIMScheduler"
    everyone = [
        name for name in dir(diffusers.schedulers) if name.endswith("Scheduler") and not name.startswith("Flax")
    ]
    assert len(everyone) > 40
    drawing = {kind for kind, _ in {**SHORT, **EDM}.values()}
    for name in everyone:
        if name in drawing and name not in {kind for kind, _ in EDM.values()}:
            assert read(name, own).kind == name
        else:
            with pytest.raises(RecipeError, match=f'"{name}" does not fit this model'):
                read(name, own)
    assert not drawing & OTHERS.keys()
    assert {kind.__name__ for kind in diffusers.DDIMScheduler().compatibles} <= drawing


@pytest.mark.parametrize("name", sorted({kind for kind, _ in SHORT.values()} - {NEEDS_TORCHSDE}))
def test_models_that_predict_the_picture_take_those_that_can(tmp_path: Path, blank: Path, name: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(blank, model)
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "sample"}))
    request = Request(model=str(model), prompts=("a",), out=tmp_path / "out", steps=2, scheduler=name)
    if name in NO_PICTURES:
        with pytest.raises(RecipeError, match="which predicts the picture itself"):
            prepare(request)
    else:
        assert len(generate(request)) == 1


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


@pytest.mark.filterwarnings("ignore:Should have tb<=t1")  # torchsde's, of its own rounding
@pytest.mark.parametrize(
    "name", [*CLASSES, "DPM++ 2M Karras", "DPM++ 2M SDE", "UniPC exponential", "Euler beta", "DPM++ 3M SDE"]
)
def test_each_draws_what_diffusers_draws(tmp_path: Path, blank: Path, name: str) -> None:
    # The second of two: nothing of the first may be left in the scheduler.
    request = Request(
        model=str(blank), prompts=("a cat",), out=tmp_path, seeds=(2, 3), steps=STEPS, guidance=4.0, scheduler=name
    )
    options: dict[str, Any] = {}
    if name == NEEDS_TORCHSDE and find_spec("torchsde"):
        options = {"noise_sampler_seed": 3}  # of its own accord it would take another at each call
    elif name == NEEDS_TORCHSDE:
        with pytest.raises(RecipeError, match="pip install torchsde"):
            generate(request)
        return
    _, made = generate(request)
    plain = diffusers.StableDiffusionPipeline.from_pretrained(blank, safety_checker=None)
    sampler = read(name)
    plain.scheduler = getattr(diffusers, sampler.kind).from_config(plain.scheduler.config, **sampler.options, **options)
    plain.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(3)
    picture = plain("a cat", num_inference_steps=STEPS, guidance_scale=4.0, generator=generator).images[0]
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
