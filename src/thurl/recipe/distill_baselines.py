"""What else the same bits could hold: pixels, distilled pixels, JPEG and WebP, trained and judged in the same way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from thurl.distillation.baselines import (
    Baseline,
    fit_count,
    optimised_pixels,
    pixels_that_fit,
    random_pictures,
)
from thurl.distillation.evaluation import Evaluation, EvaluationConfig, evaluate
from thurl.distillation.pictures import PictureSet
from thurl.distillation.utility.base import Utility
from thurl.errors import DataError


__all__ = ["baseline_records", "judged", "make_baselines"]

logger = logging.getLogger(__name__)

_SCANS = "scan"
"""How coded pictures are counted: entropy-coded data alone, which flatters them."""


def make_baselines(
    names: Sequence[str],
    pictures: PictureSet,
    budget: float,
    *,
    qualities: Sequence[int],
    score: Callable[[Baseline], float],
    utility: Callable[[], Utility],
    pixel_steps: int,
    pixel_learning_rate: float,
    seed: int,
    device: torch.device | str = "cpu",
) -> dict[str, Baseline]:
    """The baselines at a number of bits.

    Pixel sets hold as many pictures as fit, and one of each class where not even that fits: they then have more bits
    than the budget, in their favour. Of JPEG and WebP the quality is taken that `score` likes best, each with as many
    pictures as fit; a coder of which not one picture fits is left out.

    Args:
        names: of `BaselinesSection.names`.
        pictures: training pictures.
        budget: bits per class.
        qualities: of JPEG and WebP.
        score: larger is better, from the held-out pictures.
        utility: makes a new utility, for `dm_pixels`.
        pixel_steps, pixel_learning_rate: of `dm_pixels`.
        seed: of what is drawn.
    """
    found: dict[str, Baseline] = {}
    count = max(1, pixels_that_fit(budget, *pictures.images.shape[1:]))
    count = min(count, *pictures.counts)
    for name in names:
        generator = torch.Generator().manual_seed(seed)
        if name == "real_pixels":
            found[name] = random_pictures(pictures, count, generator)
        elif name == "dm_pixels":
            found[name] = optimised_pixels(
                utility(), pictures, count, pixel_steps, generator, pixel_learning_rate, device
            )
        else:
            tried = []
            for quality in qualities:
                try:
                    drawn = torch.Generator().manual_seed(seed)
                    tried.append(fit_count(pictures, quality, budget, drawn, name, _SCANS))
                except DataError as error:
                    logger.info("Baseline %s: %s", name, error)
            if tried:
                found[name] = max(tried, key=score) if len(tried) > 1 else tried[0]
    return found


def judged(
    images: torch.Tensor,
    labels: torch.Tensor,
    pictures: PictureSet,
    config: EvaluationConfig,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Accuracies as a record: `mean`, `std`, `each` by seed, `cpu_seconds`."""
    result: Evaluation = evaluate(images, labels, pictures, config, seeds, device)
    each = {str(seed): value for seed, value in zip(result.seeds, result.accuracies, strict=True)}
    return {"mean": result.mean, "std": result.std, "each": each, "cpu_seconds": result.cpu_seconds}


def baseline_records(
    baselines: Mapping[str, Baseline], judge: Callable[[torch.Tensor, torch.Tensor], dict[str, Any]]
) -> dict[str, Any]:
    """One record per baseline: bits per class by every counting, accuracy, decode time, how it was made."""
    records = {}
    for name, baseline in baselines.items():
        records[name] = {
            "bits_per_class": baseline.bits_per_class,
            "accounting": dict(baseline.accounting),
            "accuracy": judge(baseline.images, baseline.labels),
            "decode_seconds": baseline.decode_seconds,
            "settings": dict(baseline.settings),
        }
    return records
