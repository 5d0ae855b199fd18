"""Rounding and noise against the official numbers, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thurl.distillation.quantizer import (
    gaussian_noise,
    kumaraswamy_noise,
    noisy_round,
    soft_round,
    straight_through_round,
)


@pytest.fixture(scope="module")
def numbers(golden):
    with np.load(golden / "ddruo_quantizer.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def gradient(function, x):
    x = x.clone().requires_grad_()
    function(x).sum().backward()
    return x.grad


@pytest.mark.parametrize("temperature", [0.1, 0.3, 1.0])
def test_soft_rounding_is_the_official_one(numbers, temperature):
    x = numbers["x"]
    torch.testing.assert_close(soft_round(x, temperature), numbers[f"softround_t{temperature}"], rtol=1e-5, atol=1e-5)
    found = gradient(lambda v: soft_round(v, temperature), x)
    torch.testing.assert_close(found, numbers[f"softround_grad_t{temperature}"], rtol=1e-4, atol=1e-5)


def test_noise_is_the_official_one(numbers):
    for a in (1.0, 2.0):
        found = kumaraswamy_noise(numbers["u"], a)
        torch.testing.assert_close(found, numbers[f"kumaraswamy_a{a}"], rtol=1e-5, atol=1e-6)
    found = noisy_round(numbers["x"], numbers["noise"], 0.3)
    torch.testing.assert_close(found, numbers["softround_noise_softround_t0.3"], rtol=1e-5, atol=1e-5)


def test_straight_through_gives_exact_integers_and_the_soft_gradient(numbers):
    x = numbers["x"]
    found = straight_through_round(x, 0.3)
    assert torch.equal(found, numbers["round"])
    assert torch.equal(straight_through_round(torch.tensor([0.5, 1.5, -0.5]), 0.3), torch.tensor([0.0, 2.0, -0.0]))
    weights = torch.arange(1.0, len(x) + 1)
    ours = gradient(lambda v: weights * straight_through_round(v, 0.3), x)
    torch.testing.assert_close(ours, weights * numbers["softround_grad_t0.3"], rtol=1e-4, atol=1e-4)


def test_noise_lies_where_it_should():
    uniform = torch.linspace(0, 1, 1001)
    for a in (1.0, 1.5, 2.0, 4.0):
        noise = kumaraswamy_noise(uniform, a)
        assert noise.min() >= -0.5 and noise.max() <= 0.5 and (noise.diff() >= 0).all()
    assert kumaraswamy_noise(uniform, 4.0).std() < kumaraswamy_noise(uniform, 1.0).std()
    assert torch.equal(gaussian_noise(torch.ones(3), 0.25), torch.full((3,), 0.25))


def test_a_colder_rounding_is_closer_to_integers():
    x = torch.linspace(-2, 2, 401)
    errors = [(soft_round(x, t) - x.round()).abs().mean().item() for t in (1.0, 0.3, 0.1, 0.01)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.01


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_must_be_above_zero(temperature):
    with pytest.raises(ValueError, match="temperature"):
        soft_round(torch.zeros(1), temperature)


def test_noise_refuses_other_parameters():
    with pytest.raises(ValueError, match="must be 1 to 64"):
        kumaraswamy_noise(torch.zeros(1), 0.5)
    with pytest.raises(ValueError, match="sigma"):
        gaussian_noise(torch.zeros(1), -0.1)
