"""What the tower sees in a batch of pictures: kept, so that a reference is computed once for all its versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


__all__ = ["AFineFeatures", "by_size"]


@dataclass
class AFineFeatures:
    """Features and statistics of B pictures of one size.

    Attributes:
        levels: 1 + blocks tensors (B, n_l, C_l), float32 at least: first the pixels (n_0 = H W, C_0 = 3), then each
            block's patch tokens after ReLU, row by row. None where they were not kept; naturalness does without.
        mean: (B, C), C the channels of all levels one after the other.
        variance: (B, C), biased.
        size: (H, W) of the pictures as given, in pixels.
    """

    levels: tuple[torch.Tensor, ...] | None
    mean: torch.Tensor
    variance: torch.Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: slice | torch.Tensor | Sequence[int]) -> AFineFeatures:
        """Some of the pictures, in any order, also several times: a slice, indices or truth values."""
        if isinstance(index, int):
            raise TypeError("one index would drop the batch dimension; take features[i : i + 1]")
        return self._each(lambda tensor: tensor[index])

    def clone(self) -> AFineFeatures:
        """A copy, which no longer keeps the batch it was cut from in memory."""
        return self._each(torch.Tensor.clone)

    def detach(self) -> AFineFeatures:
        """The same numbers without a graph."""
        return self._each(torch.Tensor.detach)

    def to(self, device: torch.device | str) -> AFineFeatures:
        """On another device."""
        return self._each(lambda tensor: tensor.to(device))

    @property
    def nbytes(self) -> int:
        """Memory the tensors take."""
        return sum(tensor.nbytes for tensor in (self.mean, self.variance, *(self.levels or ())))

    @classmethod
    def cat(cls, parts: Sequence[AFineFeatures]) -> AFineFeatures:
        """Several batches of one size as one.

        Raises:
            ValueError: no part, or parts of different sizes.
        """
        sizes = {part.size for part in parts}
        if len(sizes) != 1:
            raise ValueError(f"features of the sizes {sorted(sizes)}: one size is needed to join them")
        if len(parts) == 1:
            return parts[0]
        levels = None
        if all(part.levels is not None for part in parts):
            levels = tuple(torch.cat(level) for level in zip(*(part.levels or () for part in parts), strict=True))
        mean, variance = (torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "variance"))
        return cls(levels, mean, variance, parts[0].size)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> AFineFeatures:
        levels = None if self.levels is None else tuple(change(level) for level in self.levels)
        return AFineFeatures(levels, change(self.mean), change(self.variance), self.size)


def by_size(images: Sequence[torch.Tensor]) -> dict[tuple[int, int], list[int]]:
    """Indices of pictures (3, H, W) that can share a batch, by (H, W), in order of appearance."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault((image.shape[-2], image.shape[-1]), []).append(index)
    return groups
