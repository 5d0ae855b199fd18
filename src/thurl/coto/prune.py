"""Adapters with parts taken out: whole layers, kinds of modules, or the smallest entries.

Part of the evidence of CoTo (arXiv 2506.05713): an adapter whose layers were trained to do without each other loses
less. In the paper's figures the label names the part that is *kept*; so it does here.

A module that is taken out leaves the file and the config, so its layer is literally the base layer, for DoRA too
(zeros in A and B would leave DoRA's magnitude at work). Further trained tensors (`modules_to_save`, biases) stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch

from thurl.coto.adapters import Adapter, layer_of, retarget
from thurl.errors import UsageError


__all__ = ["PARTS", "Part", "prune_layers", "prune_magnitude", "prune_types", "third"]

Part = Literal["even", "odd", "low", "middle", "high"]
PARTS: tuple[str, ...] = get_args(Part)


def third(position: int, count: int) -> Literal["low", "middle", "high"]:
    """Which third the layer at `position` (from 0) of `count` belongs to; layers left over go to the lower thirds."""
    return ("low", "middle", "high")[position * 3 // count]


def prune_layers(adapter: Adapter, part: Part, *, keep: bool = True) -> Adapter:
    """Keep, or drop, every other layer or a third of the layers.

    Layers are numbered by position among the adapted ones, from 0 at the input, per stack (a vision tower and a
    language model are two stacks). Modules outside every stack belong to no part and always stay.

    Args:
        adapter: any of the kinds read here.
        part: `even`, `odd` (positions 0, 2, ... or 1, 3, ...), `low`, `middle` or `high` third.
        keep: keep this part; false drops it.

    Raises:
        UsageError: unknown part, an adapter without numbered layers, or nothing left.
    """
    if part not in PARTS:
        raise UsageError(f"part={part!r}: choose from {', '.join(PARTS)}")
    numbers: dict[str, set[int]] = {}
    for path in adapter.modules:
        layer = layer_of(path)
        if layer is not None:
            numbers.setdefault(layer[0], set()).add(layer[1])
    if not numbers:
        raise UsageError(f"{adapter.source}: no path of an adapted module holds a layer number; prune by module type")
    inside = set()
    for stack, found in numbers.items():
        for position, number in enumerate(sorted(found)):
            belongs = (
                position % 2 == (part == "odd") if part in ("even", "odd") else third(position, len(found)) == part
            )
            if belongs:
                inside.add((stack, number))
    kept = [path for path in adapter.modules if layer_of(path) is None or (layer_of(path) in inside) is keep]
    return _only(adapter, kept, f"{'keep' if keep else 'drop'} {part}")


def prune_types(adapter: Adapter, types: Sequence[str], *, keep: bool = True) -> Adapter:
    """Keep, or drop, modules by the last part of their path, as in `q_proj`, `v_proj`.

    Raises:
        UsageError: a type that no adapted module has, or nothing left.
    """
    have = {path.rsplit(".", 1)[-1] for path in adapter.modules}
    unknown = sorted(set(types) - have)
    if unknown or not types:
        raise UsageError(
            f"module types {', '.join(unknown) or 'none'}: {adapter.source} has {', '.join(sorted(have))}"
        )
    kept = [path for path in adapter.modules if (path.rsplit(".", 1)[-1] in types) is keep]
    return _only(adapter, kept, f"{'keep' if keep else 'drop'} {', '.join(types)}")


def prune_magnitude(adapter: Adapter, sparsity: float) -> Adapter:
    """Set the smallest entries of all A and B together to 0.

    With N entries, the `floor(sparsity * N)` smallest by magnitude go; with them everything that ties with the largest
    of these, so the result does not depend on the order of modules. Entries are compared as stored, without scaling.
    DoRA's magnitudes are left alone. Dtypes stay.

    Args:
        adapter: any of the kinds read here.
        sparsity: in [0, 1].

    Raises:
        UsageError: a sparsity outside [0, 1].
    """
    if not 0 <= sparsity <= 1:
        raise UsageError(f"sparsity={sparsity}: the part of the entries that is set to 0 must lie in [0, 1]")
    sizes = [tensor.abs().flatten() for factors in adapter.modules.values() for tensor in (factors.a, factors.b)]
    dtype = sizes[0].dtype
    for tensor in sizes[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    # 0.29 * 100 is 28.999999999999996 in floating point and means 29.
    count = math.floor(round(sparsity * sum(tensor.numel() for tensor in sizes), 9))
    if count == 0:
        return adapter
    threshold = torch.cat([tensor.to(dtype) for tensor in sizes]).kthvalue(count).values
    modules = {
        path: replace(
            factors,
            a=factors.a.masked_fill(factors.a.abs().to(dtype) <= threshold, 0),
            b=factors.b.masked_fill(factors.b.abs().to(dtype) <= threshold, 0),
        )
        for path, factors in adapter.modules.items()
    }
    return replace(adapter, modules=modules)


def _only(adapter: Adapter, paths: Sequence[str], what: str) -> Adapter:
    if not paths:
        raise UsageError(f"{adapter.source}: {what} leaves no adapted module of {len(adapter.modules)}")
    return retarget(adapter, {path: adapter.modules[path] for path in paths})
