"""Quantisation of trained networks: per slice the cheapest power-of-two steps that change the pictures little enough.

Source: official code of arXiv 2507.17221. One network after another (entropy, synthesis, upsampling), every pair of a
step for weights and one for biases: among those whose pictures stay within `max_mse` of the pictures before, the pair
with the fewest bits wins, networks (Exp-Golomb codes) and latents together; on a tie the finer step. The entropy
network changes no picture, only bits.

The official search decodes all pairs. This one gives the same result with fewer: latents cost the same for every
synthesis, so it tries pairs by their own bits and stops at the first that holds, and it leaves a pair as soon as the
squared error of some samples is too much for all. All slices search at the same time. The codec given is not touched:
the official search replaces the networks that the optimiser holds, and from then on only latents train.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from thurl.distillation.codec import LatentCodec
from thurl.distillation.coded import GROUPS, CodedGroup
from thurl.distillation.decoder_networks import networks_of
from thurl.distillation.entropy import contexts, laplace_bits, predict
from thurl.distillation.rate import GOLOMB_ORDERS, exp_golomb_bits
from thurl.distillation.synthesis import synthesise, upsample_pyramid
from thurl.errors import DataError, UsageError


__all__ = ["LARGEST_EXPONENT", "QuantisedNets", "QuantisedSlice", "post_quantise"]

LARGEST_EXPONENT = {
    "arm_weight": 8,
    "arm_bias": 16,
    "synthesis_weight": 15,
    "synthesis_bias": 15,
    "upsampling_weight": 15,
}
"""Steps are 2^-k with k from this, the first tried, to 0 (official values)."""

_MOST = 65535
# Amounts of work in one pass, which bound memory; no result depends on them.
_SAMPLES_AT_ONCE = 16
_PAIRS_AT_ONCE = 8
_NUMBERS_AT_ONCE = 2**24


@dataclass(frozen=True)
class QuantisedSlice:
    """Quantised networks of a slice and what they cost.

    Args:
        groups: integers and exponent, by the names in `GROUPS`.
        golomb: order of the cheapest Exp-Golomb code of each group.
        net_bits: bits of each group with it.
        latent_bits: estimate for all samples of the slice with the quantised entropy network.
        mse: between the pictures before and after, in units of the range [0, 1].
    """

    groups: dict[str, CodedGroup]
    golomb: dict[str, int]
    net_bits: dict[str, int]
    latent_bits: float
    mse: float

    @property
    def total_bits(self) -> float:
        """Latents and networks."""
        return self.latent_bits + sum(self.net_bits.values())


@dataclass(frozen=True)
class QuantisedNets:
    """Result of `post_quantise`, one entry per slice."""

    slices: tuple[QuantisedSlice, ...]

    def apply(self, codec: LatentCodec) -> LatentCodec:
        """A copy of the codec with these networks; the latents are the same."""
        if len(self.slices) != codec.slices:
            raise UsageError(f"networks of {len(self.slices)} slices: this codec has {codec.slices}")
        changed = copy.deepcopy(codec)
        changed.set_networks([networks_of(codec.config, part.groups) for part in self.slices])
        return changed


@dataclass(frozen=True)
class _Steps:
    """One group at every step, the finest first."""

    values: list[torch.Tensor]  # (S, *shape) of each tensor, as trained
    exponents: range
    bits: NDArray[np.float64]  # (S, steps), infinite where an integer is too large
    orders: NDArray[np.int64]  # (S, steps), of the cheapest code

    def at(self, slices: Sequence[int], steps: Sequence[int]) -> list[torch.Tensor]:
        """Dequantised tensors of some slices, each with its own step."""
        exponents = torch.tensor([self.exponents[step] for step in steps])
        scale = torch.exp2(exponents.double()).to(self.values[0])
        rows = torch.as_tensor(list(slices), device=scale.device)
        found = []
        for value in self.values:
            factor = scale.view(-1, *[1] * (value.ndim - 1))
            found.append((value[rows] * factor).round() / factor)
        return found


@torch.no_grad()
def post_quantise(codec: LatentCodec, max_mse: float = 5e-7) -> QuantisedNets:
    """Quantises the networks of every slice; the codec stays as it is.

    Args:
        codec: trained.
        max_mse: largest mean squared error of a slice's pictures, range [0, 1], against those before any
            quantisation; above 0. Officially from 5e-7 up, by the bits that are left.

    Raises:
        UsageError: no step keeps a slice's pictures within `max_mse`.
        DataError: latents or networks that are not finite.
    """
    if not 0 < max_mse < math.inf:
        raise UsageError(f"max_mse: {max_mse} must be above 0")
    if not all(parameter.isfinite().all() for parameter in codec.parameters()):
        raise DataError("a codec with values that are not finite: training diverged")
    levels = [symbols.to(codec.grids[0].dtype) for symbols in codec.symbols()]
    steps = {name: _steps(name, _members(codec, name)) for name in GROUPS}

    chosen, bits_of_latents = _choose_arm(levels, steps)
    search = _PictureSearch(levels, codec, max_mse)
    chosen |= search.choose("synthesis", [steps["synthesis_weight"], steps["synthesis_bias"]])
    chosen |= search.choose("upsampling", [steps["upsampling_weight"]])
    slices = []
    for s in range(codec.slices):
        groups, golomb, net_bits = {}, {}, {}
        for name in GROUPS:
            step = chosen[name][s]
            exponent = steps[name].exponents[step]
            values = [(value[s].double() * 2.0**exponent).round().int() for value in steps[name].values]
            groups[name] = CodedGroup(exponent, tuple(value.cpu().numpy() for value in values))
            golomb[name] = int(steps[name].orders[s, step])
            net_bits[name] = int(steps[name].bits[s, step])
        slices.append(QuantisedSlice(groups, golomb, net_bits, float(bits_of_latents[s]), float(search.mse[s])))
    return QuantisedNets(tuple(slices))


def _members(codec: LatentCodec, group: str) -> list[torch.Tensor]:
    net, kind = group.split("_")
    dimensions = range(2, 6) if kind == "weight" else range(1, 2)
    return [p.detach() for p in getattr(codec, net) if p.ndim - 1 in dimensions]


def _steps(name: str, values: list[torch.Tensor]) -> _Steps:
    exponents = range(LARGEST_EXPONENT[name], -1, -1)
    flat = torch.cat([value.flatten(1) for value in values], dim=1).double()
    bits, orders = [], []
    for exponent in exponents:
        integers = (flat * 2.0**exponent).round()
        fits = (integers.abs() <= _MOST).all(dim=1).cpu().numpy()
        whole = integers.clamp(-_MOST, _MOST).long().cpu().numpy()
        costs = np.stack([exp_golomb_bits(whole, order).sum(axis=1) for order in GOLOMB_ORDERS])
        orders.append(costs.argmin(axis=0))
        bits.append(np.where(fits, costs.min(axis=0), np.inf))
    return _Steps(values, exponents, np.stack(bits, axis=1), np.stack(orders, axis=1))


def _choose_arm(
    levels: list[torch.Tensor], steps: dict[str, _Steps]
) -> tuple[dict[str, list[int]], NDArray[np.float64]]:
    """Steps of the entropy network per slice, and the bits of the latents with them."""
    weights, biases = steps["arm_weight"], steps["arm_bias"]
    everyone, slices = range(len(levels[0])), len(levels[0])
    pairs = list(product(range(len(weights.exponents)), range(len(biases.exponents))))
    dequantised = [
        [group.at(everyone, [i] * slices) for i in range(len(group.exponents))] for group in (weights, biases)
    ]
    networks = [_interleave(dequantised[0][i], dequantised[1][j]) for i, j in pairs]
    latents = np.zeros((slices, len(pairs)))
    context = weights.values[0].shape[-1]
    numbers = context * slices * sum(math.prod(level.shape[2:]) for level in levels)
    at_once = max(1, _NUMBERS_AT_ONCE // numbers)
    for start in range(0, levels[0].shape[1], at_once):
        part = [level[:, start : start + at_once] for level in levels]
        features = contexts(part, context)
        symbols = torch.cat([level.flatten(1) for level in part], dim=1)
        for index, network in enumerate(networks):
            bits = laplace_bits(symbols, *predict(features, network)).sum(dim=1, dtype=torch.float64)
            latents[:, index] += bits.cpu().numpy()
    total = latents + (weights.bits[:, :, None] + biases.bits[:, None, :]).reshape(slices, -1)
    best = total.argmin(axis=1)  # the first, which is the finest, on a tie
    lowest = total[everyone, best]
    _refuse(np.flatnonzero(np.isinf(lowest)), "entropy network", f"no step makes its values at most {_MOST}")
    choice = {"arm_weight": [pairs[i][0] for i in best], "arm_bias": [pairs[i][1] for i in best]}
    return choice, latents[everyone, best]


class _PictureSearch:
    """Steps of the networks that change pictures, slice by slice the cheapest that hold."""

    def __init__(self, levels: list[torch.Tensor], codec: LatentCodec, max_mse: float) -> None:
        self.levels = levels
        self.kernel = codec.upsampling[0].detach()
        self.network = [p.detach() for p in codec.synthesis]
        self.max_mse = max_mse
        features, pictures = [], []
        for start in range(0, codec.samples, _SAMPLES_AT_ONCE):
            part = [level[:, start : start + _SAMPLES_AT_ONCE] for level in levels]
            features.append(upsample_pyramid(part, self.kernel[:, 0, 0]))
            pictures.append(synthesise(features[-1], self.network))
        self.features, self.reference = torch.cat(features, dim=2), torch.cat(pictures, dim=1)
        self.mse = np.zeros(codec.slices)
        self.largest_layer = max(len(w[0]) for w in self.network) * codec.config.height * codec.config.width

    def choose(self, net: str, groups: list[_Steps]) -> dict[str, list[int]]:
        """Position of the step of each group, per slice, and quantises the network here for those that follow."""
        names = [f"{net}_weight", f"{net}_bias"][: len(groups)]
        counts = [len(group.exponents) for group in groups]
        own = groups[0].bits
        if len(groups) == 2:
            own = (groups[0].bits[:, :, None] + groups[1].bits[:, None, :]).reshape(len(own), -1)

        def tensors(slices: list[int], candidates: list[int]) -> list[torch.Tensor]:
            places = np.unravel_index(candidates, counts)
            parts = [group.at(slices, list(place)) for group, place in zip(groups, places, strict=True)]
            return _interleave(*parts) if len(parts) == 2 else parts[0]

        chosen = self._cheapest(own, net, tensors)
        everyone = list(range(len(own)))
        if net == "synthesis":
            self.network = tensors(everyone, chosen)
        else:
            self.kernel = tensors(everyone, chosen)[0]
        places = np.unravel_index(chosen, counts)
        return {name: [int(i) for i in place] for name, place in zip(names, places, strict=True)}

    def _cheapest(
        self, own: NDArray[np.float64], net: str, tensors: Callable[[list[int], list[int]], list[torch.Tensor]]
    ) -> list[int]:
        order = np.argsort(own, axis=1, kind="stable")  # among equals the first, which is the finest
        chosen = [-1] * len(own)
        rank = 0
        while rank < own.shape[1]:
            open_slices = [s for s in range(len(own)) if chosen[s] < 0]
            if not open_slices:
                break
            # Small sets try several pairs of a slice in one pass, as if they were slices.
            numbers = len(open_slices) * min(_SAMPLES_AT_ONCE, self.reference.shape[1]) * self.largest_layer
            until = rank + min(_PAIRS_AT_ONCE, max(1, _NUMBERS_AT_ONCE // numbers))
            tried = [(s, int(i)) for s in open_slices for i in order[s, rank:until] if np.isfinite(own[s, i])]
            rank = until
            if not tried:
                continue
            slices, candidates = (list(values) for values in zip(*tried, strict=True))
            errors = self._errors(slices, net, tensors(slices, candidates))
            for s, candidate, error in zip(slices, candidates, errors, strict=True):
                if error <= self.max_mse and chosen[s] < 0:
                    chosen[s], self.mse[s] = candidate, error
        rule = f"no step keeps its pictures within max_mse {self.max_mse}; allow more, or train longer"
        _refuse([s for s, step in enumerate(chosen) if step < 0], net, rule)
        return chosen

    def _errors(self, slices: list[int], net: str, tensors: list[torch.Tensor]) -> NDArray[np.float64]:
        """Mean squared error of each slice; of one that is too large a lower bound that is too large as well."""
        rows = torch.as_tensor(slices, device=self.reference.device)
        network = tensors if net == "synthesis" else [value[rows] for value in self.network]
        samples = self.reference.shape[1]
        found = np.zeros(len(slices))
        for start in range(0, samples, _SAMPLES_AT_ONCE):
            left = np.flatnonzero(found / samples <= self.max_mse)
            if not len(left):
                break
            some = torch.as_tensor(left, device=rows.device)
            part = slice(start, start + _SAMPLES_AT_ONCE)
            if net == "synthesis":
                features = self.features[rows[some], :, part]
            else:
                kernel = tensors[0][some][:, 0, 0]
                features = upsample_pyramid([level[rows[some], part] for level in self.levels], kernel)
            changed = synthesise(features, [value[some] for value in network])
            squares = (changed - self.reference[rows[some], part]).square().mean(dim=(2, 3, 4))
            found[left] += squares.sum(dim=1, dtype=torch.float64).cpu().numpy()
        return found / samples


def _interleave(weights: list[torch.Tensor], biases: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]


def _refuse(slices: Sequence[int] | NDArray[np.intp], net: str, rule: str) -> None:
    if len(slices):
        raise UsageError([f"slice {s}, {net}: {rule}" for s in slices])
