"""Pseudo-failures: pictures with a rectangle of patches from another one (CutMix, arXiv 1905.04899).

Ranges of the official code of "Learning Where to Edit Vision Transformers" (arXiv 2411.01948): height and width of the
rectangle are whole numbers of patches from 3 to 8 of 14, its upper left corner is drawn from [0, 14 - height) and
[0, 14 - width). The upper end is exclusive, so the last place is never drawn; `exclusive_corner=False` draws it, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from thurl.errors import UsageError


__all__ = ["CutMixSettings", "draw_rectangles", "paste"]


@dataclass(frozen=True)
class CutMixSettings:
    """Sizes of the rectangles in patches.

    Args:
        smallest, largest: of height and width, both inclusive.
        exclusive_corner: whether the rectangle never touches the lower and right edge (official).

    Raises:
        UsageError: an empty range.
    """

    smallest: int = 3
    largest: int = 8
    exclusive_corner: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.largest:
            raise UsageError(
                f"rectangles of {self.smallest} to {self.largest} patches: give 1 or more, the smaller number first"
            )

    @property
    def smallest_grid(self) -> int:
        """Fewest patches along the side of a picture for these rectangles."""
        return self.largest + int(self.exclusive_corner)


def draw_rectangles(
    count: int, grid: tuple[int, int], settings: CutMixSettings, generator: torch.Generator
) -> torch.Tensor:
    """Rectangles in patches: top, left, height, width, int64 (count, 4).

    Args:
        count: how many.
        grid: rows and columns of patches of a picture.
        settings: ranges.
        generator: on the CPU; the global one is left alone.

    Raises:
        UsageError: the rectangles do not fit into the grid.
    """
    if min(grid) < settings.smallest_grid:
        raise UsageError(
            f"rectangles of up to {settings.largest} patches need a grid of {settings.smallest_grid} or more patches "
            f"along each side; pictures have {grid[0]}x{grid[1]}. Lower `largest`"
        )
    sizes = torch.randint(settings.smallest, settings.largest + 1, (count, 2), generator=generator)
    places = torch.tensor(grid) - sizes + int(not settings.exclusive_corner)
    # float64 below 1 times a small whole number never rounds up to it
    corners = (torch.rand(count, 2, dtype=torch.float64, generator=generator) * places).long()
    return torch.cat([corners, sizes], dim=1)


def paste(pictures: torch.Tensor, others: torch.Tensor, rectangles: torch.Tensor, patch: int) -> torch.Tensor:
    """Pictures with the pixels of the others inside their rectangles.

    Args:
        pictures, others: (B, C, H, W); untouched.
        rectangles: of `draw_rectangles`, (B, 4).
        patch: side of a patch in pixels.

    Returns:
        (B, C, H, W).
    """
    top, left, height, width = (rectangles.to(pictures.device) * patch).unsqueeze(-1).unbind(dim=1)
    rows = torch.arange(pictures.shape[-2], device=pictures.device)
    columns = torch.arange(pictures.shape[-1], device=pictures.device)
    inside_rows = (rows >= top) & (rows < top + height)
    inside_columns = (columns >= left) & (columns < left + width)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return torch.where(inside, others, pictures)
