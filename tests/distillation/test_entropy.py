"""The entropy model sees what a decoder has, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from thurl.distillation.context import context_offsets
from thurl.distillation.entropy import MIN_PROBABILITY, contexts, laplace_bits, predict
from thurl.distillation.geometry import CONTEXTS, CodecConfig
from thurl.distillation.networks import initial_networks
from thurl.errors import UsageError


SIZES = ((9, 12), (5, 6), (3, 3))


def network(context, slices=1):
    generator = torch.Generator().manual_seed(context)
    arm = initial_networks(CodecConfig(9, 12, 1, context=context), slices, generator)["arm"]
    return [value + 0.3 * torch.randn(value.shape, generator=generator) for value in arm]


def predictions(levels, arm):
    """Mean and scale, per level (2, S, B, h, w)."""
    both = torch.stack(predict(contexts(levels, arm[0].shape[-1]), arm))
    parts = both.split([math.prod(level.shape[1:]) for level in levels], dim=2)
    return [part.view(2, *level.shape) for part, level in zip(parts, levels, strict=True)]


@pytest.mark.parametrize("context", CONTEXTS)
def test_offsets_are_causal_and_all_different(context):
    offsets = context_offsets(context)
    assert len(set(offsets)) == len(offsets) == context
    assert all(row < 0 or (row == 0 and column < 0) for row, column in offsets)
    assert all(-4 <= row and abs(column) <= 4 for row, column in offsets)
    with pytest.raises(UsageError, match="context"):
        context_offsets(context + 1)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_latent_changes_no_prediction_of_an_earlier_one(context):
    """Every position of a level is changed once, each in a sample of its own."""
    arm = network(context)
    for height, width in SIZES:
        count = height * width
        generator = torch.Generator().manual_seed(1)
        level = torch.randint(-3, 4, (1, 1, height, width), generator=generator).float().repeat(1, count, 1, 1)
        changed = level.clone()
        changed.view(count, count).diagonal().add_(2)
        before, after = (predictions([values], arm)[0] for values in (level, changed))
        differs = (before != after).any(dim=0).view(count, count)  # [changed position, predicted position]
        assert not differs.tril().any()
        if count > 1:
            assert differs.triu(1).any()  # the control: later ones do see it


def test_levels_samples_and_slices_do_not_see_each_other():
    arm = network(16, slices=2)
    generator = torch.Generator().manual_seed(2)
    levels = [torch.randint(-3, 4, (2, 3, *size), generator=generator).float() for size in SIZES]
    before = predictions(levels, arm)
    for level in range(len(levels)):
        for s, b in ((0, 1), (1, 2)):
            changed = [values.clone() for values in levels]
            changed[level][s, b] += 1
            for other, (old, new) in enumerate(zip(before, predictions(changed, arm), strict=True)):
                differs = (old != new).flatten(3).any(dim=3).any(dim=0)
                assert differs.nonzero().tolist() == ([[s, b]] if other == level else [])


def test_a_flat_context_gives_the_first_layer_only_zeros_outside():
    level = torch.full((1, 1, 5, 5), 7.0)
    found = contexts([level], 32).view(32, 5, 5)
    assert (found[:, 0, 0] == 0).all()
    assert set(found.unique().tolist()) == {0.0, 7.0}


def test_probabilities_of_all_integers_sum_to_one():
    symbols = torch.arange(-200.0, 201).double()
    for mean, scale in ((0.3, 0.5), (-4.7, 3.0), (0.0, 0.05)):
        bits = laplace_bits(symbols, torch.full_like(symbols, mean), torch.full_like(symbols, scale))
        mass = torch.exp2(-bits)
        above = mass > MIN_PROBABILITY * 1.001
        assert mass[above].sum().item() == pytest.approx(1, abs=2e-3)
        assert bits.max() == 16 and bits.min() >= 0


def test_bits_stay_finite_where_numbers_are_extreme():
    symbols = torch.tensor([0.0, 1e6, -1e6, 3.0])
    mean = torch.tensor([1e6, 0.0, 0.0, 3.0], requires_grad=True)
    scale = torch.tensor([math.exp(-4.6), math.exp(5), 1.0, math.exp(-4.6)], requires_grad=True)
    bits = laplace_bits(symbols, mean, scale)
    bits.sum().backward()
    assert bits.tolist()[:3] == [16, 16, 16] and bits[3] == 0
    assert mean.grad.isfinite().all() and scale.grad.isfinite().all()
