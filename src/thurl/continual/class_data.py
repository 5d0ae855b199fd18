"""The samples of a class pool as learners see them: rows of tensors, picked by class and split."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from thurl.errors import DataError, UsageError


__all__ = ["SPLITS", "ClassData", "TaskData"]

SPLITS = ("train", "val", "test")
"""`train` is learned, `val` gives the search its reward, `test` is for reports alone."""


@dataclass(frozen=True)
class TaskData:
    """One task: classes that come together.

    Args:
        data: where the samples are.
        classes: numbers of the classes, in order of arrival.
    """

    data: ClassData
    classes: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The `class_uid`s."""
        return tuple(self.data.classes[index] for index in self.classes)

    @property
    def rows(self) -> torch.Tensor:
        """Training samples, int64 [n], class after class."""
        return self.data.rows(self.classes, "train")

    @property
    def labels(self) -> torch.Tensor:
        """Class number of each of `rows`, int64 [n]."""
        return self.data.labels[self.rows]


class ClassData:
    """All samples of a pool.

    Args:
        classes: `class_uid` of each class number.
        labels: class number of each sample, int64 [N].
        splits: one of `SPLITS` for each sample.
        features: float [N, D] of the frozen encoder; every learner with a frozen encoder reads them.
        inputs: what a trainable encoder reads: a tensor [N, ...], or an object that gives [n, ...] for int64 row
            numbers [n] and has an `identity`, a text that changes with what it gives
            (`thurl.continual.picture_inputs.PictureInputs`). It is pickled where several processes train.
        encoder: fingerprint of the encoder that made `features`.
        pool_hash: of the pool the samples come from.
        groups: number of the alias group of each class; classes of one group never meet in a sequence.

    Raises:
        UsageError: sizes that do not belong together.
        DataError: a class without samples in one of the splits, or features that are NaN or infinite.
    """

    def __init__(
        self,
        classes: Sequence[str],
        labels: torch.Tensor,
        splits: Sequence[str],
        *,
        features: torch.Tensor | None = None,
        inputs: Any = None,
        encoder: str = "",
        pool_hash: str = "",
        groups: Sequence[int] | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self.labels = labels.to(torch.int64)
        self.features = features
        self.inputs = inputs
        self.encoder = encoder
        self.pool_hash = pool_hash
        self.groups = tuple(groups) if groups is not None else tuple(range(len(self.classes)))
        self._splits = tuple(splits)
        self._check(splits)
        rows: dict[str, list[list[int]]] = {split: [[] for _ in self.classes] for split in SPLITS}
        for row, (label, split) in enumerate(zip(self.labels.tolist(), splits, strict=True)):
            rows[split][label].append(row)
        empty = [
            f"{self.classes[label]}: no {split} sample; each class needs one in every split"
            for split in SPLITS
            for label, found in enumerate(rows[split])
            if not found
        ]
        if empty:
            raise DataError("\n".join(empty))
        self._rows: Mapping[str, list[torch.Tensor]] = {
            split: [torch.tensor(found, dtype=torch.int64) for found in per_class] for split, per_class in rows.items()
        }

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of classes, splits, features and inputs: what a learner could learn from."""
        digest = hashlib.sha256(f"{self.classes}\0{self.encoder}\0{self.pool_hash}\0{self._splits}".encode())
        for tensor in (self.labels, self.features, self.inputs):
            if isinstance(tensor, torch.Tensor):
                digest.update(f"{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
                digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        if self.inputs is not None and not isinstance(self.inputs, torch.Tensor):
            digest.update(self.inputs.identity.encode())
        return digest.hexdigest()

    def rows(self, classes: Iterable[int], split: str) -> torch.Tensor:
        """Samples of `classes` in `split`, int64 [n], class after class."""
        return torch.cat([self._rows[split][index] for index in classes])

    def task(self, classes: Iterable[int]) -> TaskData:
        """The classes as a task."""
        return TaskData(self, tuple(classes))

    def frozen(self, rows: torch.Tensor) -> torch.Tensor:
        """Features of the pre-trained encoder, float64 [n, D].

        Raises:
            UsageError: there are none.
        """
        if self.features is None:
            raise UsageError(
                "a learner with a frozen encoder needs features; give `features` (thurl.continual.features)"
            )
        return self.features[rows].double()

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Inputs of a trainable encoder, [n, ...].

        Raises:
            UsageError: there are none.
        """
        if self.inputs is None:
            raise UsageError("a learner that trains its encoder needs the pictures themselves; give `inputs`")
        return self.inputs[rows]

    def number(self, uid: str) -> int:
        """Number of a class.

        Raises:
            UsageError: there is no such class.
        """
        try:
            return self.classes.index(uid)
        except ValueError:
            raise UsageError(f"class {uid!r} is not in the pool of {len(self.classes)} classes") from None

    def _check(self, splits: Sequence[str]) -> None:
        problems = []
        count = len(self.labels)
        if not self.classes or len(set(self.classes)) != len(self.classes):
            problems.append(f"{len(self.classes)} classes, {len(set(self.classes))} names; each needs one of its own")
        if count == 0 or int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.classes):
            problems.append(f"labels must lie in 0..{len(self.classes) - 1} and there must be some")
        if len(splits) != count:
            problems.append(f"{len(splits)} splits for {count} labels; there must be one each")
        if unknown := sorted(set(splits) - set(SPLITS)):
            problems.append(f"splits {', '.join(map(repr, unknown))}: choose from {', '.join(SPLITS)}")
        if self.features is not None and (self.features.ndim != 2 or len(self.features) != count):
            problems.append(f"features are {tuple(self.features.shape)}; they must be [{count}, D]")
        if self.inputs is not None and not isinstance(self.inputs, torch.Tensor):
            if not isinstance(getattr(self.inputs, "identity", None), str):
                problems.append(f"inputs are a {type(self.inputs).__name__} without a text `identity`; give it one")
        if hasattr(self.inputs, "__len__") and len(self.inputs) != count:
            problems.append(f"{len(self.inputs)} inputs for {count} labels; there must be one each")
        if len(self.groups) != len(self.classes):
            problems.append(f"{len(self.groups)} alias groups for {len(self.classes)} classes; there must be one each")
        if problems:
            raise UsageError(problems)
        if self.features is not None and not bool(self.features.isfinite().all()):
            bad = int((~self.features.isfinite()).any(dim=1).sum())
            raise DataError(f"{bad} of {count} feature rows are NaN or infinite; encode these pictures again")
