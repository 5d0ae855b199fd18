"""Picture sets: checks, draws by class, averaging to a size, splits."""

from __future__ import annotations

import pytest
import torch

from thurl.distillation.pictures import PictureSet, RealBatches, area_resize, normalise, split_pictures, statistics
from thurl.errors import DataError, UsageError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(counts=(5, 3, 8), channels=1):
    """Every picture is filled with its index."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=generator(1))]
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, channels, 4, 6).contiguous()
    names = tuple("abcdefgh"[: len(counts)])
    return PictureSet(images, labels, names, (0.5,) * channels, (0.25,) * channels)


def test_draws_are_random_of_the_right_class_and_never_twice():
    pictures = numbered()
    assert pictures.counts == [5, 3, 8] and len(pictures) == 16
    drawn = pictures.draw(3, generator())
    assert drawn.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    indices = drawn.images[:, 0, 0, 0].long()
    assert len(set(indices.tolist())) == 9 and torch.equal(pictures.labels[indices], drawn.labels)
    assert not torch.equal(indices, pictures.draw(3, generator(1)).images[:, 0, 0, 0].long())
    # Smaller draws are the beginning of larger ones.
    one = pictures.draw(1, generator()).images[:, 0, 0, 0]
    assert one.tolist() == indices[::3].tolist()
    with pytest.raises(DataError, match="4 pictures of each class are wanted: b has 3"):
        pictures.draw(4, generator())
    with pytest.raises(DataError, match="0 pictures"):
        pictures.draw(0, generator())


def test_each_picture_of_a_class_is_drawn_as_often():
    pictures, random = numbered(), generator(2)
    seen = torch.zeros(16)
    for _ in range(2000):
        seen[pictures.draw(1, random).images[:, 0, 0, 0].long()] += 1
    for label, count in enumerate(pictures.counts):
        assert seen[pictures.labels == label].sum() == 2000
        assert bool(((seen[pictures.labels == label] / 2000 - 1 / count).abs() < 0.06).all())


def test_real_batches_are_normalised_and_take_what_there_is():
    real = RealBatches(numbered())
    images, labels = real.draw(6, generator())
    assert torch.bincount(labels).tolist() == [5, 3, 6] and real.classes == 3
    assert images.dtype == torch.float32 and torch.allclose(
        images[:, 0, 0, 0] * 0.25 + 0.5,
        numbered().images[:, 0, 0, 0][(images[:, 0, 0, 0] * 63.75 + 127.5).round().long()] / 255,
    )


def test_normalise_and_statistics():
    images = torch.randint(0, 256, (50, 3, 5, 5), generator=generator(), dtype=torch.uint8)
    mean, std = statistics(images)
    found = normalise(images, mean, std)
    assert torch.allclose(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-3)
    assert torch.allclose(found.std((0, 2, 3)), torch.ones(3), atol=1e-2)
    assert torch.allclose(normalise(images.float() / 255, mean, std), found)
    assert statistics(torch.zeros(2, 1, 3, 3, dtype=torch.uint8)) == ((0.0,), (0.0039,))


def test_area_average_keeps_the_light_of_whole_and_part_pixels():
    images = torch.randint(0, 256, (3, 2, 12, 9), generator=generator(), dtype=torch.uint8)
    pooled = torch.nn.functional.avg_pool2d(images.float(), (3, 3)).round()
    assert torch.equal(area_resize(images, 4, 3).float(), pooled)
    row = torch.tensor([[[[0, 90, 240]]]], dtype=torch.uint8)
    assert area_resize(row, 1, 2).tolist() == [[[[30, 190]]]]  # the middle pixel is shared
    for wanted in ((5, 7), (11, 4), (1, 1)):
        small = area_resize(images, *wanted)
        assert float((small.float().mean() - images.float().mean()).abs()) < 0.6
    assert area_resize(images, 12, 9) is images
    with pytest.raises(UsageError, match="13x9 must be at least 1 and at most the pictures' 12x9"):
        area_resize(images, 13, 9)


def test_splits_share_no_picture():
    train, test = split_pictures(numbered(), 2, 1, generator())
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and test.labels.tolist() == [0, 1, 2]
    assert not set(train.images[:, 0, 0, 0].tolist()) & set(test.images[:, 0, 0, 0].tolist())
    with pytest.raises(DataError, match="4 pictures of each class are wanted: b has 3"):
        split_pictures(numbered(), 3, 1, generator())
    with pytest.raises(DataError, match="at least 1 is needed"):
        split_pictures(numbered(), 3, 0, generator())


def test_sets_that_teach_nothing_are_refused():
    images, labels = torch.zeros(4, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    one = ("a", "b"), (0.5,), (0.3,)
    for wrong, message in (
        ((images.float(), labels, *one), "uint8"),
        ((images[:, 0], labels, *one), "uint8"),
        ((images[:0], labels[:0], *one), "uint8"),
        ((images, labels.int(), *one), "int64"),
        ((images, labels[:2], *one), "int64"),
        ((images, labels * 0, ("a",), (0.5,), (0.3,)), r"one class \(a\)"),
        ((images, labels, ("a",), (0.5,), (0.3,)), "labels 0 to 1: 1 classes have names"),
        ((images, labels, ("a", "b", "c"), (0.5,), (0.3,)), "classes without a picture: c"),
        ((images, labels, ("a", "b"), (0.5, 0.5), (0.3,)), "one per channel"),
        ((images, labels, ("a", "b"), (0.5,), (0.0,)), "std above 0"),
    ):
        with pytest.raises(DataError, match=message):
            PictureSet(*wrong)
