"""Differentiable Siamese augmentation: each operation against what it says, draws, gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from thurl.distillation.dsa import OPERATIONS, Draw, DsaConfig, augment, augment_classes, augment_pair, draw
from thurl.errors import UsageError


OFF = DsaConfig(brightness=0, saturation=0, contrast=0, crop=0, cutout=0, flip=0, scale=1, rotate=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=5, height=8, width=12, dtype=torch.float64):
    return torch.randn(count, 3, height, width, generator=generator(1), dtype=dtype)


def numbers(*rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_at_zero_strength_nothing_changes(operation):
    images = pictures()
    drawn = draw(dataclasses.replace(OFF, operations=(operation,)), generator(), len(images))
    assert torch.allclose(augment(images, drawn, OFF), images, atol=1e-6)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_shape_gradient_and_change_at_full_strength(operation):
    config = DsaConfig(operations=(operation,))
    images = pictures(2, 4, 5).requires_grad_()
    drawn = draw(config, generator(3), len(images))
    changed = augment(images, drawn, config)
    assert changed.shape == images.shape and changed.dtype == images.dtype
    assert not torch.allclose(changed, images)
    assert torch.autograd.gradcheck(lambda x: augment(x, drawn, config), images)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_shared_draw_does_the_same_to_every_picture(operation):
    config = DsaConfig(operations=(operation,))
    drawn = draw(config, generator(4))
    one = pictures(1)
    many = augment(one.expand(7, -1, -1, -1), drawn, config)
    assert torch.allclose(many, augment(one, drawn, config).expand_as(many))
    # Control: numbers of their own tell the pictures apart.
    own = augment(one.expand(7, -1, -1, -1), draw(config, generator(4), 7), config)
    assert not torch.allclose(own, own[:1].expand_as(own))


def test_color_is_brightness_then_saturation_then_contrast():
    images = pictures(2)
    found = augment(images, Draw("color", numbers([0.75, 0.25, 1.0], [0.5, 0.5, 0.5])), DsaConfig())
    bright = images[0] + 0.25
    mean = bright.mean(0, keepdim=True)
    saturated = mean + 0.5 * (bright - mean)
    expected = saturated.mean() + 1.5 * (saturated - saturated.mean())
    assert torch.allclose(found[0], expected)
    assert torch.allclose(found[1], images[1])


def test_crop_shifts_and_fills_with_zeros():
    images = pictures(3, 16, 16)
    found = augment(images, Draw("crop", numbers([0, 0, 0], [0.999, 0.999, 0], [0.5, 0.999, 0])), DsaConfig())
    assert torch.equal(found[0, :, 2:, 2:], images[0, :, :-2, :-2]) and not found[0, :, :2].any()
    assert torch.equal(found[1, :, :-2, :-2], images[1, :, 2:, 2:]) and not found[1, :, -2:].any()
    assert torch.equal(found[2, :, :, :-2], images[2, :, :, 2:])
    # Every shift from -2 to 2 is met, as often as the others.
    ramp = torch.arange(16.0).expand(4000, 1, 16, 16)
    shifts = augment(ramp, draw(DsaConfig(operations=("crop",)), generator(), 4000), DsaConfig())[:, 0, 8, 8] - 8
    counts = torch.bincount((shifts + 2).long(), minlength=5)
    assert len(counts) == 5 and counts.min() > 700


def test_cutout_zeroes_one_square_that_may_stick_out():
    ones = torch.ones(3, 1, 8, 8)
    found = augment(ones, Draw("cutout", numbers([0.5, 0.5, 0], [0, 0, 0], [0.999, 0.5, 0])), DsaConfig())
    holes = (found == 0).flatten(1).sum(1).tolist()
    assert holes == [16, 4, 8]
    assert not found[0, 0, 2:6, 2:6].any()


def test_flip_mirrors_half_of_the_pictures():
    images = pictures(1000, 2, 3)
    found = augment(images, draw(DsaConfig(operations=("flip",)), generator(), 1000), DsaConfig())
    mirrored = (found == images.flip(-1)).flatten(1).all(1)
    kept = (found == images).flatten(1).all(1)
    assert bool((mirrored | kept).all()) and 430 < int(mirrored.sum()) < 570


def test_rotation_by_a_right_angle_and_scaling_by_two():
    images = pictures(1, 7, 7)
    turned = augment(images, Draw("rotate", numbers([1.0, 0, 0])), DsaConfig(rotate=90))
    assert torch.allclose(turned, images.rot90(1, (2, 3))) or torch.allclose(turned, images.rot90(-1, (2, 3)))
    # Numbers of 1 give the largest factor: the grid is twice as wide as the picture, so every second pixel is seen.
    small = augment(images, Draw("scale", numbers([1.0, 1.0, 0])), DsaConfig(scale=2))
    assert torch.allclose(small[..., 2:5, 2:5], images[..., 1::2, 1::2])
    assert not small[..., :1, :].any()


def test_draws_come_from_the_generator_alone():
    config = DsaConfig()
    first, again = draw(config, generator(5), 4), draw(config, generator(5), 4)
    assert first.operation == again.operation and torch.equal(first.numbers, again.numbers)
    assert {draw(config, g).operation for g in [generator(6)] for _ in range(100)} == set(OPERATIONS)


def test_classes_together_are_classes_one_by_one():
    config = DsaConfig()
    labels = torch.tensor([2, 0, 1, 1, 0, 3, 2, 3, 0])
    images = pictures(len(labels))
    random = generator(7)
    drawn = [draw(config, random) for _ in range(4)]
    together = augment_classes(images, labels, drawn, config)
    for label, one in enumerate(drawn):
        assert torch.allclose(together[labels == label], augment(images[labels == label], one, config))


def test_real_and_synthetic_pictures_of_a_class_see_the_same():
    images, labels = pictures(6), torch.tensor([0, 0, 1, 1, 2, 2])
    back = torch.arange(5, -1, -1)
    real, synthetic = augment_pair(images, labels, images[back], labels[back], 3, DsaConfig(), generator(8))
    assert torch.allclose(real, synthetic[back]) and not torch.allclose(real, images)


def test_bad_values_are_named_together():
    with pytest.raises(UsageError) as caught:
        DsaConfig(operations=("blur",), flip=2, scale=0.5, rotate=200, brightness=-1)
    assert len(caught.value.problems) == 5
    with pytest.raises(ValueError, match="3 pictures does not fit a batch of 5"):
        augment(pictures(), draw(DsaConfig(), generator(), 3), DsaConfig())
