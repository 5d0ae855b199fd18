"""Large pictures piece by piece, with overlaps that fade into each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch


__all__ = ["ramp", "restore_tiled", "tile_starts"]


def tile_starts(length: int, tile: int, overlap: int, multiple: int = 1) -> list[int]:
    """Where tiles begin along one side so that they cover it and neighbours share at least `overlap` pixels.

    The last tile ends with the side and may be shorter than the others.

    Args:
        length: of the side, 1 or more.
        tile: length of a tile; at least `overlap + multiple`.
        overlap: 0 or more.
        multiple: tiles begin at multiples of it: the grid that the network puts on a picture.

    Raises:
        ValueError: values that cannot cover anything.
    """
    step = (tile - overlap) // multiple * multiple
    if length < 1 or overlap < 0 or step < 1:
        raise ValueError(
            f"length {length}, tile {tile}, overlap {overlap}: tiles must be longer than their overlap, by {multiple} "
            "or more"
        )
    starts = [0]
    while starts[-1] + tile < length:
        starts.append(starts[-1] + step)
    return starts


def ramp(length: int, before: int, after: int) -> torch.Tensor:
    """Weights (length,) of a tile along one side, 1 in the middle.

    It shares `before` positions at its beginning and `after` at its end with its neighbours. The outer quarter of them
    counts 0, because there the network misses what lies beyond; over the middle half the weights rise from 0 to 1.
    """
    weights = torch.ones(length)
    for count, reverse in ((before, False), (after, True)):
        margin = count // 4
        rising = torch.cat([torch.zeros(margin), torch.linspace(0, 1, count - 2 * margin + 2)[1:-1]])
        side = torch.ones(length)
        side[: len(rising)] = rising[:length]
        weights = torch.minimum(weights, side.flip(0) if reverse else side)
    return weights


def restore_tiled(
    restore: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    *,
    tile: int,
    overlap: int,
    multiple: int = 1,
    batch_size: int = 1,
) -> torch.Tensor:
    """Restore a picture by tiles; where they overlap the weighted mean of theirs.

    Args:
        restore: (B, 3, h, w) to the same shape.
        pixels: (3, H, W).
        tile: largest side of a tile.
        overlap: of neighbours in pixels; four times as far as the network looks, for tiles to make no difference.
        multiple: see `tile_starts`.
        batch_size: tiles of one size restored together.

    Returns:
        (3, H, W) float32, on the device of `pixels`.
    """
    height, width = pixels.shape[-2:]
    if height <= tile and width <= tile:
        return restore(pixels[None])[0].float()
    total = torch.zeros_like(pixels, dtype=torch.float32)
    weight = torch.zeros(1, height, width, device=pixels.device)
    for group in _groups(height, width, tile, overlap, multiple, batch_size):
        batch = torch.stack([pixels[:, top : top + h, left : left + w] for top, left, h, w in group])
        for (top, left, h, w), restored in zip(group, restore(batch), strict=True):
            mask = _mask(top, h, height, overlap)[:, None] * _mask(left, w, width, overlap)[None, :]
            mask = mask.to(pixels.device)
            total[:, top : top + h, left : left + w] += mask * restored.float()
            weight[:, top : top + h, left : left + w] += mask
    return total / weight


def _groups(
    height: int, width: int, tile: int, overlap: int, multiple: int, batch_size: int
) -> Iterator[list[tuple[int, int, int, int]]]:
    """Tiles (top, left, height, width), in groups of one size."""
    sizes: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    for top in tile_starts(height, tile, overlap, multiple):
        for left in tile_starts(width, tile, overlap, multiple):
            h, w = min(tile, height - top), min(tile, width - left)
            sizes.setdefault((h, w), []).append((top, left, h, w))
    for boxes in sizes.values():
        for start in range(0, len(boxes), batch_size):
            yield boxes[start : start + batch_size]


def _mask(start: int, length: int, whole: int, overlap: int) -> torch.Tensor:
    """No fading at the border of the picture itself."""
    return ramp(length, overlap if start else 0, overlap if start + length < whole else 0)
