"""Pseudo-failures: ranges, pixels and seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thurl.editing.cutmix import CutMixSettings, draw_rectangles, paste
from thurl.errors import UsageError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_official_ranges_on_14_patches() -> None:
    found = draw_rectangles(20_000, (14, 14), CutMixSettings(), generator())
    top, left, height, width = found.unbind(dim=1)
    assert height.unique().tolist() == width.unique().tolist() == list(range(3, 9))
    for corner, size in ((top, height), (left, width)):
        assert corner.min() == 0 and (corner + size).max() == 13  # never the last row or column
        assert corner[size == 3].max() == 10
    assert (height != width).any() and (top != left).any()


def test_the_last_place_is_drawn_where_wanted() -> None:
    settings = CutMixSettings(1, 4, exclusive_corner=False)
    top, _, height, _ = draw_rectangles(2000, (4, 5), settings, generator()).unbind(dim=1)
    assert (top + height).max() == 4


def test_pixels_inside_come_from_the_other_picture() -> None:
    first, second = torch.zeros(2, 3, 8, 12), torch.ones(2, 3, 8, 12)
    found = paste(first, second, torch.tensor([[0, 1, 1, 2], [1, 0, 1, 1]]), 4)
    assert found[0, :, :4, 4:12].all() and found[0].sum() == 3 * 4 * 8
    assert found[1, :, 4:8, :4].all() and found[1].sum() == 3 * 4 * 4
    assert not first.any()


def test_official_mixed_pictures() -> None:
    io = load_file(Path(__file__).parents[1] / "golden" / "vitedit_tiny_io.safetensors")
    changed = (io["meta.mixed"] != io["meta.images"]).any(dim=1)
    assert changed[:, 16:, :16].float().mean() > 0.99 and changed.sum() <= 3 * 256
    rectangle = torch.tensor([[1, 0, 1, 1]]).expand(3, -1)
    # what is pasted is not in the file: the mixed pictures themselves stand for it
    assert torch.equal(paste(io["meta.images"], io["meta.mixed"], rectangle, 16), io["meta.mixed"])


def test_seeds() -> None:
    first, second, other = (draw_rectangles(8, (14, 14), CutMixSettings(), generator(seed)) for seed in (0, 0, 1))
    state = torch.get_rng_state()
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_rectangles_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="grid of 9"):
        draw_rectangles(1, (8, 14), CutMixSettings(), generator())
    with pytest.raises(UsageError, match="smaller number first"):
        CutMixSettings(4, 3)
