"""The finite difference of the bi-level step, alone: exact for a quadratic loss."""

from __future__ import annotations

import pytest
import torch

from thurl.training.bilevel.mathematics import difference_radius, finite_difference, global_norm, shifted


def test_the_radius_makes_the_step_as_long_as_asked():
    along = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    eps = difference_radius(global_norm(along), radius=0.01)
    assert eps * global_norm(along) == pytest.approx(0.01)
    assert difference_radius(5.0, radius=0.01, fd_eps=5.0) == pytest.approx(0.001)


def test_the_difference_is_the_inner_product_with_the_gradient():
    theta, along = [torch.tensor([1.0, -2.0], dtype=torch.float64)], [torch.tensor([0.5, 2.0], dtype=torch.float64)]

    def losses(values):
        return torch.stack([(values[0] ** 2).sum(), values[0].sum()])

    h = finite_difference(losses(shifted(theta, along, 0.1)), losses(shifted(theta, along, -0.1)), 0.1)
    assert h.tolist() == pytest.approx([2 * (0.5 - 4.0), 2.5])  # <2 theta, d> and <1, d>
