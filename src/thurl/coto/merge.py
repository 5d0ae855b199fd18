"""One adapter out of several that were trained for different tasks, and the ensemble they are compared with.

The methods, for adapters i with weights w_i (sum 1, equal by default):

| method | result | space | rank |
|---|---|---|---|
| `fusion` | mean of the factors | factor | r |
| `align` | mean of the factors after an invertible change of basis (:mod:`thurl.coto.align`) | factor | r |
| `delta` | mean of the updates, exact | delta | sum of the ranks |
| `svd` | best approximation of the mean update with rank `rank` | delta | `rank` |
| `ties`, `dare_linear`, `dare_ties` | PEFT's functions of these names | delta, then SVD; or factor | `rank`; r |

`fusion`, ensemble and alignment are what the paper of CoTo (arXiv 2506.05713) merges with; TIES is arXiv 2306.01708,
DARE arXiv 2311.03099. Every process of a distributed run gets the same result: nothing is drawn but by `seed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import torch

from thurl.coto.adapters import Adapter, Factors, check_alike, extra_mean, retarget, wide
from thurl.coto.align import align_factors
from thurl.coto.interpolate import Space, combine_deltas, combine_factors
from thurl.errors import UsageError


__all__ = ["METHODS", "Method", "distance_to_mean", "ensemble_logits", "merge_tasks", "truncate"]

Method = Literal["fusion", "align", "delta", "svd", "ties", "dare_linear", "dare_ties"]
METHODS: tuple[str, ...] = get_args(Method)
_SPARSE = ("ties", "dare_linear", "dare_ties")
_BATCH = 32  # modules solved together; more would cost memory and no longer save time


def merge_tasks(
    adapters: Sequence[Adapter],
    method: Method = "fusion",
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    density: float = 0.5,
    space: Space = "delta",
    sign_method: Literal["total", "frequency"] = "total",
    seed: int = 0,
) -> Adapter:
    """Merge two or more adapters of one base model into one that plain PEFT loads.

    Args:
        adapters: of one kind. The first gives the config.
        method: see the table above.
        weights: one number per adapter; they are divided by their sum. Default: equal.
        rank: of the result, for `svd` and for TIES and DARE in delta space. Default: the largest rank found.
        density: for TIES and DARE, part of the entries kept, in (0, 1].
        space: for TIES and DARE; `delta` builds the updates of one module at a time, `factor` works on A and B apart.
        sign_method: how TIES elects a sign, by the sum of values or of signs.
        seed: of DARE's draws. The global random state is left as it was.

    TIES divides by the number of adapters that agree, so that weights there only favour one adapter over another; DARE
    rescales what it keeps. At density 1, TIES on adapters of equal sign and `dare_linear` are the mean.

    Raises:
        UsageError: options out of range or adapters that do not fit the method.
    """
    _check_options(adapters, method, rank, density, space)
    shares = _shares(weights, len(adapters))
    if method == "fusion":
        return combine_factors(adapters, shares)
    if method == "align":
        return _align(adapters, shares)
    if method == "delta":
        return combine_deltas(adapters, shares)
    new_rank = rank or max(adapter.ranks[-1] for adapter in adapters)
    if method == "svd":
        return truncate(combine_deltas(adapters, shares), new_rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if space == "factor":
            return _sparse_factors(adapters, shares, method, density, sign_method)
        return _sparse_deltas(adapters, shares, method, density, sign_method, new_rank)


def truncate(adapter: Adapter, rank: int) -> Adapter:
    """Best approximation of every update by rank `rank` (Frobenius norm), from the factors alone.

    QR of both factors, then SVD of the small core, modules of one shape as one batch. The singular values are shared
    evenly between A and B. Modules of lower rank are filled up with zeros, so that all have one rank. Scaling 1.

    Raises:
        UsageError: a rank below 1; DoRA.
    """
    if adapter.kind == "dora":
        raise UsageError(f"{adapter.source}: the update of a DoRA layer is not of low rank and has no truncation")
    if rank < 1:
        raise UsageError(f"rank={rank}: at least 1 is needed")
    modules: dict[str, Factors] = {}
    for paths in _by(adapter.modules, lambda factors: (factors.a.shape, factors.b.shape)):
        parts = [adapter.modules[path] for path in paths]
        dtype = wide(parts[0].a).dtype
        scale = torch.tensor([part.scaling for part in parts], dtype=torch.float64)[:, None, None]
        q_b, r_b = torch.linalg.qr(torch.stack([part.b.double() for part in parts]) * scale)
        q_a, r_a = torch.linalg.qr(torch.stack([part.a.double() for part in parts]).mT)
        u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
        root = s[:, :rank].sqrt()
        b = _filled((q_b @ u[:, :, :rank]) * root[:, None, :], rank, dim=2)
        a = _filled(root[:, :, None] * (vh[:, :rank] @ q_a.mT), rank, dim=1)
        for i, path in enumerate(paths):
            modules[path] = replace(parts[i], a=a[i].to(dtype), b=b[i].to(dtype), scaling=1.0)
    return retarget(adapter, {path: modules[path] for path in adapter.modules}, unit_scaling=True)


def distance_to_mean(merged: Adapter, adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> float:
    """`||dW_merged - sum w_i dW_i||_F / ||sum w_i dW_i||_F` over all modules together, from Gram matrices.

    Returns:
        0 for the exact mean; NaN where it is not defined (DoRA, or a mean of 0). For HiRA it compares the products
        B A. Below about 1e-7 it is rounding.
    """
    if merged.kind == "dora":
        return math.nan
    shares = _shares(weights, len(adapters))
    mean = combine_deltas([replace(adapter, extra={}) for adapter in adapters], shares)
    both = combine_deltas([replace(merged, extra={}), mean], [1.0, -1.0])
    above = sum(_square_norm(factors) for factors in both.modules.values())
    below = sum(_square_norm(factors) for factors in mean.modules.values())
    return math.sqrt(max(above, 0.0) / below) if below > 0 else math.nan


def ensemble_logits(
    model: Any, adapter_names: Sequence[str], inputs: Mapping[str, Any], weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Weighted mean of the logits under each adapter: the ensemble a merged adapter is compared with.

    Costs one pass per adapter. Which adapter is active and what may be trained is afterwards as before.

    Args:
        model: `PeftModel` with the adapters loaded; its output has `logits`.
        adapter_names: at least one.
        inputs: keyword arguments of the model.
        weights: divided by their sum; default equal.

    Returns:
        logits with the shape the model gives them.

    Raises:
        UsageError: an adapter that is not loaded.
    """
    unknown = [name for name in adapter_names if name not in model.peft_config]
    if unknown or not adapter_names:
        raise UsageError(f"adapters {unknown or 'none'}: choose from those loaded, {', '.join(model.peft_config)}")
    total = None
    with _restored(model):
        for name, weight in zip(adapter_names, _shares(weights, len(adapter_names)), strict=True):
            model.set_adapter(name)
            logits = weight * model(**inputs).logits
            total = logits if total is None else total + logits
    return total


@contextmanager
def _restored(model: Any) -> Iterator[None]:
    # set_adapter also changes which parameters may be trained.
    active = list(model.base_model.active_adapters)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        model.base_model.set_adapter(active)
        if len(active) == 1:
            model.active_adapter = active[0]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


def _align(adapters: Sequence[Adapter], shares: Sequence[float]) -> Adapter:
    check_alike(adapters, factors=True)
    first = adapters[0]
    if first.kind == "dora":
        raise UsageError(
            f"{first.source}: alignment brings the fused update near the mean update, and the update of a DoRA layer "
            "is not B A; use fusion"
        )
    weights = torch.tensor(shares, dtype=torch.float64)
    modules: dict[str, Factors] = {}
    for paths in _by(first.modules, lambda factors: factors.rank):
        grams_b, grams_a = [], []
        for path in paths:
            b = torch.cat([adapter.modules[path].b.double() for adapter in adapters], dim=1)
            a = torch.cat([adapter.modules[path].a.double() for adapter in adapters])
            grams_b.append(b.mT @ b)
            grams_a.append(a @ a.mT)
        fit = align_factors(torch.stack(grams_b), torch.stack(grams_a), weights)
        for i, path in enumerate(paths):
            parts = [adapter.modules[path] for adapter in adapters]
            fused_a = sum(
                w * fit.q[i, j] @ part.a.double() for j, (w, part) in enumerate(zip(shares, parts, strict=True))
            )
            fused_b = sum(
                w * part.b.double() @ fit.p[i, j] for j, (w, part) in enumerate(zip(shares, parts, strict=True))
            )
            dtype = wide(parts[0].a).dtype
            modules[path] = replace(parts[0], a=fused_a.to(dtype), b=fused_b.to(dtype))
    ordered = {path: modules[path] for path in first.modules}
    return replace(retarget(first, ordered), extra=extra_mean(adapters, shares))


def _sparse_function(method: str, sign_method: str) -> Callable[..., torch.Tensor]:
    from functools import partial

    from peft.utils import merge_utils

    function = getattr(merge_utils, method)
    return function if method == "dare_linear" else partial(function, majority_sign_method=sign_method)


def _sparse_weights(shares: Sequence[float], method: str) -> torch.Tensor:
    # PEFT's TIES divides the weighted sum by the number of adapters that agree.
    factor = 1 if method == "dare_linear" else len(shares)
    return torch.tensor([share * factor for share in shares], dtype=torch.float64)


def _sparse_factors(
    adapters: Sequence[Adapter], shares: Sequence[float], method: str, density: float, sign_method: str
) -> Adapter:
    check_alike(adapters, factors=True)
    first = adapters[0]
    if first.kind == "dora":
        raise UsageError(
            f"{first.source}: {method} of DoRA magnitudes, which are near the norm of W, makes no sense; use fusion"
        )
    function, weights = _sparse_function(method, sign_method), _sparse_weights(shares, method)
    modules = {}
    for path, factors in first.modules.items():
        tensors = {
            name: function([getattr(adapter.modules[path], name).double() for adapter in adapters], weights, density)
            for name in ("a", "b")
        }
        dtype = wide(factors.a).dtype
        modules[path] = replace(factors, a=tensors["a"].to(dtype), b=tensors["b"].to(dtype))
    return replace(retarget(first, modules), extra=extra_mean(adapters, shares))


def _sparse_deltas(
    adapters: Sequence[Adapter], shares: Sequence[float], method: str, density: float, sign_method: str, rank: int
) -> Adapter:
    joined = combine_deltas(adapters, shares)  # for its checks, config and list of modules
    function, weights = _sparse_function(method, sign_method), _sparse_weights(shares, method)
    modules = {}
    for path, factors in joined.modules.items():
        deltas = [
            adapter.modules[path].delta().double()
            if path in adapter.modules
            else torch.zeros(factors.shape, dtype=torch.float64)
            for adapter in adapters
        ]
        u, s, vh = torch.linalg.svd(function(deltas, weights, density), full_matrices=False)
        root, dtype = s[:rank].sqrt(), factors.a.dtype
        modules[path] = replace(
            factors,
            a=_filled(root[:, None] * vh[:rank], rank, dim=0).to(dtype),
            b=_filled(u[:, :rank] * root, rank, dim=1).to(dtype),
            scaling=1.0,
        )
    return retarget(joined, modules, unit_scaling=True)


def _check_options(adapters: Sequence[Adapter], method: str, rank: int | None, density: float, space: str) -> None:
    problems = []
    if len(adapters) < 2:
        problems.append(f"{len(adapters)} adapters: merging needs at least two")
    if method not in METHODS:
        problems.append(f"method={method!r}: choose from {', '.join(METHODS)}")
    if space not in ("factor", "delta"):
        problems.append(f"space={space!r}: choose factor or delta")
    if not 0 < density <= 1:
        problems.append(f"density={density}: the part of the entries that is kept must lie in (0, 1]")
    ranked = method == "svd" or (method in _SPARSE and space == "delta")
    if rank is not None and (rank < 1 or not ranked):
        problems.append(f"rank={rank}: a whole number from 1, and only for svd and for TIES and DARE in delta space")
    if problems:
        raise UsageError(problems)


def _shares(weights: Sequence[float] | None, n: int) -> list[float]:
    values = [1.0] * n if weights is None else [float(weight) for weight in weights]
    total = sum(values)
    if len(values) != n or not all(math.isfinite(value) for value in values) or abs(total) < 1e-12:
        raise UsageError(f"weights {values} for {n} adapters: one finite number each, with a sum that is not 0")
    return [value / total for value in values]


def _by(modules: Mapping[str, Factors], key: Callable[[Factors], Any]) -> list[list[str]]:
    """Batches of paths with equal `key`."""
    groups: dict[Any, list[str]] = {}
    for path, factors in modules.items():
        groups.setdefault(key(factors), []).append(path)
    return [paths[i : i + _BATCH] for paths in groups.values() for i in range(0, len(paths), _BATCH)]


def _filled(tensor: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    missing = size - tensor.shape[dim]
    if missing <= 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)


def _square_norm(factors: Factors) -> float:
    a, b = factors.a.double(), factors.b.double() * factors.scaling
    return float(((b.mT @ b) * (a @ a.mT)).sum())
