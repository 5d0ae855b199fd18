"""Clean-ups without learning, and the choice of their strength."""

import numpy as np
import pytest
from PIL import Image

from thurl.errors import UsageError
from thurl.restoration.cleanup import CLEANUPS, clean_up, noise_level, tune


def clean(count=3, side=48, seed=0):
    rng = np.random.default_rng(seed)
    small = [Image.fromarray(rng.uniform(0, 255, (4, 4, 3)).astype(np.uint8)) for _ in range(count)]
    return np.stack([np.asarray(one.resize((side, side), Image.Resampling.BICUBIC)) for one in small])


def noisy(pictures, sigma, seed=1):
    noise = np.random.default_rng(seed).normal(0, sigma, pictures.shape)
    return np.clip(np.rint(pictures + noise), 0, 255).astype(np.uint8)


def error(first, second):
    return float(np.square(first.astype(float) - second).mean())


@pytest.mark.parametrize("name", CLEANUPS)
def test_each_removes_noise_and_leaves_flat_pictures_alone(name):
    truth = clean()
    spoilt = noisy(truth, 20)
    before = spoilt.copy()
    cleaned = clean_up(spoilt, name, tune(spoilt, truth, [name])[name])
    assert cleaned.shape == truth.shape and cleaned.dtype == np.uint8
    assert error(cleaned, truth) < 0.6 * error(spoilt, truth)
    assert np.array_equal(spoilt, before)
    flat = np.full((1, 20, 24, 3), 90, np.uint8)
    assert np.array_equal(clean_up(flat, name, CLEANUPS[name].strengths[0]), flat)


def test_the_strength_is_the_best_on_the_given_pictures():
    truth = clean()
    for sigma in (3, 40):
        spoilt = noisy(truth, sigma)
        strength = tune(spoilt, truth, ["gaussian"])["gaussian"]
        errors = {one: error(clean_up(spoilt, "gaussian", one), truth) for one in CLEANUPS["gaussian"].strengths}
        assert errors[strength] == min(errors.values())
    assert tune(noisy(truth, 3), truth, ["gaussian"])["gaussian"] < strength, "more noise needs more"


def test_noise_is_estimated_under_edges():
    truth = clean(1, 128)[0].astype(np.float32)
    truth[:, 64:] = 0
    noise = np.random.default_rng(0).normal(0, 12, truth.shape).astype(np.float32)
    assert noise_level(truth + noise) == pytest.approx(12, rel=0.1)
    assert noise_level(np.zeros((1, 9, 3), np.float32)) == 0


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="did you mean `median`"):
        clean_up(clean(1), "mediam", 3)
