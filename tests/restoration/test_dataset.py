"""Pairs are a function of (seed, epoch, index): with any number of workers, in any order."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from thurl.data.images import ImageError
from thurl.errors import UsageError
from thurl.restoration.dataset import RestorationPairs
from thurl.restoration.degradation import DegradationConfig


MILD = DegradationConfig(blur_sigma=(0.2, 1), downsample=(1, 2), noise=(0, 10), jpeg=(60, 90))


def photo(width, height, seed):
    pixels = np.random.default_rng(seed).uniform(0, 255, (height // 8, width // 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def pairs(**options):
    photos = {"a": photo(96, 64, 0), "b": photo(64, 120, 1), "c": photo(72, 72, 2)}
    return RestorationPairs(photos, 32, **{"degradation": MILD, "repeats": 2, "seed": 5, **options})


def everything(dataset, **options):
    items = list(DataLoader(dataset, batch_size=None, **options))
    return torch.stack([torch.stack([item["pixel_values"], item["target"]]) for item in items])


def test_items_are_pictures_of_the_right_kind():
    dataset = pairs()
    assert len(dataset) == 6 and [dataset.name(index) for index in range(6)] == ["a", "b", "c"] * 2
    for item in map(dataset.__getitem__, range(6)):
        for pixels in item.values():
            assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.float32
            assert 0 <= pixels.min() and pixels.max() <= 1
        assert not torch.equal(item["pixel_values"], item["target"])
    assert torch.equal(dataset[-1]["target"], dataset[5]["target"])
    with pytest.raises(IndexError):
        dataset[6]


def test_workers_and_order_change_nothing_but_seed_and_epoch_do():
    dataset = pairs()
    first = everything(dataset)
    assert torch.equal(first, everything(dataset, num_workers=2))
    assert torch.equal(first[3, 0], dataset[3]["pixel_values"])
    assert not torch.equal(first, everything(pairs(seed=6)))
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        found = torch.stack([torch.stack([item["pixel_values"], item["target"]]) for item in loader])
        assert torch.equal(found, everything(dataset)) and torch.equal(found, first) == (epoch == 0)


def test_fixed_pairs_stay():
    dataset = pairs(fixed=True)
    first = everything(dataset)
    dataset.set_epoch(3)
    assert dataset.epoch == 0 and torch.equal(first, everything(dataset))


def test_unrelated_targets_leave_the_inputs_as_they_are():
    plain, control = everything(pairs()), everything(pairs(unrelated=True))
    assert torch.equal(plain[:, 0], control[:, 0])
    assert all(not torch.equal(a, b) for a, b in zip(plain[:, 1], control[:, 1], strict=True))
    near = (plain[:, 0] - plain[:, 1]).abs().mean()
    assert (control[:, 0] - control[:, 1]).abs().mean() > 2 * near


def test_crops():
    whole = pairs(crop="whole", flip=False)
    middle = photo(96, 64, 0).resize((32, 32), Image.Resampling.LANCZOS, box=(16, 0, 80, 64))
    assert np.array_equal(whole.pair(0)[1], np.array(middle)) and np.array_equal(whole.pair(3)[1], np.array(middle))
    # Without zoom and mirror a square is a part of the photograph, to the pixel.
    full, square = np.array(photo(96, 64, 0)), pairs(flip=False).pair(0)[1]
    places = [(y, x) for y in range(33) for x in range(65) if np.array_equal(full[y : y + 32, x : x + 32], square)]
    assert len(places) == 1
    # Too small a photograph is enlarged, too small a zoom takes all of the shorter side.
    tiny = RestorationPairs({"t": photo(24, 16, 0)}, 32, degradation=MILD, zoom=(0.01, 0.02))
    assert tiny[0]["target"].shape == (3, 32, 32)


def test_mirrors_half_of_the_squares():
    some = RestorationPairs({"a": photo(64, 64, 0)}, 64, degradation=MILD, repeats=60)
    plain = np.array(photo(64, 64, 0))
    mirrored = sum(np.array_equal(some.pair(index)[1], plain[:, ::-1]) for index in range(60))
    assert 15 < mirrored < 45


def test_paths_are_read_and_bad_files_named(tmp_path):
    photo(64, 64, 0).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    dataset = RestorationPairs({name: tmp_path / f"{name}.png" for name in ("good", "bad")}, 32, degradation=MILD)
    assert dataset[0]["target"].shape == (3, 32, 32)
    with pytest.raises(ImageError, match="bad.png"):
        dataset[1]


def test_all_problems_at_once():
    with pytest.raises(UsageError) as caught:
        RestorationPairs({}, 0, crop="middle", zoom=(2, 1), unrelated=True)
    assert len(caught.value.problems) == 5
