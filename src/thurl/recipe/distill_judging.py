"""Sections of the distillation recipe that say how sets are judged: while choosing, at the end, and against what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from thurl.recipe.sections import Section


__all__ = ["BaselinesSection", "ChoiceSection", "DistillEvaluationSection", "DistillReportSection"]

_Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]

BASELINES: tuple[Literal["real_pixels", "dm_pixels", "jpeg", "webp"], ...] = (
    *("real_pixels", "dm_pixels", "jpeg", "webp"),
)


class DistillEvaluationSection(Section):
    """Fresh networks trained on a set and judged on the test pictures; the defaults are the official ones."""

    seeds: _Seeds = (0, 1, 2, 3, 4)
    """One network each."""
    depth: int | None = Field(None, ge=1, le=6)
    width: int | None = Field(None, ge=1)
    """Of the ConvNet; those of `utility` when left out."""
    epochs: int = Field(1000, ge=1)
    images: int | None = Field(None, ge=1)
    """Pictures seen in all, in place of `epochs`: as many for a small set as for a large one."""
    batch: int = Field(256, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    """0.01 when left out, or with trajectory matching the learned one."""
    augment: bool = True
    """DSA on every batch."""
    architectures: Annotated[tuple[Literal["resnet18", "vgg11", "alexnet", "vit"], ...], Field(strict=False)] = ()
    """Other networks to train on the set as well."""


class ChoiceSection(Section):
    """Which state of the joint run, or the warm-up, is shipped: by networks judged on held-out training pictures."""

    seeds: _Seeds = (1000, 1001, 1002)
    """Others than those of `evaluation`."""
    checkpoints: int = Field(0, ge=0)
    """Last checkpoints of the joint run that are compared with its end."""


class BaselinesSection(Section):
    """Other ways to spend the same bits, trained and judged in the same way."""

    names: Annotated[tuple[Literal["real_pixels", "dm_pixels", "jpeg", "webp"], ...], Field(strict=False)] = BASELINES
    """Real pictures as 8-bit pixels, distilled pixels, and real pictures as JPEG and WebP files."""
    pixel_steps: int | None = Field(None, ge=1)
    """Of distilled pixels; as many as fit and joint run together when left out."""
    pixel_learning_rate: float = Field(0.01, gt=0)
    qualities: Annotated[tuple[Annotated[int, Field(ge=1, le=95)], ...], Field(strict=False, min_length=1)] = (
        *(5, 10, 20, 40),
    )
    """Of JPEG and WebP, each with as many pictures as fit; the best on the held-out pictures is judged."""


class DistillReportSection(Section):
    """Files written at the end of a run, beside the set itself in `training.output_dir`."""

    results: str | None = None
    html: str | None = None
    examples: int = Field(8, ge=0, le=20)
    """Samples of each class to show."""
