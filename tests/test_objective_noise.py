"""Noise policies: what they change, how much of it there is, and that each is a function of the seed and the place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from gesso.arrays import Float32
from gesso.keys import normals, uniforms
from gesso.objective.noise import Noise, enlarged

PLACES = [(0, row) for row in range(200)]
SHAPE = (4, 8, 8)
POLICIES = [
    Noise(),
    Noise(offset=0.1),
    Noise(offset=0.1, offset_random=True),
    Noise(pyramid=0.5),
    Noise(pyramid=0.5, layers=2),
    Noise(perturbation=0.1),
    Noise(perturbation=0.1, perturbation_random=True),
    Noise(offset=0.1, offset_random=True, pyramid=0.8, layers=10, perturbation=0.1, perturbation_random=True),
]


def spread(values: Float32) -> Float32:
    """Standard deviation in each picture."""
    return np.asarray(values.std(axis=(1, 2, 3)))


def test_policies_change_what_they_should() -> None:
    plain, same = Noise().draw(1, PLACES, SHAPE)
    assert plain is same
    shifted, aimed = Noise(offset=0.5).draw(1, PLACES, SHAPE)
    assert shifted is aimed
    shift = shifted - plain
    assert np.ptp(shift, axis=(2, 3)).max() < 1e-5
    assert shift.std() == pytest.approx(0.5, rel=0.1)
    disturbed, kept = Noise(perturbation=0.1).draw(1, PLACES, SHAPE)
    assert np.array_equal(kept, plain)
    assert (disturbed - plain).std() == pytest.approx(0.1, rel=0.02)
    coarse, aimed = Noise(pyramid=0.5).draw(1, PLACES, SHAPE)
    assert coarse is aimed


@pytest.mark.parametrize("noise", POLICIES)
def test_a_row_is_a_function_of_the_seed_and_its_place(noise: Noise) -> None:
    whole = noise.draw(1, PLACES[:6], SHAPE)
    alone = [noise.draw(1, [place], SHAPE) for place in PLACES[:6]]
    for each, rows in zip(whole, zip(*alone, strict=True), strict=True):
        assert each.dtype == np.float32
        assert each.shape == (6, *SHAPE)
        assert np.array_equal(each, np.concatenate(rows))
    assert not np.array_equal(whole[0], noise.draw(2, PLACES[:6], SHAPE)[0])
    assert not np.array_equal(whole[0][0], whole[0][1])


def test_what_was_drawn_before_is_drawn_still() -> None:
    """A run of an older gesso goes on with the numbers it began with."""
    eps = normals(1, "noise", PLACES[:3], SHAPE)
    shifted = eps + 0.1 * normals(1, "noise-offset", PLACES[:3], (4, 1, 1))
    disturbed = shifted + 0.2 * normals(1, "noise-perturbation", PLACES[:3], SHAPE)
    found = Noise(offset=0.1, perturbation=0.2).draw(1, PLACES[:3], SHAPE)
    assert np.array_equal(found, (disturbed, shifted))


def test_random_strengths_lie_between_0_and_the_one_given() -> None:
    plain, _ = Noise().draw(1, PLACES, SHAPE)
    fixed, _ = Noise(offset=0.5).draw(1, PLACES, SHAPE)
    drawn, _ = Noise(offset=0.5, offset_random=True).draw(1, PLACES, SHAPE)
    share = (spread(drawn - plain) / spread(fixed - plain)).astype(np.float64)
    assert share == pytest.approx(uniforms(1, "noise-offset-strength", PLACES), abs=1e-4)
    assert share.mean() == pytest.approx(0.5, abs=0.06)
    assert np.ptp(share) > 0.9
    fixed, _ = Noise(perturbation=0.1).draw(1, PLACES, SHAPE)
    drawn, kept = Noise(perturbation=0.1, perturbation_random=True).draw(1, PLACES, SHAPE)
    assert np.array_equal(kept, plain)
    other = (spread(drawn - plain) / spread(fixed - plain)).astype(np.float64)
    assert other == pytest.approx(uniforms(1, "noise-perturbation-strength", PLACES), abs=1e-4)
    assert abs(np.corrcoef(share, other)[0, 1]) < 0.2


@pytest.mark.parametrize(("small", "large"), [((1, 1), (8, 8)), ((2, 3), (8, 12)), ((3, 5), (16, 7)), ((8, 8), (8, 8))])
def test_enlarging_equals_torch(small: tuple[int, int], large: tuple[int, int]) -> None:
    field = np.random.default_rng(0).standard_normal((4, *small))
    theirs = interpolate(torch.from_numpy(field)[None], size=large, mode="bilinear", align_corners=False)[0]
    assert enlarged(field, *large) == pytest.approx(theirs.numpy(), abs=1e-12)


@pytest.mark.parametrize(("discount", "layers"), [(0.3, 6), (0.8, 6), (0.8, 2), (0.8, 10)])
def test_pyramid_noise_is_coarse_and_of_the_usual_size(discount: float, layers: int) -> None:
    shape = (4, 32, 24)
    eps, _ = Noise(pyramid=discount, layers=layers).draw(3, PLACES, shape)
    assert spread(eps) == pytest.approx(1.0, abs=1e-5)
    assert abs(eps.mean()) < 0.05
    # Every layer is drawn for each picture: 200 of them have nothing in common.
    assert np.abs(eps.mean(0)).max() < 0.4

    def neighbours(noise: Float32) -> float:
        return float(np.corrcoef(noise[..., :-1].ravel(), noise[..., 1:].ravel())[0, 1])

    assert abs(neighbours(Noise().draw(3, PLACES, shape)[0])) < 0.01
    weights = discount ** np.arange(1, layers)
    # Each enlarged layer is nearly alike in two neighbours, and has less than its own variance after enlarging.
    most = np.square(weights).sum() / (1 + np.square(weights).sum())
    assert 0.3 * most < neighbours(eps) < most


def test_more_layers_of_pyramid_noise_move_whole_channels() -> None:
    shape = (4, 32, 32)
    means = [Noise(pyramid=0.8, layers=count).draw(3, PLACES, shape)[0].mean((2, 3)).std() for count in (2, 3, 4, 6)]
    assert (np.diff(means) > 0).all()
    assert means[-1] > 5 * means[0]
    # Nothing is coarser than one value, which 32 a side, each time at least halved, are by the 6th layer.
    some, more = (Noise(pyramid=0.8, layers=count).draw(3, PLACES[:5], shape)[0] for count in (7, 10))
    assert np.array_equal(some, more)


def test_pyramid_noise_goes_with_the_other_policies() -> None:
    coarse, _ = Noise(pyramid=0.5).draw(1, PLACES, SHAPE)
    disturbed, aimed = Noise(pyramid=0.5, offset=0.1, perturbation=0.1).draw(1, PLACES, SHAPE)
    shift = aimed - coarse
    assert np.ptp(shift, axis=(2, 3)).max() < 1e-5
    assert shift.std() == pytest.approx(0.1, rel=0.1)
    assert (disturbed - aimed).std() == pytest.approx(0.1, rel=0.02)
