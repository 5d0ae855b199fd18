"""Batches of all processes as one batch, through which gradients flow back to where the rows came from.

A loss over pairs, or a mean over the rows that have a label, is not the mean of such losses over parts of the batch.
So under data parallel training scores and labels are gathered first, and every process computes the loss of the whole
batch. Gradients come out right under the mean that DistributedDataParallel (and DeepSpeed) takes over processes:

    loss_r = f(x_0, ..., x_{W-1})  on each process r;  backward gives process r the sum over s of d loss_s / d x_r,
    that is W times the gradient of f, and the mean over processes divides by W.

The same holds for losses that differ between processes: what is trained is then their mean.
"""

from __future__ import annotations

from typing import Any, overload

import torch
import torch.distributed as dist


__all__ = ["gather_with_gradient"]


@overload
def gather_with_gradient(tensor: torch.Tensor, /) -> torch.Tensor: ...
@overload
def gather_with_gradient(first: torch.Tensor, second: torch.Tensor, /, *more: torch.Tensor) -> Any: ...
def gather_with_gradient(*tensors: torch.Tensor) -> Any:
    """Concatenate the rows of all processes, in the order of the processes.

    Every process must call it, with the same tensors but for the number of rows, which may differ and may be 0.
    Without a process group, or with a single process, the tensors come back as they are.

    Args:
        tensors: (N_r, ...) with one N_r per process; numbers, truth values, any device the process group works on.

    Returns:
        (sum of N_r, ...) on every process, one tensor, or a tuple as long as the arguments.

    Raises:
        ValueError: tensors with different numbers of rows on one process, or without rows.
    """
    if any(tensor.dim() == 0 for tensor in tensors) or len({len(tensor) for tensor in tensors}) != 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"shapes {shapes}: all tensors need the same number of rows, and at least one dimension")
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensors[0] if len(tensors) == 1 else tensors
    counts = torch.zeros(dist.get_world_size(), dtype=torch.long, device=tensors[0].device)
    counts[dist.get_rank()] = len(tensors[0])
    dist.all_reduce(counts)
    sizes = counts.tolist()
    gathered = tuple(_Gather.apply(tensor, sizes) for tensor in tensors)
    return gathered[0] if len(tensors) == 1 else gathered


def _collected(tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    # Not every backend knows truth values; padded, because not every one gathers unequal parts.
    values = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
    padded = values.new_zeros((max(sizes), *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(tensor.dtype)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.sizes = sizes
        if not tensor.is_floating_point():
            gathered = _collected(tensor, sizes)
            ctx.mark_non_differentiable(gathered)
            return gathered
        return _collected(tensor, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _SumOwnRows.apply(gradient, ctx.sizes), None


class _SumOwnRows(torch.autograd.Function):
    """The transpose of `_Gather`, and a function of its own so that second derivatives exist."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.sizes = sizes
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        begin = sum(sizes[: dist.get_rank()])
        return total[begin : begin + sizes[dist.get_rank()]]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Gather.apply(gradient, ctx.sizes), None
