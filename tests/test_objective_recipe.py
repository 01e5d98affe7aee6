"""[objective] in a recipe: every key reaches the objective or is refused, in models of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler
from runs import events, pictures, recipe

from gesso.errors import Exit, RecipeError
from gesso.job import make_objective
from gesso.models import ModelSource, scheduler_changes
from gesso.objective.losses import Loss
from gesso.objective.noise import Noise
from gesso.objective.objective import Objective
from gesso.objective.schedules import Exploding, Flow, Karras, Schedule
from gesso.objective.times import Times
from gesso.objective.weightings import Weighting
from gesso.recipe import load
from gesso.run import train
from gesso.schema import ObjectiveTable

EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "epsilon"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def source(folder: Path, **config: object) -> ModelSource:
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    return ModelSource(name="made", folder=folder)


def objective(folder: Path, flags: str, **config: object) -> Objective:
    """What a recipe with these flags (of [objective]) makes of a model with this scheduler configuration."""
    words = [word.replace("--", "--objective.") if word.startswith("--") else word for word in flags.split()]
    return make_objective(load(None, ["--data.path", "photos", *words]).recipe, source(folder, **config))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", Objective()),
        ("--prediction sample", Objective(prediction="sample")),
        (
            "--prediction v_prediction --zero-snr",
            Objective(schedule=Schedule(zero_snr=True), prediction="v_prediction"),
        ),
        ("--weighting min_snr --gamma 3", Objective(weighting=Weighting(name="min_snr", gamma=3.0))),
        ("--weighting debiased", Objective(weighting=Weighting(name="debiased"))),
        ("--loss huber", Objective(loss=Loss(name="huber"))),
        (
            "--loss smooth_l1 --huber-c 0.5 --huber-schedule exponential",
            Objective(loss=Loss(name="smooth_l1", huber_c=0.5, schedule="exponential")),
        ),
        ("--edm-style", Objective(schedule=Exploding(preserving=Schedule()))),
        ("--dream", Objective(dream=1.0)),
        ("--dream --dream-detail 2", Objective(dream=2.0)),
        ("--dream --dream-detail 0", Objective(dream=0.0)),
        (
            "--times later --times-multiplier 3 --times-portion 0.5",
            Objective(times=Times(name="later", multiplier=3.0, portion=0.5)),
        ),
        (
            "--times range --times-multiplier 3 --times-begin 5 --times-end 50",
            Objective(times=Times(name="range", multiplier=3.0, begin=5, end=50)),
        ),
        ("--times only --times-begin 500", Objective(times=Times(name="only", begin=500))),
        ("--times only --times-end 500", Objective(times=Times(name="only", end=500))),
        (
            "--times logit_normal --times-mean 0.5 --times-std 2",
            Objective(times=Times(name="logit_normal", mean=0.5, std=2.0)),
        ),
        ("--times mode --times-scale -0.5", Objective(times=Times(name="mode", scale=-0.5))),
        ("--noise-offset 0.1 --noise-offset-random", Objective(noise=Noise(offset=0.1, offset_random=True))),
        ("--pyramid-noise 0.5 --pyramid-levels 3", Objective(noise=Noise(pyramid=0.5, layers=3))),
        (
            "--input-perturbation 0.1 --input-perturbation-random",
            Objective(noise=Noise(perturbation=0.1, perturbation_random=True)),
        ),
    ],
)
def test_every_key_reaches_the_objective(tmp_path: Path, flags: str, expected: Objective) -> None:
    assert objective(tmp_path, flags) == expected


def test_no_key_of_the_table_is_forgotten(tmp_path: Path) -> None:
    told = [mark.args[1] for mark in test_every_key_reaches_the_objective.pytestmark]  # type: ignore[attr-defined]
    flags = {word for flags, _ in told[0] for word in flags.split() if word.startswith("--")}
    assert flags == {f"--{name.replace('_', '-')}" for name in ObjectiveTable.model_fields}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--gamma 5", 'objective.gamma has no effect with objective.weighting = "uniform"'),
        ("--huber-c 0.5", 'objective.huber_c has no effect with objective.loss = "l2"'),
        ("--huber-schedule constant", 'objective.huber_schedule has no effect with objective.loss = "l2"'),
        ("--dream-detail 2", "objective.dream_detail has no effect without objective.dream"),
        ("--noise-offset-random", "objective.noise_offset_random has no effect without objective.noise_offset"),
        ("--pyramid-levels 3", "objective.pyramid_levels has no effect without objective.pyramid_noise"),
        ("--input-perturbation-random", "no effect without objective.input_perturbation"),
        ("--times-mean 1", 'objective.times_mean has no effect with objective.times = "uniform"'),
        ("--times mode --times-std 2", 'objective.times_std has no effect with objective.times = "mode"'),
        ("--times logit_normal --times-scale 1", "objective.times_scale has no effect with"),
        ("--times only --times-begin 5 --times-multiplier 2", "objective.times_multiplier has no effect with"),
        ("--times logit_normal --times-portion 0.5", "objective.times_portion has no effect with"),
        ("--times mode --times-end 500", "objective.times_end has no effect with"),
        ("--times only", 'objective.times = "only" leaves nothing out from times_begin 0 to times_end 1000'),
        ("--times only --times-begin 9 --times-end 5", "must be below times_end, which is 5"),
        ("--times range", "has no effect while objective.times_multiplier is 1"),
        ("--times range --times-multiplier 2", 'objective.times = "range" leaves nothing out'),
        ("--times later --times-multiplier 2 --times-portion 1", "nothing out while objective.times_portion is 1"),
        (
            "--loss huber --huber-c 1 --huber-schedule constant",
            "huber_schedule has no effect with objective.huber_c = 1",
        ),
        ("--times mode --times-scale 0", "has no effect while objective.times_scale is 0"),
        ("--edm-style --weighting min_snr", "each weigh the noise levels, the latter by 1/sigma²"),
        ("--edm-style --zero-snr --prediction v_prediction", "no finite sigma at zero terminal SNR"),
        ("--dream --prediction v_prediction", 'noise that the network predicts, but objective.prediction is "v_predic'),
        ("--dream --edm-style", "objective.dream is for the usual noise"),
        ("--zero-snr --prediction epsilon", "epsilon cannot be predicted at zero terminal SNR"),
        ("--weighting min_snr --gamma -1", "objective.gamma is -1, must be at least 0"),
        ("--times mode --times-scale 1.8", "objective.times_scale is 1.8, must be"),
        ("--pyramid-noise 1", "objective.pyramid_noise is 1, must be at least 0 and below 1"),
    ],
)
def test_what_would_do_nothing_or_contradicts_is_refused(tmp_path: Path, flags: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        objective(tmp_path, flags)
    assert said in str(caught.value)
    assert caught.value.exit == Exit.RECIPE
    assert "things in" not in str(caught.value), "one mistake is one sentence"


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        (EDM, "--weighting min_snr", 'objective.weighting is "min_snr", but EDM weighs noise levels already'),
        (EDM, "--weighting p2", "by its preconditioning in an EDM model"),
        (EDM, "--edm-style", "objective.edm_style has no effect on this model"),
        (EDM, "--zero-snr", "trained with EDM's preconditioning, which has noise levels of its own"),
        (EDM, "--prediction epsilon", "with EDM's preconditioning, which fixes what it predicts"),
        (EDM, "--dream", "objective.dream corrects noise"),
        (FLOW, "--dream", "objective.dream corrects noise"),
        (FLOW, "--edm-style", "trained by flow matching"),
        (FLOW, "--prediction sample", "trained by flow matching, which fixes what it predicts"),
        ({"prediction_type": "v_prediction"}, "--dream", 'here "v_prediction" is predicted'),
        ({}, "--zero-snr", "epsilon cannot be predicted at zero terminal SNR"),
        ({"rescale_betas_zero_snr": True}, "--edm-style", "no finite sigma at zero terminal SNR"),
        ({"num_train_timesteps": 100}, "--times only --times-begin 5", "do not lie in 0 … 100"),
        ({"prediction_type": "score"}, "", 'the prediction type "score" is not known'),
    ],
)
def test_what_a_model_does_not_bear_is_refused(tmp_path: Path, config: dict[str, Any], flags: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        objective(tmp_path, flags, **config)
    assert said in str(caught.value)
    assert caught.value.todo


def test_the_model_decides_what_the_recipe_leaves_open(tmp_path: Path) -> None:
    assert objective(tmp_path, "", **EDM) == Objective(schedule=Karras(), prediction="edm")
    assert objective(tmp_path, "", **FLOW) == Objective(schedule=Flow(shift=3.0), prediction="flow")
    own = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert objective(tmp_path, "", **own) == Objective(schedule=Schedule(zero_snr=True), prediction="v_prediction")


def test_what_is_drawn_with_can_draw_what_was_learned() -> None:
    """PNDM knows no sample prediction; DDIM would clip latents unless told not to."""
    assert scheduler_changes(ObjectiveTable(edm_style=True, loss="huber")) == {}
    changes = scheduler_changes(ObjectiveTable(prediction="sample"))
    assert changes == {"_class_name": "DDIMScheduler", "prediction_type": "sample", "clip_sample": False}
    zero = scheduler_changes(ObjectiveTable(prediction="v_prediction", zero_snr=True))
    assert (zero["clip_sample"], zero["rescale_betas_zero_snr"]) == (False, True)
    scheduler = DDIMScheduler.from_config({"beta_schedule": "scaled_linear", **changes})
    assert (scheduler.config.prediction_type, scheduler.config.clip_sample) == ("sample", False)


@pytest.mark.parametrize("config", [EDM, FLOW, {}])
def test_held_out_pictures_are_measured_by_timestep_in_every_kind_of_model(
    tmp_path: Path, linear: Path, config: dict[str, Any]
) -> None:
    """EDM's c_noise lies between −1.6 and 1.1: four levels would be two."""
    pictures(tmp_path / "pictures")
    base = tmp_path / "base"
    for path in linear.rglob("*"):
        if path.is_file():
            (base / path.relative_to(linear)).parent.mkdir(parents=True, exist_ok=True)
            (base / path.relative_to(linear)).write_bytes(path.read_bytes())
    if config:
        source(base, **config)
    path = recipe(tmp_path, base, validate={"holdout": 0.4, "timesteps": 4}, train={"steps": 20, "batch": 2})
    assert train(load(path, [])) == Exit.DONE
    held = events(tmp_path / "out", "validated")
    assert list(held[0]["by_timestep"]) == ["125", "375", "625", "875"]
    assert held[0]["loss"] == pytest.approx(np.mean(list(held[0]["by_timestep"].values())))
    assert held[-1]["loss"] < held[0]["loss"]
