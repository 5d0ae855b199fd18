"""What a distillation recipe names, as objects: pictures in three parts, the utility, the evaluation protocol."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from thurl.distillation.dsa import DsaConfig
from thurl.distillation.evaluation import EvaluationConfig
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.networks import NetworkConfig
from thurl.distillation.pictures import PictureSet
from thurl.distillation.sources import (
    load_cifar,
    load_digits,
    load_folder,
    load_idx,
    load_imagenet_subset,
    load_patches,
)
from thurl.distillation.utility.base import Utility
from thurl.distillation.utility.dm import DistributionMatching
from thurl.distillation.utility.gm import GradientMatching
from thurl.distillation.utility.tm import TrajectoryMatching
from thurl.errors import DataError, UsageError
from thurl.recipe.distill import DistillRecipe


__all__ = [
    "DistillStudy",
    "build_utility",
    "codec_config",
    "evaluation_config",
    "hold_out",
    "load_study",
    "network_config",
]


@dataclass(frozen=True)
class DistillStudy:
    """Real pictures by use.

    Args:
        train: what is distilled.
        held_out: of the training pictures, what makes every choice.
        test: what only judges.
    """

    train: PictureSet
    held_out: PictureSet
    test: PictureSet


def load_study(recipe: DistillRecipe) -> DistillStudy:
    """The pictures of a recipe.

    Raises:
        DataError: files that are missing or damaged, classes with too few pictures, channels that do not fit.
    """
    train, test = _load(recipe)
    data = recipe.data
    if data.mean is not None and data.std is not None:
        channels = train.images.shape[1]
        if len(data.mean) != channels or len(data.std) != channels:
            raise UsageError(
                f"data.mean, data.std: {len(data.mean)} and {len(data.std)} values for {channels} channels"
            )
        train, test = (replace(part, mean=tuple(data.mean), std=tuple(data.std or ())) for part in (train, test))
    kept, held_out = hold_out(train, data.held_out, data.seed)
    short = [
        f"{name} has {count}"
        for name, count in zip(kept.classes, kept.counts, strict=True)
        if count < recipe.model.samples_per_class
    ]
    if short:
        raise DataError(
            f"model.samples_per_class: the warm-up starts from {recipe.model.samples_per_class} pictures of each "
            f"class, but without the held-out ones {', '.join(short)}"
        )
    return DistillStudy(kept, held_out, test)


def hold_out(pictures: PictureSet, share: float, seed: int) -> tuple[PictureSet, PictureSet]:
    """Random disjoint parts, the second with `share` of each class and at least one of it.

    Raises:
        DataError: classes of a single picture.
    """
    single = [name for name, count in zip(pictures.classes, pictures.counts, strict=True) if count < 2]
    if single:
        raise DataError(f"classes of a single picture, of which none can be held out: {', '.join(single)}")
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for label in range(len(pictures.classes)):
        rows = order[pictures.labels[order] == label]
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        parts[0].append(rows[count:])
        parts[1].append(rows[:count])
    first, second = (pictures.subset(torch.cat(rows).sort().values) for rows in parts)
    return first, second


def _load(recipe: DistillRecipe) -> tuple[PictureSet, PictureSet]:
    data, source = recipe.data, recipe.data.source
    size = None if data.size is None else (data.size, data.size)
    counts: dict[str, Any] = {"train_per_class": data.train_per_class, "test_per_class": data.test_per_class}
    folder = str(source.folder)
    if source.format == "digits":
        return load_digits(**{name: count for name, count in counts.items() if count is not None}, seed=data.seed)
    if source.format in ("cifar10", "cifar100"):
        train, test = load_cifar(folder, size, **counts, seed=data.seed)
        if len(train.classes) != int(source.format.removeprefix("cifar")):
            raise DataError(f"{folder}: holds {len(train.classes)} classes, the recipe says `{source.format}`")
        return train, test
    if source.format in ("mnist", "fashion_mnist"):
        return load_idx(folder, size, source.format, **counts, seed=data.seed)
    if source.format == "photo_patches":
        return load_patches(
            folder,
            size or (16, 16),
            source.patch,
            classes=source.max_classes,
            channels=source.channels,
            **counts,
            seed=data.seed,
        )
    if source.format == "imagenet":
        return load_imagenet_subset(
            folder, str(source.subset), size or (128, 128), source.index_file, **counts, seed=data.seed
        )
    return load_folder(folder, size, source.channels, **counts, seed=data.seed)


def codec_config(recipe: DistillRecipe, pictures: PictureSet) -> CodecConfig:
    """Shapes of the codec for these pictures."""
    channels, height, width = pictures.images.shape[1:]
    model = recipe.model
    return CodecConfig(height, width, channels, model.context, model.depth, model.synthesis_widths())


def network_config(recipe: DistillRecipe, pictures: PictureSet, **changes: Any) -> NetworkConfig:
    """The ConvNet of the utility, or another network for these pictures."""
    channels, height, width = pictures.images.shape[1:]
    options = {"filters": recipe.utility.width, "depth": recipe.utility.depth, **changes}
    return NetworkConfig(channels, height, width, len(pictures.classes), **options)


def build_utility(recipe: DistillRecipe, pictures: PictureSet) -> Utility:
    """The utility of the recipe."""
    section = recipe.utility
    dsa = DsaConfig() if section.augment else None
    if section.kind == "tm":
        return TrajectoryMatching(
            str(section.experts),
            section.syn_steps,
            section.expert_epochs,
            section.max_start_epoch,
            section.syn_batch,
            section.teacher_lr,
            section.teacher_lr_lr,
            dsa=dsa,
        )
    network = network_config(recipe, pictures)
    if section.kind == "gm":
        return GradientMatching(network, section.batch_real, section.outer_steps, section.inner_steps, dsa=dsa)
    return DistributionMatching(network, section.batch_real, dsa)


def evaluation_config(
    recipe: DistillRecipe, pictures: PictureSet, learning_rate: float | None = None
) -> EvaluationConfig:
    """The protocol of the recipe; `learning_rate` is the one that trajectory matching has learned."""
    section = recipe.evaluation
    changes = {"filters": section.width, "depth": section.depth}
    return EvaluationConfig(
        network_config(recipe, pictures, **{name: value for name, value in changes.items() if value is not None}),
        lr=section.learning_rate or learning_rate or 0.01,
        batch=section.batch,
        epochs=section.epochs,
        images=section.images,
        dsa=DsaConfig() if section.augment else None,
    )
