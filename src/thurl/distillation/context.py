"""Which decoded neighbours a latent is predicted from: one list for training and for every decoder."""

from __future__ import annotations

from thurl.errors import UsageError


__all__ = ["REACH", "context_offsets"]

REACH = 4
"""A context reaches that many rows up and columns to either side."""

# Positions in a 9x9 window around the latent, row by row; 40 is the latent itself. The order is that of the features,
# as in the official code of arXiv 2507.17221.
_MASKS: dict[int, tuple[int, ...]] = {
    8: (13, 22, 30, 31, 32, 37, 38, 39),
    16: (13, 14, *range(20, 25), *range(28, 34), 37, 38, 39),
    24: (4, *range(11, 16), *range(19, 26), *range(28, 35), *range(36, 40)),
    32: (*range(2, 6), *range(10, 17), *range(19, 27), *range(27, 36), *range(36, 40)),
}


def context_offsets(context: int) -> tuple[tuple[int, int], ...]:
    """Row and column of each neighbour relative to the latent, in the order of the features.

    Args:
        context: number of neighbours, one of `thurl.distillation.geometry.CONTEXTS`.

    Returns:
        Rows -4 to 0; columns -4 to 4, in row 0 negative.
    """
    if context not in _MASKS:
        raise UsageError(f"context: {context} must be one of {', '.join(map(str, _MASKS))}")
    return tuple((index // 9 - REACH, index % 9 - REACH) for index in _MASKS[context])
