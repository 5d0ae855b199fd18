"""Edits of failing pictures after meta-training: shifted digits, or the pictures of an editing benchmark.

What is counted is that of `thurl.editing.metrics`, and the runs are those of `thurl edit benchmark`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from thurl.editing.classifier import Classifier
from thurl.editing.comparison import Comparison
from thurl.editing.digits import Digits, failure_groups
from thurl.editing.edit import EditSettings
from thurl.editing.evaluate import EditGroup, Evaluator, averages
from thurl.editing.groups import Read
from thurl.editing.hypernetwork import MaskHypernetwork
from thurl.editing.manifest import load_benchmark, read_manifest
from thurl.editing.meta_training import LearnedMask


__all__ = ["Failures", "benchmark_failures", "digit_failures", "edit_failures"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Failures:
    """What is edited and what should stay, as `thurl.editing.evaluate.Evaluator` takes it.

    Args:
        groups: failures.
        unrelated: set -> pictures whose predictions should stay.
        validation: pictures and their classes.
    """

    groups: list[EditGroup]
    unrelated: Mapping[str, torch.Tensor]
    validation: tuple[torch.Tensor, torch.Tensor] | None = None


def digit_failures(classifier: Classifier, digits: Digits) -> Failures:
    """Shifted test pictures that the classifier gets wrong, the largest group of each shift; a third of those without
    a shift tell what else changes."""
    groups = [
        EditGroup(f"{group.shift} {group.true} as {group.predicted}", group.true, group.pictures)
        for group in failure_groups(classifier, digits, largest=20, per_shift=1)
    ]
    return Failures(groups, {}, (digits.test[::3], digits.test_labels[::3]))


def benchmark_failures(classifier: Classifier, manifest: str, pictures: str, read: Read) -> Failures:
    """Those of a manifest, as `thurl edit manifest` writes it.

    Args:
        classifier: the base model of the manifest.
        manifest: its file.
        pictures: folder that its paths are relative to.
        read: preprocessing of the classifier.

    Raises:
        DataError: no such file, or pictures that are missing or have changed.
        UsageError: the manifest of another base model.
    """
    groups, stay = load_benchmark(read_manifest(manifest), classifier, Path(pictures), read)
    return Failures(groups, {"sensitive": stay})


def edit_failures(
    hypernetwork: MaskHypernetwork, classifier: Classifier, failures: Failures, section: Any, *, seed: int
) -> list[dict[str, Any]]:
    """Means over groups of means over edits, for each editor and setting.

    Args:
        hypernetwork: trained for the classifier.
        classifier: the base model.
        failures: of the classifier.
        section: `thurl.recipe.edit_vit.EditEvaluationSection`.
        seed: of random masks.

    Returns:
        `editor`, `setting`, `groups`, `edits`, and the numbers of `thurl.editing.evaluate.EditRow`, those that are
        defined; nothing where there is no group of failures.
    """
    if not failures.groups:
        logger.warning("The classifier has no group of twelve failures of one kind; nothing is edited")
        return []
    settings = EditSettings(rate=section.rate, max_steps=section.max_steps, stop_loss=section.stop_loss)
    plan = Comparison(tuple(section.editors), settings, tuple(section.densities), seed=seed)
    evaluator = Evaluator(classifier, failures.groups, failures.unrelated, failures.validation)
    found = []
    for (editor, setting), run in plan.runs(LearnedMask(hypernetwork)).items():
        rows = run(evaluator, section.edits)
        means = {name: value.mean for name, value in averages(rows, seed=seed).items() if not math.isnan(value.mean)}
        found.append(
            {"editor": editor, "setting": setting, "groups": len(failures.groups), "edits": len(rows), **means}
        )
    return found
