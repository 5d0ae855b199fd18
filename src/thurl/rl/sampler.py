"""The order in which rated images reach the trainer: blocks of one dataset, repeated for each completion.

Paper: arXiv 2505.14460; the official sampler draws a dataset for every device and step and takes 8 of its images.
Deliberate differences: the order depends on (seed, epoch) only, an epoch never ends while whole batches are left, what
is left out of one epoch comes first in the next, and `len()` is exact (the learning-rate schedule depends on it).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np


__all__ = ["DatasetBlockSampler"]

Weights = Literal["uniform", "proportional"] | Mapping[Any, float]


class DatasetBlockSampler:
    """Yields indices in dataset-pure blocks; usable as the sampler of a `torch.utils.data.DataLoader`.

    One generation batch is `blocks_per_batch` blocks of `block_size` different images; every image's index is
    yielded `num_generations` times in a row and the whole batch `repeat_count` times (TRL consumes one copy per
    optimisation pass over the same completions).

    Remainder rule. Per epoch every image is used once, except that
    - a dataset whose size is no multiple of `block_size` has a remainder: with `remainder="carry"` it is left out of
      this epoch, with `"fill"` it is filled up to a block with other images of the same dataset, used a second time;
    - blocks that do not make up a whole batch are left out.
    Whatever is left out in one epoch is taken first in the next, so nothing is left out twice running while
    a dataset has as many other images. All epochs have the same length.

    Args:
        datasets: (N,) the dataset of each image, names or codes.
        block_size: images per block, m in the paper (8); at least 2, since a single image has nobody to meet.
        blocks_per_batch: blocks per generation batch over all processes.
        num_generations: completions per image, K in the paper (6).
        repeat_count: how often a batch is yielded: `num_iterations * steps_per_generation` in TRL.
        weights: which dataset the next block comes from: `"proportional"` to its blocks left (an even mixture over
            the epoch), `"uniform"` over the datasets with blocks left (official), or a mapping dataset -> weight.
        remainder: see above.
        seed: with the epoch it determines the order.

    Raises:
        ValueError: no images, sizes below their minimum, a dataset smaller than a block (with `"carry"`), less than
            one batch of blocks, or weights that miss a dataset or are not positive.
    """

    def __init__(
        self,
        datasets: Sequence[Hashable],
        *,
        block_size: int = 8,
        blocks_per_batch: int = 1,
        num_generations: int = 6,
        repeat_count: int = 1,
        weights: Weights = "proportional",
        remainder: Literal["carry", "fill"] = "carry",
        seed: int = 42,
    ) -> None:
        self.block_size = _at_least("block_size", block_size, 2)
        self.blocks_per_batch = _at_least("blocks_per_batch", blocks_per_batch, 1)
        self.num_generations = _at_least("num_generations", num_generations, 1)
        self.repeat_count = _at_least("repeat_count", repeat_count, 1)
        if remainder not in ("carry", "fill"):
            raise ValueError(f"`remainder` is {remainder!r}; it must be 'carry' or 'fill'.")
        self.remainder = remainder
        self.seed = seed
        self.epoch = 0
        self._position = 0
        self._order: tuple[int, list[np.ndarray]] | None = None

        table: dict[Hashable, list[int]] = {}
        for index, name in enumerate(datasets):
            table.setdefault(name, []).append(index)
        if not table:
            raise ValueError("No images: `datasets` is empty. Check the label files and the split.")
        self.members = {name: np.asarray(indices) for name, indices in table.items()}
        self._weights = self._check_weights(weights)
        if remainder == "carry":
            small = {str(name): len(indices) for name, indices in self.members.items() if len(indices) < block_size}
            if small:
                raise ValueError(
                    f"Datasets smaller than a block of {block_size} images: {small}. They would never be used: "
                    "lower `block_size`, use remainder='fill', or leave them out."
                )
        self._blocks = {name: self._blocks_of(len(indices)) for name, indices in self.members.items()}
        self.batches_per_epoch = sum(self._blocks.values()) // self.blocks_per_batch
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"{sum(self._blocks.values())} blocks of {block_size} images do not fill one generation batch of "
                f"{self.blocks_per_batch} blocks. Use more images, fewer processes, or a smaller batch."
            )

    def _blocks_of(self, size: int) -> int:
        return -(-size // self.block_size) if self.remainder == "fill" else size // self.block_size

    def _check_weights(self, weights: Weights) -> Weights:
        if isinstance(weights, str):
            if weights not in ("uniform", "proportional"):
                raise ValueError(f"`weights` is {weights!r}; it must be 'uniform', 'proportional' or a mapping.")
            return weights
        missing = [str(name) for name in self.members if name not in weights]
        if missing:
            raise ValueError(f"`weights` has no entry for {missing}; give one positive weight per dataset.")
        wrong = {str(name): weights[name] for name in self.members if not weights[name] > 0}
        if wrong:
            raise ValueError(f"`weights` must be positive; found {wrong}. Leave a dataset out by not loading it.")
        return dict(weights)

    # -- the order ---------------------------------------------------------------------------------------------------

    def image_batches(self, epoch: int | None = None) -> list[np.ndarray]:
        """The batches of an epoch before repetition, each (blocks_per_batch * block_size,) image indices."""
        epoch = self.epoch if epoch is None else epoch
        if self._order is None or self._order[0] != epoch:
            left_out = {name: np.empty(0, dtype=int) for name in self.members}
            # What comes first depends on what the epochs before left out; replaying them is a few permutations.
            for past in range(epoch + 1):
                batches, left_out = self._one_epoch(past, left_out)
            self._order = (epoch, batches)
        return self._order[1]

    def _one_epoch(self, epoch: int, first: dict[Hashable, np.ndarray]) -> tuple[list[np.ndarray], dict]:
        rng = np.random.default_rng([self.seed, epoch])
        queues: dict[Hashable, list[np.ndarray]] = {}
        for name, indices in self.members.items():
            rest = rng.permutation(np.setdiff1d(indices, first[name]))
            order = np.concatenate([rng.permutation(first[name]), rest]).astype(int)
            missing = self._blocks[name] * self.block_size - len(order)
            if missing > 0:
                order = np.concatenate([order, self._fill(rng, order, missing)])
            queues[name] = list(order[: self._blocks[name] * self.block_size].reshape(-1, self.block_size))

        kept = self._keep(rng, queues, first)
        blocks = self._interleave(rng, kept)
        batches = [
            np.concatenate(blocks[start : start + self.blocks_per_batch])
            for start in range(0, len(blocks), self.blocks_per_batch)
        ]
        used = set(np.concatenate(blocks).tolist())
        left_out = {
            name: np.asarray([index for index in indices.tolist() if index not in used], dtype=int)
            for name, indices in self.members.items()
        }
        return batches, left_out

    def _fill(self, rng: np.random.Generator, order: np.ndarray, missing: int) -> np.ndarray:
        """`missing` images to fill the last block: others than those already in it, as long as there are any."""
        tail = order[len(order) - len(order) % self.block_size :]
        pool = rng.permutation(np.setdiff1d(order, tail))
        if len(pool) < missing:
            pool = np.concatenate([pool, *[rng.permutation(order) for _ in range(-(-missing // len(order)))]])
        return pool[:missing]

    def _keep(self, rng, queues: dict, first: dict) -> dict[Hashable, list[np.ndarray]]:
        """Drop the blocks that do not make up a batch: from the ends of the queues, carried images last."""
        kept = {name: list(blocks) for name, blocks in queues.items()}
        for _ in range(sum(map(len, kept.values())) - self.batches_per_epoch * self.blocks_per_batch):
            fresh = [name for name, blocks in kept.items() if blocks and not np.isin(blocks[-1], first[name]).any()]
            candidates = fresh or [name for name, blocks in kept.items() if blocks]
            sizes = np.asarray([len(kept[name]) for name in candidates], dtype=float)
            kept[candidates[rng.choice(len(candidates), p=sizes / sizes.sum())]].pop()
        return kept

    def _interleave(self, rng: np.random.Generator, queues: dict[Hashable, list[np.ndarray]]) -> list[np.ndarray]:
        blocks = []
        queues = {name: [list_[i] for i in rng.permutation(len(list_))] for name, list_ in queues.items()}
        while any(queues.values()):
            names = [name for name, list_ in queues.items() if list_]
            if self._weights == "uniform":
                weight = np.ones(len(names))
            elif self._weights == "proportional":
                weight = np.asarray([len(queues[name]) for name in names], dtype=float)
            else:
                weight = np.asarray([self._weights[name] for name in names], dtype=float)
            blocks.append(queues[names[rng.choice(len(names), p=weight / weight.sum())]].pop())
        return blocks

    # -- the sampler protocol ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Indices per epoch, all of them, wherever a resumed epoch stands."""
        rows = self.blocks_per_batch * self.block_size * self.num_generations * self.repeat_count
        return self.batches_per_epoch * rows

    def __iter__(self) -> Iterator[int]:
        start, self._position = self._position, 0
        for position, index in enumerate(self._indices()):
            if position >= start:
                yield index

    def _indices(self) -> Iterator[int]:
        for batch in self.image_batches():
            rows = np.repeat(batch, self.num_generations).tolist()
            for _ in range(self.repeat_count):
                yield from rows

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields; calling it again changes nothing."""
        if epoch != self.epoch:
            self.epoch, self._position = epoch, 0

    def state_dict(self, position: int = 0) -> dict[str, int]:
        """Where to continue: the epoch and how many of its indices are already used."""
        return {"seed": self.seed, "epoch": self.epoch, "position": position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at a saved place: the next iteration yields only what was left of that epoch.

        Raises:
            ValueError: the state belongs to another seed, or lies outside the epoch.
        """
        if state["seed"] != self.seed:
            raise ValueError(
                f"The saved order has seed {state['seed']}, this sampler {self.seed}; resume with the same seed."
            )
        if not 0 <= state["position"] <= len(self):
            raise ValueError(f"Position {state['position']} is outside an epoch of {len(self)} indices.")
        self.epoch, self._position = state["epoch"], state["position"]


def _at_least(name: str, value: int, minimum: int) -> int:
    if value < minimum:
        raise ValueError(f"`{name}` is {value}; it must be at least {minimum}.")
    return value
