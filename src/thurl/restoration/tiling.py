"""Large pictures piece by piece, with overlaps that fade into each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch


__all__ = ["ramp", "restore_tiled", "tile_starts"]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one side so that they cover it and neighbours share at least `overlap` pixels.

    Args:
        length: of the side, 1 or more.
        tile: length of a tile; above `overlap`.
        overlap: 0 or more.

    Raises:
        ValueError: values that cannot cover anything.
    """
    if length < 1 or not 0 <= overlap < tile:
        raise ValueError(f"length {length}, tile {tile}, overlap {overlap}: tiles must be longer than their overlap")
    if length <= tile:
        return [0]
    steps = -(-(length - overlap) // (tile - overlap))
    return [round(number * (length - tile) / (steps - 1)) for number in range(steps)]


def ramp(length: int, before: int, after: int) -> torch.Tensor:
    """Weights (length,) that rise over the first `before` and fall over the last `after` positions, above 0."""
    weights = torch.ones(length)
    for count, part in ((before, slice(0, before)), (after, slice(length - after, length))):
        rising = torch.linspace(0, 1, count + 2)[1:-1]
        weights[part] = torch.minimum(weights[part], rising if part.start == 0 else rising.flip(0))
    return weights


def restore_tiled(
    restore: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    *,
    tile: int,
    overlap: int,
    batch_size: int = 1,
) -> torch.Tensor:
    """Restore a picture by tiles; where they overlap the weighted mean of theirs.

    Args:
        restore: (B, 3, h, w) to the same shape.
        pixels: (3, H, W).
        tile: largest side of a tile.
        overlap: of neighbours in pixels; at least what the network looks around, for the seams to vanish.
        batch_size: tiles restored together.

    Returns:
        (3, H, W) float32, on the device of `pixels`.
    """
    height, width = pixels.shape[-2:]
    if height <= tile and width <= tile:
        return restore(pixels[None])[0].float()
    total = torch.zeros_like(pixels, dtype=torch.float32)
    weight = torch.zeros(1, height, width, device=pixels.device)
    boxes = list(_boxes(height, width, tile, overlap))
    for start in range(0, len(boxes), batch_size):
        group = boxes[start : start + batch_size]
        batch = torch.stack([pixels[:, top : top + h, left : left + w] for top, left, h, w in group])
        for (top, left, h, w), restored in zip(group, restore(batch), strict=True):
            mask = _mask(top, h, height, overlap)[:, None] * _mask(left, w, width, overlap)[None, :]
            mask = mask.to(pixels.device)
            total[:, top : top + h, left : left + w] += mask * restored.float()
            weight[:, top : top + h, left : left + w] += mask
    return total / weight


def _boxes(height: int, width: int, tile: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            yield top, left, min(tile, height), min(tile, width)


def _mask(start: int, length: int, whole: int, overlap: int) -> torch.Tensor:
    """No fading at the border of the picture itself."""
    fade = min(overlap, length // 2)
    return ramp(length, fade if start else 0, fade if start + length < whole else 0)
