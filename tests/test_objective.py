"""The table of objectives: every schedule × prediction × weighting obeys the same identities."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import assume, given
from hypothesis import strategies as st

from gesso.arrays import Float64
from gesso.errors import RecipeError
from gesso.objective.coefficients import Coefficients, mix, per_row, recover, target
from gesso.objective.losses import Loss
from gesso.objective.objective import Objective
from gesso.objective.predictions import PREDICTIONS
from gesso.objective.schedules import Exploding, Flow, Karras, NoiseSchedule, Schedule
from gesso.objective.times import Times
from gesso.objective.weightings import WEIGHTINGS, Weighting

EVERY = np.arange(1000)
RNG = np.random.default_rng(3)
X0, EPS = RNG.standard_normal((2, 1000, 2, 3, 3))
SCHEDULES: dict[str, NoiseSchedule] = {
    "ddpm": Schedule(),
    "zero": Schedule(zero_snr=True),
    "linear": Schedule(betas="linear", beta_start=0.0001, beta_end=0.02),
    "edm style": Exploding(preserving=Schedule()),
    "edm": Karras(),
    "cosxl": Karras(ramp="exponential", sigma_data=1.0, sigma_max=120.0),
    "flow": Flow(shift=3.0),
}
LOST = {("zero", "epsilon"), ("flow", "epsilon")}
"""Where the last timestep holds no picture, epsilon does not determine it."""
ROWS = [pair for pair in product(SCHEDULES, PREDICTIONS) if pair not in LOST]


def drawn(schedule: str, prediction: str, weighting: str = "uniform") -> Coefficients:
    weights = Weighting(name=weighting)
    return Objective(schedule=SCHEDULES[schedule], prediction=prediction, weighting=weights).at(EVERY)


def squares(error: Float64) -> Float64:
    return np.asarray(np.square(error).mean((1, 2, 3)))


@pytest.mark.parametrize(("schedule", "prediction"), ROWS)
def test_an_exact_answer_gives_the_picture_and_the_noise_back(schedule: str, prediction: str) -> None:
    c = drawn(schedule, prediction)
    assert {getattr(c, name).dtype for name in ("a", "b", "c_in", "c_noise", "p", "q", "w")} == {np.dtype(np.float64)}
    x0, eps = recover(c, mix(c, X0, EPS), target(c, X0, EPS))
    # What is hidden by the noise, or by the picture, comes back with the last digits lost in it.
    assert np.abs(x0 - X0).max() < 1e-12 * max(1.0, np.abs(c.b / c.det).max(), np.abs(c.q * c.b / c.det).max())
    assert np.abs(eps - EPS).max() < 1e-12 * max(1.0, np.abs(c.a / c.det).max(), np.abs(c.p * c.a / c.det).max())


@given(
    a=st.floats(0.0, 1.0),
    b=st.floats(1e-3, 80.0),
    p=st.floats(-2.0, 2.0),
    q=st.floats(-2.0, 2.0),
    at=st.integers(0, 999),
)
def test_any_row_that_can_be_solved_is_solved(a: float, b: float, p: float, q: float, at: int) -> None:
    one = np.ones(1)
    c = Coefficients(a=a * one, b=b * one, c_in=one, c_noise=one, p=p * one, q=q * one, w=one)
    assume(abs(c.det[0]) > 1e-3)
    x0, eps = recover(c, mix(c, X0[at : at + 1], EPS[at : at + 1]), target(c, X0[at : at + 1], EPS[at : at + 1]))
    assert x0 == pytest.approx(X0[at : at + 1], abs=1e-8)
    assert eps == pytest.approx(EPS[at : at + 1], abs=1e-8)


@pytest.mark.parametrize(
    ("schedule", "prediction"), [row for row in ROWS if row[0] in ("ddpm", "zero", "linear", "flow")]
)
@pytest.mark.parametrize("weighting", [name for name in WEIGHTINGS if name != "uniform"])
def test_a_weighting_means_the_same_for_every_prediction(schedule: str, prediction: str, weighting: str) -> None:
    """w·(error of the answer)² equals the stated weight times the squared error in the stated space."""
    c = drawn(schedule, prediction, weighting)
    wrong = RNG.standard_normal(X0.shape)
    x_t, exact = mix(c, X0, EPS), target(c, X0, EPS)
    space, weigh = WEIGHTINGS[weighting]
    # (5) is linear: the error it makes of an error, without the rounding of what it is an error of.
    x0, eps = (one - other for one, other in zip(recover(c, x_t, exact + wrong), recover(c, x_t, exact), strict=True))
    gamma = {"p2": 1.0}.get(weighting, 5.0)
    wanted = weigh(c.snr, gamma) * squares(x0 if space == "x0" else eps)
    assert c.w * squares(wrong) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


SIGNAL = Schedule().signal()
SNR = SIGNAL / (1.0 - SIGNAL)
FORMULAS: dict[str, dict[str, Float64]] = {
    "epsilon": {
        "uniform": np.ones(1000),
        "min_snr": np.minimum(SNR, 5) / SNR,
        "soft_min_snr": 5 / (SNR + 5),
        "debiased": 1 / np.sqrt(SNR),
        "p2": 1 / (1 + SNR),
        "snr": np.ones(1000),
        "x0": 1 / SNR,
    },
    "v_prediction": {
        "uniform": np.ones(1000),
        "min_snr": np.minimum(SNR, 5) / (SNR + 1),
        "soft_min_snr": 5 * SNR / (SNR + 5) / (SNR + 1),
        "debiased": np.sqrt(SNR) / (SNR + 1),
        "p2": SNR / (1 + SNR) ** 2,
        "snr": SIGNAL,
        "x0": 1 - SIGNAL,
    },
    "sample": {
        "uniform": np.ones(1000),
        "min_snr": np.minimum(SNR, 5),
        "soft_min_snr": 5 * SNR / (SNR + 5),
        "debiased": np.sqrt(SNR),
        "p2": SNR / (1 + SNR),
        "snr": SNR,
        "x0": np.ones(1000),
    },
}
FORMULAS["edm"] = FORMULAS["v_prediction"]
# flow: an error d of eps − x0 is an error d·b/(a + b) of x0.
FORMULAS["flow"] = {
    name: weight if name == "uniform" else weight * (1 - SIGNAL) / (np.sqrt(SIGNAL) + np.sqrt(1 - SIGNAL)) ** 2
    for name, weight in FORMULAS["sample"].items()
}


@pytest.mark.parametrize(("prediction", "weighting"), list(product(PREDICTIONS, WEIGHTINGS)))
def test_weights_are_those_of_the_formulas_by_hand(prediction: str, weighting: str) -> None:
    expected = FORMULAS[prediction][weighting]
    assert drawn("ddpm", prediction, weighting).w == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("epsilon", [0.0042536, 0.5914434, 1, 1, 1]),
        ("v_prediction", [0.00425, 0.5288826, 0.6737926, 0.2763327, 0.0046601]),
        ("sample", [5, 5, 2.065535, 0.3818504, 0.0046819]),
    ],
)
def test_min_snr_has_the_published_weights(prediction: str, expected: list[float]) -> None:
    weighting = Weighting(name="min_snr", gamma=5)
    at = np.array([0, 100, 250, 500, 999])
    assert Objective(prediction=prediction, weighting=weighting).at(at).w == pytest.approx(expected, rel=1e-4)


def test_targets_and_weights_equal_those_of_diffusers() -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    t = torch.arange(1000)
    x0, eps = torch.from_numpy(X0), torch.from_numpy(EPS)
    c = drawn("ddpm", "v_prediction", "min_snr")
    assert np.array_equal(c.c_noise, EVERY)
    assert mix(c, X0, EPS) == pytest.approx(scheduler.add_noise(x0, eps, t).numpy(), abs=1e-5)
    assert target(c, X0, EPS) == pytest.approx(scheduler.get_velocity(x0, eps, t).numpy(), abs=1e-5)
    snr = compute_snr(scheduler, t)
    assert c.snr == pytest.approx(snr.double().numpy(), rel=1e-3)
    assert c.w == pytest.approx((torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)).double().numpy(), rel=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_edm_style_is_the_usual_training_differently_put(prediction: str) -> None:
    """x = z + sigma·eps, error of the picture over sigma²: the usual loss for epsilon, alpha-bar times it for v."""
    usual, style = drawn("ddpm", prediction), drawn("edm style", prediction)
    shown, same = (per_row(c.c_in, X0) * mix(c, X0, EPS) for c in (usual, style))
    assert same == pytest.approx(shown, rel=1e-10, abs=1e-12)
    assert np.array_equal(style.c_noise, usual.c_noise)
    answer = RNG.standard_normal(X0.shape)
    plain = squares(answer - target(usual, X0, EPS))
    factor = {"epsilon": 1.0, "v_prediction": SIGNAL, "sample": SNR}[prediction]
    assert style.w * squares(answer - target(style, X0, EPS)) == pytest.approx(factor * plain, rel=1e-10)

    sigma = np.sqrt((1 - SIGNAL) / SIGNAL)[:, None, None, None]
    noisy = X0 + sigma * EPS
    picture = {
        "epsilon": noisy - sigma * answer,
        "v_prediction": noisy / (sigma**2 + 1) - sigma / np.sqrt(sigma**2 + 1) * answer,
        "sample": answer,
    }[prediction]
    by_hand = squares((picture - X0) / sigma)
    assert style.w * squares(answer - target(style, X0, EPS)) == pytest.approx(by_hand, rel=1e-8)


def test_edm_counts_the_picture_unweighted() -> None:
    """denoised = c_skip·x + c_out·F against the picture, which itself is the target."""
    sigma = SCHEDULES["edm"].levels().b[:, None, None, None]
    noisy, answer = X0 + sigma * EPS, RNG.standard_normal(X0.shape)
    for prediction, sign in (("edm", 1.0), ("v_prediction", -1.0)):
        c = drawn("edm", prediction)
        denoised = 0.25 / (sigma**2 + 0.25) * noisy + sign * sigma * 0.5 / np.sqrt(sigma**2 + 0.25) * answer
        assert c.w * squares(answer - target(c, X0, EPS)) == pytest.approx(squares(denoised - X0), rel=1e-8)
        # The network's answer has variance 1 where it should have it, at every level.
        assert np.square(c.p * 0.5) + np.square(c.q) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_c_noise_gives_the_timestep_back(schedule: str) -> None:
    objective = Objective(schedule=SCHEDULES[schedule], prediction="v_prediction")
    some = np.array([999, 0, 500, 500, 1])
    found = objective.timesteps_of(objective.measured(some).c_noise)
    assert np.array_equal(found, some)
    assert found.dtype == np.int64


def test_epsilon_is_refused_at_zero_terminal_snr() -> None:
    for schedule in (Schedule(zero_snr=True), Flow()):
        with pytest.raises(RecipeError, match="zero terminal SNR"):
            Objective(schedule=schedule)
    for weighting in WEIGHTINGS:
        v = Objective(schedule=Schedule(zero_snr=True), prediction="v_prediction", weighting=Weighting(name=weighting))
        assert np.isfinite(v.at(EVERY).w).all()
    v = Objective(schedule=Schedule(zero_snr=True), prediction="v_prediction", weighting=Weighting(name="min_snr"))
    last = v.at(np.array([999]))
    assert (last.a[0], last.w[0]) == (0.0, 0.0)


@pytest.mark.parametrize("weighting", [name for name in WEIGHTINGS if name != "uniform"])
def test_weightings_are_refused_where_edm_weighs_already(weighting: str) -> None:
    for name in ("edm style", "edm"):
        with pytest.raises(RecipeError, match="EDM weighs noise levels already") as caught:
            Objective(schedule=SCHEDULES[name], prediction="v_prediction", weighting=Weighting(name=weighting))
        assert 'objective.weighting = "uniform"' in str(caught.value)


def test_gamma_is_the_usual_one_at_0_and_never_negative() -> None:
    for name, usual in (("min_snr", 5.0), ("soft_min_snr", 5.0), ("p2", 1.0)):
        by_name, given_ = (Objective(weighting=Weighting(name=name, gamma=gamma)).at(EVERY).w for gamma in (0.0, usual))
        assert np.array_equal(by_name, given_)
        assert not np.allclose(Objective(weighting=Weighting(name=name, gamma=2.0)).at(EVERY).w, given_)
    with pytest.raises(RecipeError, match=r"objective\.gamma is -1, but must not be negative"):
        Weighting(name="min_snr", gamma=-1.0)


def test_dream_is_for_instance_rows_of_epsilon_alone() -> None:
    """lambda = √(1 − alpha-bar)^p."""
    for power in (0.0, 1.0, 2.5):
        objective = Objective(dream=power)
        assert objective.at(EVERY).dream == pytest.approx((1 - SIGNAL) ** (power / 2))
        assert objective.plain(EVERY).dream is None
        assert objective.measured(EVERY).dream is None
    joined = objective.at(EVERY[:2]).joined(objective.plain(EVERY[:3]))
    assert joined.dream is not None
    assert (joined.dream[2:] == 0).all()
    assert (len(joined), Objective().at(EVERY).dream) == (5, None)
    for schedule, prediction in (
        ("ddpm", "v_prediction"),
        ("ddpm", "sample"),
        ("edm", "edm"),
        ("edm style", "epsilon"),
    ):
        with pytest.raises(RecipeError, match=r"objective\.dream corrects noise"):
            Objective(schedule=SCHEDULES[schedule], prediction=prediction, dream=1.0)


@pytest.mark.parametrize("make", [
    lambda: Objective(prediction="noise"),
    lambda: Weighting(name="max_snr"),
    lambda: Loss(name="l1"),
    lambda: Loss(name="huber", schedule="linear"),
    lambda: Times(name="never"),
])  # fmt: skip
def test_unknown_names_are_refused_with_the_known_ones(make: type) -> None:
    with pytest.raises(RecipeError, match="is not known") as caught:
        make()
    assert caught.value.todo.startswith("use ")


def test_equal_objectives_are_equal_objects() -> None:
    assert Objective(schedule=Karras(), prediction="edm") == Objective(schedule=Karras(), prediction="edm")
    assert Objective(loss=Loss(name="huber")) != Objective()
    assert hash(Objective()) == hash(Objective())


def test_coefficients_split_by_rows() -> None:
    c = Objective(loss=Loss(name="huber"), dream=1.0).at(np.array([3, 500, 900]))
    part = c.rows(1, 3)
    assert isinstance(part, Coefficients)
    assert part.huber is not None
    assert c.huber is not None
    assert np.array_equal(part.a, c.a[1:])
    assert np.array_equal(part.huber, c.huber[1:])
    assert len(part) == 2
