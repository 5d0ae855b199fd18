"""A distilled data set while it trains: latent pyramids and the small networks of many slices, as one module.

Source: "Dataset Distillation as Data Compression: A Rate-Utility Perspective" (arXiv 2507.17221), official code.
Deliberate differences: all slices run at once (officially one object, thread and stream per slice); the straight-
through and the plain rounding of the end of a run are there, where the official phases for them never run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from thurl.distillation.coded import CodedSlice
from thurl.distillation.entropy import contexts, laplace_bits, predict
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.networks import initial_networks, networks_of
from thurl.distillation.quantizer import gaussian_noise, kumaraswamy_noise, noisy_round, straight_through_round
from thurl.distillation.synthesis import synthesise, upsample_pyramid
from thurl.errors import DataError, UsageError


if TYPE_CHECKING:
    from thurl.distillation.post_quantisation import QuantisedNets


__all__ = ["CodecOutput", "LatentCodec", "Noise", "latent_bits"]

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class CodecOutput:
    """What a codec decodes to.

    Args:
        images: (S, B, channels, H, W), about [0, 1], not clamped.
        bits: (S, B), of each sample's latents. Those of the networks come with `post_quantise`.
    """

    images: torch.Tensor
    bits: torch.Tensor


@dataclass(frozen=True)
class Noise:
    """Noise of one training step, in units of integers: (S, B, h, w) per level, see `LatentCodec.draw_noise`."""

    levels: Tensors


def latent_bits(levels: Sequence[torch.Tensor], arm: Sequence[torch.Tensor]) -> torch.Tensor:
    """Bits of each sample's latents.

    Args:
        levels: (S, B, h, w) each, integers or their noisy stand-ins.
        arm: tensors (S, *shape) of the entropy networks.

    Returns:
        (S, B).
    """
    slices, samples = levels[0].shape[:2]
    mean, scale = predict(contexts(levels, arm[0].shape[-1]), arm)
    bits = laplace_bits(torch.cat([level.flatten(1) for level in levels], dim=1), mean, scale)
    parts = bits.split([math.prod(level.shape[1:]) for level in levels], dim=1)
    return torch.stack([part.view(slices, samples, -1).sum(2) for part in parts]).sum(0)


class LatentCodec(torch.nn.Module):
    """S slices of B samples; every slice has its own latents and networks, stacked over slices in each parameter.

    Args:
        config: shapes.
        slices: S, at least 1.
        samples: B, samples in each slice, at least 1. For a data set with slices of two sizes make two codecs
            (`thurl.distillation.slices.plan_slices`).
        generator: of the initial values, on the CPU; None: torch's own.

    Attributes:
        grids: (S, B, h, w) per level; `gain` times a grid is rounded to integers.
        arm, upsampling, synthesis: (S, *shape) for each of the shapes in `config`.

    `state_dict` has the keys `grids.0`, `arm.0` ...; parameters are float32 (or float64), whatever autocast says.
    """

    def __init__(
        self, config: CodecConfig, slices: int, samples: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if min(slices, samples) < 1:
            raise UsageError(f"{slices} slices of {samples} samples: both must be 1 or more")
        self.config = config
        sizes = config.level_sizes
        grids = [torch.rand(slices, samples, *size, generator=generator) * 0.1 - 0.05 for size in sizes]
        networks = initial_networks(config, slices, generator)
        self.grids = _parameters(grids)
        self.arm = _parameters(networks["arm"])
        self.upsampling = _parameters(networks["upsampling"])
        self.synthesis = _parameters(networks["synthesis"])

    @property
    def slices(self) -> int:
        """S."""
        return self.grids[0].shape[0]

    @property
    def samples(self) -> int:
        """B, in each slice."""
        return self.grids[0].shape[1]

    def draw_noise(
        self, kind: Literal["gaussian", "kumaraswamy"], parameter: float, generator: torch.Generator | None = None
    ) -> Noise:
        """Noise for one step, drawn where the generator lives: a CPU's gives the same run on every device.

        Args:
            kind: "gaussian" (joint stage, deviation 0.25) or "kumaraswamy" (warm-up, a = 2).
            parameter: deviation or a.
            generator: None: torch's own, on the CPU.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        levels = []
        for grid in self.grids:
            if kind == "gaussian":
                drawn = gaussian_noise(torch.randn(grid.shape, generator=generator, device=device), parameter)
            elif kind == "kumaraswamy":
                drawn = kumaraswamy_noise(torch.rand(grid.shape, generator=generator, device=device), parameter)
            else:
                raise UsageError(f"noise {kind!r}: must be 'gaussian' or 'kumaraswamy'")
            levels.append(drawn.to(grid))
        return Noise(tuple(levels))

    def forward(
        self, noise: Noise | None, temperature: float = 0.3, *, latents_at_once: int | None = None
    ) -> CodecOutput:
        """Pictures and bits, differentiable in every parameter.

        Args:
            noise: of this step (`draw_noise`). None: straight-through rounding, the pictures and bits are those of
                the integers; for the end of a run.
            temperature: of the soft rounding.
            latents_at_once: memory for time: decodes parts of about so many latents, keeps nothing of a part but its
                pictures and bits, and decodes it again, with the same noise, when gradients come back. None: all at
                once.
        """
        grids = [self.config.gain * grid for grid in self.grids]
        if noise is None:
            levels = [straight_through_round(grid, temperature) for grid in grids]
        else:
            _check_noise(noise, grids)
            levels = [noisy_round(g, n, temperature) for g, n in zip(grids, noise.levels, strict=True)]
        return self._decode(levels, latents_at_once)

    @torch.no_grad()
    def hard(self, *, latents_at_once: int | None = None) -> CodecOutput:
        """Pictures and bits of the integers, without gradients; what a decoder gets, but for the rounding of networks.

        Args:
            latents_at_once: decodes parts of about so many latents, see `forward`.
        """
        levels = [(self.config.gain * grid).round() for grid in self.grids]
        return self._decode(levels, latents_at_once)

    @torch.no_grad()
    def symbols(self) -> list[torch.Tensor]:
        """The integers: int32 (S, B, h, w) per level.

        Raises:
            DataError: a latent is not finite, or does not fit.
        """
        found = [(self.config.gain * grid).round() for grid in self.grids]
        for level, values in enumerate(found):
            if not (values.abs() < 2**31).all():  # also false for NaN
                raise DataError(f"level {level}: latents that are not finite or above 2^31; training diverged")
        return [values.to(torch.int32) for values in found]

    def coded(self, labels: np.ndarray | torch.Tensor, nets: QuantisedNets) -> tuple[CodedSlice, ...]:
        """Integers of every slice, for a file.

        Args:
            labels: integers (S, B), class of each sample.
            nets: quantised networks of this codec, from `thurl.distillation.post_quantisation.post_quantise`.
        """
        table = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
        if table.shape != (self.slices, self.samples) or table.dtype.kind not in "iu":
            raise UsageError(
                f"labels of shape {table.shape} and type {table.dtype}: integers ({self.slices}, {self.samples}), "
                "one for each sample of each slice, are needed"
            )
        if table.min() < 0 or table.max() >= 2**31:
            raise UsageError(f"labels {table.min()} to {table.max()}: classes are numbered from 0, below 2^31")
        if len(nets.slices) != self.slices:
            raise UsageError(f"networks of {len(nets.slices)} slices: this codec has {self.slices}")
        levels = [level.cpu().numpy() for level in self.symbols()]
        return tuple(
            CodedSlice(self.config, table[s].astype(np.int32), tuple(level[s] for level in levels), net.groups)
            for s, net in enumerate(nets.slices)
        )

    @classmethod
    def from_coded(cls, slices: Sequence[CodedSlice]) -> LatentCodec:
        """A codec with the integers and networks of slices of one shape, ready to train on."""
        if len({(part.config, len(part.labels)) for part in slices}) != 1:
            raise UsageError("slices of several shapes or numbers of samples: a codec holds equal ones, at least one")
        config = slices[0].config
        codec = cls(config, len(slices), len(slices[0].labels), generator=torch.Generator())
        with torch.no_grad():
            for level, grid in enumerate(codec.grids):
                symbols = np.stack([part.latents[level] for part in slices])
                grid.copy_(torch.from_numpy(symbols.astype(np.float64) / config.gain))
            codec.set_networks([networks_of(config, part.nets) for part in slices])
        return codec

    @torch.no_grad()
    def select(self, rows: torch.Tensor) -> LatentCodec:
        """A new codec with copies of some slices.

        Args:
            rows: integers, positions of slices, in the order wanted.
        """
        chosen = LatentCodec(self.config, len(rows), self.samples, generator=torch.Generator()).to(self.grids[0])
        for old, new in zip(self.parameters(), chosen.parameters(), strict=True):
            new.copy_(old[rows])
        return chosen

    @torch.no_grad()
    def set_networks(self, networks: Sequence[dict[str, list[torch.Tensor]]]) -> None:
        """Overwrites the networks, one dictionary per slice, see `thurl.distillation.networks.networks_of`."""
        for name in ("arm", "upsampling", "synthesis"):
            for index, parameter in enumerate(getattr(self, name)):
                parameter.copy_(torch.stack([network[name][index] for network in networks]))

    def _decode(self, levels: Sequence[torch.Tensor], latents_at_once: int | None) -> CodecOutput:
        networks = [*self.arm, *self.upsampling, *self.synthesis]
        if any(tensor.dtype not in (torch.float32, torch.float64) for tensor in (*levels, *networks)):
            raise UsageError("a codec in half precision: bits need float32; call `.float()` on it")
        counts = (len(self.arm), len(self.upsampling))
        with torch.autocast(levels[0].device.type, enabled=False):
            if latents_at_once is None:
                return CodecOutput(*_decode(counts, len(levels), *levels, *networks))
            rows = []
            for part_levels, part_networks in self._parts(levels, networks, latents_at_once):
                decoded = [
                    checkpoint(
                        _decode, counts, len(levels), *part, *part_networks,
                        use_reentrant=False, preserve_rng_state=False,
                    )
                    for part in part_levels
                ]  # fmt: skip
                rows.append([torch.cat(values, dim=1) for values in zip(*decoded, strict=True)])
            images, bits = (torch.cat(values) for values in zip(*rows, strict=True))
            return CodecOutput(images, bits)

    def _parts(
        self, levels: Sequence[torch.Tensor], networks: Sequence[torch.Tensor], limit: int
    ) -> Iterator[tuple[list[Tensors], Tensors]]:
        """Whole slices while they fit, else samples of one slice; `split` has a cheap gradient, indexing has not."""
        if limit < 1:
            raise UsageError(f"latents_at_once: {limit} must be 1 or more")
        fitting = max(1, limit // self.config.latents)
        per_part = max(1, fitting // self.samples)
        samples = min(self.samples, fitting)
        parts = [level.split(per_part) for level in levels]
        nets = [network.split(per_part) for network in networks]
        for rows, net in zip(zip(*parts, strict=True), zip(*nets, strict=True), strict=True):
            yield list(zip(*(row.split(samples, dim=1) for row in rows), strict=True)), net


def _decode(counts: tuple[int, int], depth: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (S, B, channels, H, W) and bits (S, B) of quantised levels and networks, in one flat list."""
    levels, networks = tensors[:depth], tensors[depth:]
    arm, kernel, synthesis = networks[: counts[0]], networks[counts[0]], networks[counts[0] + counts[1] :]
    features = upsample_pyramid(levels, kernel[:, 0, 0])
    return synthesise(features, synthesis), latent_bits(levels, arm)


def _parameters(tensors: Sequence[torch.Tensor]) -> torch.nn.ParameterList:
    return torch.nn.ParameterList([torch.nn.Parameter(tensor) for tensor in tensors])


def _check_noise(noise: Noise, grids: Sequence[torch.Tensor]) -> None:
    found, wanted = ([tuple(tensor.shape) for tensor in tensors] for tensors in (noise.levels, grids))
    if found != wanted:
        raise UsageError(f"noise of shapes {found}: {wanted} are needed, see `draw_noise`")
