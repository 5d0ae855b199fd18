"""Baselines: what is counted, what fits a budget, that pictures are those of the files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.distillation.baselines import (
    coded_pictures,
    fit_count,
    fit_quality,
    optimised_pixels,
    pixel_bits,
    pixels_that_fit,
    random_pictures,
)
from thurl.distillation.pictures import PictureSet
from thurl.distillation.utility.base import Utility
from thurl.errors import DataError, UsageError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures():
    """Smooth waves, 3 classes of 12, 24 x 20."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(20.0), indexing="ij")
    random = generator(5)
    waves = []
    for index in range(36):
        phase = torch.rand(3, 1, 1, generator=random) * 6
        waves.append(127 + 120 * torch.sin(phase + (0.1 + 0.2 * (index // 12)) * x + 0.2 * y))
    labels = torch.arange(3).repeat_interleave(12)
    return PictureSet(torch.stack(waves).to(torch.uint8), labels, ("a", "b", "c"), (0.5,) * 3, (0.3,) * 3)


def test_bits_of_pixels_are_those_of_the_paper():
    assert [pixel_bits(n, 3, 32, 32, 32) for n in (1, 10, 50)] == [98_304, 983_040, 4_915_200]
    assert pixel_bits(1, 3, 128, 128, 32) == 1_572_864
    assert pixels_that_fit(20_000, 3, 16, 16) == 3 and pixels_that_fit(6_143, 3, 16, 16) == 0


def test_random_pictures_are_real_ones(pictures):
    found = random_pictures(pictures, 4, generator())
    assert found.bits_per_class == 4 * 3 * 24 * 20 * 8 and found.accounting["pixels_32bit"] == 4 * found.bits_per_class
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    rows = {bytes(image.numpy()) for image in pictures.images}
    assert len({bytes(image.numpy()) for image in found.images} & rows) == 12


@pytest.mark.parametrize("coder", ["jpeg", "webp"])
def test_coded_pictures_are_what_the_library_decodes(pictures, coder):
    found = coded_pictures(pictures, 2, 40, generator(), coder=coder, counting="file")
    drawn = pictures.draw(2, generator())
    assert torch.equal(drawn.labels, found.labels) and found.images.shape == drawn.images.shape
    options = {"subsampling": "4:2:0"} if coder == "jpeg" else {"method": 6}
    total = 0
    for image, decoded in zip(drawn.images, found.images, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, coder.upper(), quality=40, **options)
        total += len(buffer.getvalue())
        assert np.array_equal(np.asarray(Image.open(buffer).convert("RGB")), decoded.permute(1, 2, 0).numpy())
    assert found.bits_per_class == found.accounting["file"] == 8 * total / 3
    assert found.accounting["scan"] < found.accounting["shared_header"] < found.accounting["file"]
    assert found.decode_seconds > 0
    assert not torch.equal(found.images, drawn.images)


def test_the_scan_of_a_jpeg_is_what_lies_behind_its_tables(pictures):
    """Two qualities have headers of one length, so that files differ by their scans alone."""
    low, high = (coded_pictures(pictures, 3, quality, generator()).accounting for quality in (30, 80))
    assert high["file"] - low["file"] == pytest.approx(high["scan"] - low["scan"])
    # A flat picture has next to nothing in its scan: one code per block.
    grey = PictureSet(torch.full((2, 3, 16, 16), 128, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"),
                      (0.5,) * 3, (0.3,) * 3)  # fmt: skip
    assert coded_pictures(grey, 1, 50, generator()).accounting["scan"] <= 8 * 8


@pytest.mark.parametrize("coder", ["jpeg", "webp"])
@pytest.mark.parametrize("counting", ["scan", "shared_header", "file"])
def test_the_best_quality_and_the_largest_number_that_fit(pictures, coder, counting):
    budget = coded_pictures(pictures, 4, 50, generator(), coder, counting).bits_per_class
    found = fit_quality(pictures, 4, budget, generator(), coder, counting)
    assert found.bits_per_class <= budget and found.settings["quality"] >= 50
    above = coded_pictures(pictures, 4, found.settings["quality"] + 1, generator(), coder, counting)
    assert above.bits_per_class > budget

    most = fit_count(pictures, 50, budget, generator(), coder, counting)
    count = most.settings["per_class"]
    assert count == 4 and most.bits_per_class == budget
    assert torch.equal(most.images, coded_pictures(pictures, 4, 50, generator(), coder, counting).images)
    less = fit_count(pictures, 50, budget - 1, generator(), coder, counting)
    assert less.settings["per_class"] == 3 and less.bits_per_class <= budget
    assert fit_count(pictures, 50, 1e9, generator(), coder, counting).settings["per_class"] == 12


def test_grey_pictures_stay_grey(pictures):
    grey = PictureSet(pictures.images[:, :1], pictures.labels, pictures.classes, (0.5,), (0.3,))
    for coder in ("jpeg", "webp"):
        found = coded_pictures(grey, 2, 90, generator(), coder)
        original = grey.draw(2, generator()).images
        assert found.images.shape == original.shape
        assert float((found.images.float() - original.float()).abs().mean()) < 4


class _ToBlack(Utility):
    def loss(self, images, labels, real, generator):
        black = -real.pictures.mean[0] / real.pictures.std[0]
        return (images - black).square().sum()


def test_optimised_pixels_follow_the_loss_and_stay_bytes(pictures):
    found = optimised_pixels(_ToBlack(), pictures, 2, 200, generator(), lr=0.1)
    assert found.images.dtype == torch.uint8 and int(found.images.max()) <= 2
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2] and found.bits_per_class == pixel_bits(2, 3, 24, 20)
    still = optimised_pixels(_ToBlack(), pictures, 2, 0, generator())
    assert torch.equal(still.images, pictures.draw(2, generator()).images)


class _Nothing(Utility):
    def loss(self, images, labels, real, generator):
        return (images * float("nan")).sum()


def test_what_cannot_be_made_is_an_error(pictures):
    with pytest.raises(DataError, match="no longer finite"):
        optimised_pixels(_Nothing(), pictures, 1, 2, generator())
    with pytest.raises(DataError, match="at the lowest quality; 100 is the budget"):
        fit_quality(pictures, 4, 100, generator())
    with pytest.raises(DataError, match="lower the quality"):
        fit_count(pictures, 90, 100, generator())
    with pytest.raises(DataError, match="13 pictures of each class are wanted: a has 12"):
        random_pictures(pictures, 13, generator())
    with pytest.raises(UsageError) as caught:
        coded_pictures(pictures, 1, 0, generator(), coder="gif", counting="all")
    assert len(caught.value.problems) == 3
