"""The equations against naive forms of them, and where the official ones break."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from thurl.iqa.afine.mathematics import (
    adapter_weight,
    adaptive_score,
    bounded_map,
    covariance,
    fidelity_weights,
    mean_and_variance,
    past_turning_point,
    resize_positions,
    resize_to_multiple,
    scaled_score,
    similarities,
    token_resize_matrix,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "tokens"), [(50, 2), (50, 37), (50, 50), (50, 197), (10, 13), (2, 9), (5, 1)])
def test_the_table_is_resized_as_an_image_of_one_channel_whose_width_stays(rows, tokens):
    table = draw(rows, 6)
    expected = functional.interpolate(table[None, None], size=(tokens, 6), mode="bicubic", align_corners=False)[0, 0]
    assert torch.allclose(resize_positions(table, tokens), expected, atol=1e-12)
    assert torch.allclose(token_resize_matrix(rows, tokens).sum(dim=1), torch.ones(tokens, dtype=torch.float64))


def test_resizing_the_table_mixes_the_class_row_with_patches():
    table = torch.zeros(50, 1)
    table[0] = 1
    found = resize_positions(table, 101).flatten()
    assert found[:4].ne(0).all() and found[0] != 1
    assert torch.equal(resize_positions(table, 50), table)
    assert resize_positions(table.bfloat16(), 7).dtype == torch.float32


@pytest.mark.parametrize(("size", "wanted"), [((33, 65), (64, 96)), ((5, 32), (32, 32)), ((64, 96), (64, 96))])
def test_pictures_grow_to_multiples_and_constants_stay_constant(size, wanted):
    flat = torch.full((1, 3, *size), 0.3, dtype=torch.float64)
    grown = resize_to_multiple(flat, 32)
    assert grown.shape[-2:] == wanted
    assert torch.allclose(grown, torch.full_like(grown, 0.3), atol=1e-12)
    # Hence resizing before or after normalising is the same.
    picture = draw(1, 3, *size)
    assert torch.allclose((resize_to_multiple(picture, 32) - 0.4) / 0.2, resize_to_multiple((picture - 0.4) / 0.2, 32))


def test_similarities_equal_the_written_formula():
    x, y = draw(2, 7, 3, seed=1), draw(2, 7, 3, seed=2)
    (mean_x, var_x), (mean_y, var_y) = mean_and_variance(x), mean_and_variance(y)
    cov = covariance(x, y, mean_x, mean_y)
    first, second = similarities(mean_x, var_x, mean_y, var_y, cov, 1e-10)
    for b in range(2):
        for c in range(3):
            a, d = x[b, :, c].tolist(), y[b, :, c].tolist()
            ma, md = sum(a) / 7, sum(d) / 7
            va, vd = sum(v * v for v in a) / 7 - ma**2, sum(v * v for v in d) / 7 - md**2
            joint = sum(p * q for p, q in zip(a, d, strict=True)) / 7 - ma * md
            assert first[b, c].item() == pytest.approx((2 * ma * md + 1e-10) / (ma**2 + md**2 + 1e-10))
            assert second[b, c].item() == pytest.approx((2 * joint + 1e-10) / (va + vd + 1e-10))


def test_one_picture_is_compared_with_many():
    x, y = draw(1, 7, 3, seed=1), draw(4, 7, 3, seed=2)
    repeated = covariance(x.expand(4, -1, -1), y, x.mean(1).expand(4, -1), y.mean(1))
    assert torch.equal(covariance(x, y, x.mean(1), y.mean(1)), repeated)


def test_weights_of_both_vectors_sum_to_one_together():
    a, b = fidelity_weights(draw(5), draw(5, seed=1))
    assert (a.sum() + b.sum()).item() == pytest.approx(1)
    assert a.sum().item() != pytest.approx(b.sum().item())
    assert (a > 0).all() and (b > 0).all()


def test_the_bounded_map_takes_the_absolute_width():
    values, centre, width = torch.tensor([-1e9, -0.5, 0.25, 1e9]), torch.tensor([0.25]), torch.tensor([0.5])
    mapped = bounded_map(values, centre, width)
    assert mapped[0] == -2 and mapped[2] == 0 and mapped[3] == 2
    assert mapped[1].item() == pytest.approx(4 / (1 + math.exp(1.5)) - 2, abs=1e-6)
    assert torch.equal(mapped, bounded_map(values, centre, -width))


K = torch.tensor([5.00672], dtype=torch.float64)


def test_the_official_adapter_turns_and_the_monotone_one_does_not():
    naturalness = torch.linspace(-1.99, 1.99, 400, dtype=torch.float64, requires_grad=True)
    ref = torch.tensor(1.5, dtype=torch.float64)
    fidelity = torch.tensor(0.1, dtype=torch.float64)
    slopes = {}
    for kind in ("official", "monotone"):
        score = adaptive_score(adapter_weight(ref, naturalness, K), naturalness, fidelity, kind)
        (slopes[kind],) = torch.autograd.grad(score.sum(), naturalness)
    turned = naturalness > 1 / K
    assert (slopes["official"][turned] < 0).all() and (slopes["official"][~turned] > 0).all()
    assert (slopes["monotone"] > 0).all()
    flagged = past_turning_point(ref.expand(400), naturalness, K)
    assert torch.equal(flagged, turned & (naturalness < ref))
    assert 0 < flagged.sum() < 400
    assert not past_turning_point(ref.expand(400), naturalness, K, "monotone").any()


def test_an_unnatural_test_picture_against_a_far_better_reference_leaves_fidelity():
    weight = adapter_weight(torch.tensor(-1.8), torch.tensor(1.8), K.float())
    assert weight.item() < 1e-7
    assert adaptive_score(weight, torch.tensor(1.8), torch.tensor(0.7)).item() == pytest.approx(0.7, abs=1e-6)


def test_a_steep_adapter_stays_finite():
    weight = adapter_weight(torch.tensor([2.0]), torch.tensor([-2.0]), torch.tensor([1000.0]))
    score = adaptive_score(weight, torch.tensor([0.0]), torch.tensor([0.5]))
    assert weight.isfinite().all() and score.item() == 0.5


def test_the_scaled_score_stays_in_its_range_for_scores_up_to_1e12():
    scores = torch.tensor([-1e12, -1e3, -1.971, 0.0, 1e3, 1e12])
    scaled = scaled_score(scores, -1.9710, 2.3734)
    assert scaled.isfinite().all() and (scaled >= 0).all() and (scaled <= 100).all()
    assert scaled[2].item() == 50 and scaled[3].item() == pytest.approx(69.645, abs=1e-3)
