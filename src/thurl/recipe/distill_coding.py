"""A trained set as integers: networks quantised on a copy, bits counted by the file that would hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from thurl.distillation.coded import CodedDataset, CodedSlice
from thurl.distillation.ddr import Rate, decode, encode
from thurl.distillation.joint import DistilledSet
from thurl.distillation.pictures import PictureSet
from thurl.distillation.post_quantisation import post_quantise
from thurl.errors import UsageError


__all__ = ["Coded", "code"]


@dataclass(frozen=True)
class Coded:
    """A data set as its file holds it.

    Args:
        dataset: integers.
        rate: bits of the file.
        max_mse: largest change of the pictures that the steps of the networks were allowed.
        images: uint8 (N, channels, H, W), decoded from the bytes of the file.
        labels: int64 (N,).
    """

    dataset: CodedDataset
    rate: Rate
    max_mse: float
    images: torch.Tensor
    labels: torch.Tensor

    @property
    def bits_per_class(self) -> float:
        """All bits of the file over the number of classes."""
        return self.rate.total_bits / self.rate.classes


def code(
    model: DistilledSet,
    pictures: PictureSet,
    max_mse: Sequence[float],
    target: float | None,
    hints: Mapping[str, Any],
) -> Coded:
    """Quantise, encode, decode.

    Args:
        model: trained; it stays as it is.
        pictures: of the classes, for their names and the normalisation.
        max_mse: tried in turn, the finest first.
        target: bits per class; the first file within it is taken, or the smallest if none is. None: the first.
        hints: for the header.

    Raises:
        UsageError: no `max_mse` can be met.
    """
    found: Coded | None = None
    problems: list[str] = []
    for limit in max_mse:
        try:
            one = _coded(model, pictures, limit, hints)
        except UsageError as error:  # no step of the networks is that fine
            problems.append(str(error))
            continue
        if target is None or one.bits_per_class <= target:
            return one
        if found is None or one.bits_per_class < found.bits_per_class:
            found = one
    if found is None:
        raise UsageError([f"post_quantisation.max_mse: {problem}" for problem in problems])
    return found


def _coded(model: DistilledSet, pictures: PictureSet, limit: float, hints: Mapping[str, Any]) -> Coded:
    slices: list[CodedSlice] = []
    for codec, labels in zip(model.codecs, model.label_tables, strict=True):
        slices += codec.coded(labels, post_quantise(codec, limit))
    dataset = CodedDataset(tuple(slices), pictures.classes, pictures.mean, pictures.std, dict(hints))
    file = decode(encode(dataset), "the set")
    images = torch.from_numpy(np.array(file.images()))
    return Coded(dataset, file.rate, limit, images, torch.from_numpy(dataset.labels.astype(np.int64)))
