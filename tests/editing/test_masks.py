"""Masks: exactly the best k, whatever the scores."""

from __future__ import annotations

import math

import pytest
import torch

from thurl.editing.classifier import as_classifier
from thurl.editing.masks import (
    FixedMask,
    GradientMask,
    HybridMask,
    RandomMask,
    binarise,
    describe_density,
    gradient_scores,
    hybrid_scores,
    mean_scores,
    random_mask,
)
from thurl.errors import UsageError

from .editing_models import MODELS, golden, pictures, small_model


def soft_mask(seed, levels=None):
    soft = torch.rand(6, 40, generator=torch.Generator().manual_seed(seed))
    return soft if levels is None else (soft * levels).floor() / levels


@pytest.mark.parametrize("case", ["distinct", "batch2"])
@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_the_released_rule_gives_the_released_masks(case, density):
    stored = golden("binarise")
    soft, wanted = stored[f"{case}.soft"], stored[f"{case}.binary_d{density:g}"].bool()
    assert torch.equal(binarise(soft, density, compat_strict_gt=True), wanted)
    ours = binarise(soft, density)
    assert int(ours.sum()) == max(1, round(density * 240))
    assert (ours | wanted).sum() == ours.sum()  # what the release keeps we keep


@pytest.mark.parametrize("size", ["single", "batch"])
@pytest.mark.parametrize("density", [0.25, 0.1])
def test_released_masks_of_the_hypernetwork(size, density):
    stored = golden("tiny_io")
    soft = stored["soft_masks"][:1] if size == "single" else stored["soft_masks"]
    assert torch.equal(binarise(soft, density, compat_strict_gt=True), stored[f"binary_d{density}_{size}"].bool())


@pytest.mark.parametrize("levels", [None, 7, 2, 1])
@pytest.mark.parametrize("density", [1e-6, 0.02, 0.05, 0.1, 0.33, 0.5, 0.999, 1.0])
def test_exactly_k_by_value_then_lowest_index(levels, density):
    for seed in range(3):
        soft = soft_mask(seed, levels)
        mask = binarise(soft, density)
        kept = max(1, round(density * 240))
        order = sorted(range(240), key=lambda i: (-soft.reshape(-1)[i].item(), i))
        assert mask.reshape(-1).nonzero().flatten().tolist() == sorted(order[:kept])


def test_saturated_masks_keep_k_and_the_released_rule_keeps_none():
    soft = torch.full((6, 40), 1 - 1e-7)
    soft[3:] = 0.2
    assert int(binarise(soft, 0.05).sum()) == 12
    assert int(binarise(soft, 0.05, compat_strict_gt=True).sum()) == 0


def test_several_pictures_are_averaged_and_a_unit_may_stay_empty():
    soft = torch.stack([soft_mask(0), soft_mask(1)])
    assert torch.equal(binarise(soft, 0.1), binarise(soft.mean(dim=0), 0.1))
    soft = soft_mask(0)
    soft[2] = 0
    mask = binarise(soft, 0.5)
    assert not mask[2].any() and int(mask.sum()) == 120


@pytest.mark.parametrize("density", [0, -0.1, 1.01, math.nan])
def test_densities_out_of_range(density):
    with pytest.raises(UsageError, match="density"):
        binarise(soft_mask(0), density)


def test_scores_that_are_none():
    soft = soft_mask(0)
    soft[0, 3] = math.nan
    with pytest.raises(UsageError, match="1 NaN"):
        binarise(soft, 0.5)
    for wrong in (torch.rand(5), torch.rand(1, 1, 2, 3), torch.rand(0, 40)):
        with pytest.raises(UsageError, match="of shape"):
            binarise(wrong, 0.5)
    with pytest.raises(UsageError, match="is none of them"):
        binarise(torch.rand(1, 5), 0.1, compat_strict_gt=True)


def test_density_and_sparsity_are_both_told():
    mask = torch.zeros(2, 50, dtype=torch.bool)
    mask[0, :5] = True
    assert describe_density(mask) == "5 of 100 neurons, density 0.05 (sparsity 0.95)"


def test_random_masks_are_those_of_their_seed():
    classifier = as_classifier(small_model("timm"))
    state = torch.get_rng_state()
    one = random_mask((6, 40), 0.1, 3)
    assert torch.equal(one, random_mask((6, 40), 0.1, 3)) and int(one.sum()) == 24
    assert not torch.equal(one, random_mask((6, 40), 0.1, 4))
    scores = RandomMask(3).scores(classifier, pictures(1), torch.tensor([0]))
    assert torch.equal(binarise(scores, 0.1), random_mask((6, 24), 0.1, 3))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", MODELS)
def test_gradient_scores_are_norms_of_the_gradient(name):
    model = small_model(name)
    classifier = as_classifier(model)
    images, labels = pictures(2), torch.tensor([1, 4])
    scores = gradient_scores(classifier, images, labels)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.nn.functional.cross_entropy(classifier.logits(images), labels).backward()
    rows = []
    for unit in classifier.units:
        gradient = model.get_parameter(unit.parameter).grad
        gradient = gradient if unit.axis == 0 else gradient.T
        rows.append([gradient[unit.indices(torch.tensor([j]))].norm() for j in range(unit.size)])
    norms = torch.tensor(rows)
    torch.testing.assert_close(scores, norms / norms.max(), rtol=1e-4, atol=1e-6)
    assert torch.equal(scores, GradientMask().scores(classifier, images, labels))


def test_no_gradient_gives_zeros_and_an_infinite_one_an_error():
    model = small_model("timm")
    classifier = as_classifier(model)
    with torch.no_grad():
        model.head.weight.zero_()
    assert not gradient_scores(classifier, pictures(1), torch.tensor([0])).any()
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    with pytest.raises(UsageError, match="not finite"):
        gradient_scores(classifier, pictures(1), torch.tensor([0]))


def test_hybrid_is_a_product_free_of_scale():
    first, second = soft_mask(0), soft_mask(1)
    product = hybrid_scores(first, second)
    torch.testing.assert_close(hybrid_scores(0.01 * first, second), product)
    assert torch.equal(binarise(product, 0.1), binarise(first * second, 0.1))
    assert float(product.max()) <= 1
    classifier = as_classifier(small_model("timm"))
    source = HybridMask((RandomMask(0), GradientMask()))
    scores = source.scores(classifier, pictures(1), torch.tensor([2]))
    assert scores.shape == (6, 24) and 0 <= float(scores.min()) <= float(scores.max()) <= 1


def test_mean_of_single_pictures():
    classifier = as_classifier(small_model("timm"))
    images, labels = pictures(3), torch.tensor([0, 1, 2])
    mean = mean_scores(GradientMask(), classifier, [(images[:2], labels[:2]), (images[2:], labels[2:])])
    each = torch.stack([gradient_scores(classifier, images[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(mean, each.mean(dim=0))
    assert torch.equal(FixedMask(mean).scores(classifier, images, labels), mean)
    with pytest.raises(UsageError, match="no pictures"):
        mean_scores(GradientMask(), classifier, [])
    with pytest.raises(UsageError, match=r"\[6, 9\] for units of shape \[6, 24\]"):
        FixedMask(torch.rand(6, 9)).scores(classifier, images, labels)
