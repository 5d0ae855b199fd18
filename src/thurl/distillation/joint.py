"""The joint stage: a codec trained on `sum of bits per pixel + lambda * utility` (arXiv 2507.17221).

Of the paper: the objective, Gaussian noise of 0.25 and soft rounding at 0.3 while training. Ours: the last share of
the steps rounds latents and pictures as the file does, with gradients straight through, so that what is trained is
what is shipped; and all randomness of a step follows from (seed, step), so that a resumed run is the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel

from thurl.distillation.codec import LatentCodec
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.utility.base import RealBatches, Utility
from thurl.errors import UsageError
from thurl.training.method_output import MethodOutput


__all__ = ["DistilledSet", "DistilledSetConfig", "JointObjective", "JointOutput", "decoded", "step_generator"]


class DistilledSetConfig(PreTrainedConfig):
    """A codec with the classes of its samples.

    Args:
        height, width, channels, context, depth, widths, gain: of `CodecConfig`.
        labels: class of each sample: per codec (slices of one size share one) a list per slice.
    """

    model_type = "thurl_distilled_set"

    height: int = 32
    width: int = 32
    channels: int = 3
    context: int = 8
    depth: int = 2
    widths: list[int] | tuple[int, ...] = (24,)
    gain: float = 16.0
    labels: list[list[list[int]]] | tuple[tuple[tuple[int, ...], ...], ...] = (((0,),),)

    def __post_init__(self, **kwargs: Any) -> None:
        self.widths = list(self.widths)
        self.labels = [[list(row) for row in rows] for rows in self.labels]
        sizes = [sorted({len(row) for row in rows}) for rows in self.labels]
        if not sizes or any(len(found) != 1 or found[0] < 1 for found in sizes):
            raise ValueError(f"slices of {sizes} samples: those of one codec must be of one size, at least 1")
        self.codec_config()
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, config: CodecConfig, labels: Sequence[NDArray[np.integer]]) -> DistilledSetConfig:
        """From the shapes of the codecs and the labels (S, B) of each."""
        names = ("height", "width", "channels", "context", "depth", "widths", "gain")
        return cls(**{name: getattr(config, name) for name in names}, labels=[table.tolist() for table in labels])

    def codec_config(self) -> CodecConfig:
        """Shapes of the codec."""
        return CodecConfig(
            self.height, self.width, self.channels, self.context, self.depth, tuple(self.widths), self.gain
        )


@dataclass
class JointObjective:
    """What the joint stage optimises; no part of the model.

    Args:
        utility: judges decoded pictures against real ones.
        real: batches of real pictures for the utility.
        mean, std: (channels,), of the classifier's normalisation; pictures lie in [0, 1].
        steps: of the whole run.
        weight: lambda; the trainer changes it while training.
        sigma: of the Gaussian noise, in steps of the latents.
        temperature: of the soft rounding.
        hard_share: last share of the steps, with rounded latents and pictures.
        latents_at_once: of `LatentCodec.forward`: memory for time.
        seed: of all randomness.
    """

    utility: Utility
    real: RealBatches
    mean: torch.Tensor
    std: torch.Tensor
    steps: int
    weight: float = 1.0
    sigma: float = 0.25
    temperature: float = 0.3
    hard_share: float = 0.1
    latents_at_once: int | None = None
    seed: int = 0

    @property
    def hard_from(self) -> int:
        """First step that rounds."""
        return self.steps - round(self.hard_share * self.steps)


@dataclass
class JointOutput(MethodOutput):
    """Terms `rate` (sum over slices of bits per pixel) and `utility`; `loss` is their weighted sum."""


class DistilledSet(PreTrainedModel):
    """Latent codecs as a model of transformers, so that they are trained, saved and resumed as every other.

    Attributes:
        codecs: one `LatentCodec` for each size of slice, see `thurl.distillation.slices.plan_slices`.
    """

    config_class = DistilledSetConfig
    base_model_prefix = "set"
    main_input_name = "step"

    def __init__(self, config: DistilledSetConfig):
        super().__init__(config)
        shapes = config.codec_config()
        self.codecs = torch.nn.ModuleList(LatentCodec(shapes, len(rows), len(rows[0])) for rows in config.labels)
        self._objective: JointObjective | None = None
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        pass  # codecs start as they were built; transformers' own start would replace it

    @classmethod
    def of(cls, codecs: Sequence[LatentCodec], labels: Sequence[NDArray[np.integer]]) -> DistilledSet:
        """A set that starts as copies of codecs, for instance of the warm-up, with the labels (S, B) of each."""
        model = cls(DistilledSetConfig.of(codecs[0].config, labels))
        for own, other in zip(model.codecs, codecs, strict=True):
            own.load_state_dict(other.state_dict())
        return model

    @property
    def label_tables(self) -> list[NDArray[np.int64]]:
        """Labels (S, B) of each codec."""
        return [np.array(rows, np.int64) for rows in self.config.labels]

    @property
    def labels(self) -> torch.Tensor:
        """int64 (N,) of all samples, codec after codec, slice after slice, on the model's device."""
        return torch.from_numpy(np.concatenate([table.ravel() for table in self.label_tables])).to(self.device)

    @property
    def objective(self) -> JointObjective:
        """What is trained."""
        if self._objective is None:
            raise UsageError("a distilled set without an objective cannot be trained; call `set_objective` first")
        return self._objective

    def set_objective(self, objective: JointObjective) -> None:
        """Name what is trained; neither saved nor part of the state."""
        self._objective = objective

    def forward(self, step: torch.Tensor, **_: object) -> JointOutput:
        """Bits and utility of one step.

        Args:
            step: int64, one value: the number of the step, which alone decides what is drawn.
        """
        objective, config = self.objective, self.config
        generator = step_generator(objective.seed, int(step))
        hard = int(step) >= objective.hard_from
        pictures, rates = [], []
        for codec in self.codecs:
            noise = None if hard else codec.draw_noise("gaussian", objective.sigma, generator)
            output = codec(noise, objective.temperature, latents_at_once=objective.latents_at_once)
            pictures.append(output.images.flatten(0, 1))
            rates.append((output.bits.mean(dim=1) / (config.height * config.width)).sum())
        images, rate = torch.cat(pictures), torch.stack(rates).sum()
        if hard:
            images = _eight_bits(images)
        mean, std = (v.to(images).view(1, -1, 1, 1) for v in (objective.mean, objective.std))
        # Lambda scales what reaches the pictures, not what the utility itself learns (the student's step size).
        images = _ScaledGradient.apply((images - mean) / std, objective.weight)
        utility = objective.utility.loss(images, self.labels, objective.real, generator)
        loss = rate + utility + (objective.weight - 1) * utility.detach()
        return JointOutput(loss=loss, terms={"rate": rate, "utility": utility})


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.factor * gradient, None


def _eight_bits(pictures: torch.Tensor) -> torch.Tensor:
    """Clamped and rounded to 256 levels as in the file; the gradient passes where the value lies in [0, 1]."""
    inside = pictures.clamp(0, 1)
    return inside + ((inside * 255).round() / 255 - inside).detach()


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step on the CPU, independent of those of all others."""
    state = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]) >> 1
    return torch.Generator().manual_seed(state)


@torch.no_grad()
def decoded(codecs: Sequence[LatentCodec], latents_at_once: int | None = None) -> tuple[torch.Tensor, float]:
    """What codecs in training would ship, before their networks are quantised.

    Returns:
        uint8 (N, channels, H, W) in the order of `DistilledSet.labels`, and the estimated bits of all latents.
    """
    outputs = [codec.hard(latents_at_once=latents_at_once) for codec in codecs]
    pictures = torch.cat([output.images.flatten(0, 1) for output in outputs])
    bits = sum(float(output.bits.double().sum()) for output in outputs)
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8), bits
