"""What is done slice by slice: which samples share a decoder, and the clipping of gradients."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from thurl.errors import UsageError


__all__ = ["clip_gradients", "plan_slices", "split"]


def split(count: int, largest: int) -> tuple[int, ...]:
    """Sizes of the slices of one class.

    The official code fills slices up and leaves the rest to the last; here they differ by one at most, so that no
    network is paid for a sample or two.

    Args:
        count: samples, at least 1.
        largest: samples that may share a decoder, at least 1.

    Returns:
        As few sizes as possible, the larger first; their sum is `count`.
    """
    if count < 1 or largest < 1:
        raise UsageError(f"{count} samples in slices of at most {largest}: both must be 1 or more")
    number = -(-count // largest)
    return tuple(count // number + (i < count % number) for i in range(number))


def plan_slices(labels: NDArray[np.integer], largest: int, *, shared: bool = False) -> tuple[NDArray[np.int64], ...]:
    """Which samples share a decoder.

    Args:
        labels: integers (samples,), the class of each.
        largest: samples in a slice, at most.
        shared: a slice may hold samples of several classes. At low rates most bits are networks, and these are then
            paid once for all classes.

    Returns:
        One int64 array (slices, samples in each) of positions in `labels` for every size that occurs, the largest
        first: the size of one `LatentCodec`. Inside a slice samples keep their order.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise UsageError(f"labels of shape {labels.shape}: one label for each of at least one sample is needed")
    # Sorted by class even when shared: the rate of labels, where a file stores them, is lowest so.
    order = np.argsort(labels, kind="stable")
    groups = [order] if shared else [order[labels[order] == label] for label in np.unique(labels)]
    found: dict[int, list[NDArray[np.int64]]] = {}
    for group in groups:
        for part in np.split(group, np.cumsum(split(len(group), largest))[:-1]):
            found.setdefault(len(part), []).append(part)
    return tuple(np.stack(found[size]) for size in sorted(found, reverse=True))


@torch.no_grad()
def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scales the gradients of each slice to a norm of at most `max_norm`, in place.

    Args:
        parameters: with slices as their first dimension; those without a gradient are left out.
        max_norm: of all gradients of a slice together; the official runs use 0.1.

    Returns:
        (S,) norms before. One that is not finite leaves NaN in the slice's gradients: look before the step.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise ValueError("no parameter has a gradient: call it after `backward`")
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
    return norms
