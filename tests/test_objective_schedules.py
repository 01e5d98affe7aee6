"""Noise levels: the published numbers, diffusers' schedulers, and what is read of a model's configuration."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from gesso.errors import RecipeError
from gesso.objective.coefficients import mix, recover, target
from gesso.objective.objective import Objective
from gesso.objective.own import from_scheduler, prediction
from gesso.objective.schedules import Exploding, Flow, Karras, NoiseSchedule, Schedule

EVERY = np.arange(1000)
V = {"prediction_type": "v_prediction"}
EDM = {"_class_name": "EDMDPMSolverMultistepScheduler"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SD = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def written(scheduler: Any) -> dict[str, Any]:
    """A diffusers scheduler as its scheduler_config.json has it."""
    found: dict[str, Any] = json.loads(scheduler.to_json_string())
    return found


def test_schedule_has_the_published_values() -> None:
    """alpha-bar, SNR and sigma of Stable Diffusion's scaled_linear schedule."""
    bar = Schedule().signal()
    assert bar[0] == pytest.approx(0.99915, abs=1e-8)
    assert bar[999] == pytest.approx(0.0046601, abs=5e-8)
    snr = bar / (1 - bar)
    expected = [1175.4706, 8.453894, 2.065535, 0.3818504, 0.004681917]
    assert snr[[0, 100, 250, 500, 999]] == pytest.approx(expected, rel=2e-7)
    assert np.array_equal(np.flatnonzero(snr >= 5), np.arange(147))
    sigma = Exploding(preserving=Schedule()).levels().b
    assert sigma[[0, 999]] == pytest.approx([0.0291672, 14.614641], rel=2e-6)


def test_edm_has_the_published_values() -> None:
    sigma = Karras().levels().b
    assert np.median(sigma) == pytest.approx(2.53, abs=0.02)
    assert (sigma > 1).mean() == pytest.approx(0.597, abs=5e-4)
    assert sigma[-1] == pytest.approx(80.0)
    assert 0.002 < sigma[0] < 0.0021


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(),
        Schedule(zero_snr=True),
        Schedule(betas="squaredcos_cap_v2"),
        Exploding(preserving=Schedule()),
        Karras(),
        Karras(ramp="exponential"),
        Flow(),
        Flow(shift=3.0),
    ],
)
def test_levels_grow_noisier_with_their_index(schedule: NoiseSchedule) -> None:
    levels = schedule.levels()
    assert {(each.dtype, each.shape) for each in levels} == {(np.dtype(np.float64), (schedule.timesteps,))}
    assert (np.diff(levels.c_noise) > 0).all()
    assert (np.diff(levels.b) > 0).all()
    assert (np.diff(levels.a / levels.b) < 0).all()


@pytest.mark.parametrize("betas", ["scaled_linear", "linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_schedules_agree_with_diffusers(betas: str, zero_snr: bool) -> None:
    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=betas, rescale_betas_zero_snr=zero_snr, clip_sample=False
    )
    ours = from_scheduler(written(theirs))
    assert isinstance(ours, Schedule)
    assert ours.signal() == pytest.approx(theirs.alphas_cumprod.numpy().astype(float), abs=2e-6)


def test_trained_betas_are_taken_one_by_one() -> None:
    schedule = from_scheduler({"trained_betas": [0.1, 0.2]})
    assert schedule.timesteps == 2
    assert np.square(schedule.levels().a) == pytest.approx([0.9, 0.72])


def test_edm_style_has_the_sigmas_and_the_input_of_the_euler_scheduler() -> None:
    theirs = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    levels = from_scheduler(written(theirs), edm_style=True).levels()
    sigmas = theirs.sigmas[:-1].flip(0).double().numpy()
    assert levels.b == pytest.approx(sigmas, rel=1e-4)
    theirs.set_timesteps(1000)
    for at in theirs.timesteps[::111]:
        theirs._step_index = None
        assert levels.c_in[int(at)] == pytest.approx(float(theirs.scale_model_input(torch.ones(1), at)), rel=1e-4)


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize("told", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("ramp", ["karras", "exponential"])
@pytest.mark.parametrize("data", [0.5, 1.0])
def test_edm_is_preconditioned_as_diffusers_does(kind: Any, told: str, ramp: str, data: float) -> None:
    theirs = kind(prediction_type=told, sigma_data=data, sigma_schedule=ramp)
    objective = Objective(schedule=from_scheduler(written(theirs)), prediction=prediction(written(theirs)))
    c = objective.measured(EVERY)
    if kind is EDMEulerScheduler:  # T + 1 falling points and a 0; the other one has no points to train with
        assert c.b == pytest.approx(theirs.sigmas[:1000].flip(0).double().numpy(), rel=1e-5)

    x0, eps, answer = np.random.default_rng(1).standard_normal((3, 1000, 2, 3))
    noisy = mix(c, x0, eps)
    sigma = torch.from_numpy(c.b)[:, None, None]
    at = torch.from_numpy(noisy)
    shown = theirs.precondition_inputs(at, sigma)
    assert c.c_in[:, None, None] * noisy == pytest.approx(shown.numpy(), rel=1e-12)
    assert c.c_noise == pytest.approx(theirs.precondition_noise(sigma).numpy().ravel(), rel=1e-12)
    denoised = theirs.precondition_outputs(at, torch.from_numpy(answer), sigma)
    assert recover(c, noisy, answer)[0] == pytest.approx(denoised.numpy(), rel=1e-9, abs=1e-9)
    exact = theirs.precondition_outputs(at, torch.from_numpy(target(c, x0, eps)), sigma)
    assert exact.numpy() == pytest.approx(x0, abs=1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_agrees_with_diffusers(shift: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    objective = Objective(schedule=from_scheduler(written(theirs)), prediction=prediction(written(theirs)))
    c = objective.measured(EVERY)
    assert objective.prediction == "flow"
    assert c.b == pytest.approx(theirs.sigmas.flip(0).double().numpy(), abs=1e-6)
    assert c.c_noise == pytest.approx(theirs.timesteps.flip(0).double().numpy(), abs=1e-3)
    x0, eps = np.random.default_rng(1).standard_normal((2, 1000, 2))
    noisy = theirs.scale_noise(torch.from_numpy(x0), theirs.timesteps.flip(0), torch.from_numpy(eps))
    assert mix(c, x0, eps) == pytest.approx(noisy.numpy(), abs=1e-5)
    assert target(c, x0, eps) == pytest.approx(eps - x0)
    assert (c.w == 1).all()


def test_a_shift_that_depends_on_the_size_is_for_drawing() -> None:
    assert from_scheduler({**FLOW, "use_dynamic_shifting": True}) == Flow()
    assert from_scheduler(FLOW) == Flow(shift=3.0)


@pytest.mark.parametrize(
    ("config", "schedule", "row"),
    [
        (SD, Schedule(), "epsilon"),
        ({**SD, **V, "rescale_betas_zero_snr": True}, Schedule(zero_snr=True), "v_prediction"),
        (EDM, Karras(), "edm"),
        ({**EDM, **V, "sigma_data": 1.0, "sigma_max": 120}, Karras(sigma_data=1.0, sigma_max=120.0), "v_prediction"),
        (FLOW, Flow(shift=3.0), "flow"),
    ],
)  # fmt: skip
def test_a_model_says_what_it_was_trained_with(config: dict[str, Any], schedule: NoiseSchedule, row: str) -> None:
    assert from_scheduler(config) == schedule
    assert prediction(config) == row


def test_a_recipe_may_change_what_a_ddpm_model_learns() -> None:
    assert from_scheduler(SD, zero_snr=True) == Schedule(zero_snr=True)
    assert from_scheduler({**SD, "rescale_betas_zero_snr": True}, zero_snr=False) == Schedule()
    assert from_scheduler(SD, edm_style=True) == Exploding(preserving=Schedule())
    assert prediction(SD, "sample") == "sample"


@pytest.mark.parametrize("config", [EDM, FLOW])
def test_models_with_noise_of_their_own_keep_it(config: dict[str, Any]) -> None:
    for change in ({"edm_style": True}, {"zero_snr": True}, {"zero_snr": False}):
        with pytest.raises(RecipeError, match=f"objective.{next(iter(change))} has no effect on this model"):
            from_scheduler(config, **change)
    for asked in ("epsilon", "v_prediction", "sample"):
        with pytest.raises(
            RecipeError, match=f'"{asked}", but this model is trained .* fixes what it predicts'
        ) as caught:
            prediction(config, asked)
        assert 'objective.prediction = "auto"' in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**EDM, "sigma_min": 0}, "lacks sigma_min: it is 0"),
        ({**EDM, "rho": "7"}, 'lacks rho: it is "7"'),
        ({**EDM, "sigma_min": 90}, "goes from sigma_min 90 to sigma_max 80"),
        ({**EDM, "sigma_schedule": "cosine"}, 'by "cosine"'),
        ({**FLOW, "shift": None}, "lacks shift: it is null"),
        ({**SD, "beta_end": True}, "lacks beta_end: it is true"),
        ({**SD, "trained_betas": 3}, "lacks trained_betas: it is 3"),
        ({**SD, "num_train_timesteps": float("inf")}, "lacks num_train_timesteps"),
    ],
)
def test_configurations_without_their_numbers_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_scheduler(config)
    assert said in caught.value.what
    assert caught.value.where == "scheduler/scheduler_config.json"
    assert caught.value.todo


def test_what_an_edm_model_cannot_predict_is_refused() -> None:
    with pytest.raises(RecipeError, match='prediction_type "sample" is not known'):
        prediction({**EDM, "prediction_type": "sample"})
    with pytest.raises(RecipeError, match=r'noise schedule "sigmoid" is not known'):
        from_scheduler({**SD, "beta_schedule": "sigmoid"}).levels()


@pytest.mark.parametrize("config", [SD, {**SD, "rescale_betas_zero_snr": True}])
def test_edm_style_has_no_sigma_at_zero_terminal_snr(config: dict[str, Any]) -> None:
    zero = None if "rescale_betas_zero_snr" in config else True
    with pytest.raises(RecipeError, match="no finite sigma at zero terminal SNR"):
        Objective(schedule=from_scheduler(config, zero_snr=zero, edm_style=True), prediction="v_prediction")
