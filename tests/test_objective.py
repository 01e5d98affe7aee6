"""Objectives: identities, the oracle numbers of the schedules, and parity with diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr

from gesso.errors import RecipeError
from gesso.objective.coefficients import Coefficients, mix, recover, target
from gesso.objective.noise import Noise
from gesso.objective.objective import Objective
from gesso.objective.predictions import PREDICTIONS
from gesso.objective.schedules import Schedule, from_scheduler
from gesso.objective.times import Times
from gesso.objective.weightings import WEIGHTINGS, Weighting

EVERY = np.arange(1000)
RNG = np.random.default_rng(3)
X0, EPS = RNG.standard_normal((2, 1000, 2, 3, 3))


def test_schedule_has_the_published_values() -> None:
    """seeds: alpha-bar and SNR of Stable Diffusion's scaled_linear schedule."""
    bar = Schedule().signal()
    assert bar[0] == pytest.approx(0.99915, abs=1e-8)
    assert bar[999] == pytest.approx(0.0046601, abs=5e-8)
    snr = bar / (1 - bar)
    expected = [1175.4706, 8.453894, 2.065535, 0.3818504, 0.004681917]
    assert snr[[0, 100, 250, 500, 999]] == pytest.approx(expected, rel=2e-7)
    assert np.array_equal(np.flatnonzero(snr >= 5), np.arange(147))


@pytest.mark.parametrize("betas", ["scaled_linear", "linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_schedules_agree_with_diffusers(betas: str, zero_snr: bool) -> None:
    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=betas, rescale_betas_zero_snr=zero_snr, clip_sample=False
    )
    ours = from_scheduler(theirs.config).signal()
    assert ours == pytest.approx(theirs.alphas_cumprod.numpy().astype(float), abs=2e-6)


def test_trained_betas_are_taken_one_by_one() -> None:
    schedule = from_scheduler({"trained_betas": [0.1, 0.2]})
    assert schedule.timesteps == 2
    assert schedule.signal() == pytest.approx([0.9, 0.72])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_exact_answer_gives_the_picture_and_the_noise_back(prediction: str) -> None:
    c = Objective(prediction=prediction).at(EVERY)
    x0, eps = recover(c, mix(c, X0, EPS), target(c, X0, EPS))
    assert x0 == pytest.approx(X0, abs=1e-9)
    assert eps == pytest.approx(EPS, abs=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", [name for name in WEIGHTINGS if name != "uniform"])
def test_a_weighting_means_the_same_for_every_prediction(prediction: str, weighting: str) -> None:
    """w·(error of the answer)² equals the stated weight times the squared error in the stated space."""
    c = Objective(prediction=prediction, weighting=Weighting(name=weighting)).at(EVERY)
    x_t, exact = mix(c, X0, EPS), target(c, X0, EPS)
    answer = exact + 0.01 * RNG.standard_normal(exact.shape)
    space, weigh = WEIGHTINGS[weighting]
    x0, eps = recover(c, x_t, answer)
    error = np.square(x0 - X0 if space == "x0" else eps - EPS).mean((1, 2, 3))
    gamma = {"p2": 1.0}.get(weighting, 5.0)
    ours = c.w * np.square(answer - exact).mean((1, 2, 3))
    assert ours == pytest.approx(weigh(c.snr, gamma) * error, rel=1e-6)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("epsilon", [0.0042536, 0.5914434, 1, 1, 1]),
        ("v_prediction", [0.00425, 0.5288826, 0.6737926, 0.2763327, 0.0046601]),
        ("sample", [5, 5, 2.065535, 0.3818504, 0.0046819]),
    ],
)
def test_min_snr_has_the_published_weights(prediction: str, expected: list[float]) -> None:
    c = Objective(prediction=prediction, weighting=Weighting(name="min_snr", gamma=5)).at(
        np.array([0, 100, 250, 500, 999])
    )
    assert c.w == pytest.approx(expected, rel=1e-4)


def test_loss_of_v_prediction_equals_diffusers() -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    t = torch.tensor([0, 10, 500, 999])
    x0, eps = torch.from_numpy(X0[:4]).float(), torch.from_numpy(EPS[:4]).float()
    c = Objective(prediction="v_prediction", weighting=Weighting(name="min_snr")).at(t.numpy())
    assert mix(c, X0[:4], EPS[:4]) == pytest.approx(scheduler.add_noise(x0, eps, t).numpy(), abs=1e-5)
    assert target(c, X0[:4], EPS[:4]) == pytest.approx(scheduler.get_velocity(x0, eps, t).numpy(), abs=1e-5)
    snr = compute_snr(scheduler, t)
    assert c.w == pytest.approx((torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)).numpy(), rel=1e-4)


def test_epsilon_is_refused_at_zero_terminal_snr() -> None:
    schedule = Schedule(zero_snr=True)
    with pytest.raises(RecipeError, match="zero terminal SNR"):
        Objective(schedule=schedule)
    v = Objective(schedule=schedule, prediction="v_prediction", weighting=Weighting(name="min_snr")).at(np.array([999]))
    assert (v.a[0], v.w[0]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("times", "share"),
    [
        (Times(), 0.25),
        (Times(name="later", portion=0.25, multiplier=3), 0.5),
        (Times(name="earlier", portion=0.25, multiplier=3), 0.25 / 1.5),
        (Times(name="range", begin=750, end=1000, multiplier=3), 0.5),
    ],
)
def test_times_favour_what_they_say(times: Times, share: float) -> None:
    weights = times.weights(1000)
    assert weights.sum() == pytest.approx(1)
    assert weights[750:].sum() == pytest.approx(share)
    drawn = times.draw((np.arange(20000) + 0.5) / 20000, 1000)
    assert (drawn >= 750).mean() == pytest.approx(share, abs=1e-3)
    assert (drawn.min(), drawn.max()) == (0, 999)


@pytest.mark.parametrize(
    "times", [Times(name="later", multiplier=0), Times(name="later", portion=0), Times(name="range", begin=9, end=9)]
)
def test_times_that_cannot_be_are_refused(times: Times) -> None:
    with pytest.raises(RecipeError):
        Objective(times=times)


def test_noise_policies_change_what_they_should() -> None:
    places = [(0, row) for row in range(200)]
    plain, same = Noise().draw(1, places, (4, 8, 8))
    assert plain is same
    shifted, aimed = Noise(offset=0.5).draw(1, places, (4, 8, 8))
    assert shifted is aimed
    shift = shifted - plain
    assert np.ptp(shift, axis=(2, 3)).max() < 1e-5
    assert shift.std() == pytest.approx(0.5, rel=0.1)
    disturbed, kept = Noise(perturbation=0.1).draw(1, places, (4, 8, 8))
    assert np.array_equal(kept, plain)
    assert (disturbed - plain).std() == pytest.approx(0.1, rel=0.02)


def test_coefficients_split_by_rows() -> None:
    c = Objective().at(np.array([3, 500, 900]))
    part = c.rows(1, 3)
    assert isinstance(part, Coefficients)
    assert np.array_equal(part.a, c.a[1:])
    assert len(part) == 2
