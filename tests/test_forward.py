"""One forward pass: its error in float64, its gradient, DREAM as diffusers has it, masks, and rows with a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_dream_and_update_latents
from torch import nn

from gesso.arrays import Array, Float64
from gesso.data.batch import Batch
from gesso.engines.torch.forward import row_errors
from gesso.objective.coefficients import Coefficients
from gesso.objective.losses import Loss
from gesso.objective.objective import Objective

TIMESTEPS = np.array([10, 300, 600, 990])
SHAPE = (4, 4, 16, 16)


@pytest.fixture(scope="module")
def unet(blank: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(blank / "unet").train()


def send(value: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(value))


@contextmanager
def no_base() -> Iterator[None]:
    raise AssertionError("the base model was asked")
    yield


class Answer(nn.Module):
    """A network that is a value for each pixel, whatever it is shown."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)
        self.shown: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, cond: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.shown.append(x)
        return self.value[: len(x)]


def batch(**given: Any) -> Batch:
    rng = np.random.default_rng(4)
    x0, eps = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    values: dict[str, Any] = {
        "x0": x0,
        "eps_in": eps,
        "eps_target": eps,
        "cond": {"encoder_hidden_states": rng.standard_normal((4, 77, 128)).astype(np.float32)},
        "weight": np.full(4, 0.25, dtype=np.float32),
        "ids": np.arange(4),
    }
    return Batch(**{**values, **given})


def ask_of(unet: UNet2DConditionModel) -> Any:
    def ask(x: torch.Tensor, c_noise: torch.Tensor, cond: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return unet(x, c_noise, cond["encoder_hidden_states"]).sample  # type: ignore[no-any-return]

    return ask


def as_before(batch: Batch, c: Coefficients, ask: Any) -> torch.Tensor:
    """The error of each row as it was computed when squared error of the noise was all there was."""
    x0, eps_in, eps = (send(each) for each in (batch.x0, batch.eps_in, batch.eps_target))
    column = {name: send(getattr(c, name).astype(np.float32)).view(-1, 1, 1, 1) for name in "abpq"}
    scale = send(c.c_in.astype(np.float32)).view(-1, 1, 1, 1)
    x = scale * (column["a"] * x0 + column["b"] * eps_in)
    wanted = column["p"] * x0 + column["q"] * eps
    cond = {name: send(value) for name, value in batch.cond.items()}
    error = (ask(x, send(c.c_noise.astype(np.float32)), cond).float() - wanted).square()
    if batch.mask is not None:
        error = error * send(batch.mask)
    return torch.mean(error.flatten(1), dim=1)


def gradients(net: nn.Module, errors: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(errors.sum(), list(net.parameters())))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("masked", [False, True])
def test_plain_rows_are_bit_for_bit_what_they_were(unet: UNet2DConditionModel, prediction: str, masked: bool) -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((4, 1, 16, 16)).astype(np.float32) if masked else None
    eps_in = rng.standard_normal(SHAPE).astype(np.float32)
    given, c, ask = batch(mask=mask, eps_in=eps_in), Objective(prediction=prediction).at(TIMESTEPS), ask_of(unet)
    found = row_errors(given, c, ask=ask, send=send, base=no_base)
    wanted = as_before(given, c, ask)
    assert torch.equal(found, wanted)
    pairs = zip(gradients(unet, found), gradients(unet, wanted), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_mask_leaves_out_what_it_is_zero_for() -> None:
    """Two halves of a picture, each counting alone, come to the whole; where the mask is 0 no gradient flows."""
    given, c = batch(), Objective().at(TIMESTEPS)
    left = np.zeros((4, 1, 16, 16), dtype=np.float32)
    left[..., :8] = 1.0
    net = Answer(torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)))
    whole, one, other = (
        row_errors(replace(given, mask=mask), c, ask=net, send=send, base=no_base) for mask in (None, left, 1 - left)
    )
    assert torch.allclose(one + other, whole, rtol=1e-6)
    (gradient,) = gradients(net, one)
    assert float(gradient[..., 8:].abs().max()) == 0.0
    assert float(gradient[..., :8].abs().min()) > 0.0


def robust(difference: Float64, c: Float64) -> tuple[Float64, Float64]:
    """2c(√(d² + c²) − c) and its derivative 2cd/√(d² + c²), as they are written, in float64."""
    root = np.sqrt(np.square(difference) + np.square(c))
    return 2 * c * (root - c), 2 * c * difference / root


@pytest.mark.parametrize("turns", [[0.1, 0.5, 1.0, 3.0], [1e-3, 1e-2, 0.1, 1.0]])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_huber_in_value_and_gradient(turns: list[float], size: float) -> None:
    given, plain = batch(), Objective().at(TIMESTEPS)
    c = replace(plain, huber=np.array(turns))
    offset = size * np.random.default_rng(3).standard_normal(SHAPE)
    net = Answer(send((given.eps_target + offset).astype(np.float32)))
    found = row_errors(given, c, ask=net, send=send, base=no_base)
    (gradient,) = gradients(net, found)
    difference = net.value.detach().numpy().astype(np.float64) - given.eps_target.astype(np.float64)
    value, slope = robust(difference, c.huber.reshape(-1, 1, 1, 1))  # type: ignore[union-attr]
    assert np.allclose(found.detach().numpy(), value.mean((1, 2, 3)), rtol=2e-6, atol=0)
    assert np.allclose(gradient.numpy(), slope / slope[0].size, rtol=1e-5, atol=1e-12)


def test_an_infinite_turn_is_the_squared_error() -> None:
    """Rows of both kinds stand in one batch: class rows that count plainly, say."""
    given, plain = batch(), Objective().at(TIMESTEPS)
    net = Answer(torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)))
    mixed = replace(plain, huber=np.array([0.1, np.inf, 0.1, np.inf]))
    square, found = (row_errors(given, each, ask=net, send=send, base=no_base) for each in (plain, mixed))
    assert torch.equal(found[1::2], square[1::2])
    assert (found[::2] < 0.5 * square[::2]).all()
    (gradient,) = gradients(net, found)
    assert bool(torch.isfinite(gradient).all())
    (plainly,) = gradients(net, square)
    assert torch.equal(gradient[1::2], plainly[1::2])


def test_no_error_has_no_gradient() -> None:
    given = batch()
    net = Answer(send(given.eps_target))
    found = row_errors(
        given, replace(Objective().at(TIMESTEPS), huber=np.full(4, 0.1)), ask=net, send=send, base=no_base
    )
    assert float(found.detach().abs().max()) == 0.0
    assert float(gradients(net, found)[0].abs().max()) == 0.0


@pytest.mark.parametrize("name", ["huber", "smooth_l1"])
def test_losses_of_a_recipe_are_those_of_diffusers_scripts(name: str) -> None:
    """diffusers' training scripts: huber 2c(√(d² + c²) − c), smooth_l1 2(√(d² + c²) − c), mean over the picture."""
    given = batch()
    c = Objective(loss=Loss(name=name, huber_c=0.2, schedule="constant")).at(TIMESTEPS)
    net = Answer(torch.randn(SHAPE, generator=torch.Generator().manual_seed(2)))
    found = row_errors(given, c, ask=net, send=send, base=no_base).detach() * send(c.w)
    difference = net.value.detach().double() - send(given.eps_target).double()
    rooted = torch.sqrt(difference**2 + 0.2**2) - 0.2
    wanted = (2 * 0.2 * rooted if name == "huber" else 2 * rooted).mean((1, 2, 3))
    assert torch.allclose(found.double(), wanted, rtol=1e-5)


@pytest.mark.parametrize("detail", [0.5, 1.0, 2.0])
def test_dream_is_that_of_diffusers(unet: UNet2DConditionModel, blank: Path, detail: float) -> None:
    """Noisy latents, target, loss and gradient on the same network; what is shown twice is seen once with gradient."""
    given, shown = batch(), []
    ask = ask_of(unet)

    def watched(x: torch.Tensor, c_noise: torch.Tensor, cond: Mapping[str, torch.Tensor]) -> torch.Tensor:
        shown.append((x.detach().clone(), torch.is_grad_enabled()))
        return ask(x, c_noise, cond)  # type: ignore[no-any-return]

    found = row_errors(given, Objective(dream=detail).at(TIMESTEPS), ask=watched, send=send, base=no_base)

    scheduler = DDPMScheduler.from_pretrained(blank / "scheduler", prediction_type="epsilon")
    at, noise = send(TIMESTEPS), send(given.eps_target)
    noisy = scheduler.add_noise(send(given.x0), noise, at)
    known = send(given.cond["encoder_hidden_states"])
    latents, target = compute_dream_and_update_latents(unet, scheduler, at, noise, noisy, noise, known, detail)
    answer = unet(latents, at, known).sample
    wanted = torch.mean((answer - target).square(), dim=(1, 2, 3))

    assert [graded for _, graded in shown] == [False, True]
    assert torch.allclose(shown[0][0], noisy, atol=1e-5)
    assert torch.allclose(shown[1][0], latents, atol=1e-5)
    assert float((shown[1][0] - shown[0][0]).abs().max()) > 0.1, "DREAM changed nothing"
    assert torch.allclose(found, wanted, rtol=1e-5)
    for one, other in zip(gradients(unet, found), gradients(unet, wanted), strict=True):
        assert torch.allclose(one, other, atol=1e-5 * float(other.abs().max()) + 1e-8)


def test_without_strength_dream_changes_nothing(unet: UNet2DConditionModel) -> None:
    given, c, ask = batch(), Objective().at(TIMESTEPS), ask_of(unet)
    plain = row_errors(given, c, ask=ask, send=send, base=no_base)
    found = row_errors(given, replace(c, dream=np.array([0.0, 0.9, 0.0, 0.9])), ask=ask, send=send, base=no_base)
    assert torch.allclose(found[::2], plain[::2], rtol=1e-6)
    assert (found[1::2] - plain[1::2]).abs().min() > 1e-3


class Student:
    """A network that answers one value, and another while the base is asked for; it notes what it is shown."""

    def __init__(self) -> None:
        self.weight = torch.tensor(2.0, requires_grad=True)
        self.as_base = False
        self.shown: list[tuple[bool, int, list[float], dict[str, int]]] = []

    @contextmanager
    def base(self) -> Iterator[None]:
        self.as_base = True
        yield
        self.as_base = False

    def __call__(self, x: torch.Tensor, c_noise: torch.Tensor, cond: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.shown.append((self.as_base, len(x), c_noise.tolist(), {name: len(value) for name, value in cond.items()}))
        return x * (0.5 if self.as_base else self.weight)


def test_taught_rows_aim_at_the_base_and_the_others_at_their_pictures() -> None:
    given, c = batch(), Objective(prediction="v_prediction").at(TIMESTEPS)
    student = Student()
    plain = row_errors(given, c, ask=student, send=send, base=student.base)
    assert [as_base for as_base, *_ in student.shown] == [False]
    student.shown.clear()
    teacher = np.array([0, 1, 0, 1], dtype=np.float32)
    found = row_errors(replace(given, teacher=teacher), c, ask=student, send=send, base=student.base)
    told = {"encoder_hidden_states": 2}, {"encoder_hidden_states": 4}
    assert student.shown == [(True, 2, [300.0, 990.0], told[0]), (False, 4, [10.0, 300.0, 600.0, 990.0], told[1])]
    assert torch.equal(found[::2], plain[::2])
    noisy = c.a.reshape(-1, 1, 1, 1) * given.x0 + c.b.reshape(-1, 1, 1, 1) * given.eps_in
    away = np.square((2.0 - 0.5) * noisy).mean((1, 2, 3))
    assert np.allclose(found.detach().numpy()[1::2], away[1::2], rtol=1e-5)
    # The base's answer is a constant: the error grows with the square of the student's distance from it.
    (slope,) = torch.autograd.grad(found[1], student.weight)
    assert float(slope) == pytest.approx(2 * away[1] / 1.5, rel=1e-5)


def test_parts_of_a_batch_are_not_asked_for_what_they_have_none_of() -> None:
    """Micro-batches of instance rows have no teacher, those of class rows no DREAM: no pass is made for either."""
    objective, student = Objective(dream=1.0), Student()
    c = objective.at(TIMESTEPS[:2]).joined(objective.plain(TIMESTEPS[2:]))
    given = batch(teacher=np.array([0, 0, 1, 1], dtype=np.float32))
    passes = {}
    for start in (0, 2):
        row_errors(given.rows(start, start + 2), c.rows(start, start + 2), ask=student, send=send, base=student.base)
        passes[start] = [(as_base, count) for as_base, count, *_ in student.shown]
        student.shown.clear()
    assert passes == {0: [(False, 2), (False, 2)], 2: [(True, 2), (False, 2)]}
    row_errors(given, c, ask=student, send=send, base=student.base)
    assert [(as_base, count) for as_base, count, *_ in student.shown] == [(False, 2), (True, 2), (False, 4)]


def test_dream_and_a_teacher_in_one_batch_leave_each_others_rows_alone(unet: UNet2DConditionModel) -> None:
    given, ask = batch(teacher=np.array([0, 0, 1, 1], dtype=np.float32)), ask_of(unet)
    objective = Objective(dream=1.0)
    c = objective.at(TIMESTEPS[:2]).joined(objective.plain(TIMESTEPS[2:]))

    @contextmanager
    def same() -> Iterator[None]:
        yield

    found = row_errors(given, c, ask=ask, send=send, base=same)
    first = row_errors(given.rows(0, 2), c.rows(0, 2), ask=ask, send=send, base=no_base)
    assert torch.allclose(found[:2], first, rtol=1e-5)
    assert float(found[2:].detach().abs().max()) < 1e-10, "the untrained student is its teacher"
