"""Degradations: in their ranges, the same for the same seed, and each part does what its number says."""

import math

import numpy as np
import pytest
from PIL import Image

from thurl.errors import UsageError
from thurl.restoration.degradation import (
    Degradation,
    DegradationConfig,
    blur,
    blur_kernel,
    degrade,
    draw_degradation,
    resize,
)


NONE = Degradation(
    sigma=(0.0, 0.0), angle=0.0, kernel_size=41, factor=1.0, method="area", noise=0.0, poisson=False,
    grey_noise=False, noise_seed=0, quality=100, upsample_method="bilinear",
)  # fmt: skip


def changed(**values):
    return Degradation(**{**vars(NONE), **values})


def texture(height=64, width=48, seed=0):
    noise = np.random.default_rng(seed).uniform(0, 255, (height // 4 + 2, width // 4 + 2, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def flat(value, side=128):
    return np.full((side, side, 3), value, np.uint8)


def error(first, second):
    return float(np.square(first.astype(float) - second).mean())


def test_draws_stay_in_their_ranges_and_fill_them():
    config = DegradationConfig(blur_sigma=(1, 2), downsample=(2, 3), noise=(5, 9), jpeg=(40, 44), poisson=0.5)
    rng = np.random.default_rng(0)
    drawn = [draw_degradation(config, rng) for _ in range(400)]
    for name, (low, high) in {"factor": (2, 3), "noise": (5, 9), "quality": (40, 44)}.items():
        values = [getattr(one, name) for one in drawn]
        assert low <= min(values) < low + 0.1 * (high - low) + 1e-9 and high >= max(values) > high - 0.1 * (high - low)
    assert all(1 <= sigma <= 2 for one in drawn for sigma in one.sigma)
    assert {one.quality for one in drawn} == {40, 41, 42, 43, 44}
    assert {one.method for one in drawn} == {"area", "bilinear", "bicubic"}
    uneven = [one for one in drawn if one.sigma[0] != one.sigma[1]]
    assert 150 < len(uneven) < 250 and 150 < sum(one.poisson for one in drawn) < 250
    assert not any(one.grey_noise for one in drawn)
    assert all(one.angle == 0 for one in drawn if one not in uneven)


def test_one_choice_does_not_shift_the_draws_after_it():
    some = draw_degradation(DegradationConfig(anisotropic=0, poisson=0), np.random.default_rng(3))
    other = draw_degradation(DegradationConfig(anisotropic=1, poisson=1), np.random.default_rng(3))
    assert some.sigma[1] != other.sigma[1] and some.poisson != other.poisson
    for name in ("factor", "method", "noise", "noise_seed", "quality"):
        assert getattr(some, name) == getattr(other, name)


def test_the_same_seed_gives_the_same_picture_and_the_input_stays():
    picture = texture()
    before = picture.copy()
    drawn = [draw_degradation(DegradationConfig(), np.random.default_rng(seed)) for seed in (1, 1, 2)]
    first, again, other = (degrade(picture, one) for one in drawn)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(picture, before) and first.shape == picture.shape and first.dtype == np.uint8


def test_nothing_drawn_is_almost_nothing_changed():
    grey = np.repeat(texture()[..., :1], 3, axis=2)  # JPEG halves the resolution of colours at any quality
    assert error(degrade(grey, NONE), grey) < 1


@pytest.mark.parametrize(
    "mild, strong",
    [
        ({"sigma": (0.5, 0.5)}, {"sigma": (2.0, 2.0)}),
        ({"factor": 1.5}, {"factor": 4.0}),
        ({"noise": 4.0}, {"noise": 20.0}),
        ({"noise": 4.0, "poisson": True}, {"noise": 20.0, "poisson": True}),
        ({"quality": 80}, {"quality": 10}),
    ],
)
def test_more_of_anything_is_worse(mild, strong):
    picture = texture()
    a, b, c = (error(degrade(picture, changed(**values)), picture) for values in ({}, mild, strong))
    assert a < b < c


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 200), (65, 33)])
def test_pictures_of_any_size(size):
    picture = texture(*size)[: size[0], : size[1]]
    drawn = draw_degradation(DegradationConfig(), np.random.default_rng(0))
    assert degrade(picture, drawn).shape == picture.shape


def test_other_arrays_are_refused():
    with pytest.raises(ValueError, match=r"float64 \(4, 4, 3\); it must be uint8"):
        degrade(np.zeros((4, 4, 3)), NONE)


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma, angle", [((1.5, 1.5), 0.0), ((3.0, 1.0), 0.0), ((3.0, 1.0), 0.7)])
def test_the_kernel_has_the_moments_of_its_gaussian(sigma, angle):
    kernel = blur_kernel(sigma, angle, 41)
    assert kernel.sum() == pytest.approx(1) and kernel.shape[0] % 2 == 1
    radius = kernel.shape[0] // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    found = [[(kernel * x * x).sum(), (kernel * x * y).sum()], [(kernel * x * y).sum(), (kernel * y * y).sum()]]
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    np.testing.assert_allclose(found, turn @ np.diag(np.square(sigma)) @ turn.T, rtol=0.01, atol=0.01)


def test_the_kernel_is_cut_at_its_size_and_vanishes_with_sigma():
    assert blur_kernel((10, 10), 0, 21).shape == (21, 21)
    assert blur_kernel((0, 0)).shape == blur_kernel((0.01, 0.02)).shape == (1, 1)


def test_blur_agrees_with_scipy_and_keeps_constants():
    from scipy import ndimage

    picture, kernel = texture().astype(np.float32), blur_kernel((2.0, 1.0), 0.4, 41)
    expected = np.stack([ndimage.convolve(picture[..., i], kernel, mode="mirror") for i in range(3)], axis=2)
    np.testing.assert_allclose(blur(picture, kernel), expected, atol=1e-2)
    np.testing.assert_allclose(blur(flat(77).astype(np.float32), kernel), 77, atol=1e-3)


@pytest.mark.parametrize("method", ["area", "bilinear", "bicubic", "lanczos"])
def test_resizing_averages_and_keeps_constants(method):
    small = resize(flat(77).astype(np.float32), (40, 25), method)
    assert small.shape == (40, 25, 3)
    np.testing.assert_allclose(small, 77, atol=1e-3)
    noise = np.random.default_rng(0).normal(size=(256, 256, 3)).astype(np.float32)
    assert resize(noise, (32, 32), method).std() < 0.25  # dropping pixels instead would leave 1


@pytest.mark.parametrize("poisson", [False, True])
def test_noise_has_the_standard_deviation_that_was_drawn(poisson):
    # Grey noise: JPEG keeps luma at full resolution.
    noisy = degrade(flat(128), changed(noise=10.0, poisson=poisson, grey_noise=True)).astype(float)
    assert noisy.std() == pytest.approx(10, rel=0.05) and noisy.mean() == pytest.approx(128, abs=0.5)
    dark = degrade(flat(32), changed(noise=10.0, poisson=poisson, grey_noise=True)).astype(float)
    assert dark.std() == pytest.approx(5 if poisson else 10, rel=0.07)


def test_grey_noise_is_the_same_in_all_channels():
    grey = degrade(flat(128), changed(noise=20.0, grey_noise=True)).astype(int)
    colour = degrade(flat(128), changed(noise=20.0)).astype(int)
    assert np.abs(grey[..., 0] - grey[..., 1]).max() <= 2 < np.abs(colour[..., 0] - colour[..., 1]).max()


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(UsageError) as caught:
        DegradationConfig(blur_sigma=(3, 1), downsample=(0, 2), jpeg=(0, 101), kernel_size=4, anisotropic=2,
                          upsample_method="bicubik", downsample_methods=())  # fmt: skip
    assert len(caught.value.problems) == 7
    assert "did you mean `bicubic`?" in str(caught.value)
    assert DegradationConfig(noise=[0, 5]).noise == (0, 5)
