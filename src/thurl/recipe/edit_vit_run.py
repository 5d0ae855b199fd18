"""Runs an editing recipe: classifier, meta-training of its hypernetwork, edits of failing digits, results, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import TrainingArguments, set_seed

from thurl.data.image_files import find_images
from thurl.editing.classifier import Classifier, as_classifier
from thurl.editing.classifier_files import load_classifier
from thurl.editing.cutmix import CutMixSettings
from thurl.editing.digits import Digits, load_digit_pictures, pretrain_digits
from thurl.editing.groups import Read
from thurl.editing.meta_data import PictureTensors, RandomCrops
from thurl.editing.meta_step import SearchSettings
from thurl.editing.meta_training import MetaSettings, MetaTrainer, hypernetwork_for
from thurl.editing.units import resolve_ffn
from thurl.recipe.edit_vit import EditViTRecipe
from thurl.recipe.edit_vit_edits import Failures, benchmark_failures, digit_failures, edit_failures
from thurl.recipe.edit_vit_report import write_report
from thurl.recipe.hub import method_card
from thurl.training.method_trainer import MethodTrainer
from thurl.training.progress import ProgressLines, quiet_libraries, quiet_trainer


__all__ = ["Base", "build_trainer", "load_base", "load_failures", "meta_settings", "run"]

logger = logging.getLogger(__name__)

_LOG_FIELDS = {
    "terms/bce": ("BCE", ".4f"),
    "terms/pseudo_kl_unedited": ("KL unedited", ".3f"),
    "terms/pseudo_kl_edited": ("edited", ".3f"),
    "terms/label_density": ("label density", ".3f"),
    "terms/soft_density": ("predicted", ".3f"),
}


@dataclass(frozen=True)
class Base:
    """The classifier of a recipe and the pictures to learn from; `digits` where it was trained on them, `read`
    makes its inputs of pictures otherwise."""

    classifier: Classifier
    name: str
    pictures: Dataset[dict[str, torch.Tensor]]
    digits: Digits | None = None
    read: Read | None = None


def run(recipe: EditViTRecipe, *, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Meta-train, edit and report as the recipe says; called by `thurl.recipe.launch` on every process.

    Returns:
        the record of the run, as in the results file; on other processes than the first its seed only.

    Raises:
        ThurlError: data, weights or settings that cannot be used.
        StoppedError: SIGTERM came while it trained; the checkpoint is written.
    """
    quiet_libraries()
    started = time.perf_counter()
    args = TrainingArguments(**{"remove_unused_columns": False, "dataloader_drop_last": True, **recipe.training})
    base = load_base(recipe, args.seed)
    trainer = build_trainer(recipe, args, base)
    # Before hours of training: a manifest of another model is refused at once.
    failures = load_failures(recipe, base) if PartialState().is_main_process else None
    quiet_trainer(trainer)
    trainer.add_callback(ProgressLines(_LOG_FIELDS))
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.create_model_card()
    ended = time.perf_counter()
    if not PartialState().is_main_process:
        return {"seed": args.seed}
    edits = []
    if recipe.evaluation is not None and failures is not None:
        edits = edit_failures(trainer.model, base.classifier, failures, recipe.evaluation, seed=args.seed)
    seconds = {"base": began - started, "training": ended - began, "editing": time.perf_counter() - ended}
    seconds["total"] = time.perf_counter() - started
    return write_report(recipe, trainer, edits, seconds, recipe_path, overrides)


def load_base(recipe: EditViTRecipe, seed: int) -> Base:
    """The classifier and the pictures for pseudo-failures.

    Raises:
        ThurlError: no such model or folder, or layers it does not have.
    """
    section, data = recipe.model, recipe.data
    if section.digits is not None:
        own = seed if section.digits.seed is None else section.digits.seed
        digits = load_digit_pictures(own)
        logger.info("Training the classifier on %d digits", len(digits.train))
        classifier = as_classifier(pretrain_digits(digits, seed=own, epochs=section.digits.epochs))
        return Base(_with_layers(classifier, section.layers), "digits", PictureTensors(digits.train), digits)
    assert section.name_or_path is not None and data is not None  # as `EditViTRecipe` has checked
    found = load_classifier(section.name_or_path)
    prepare = found.preprocessing
    crops = RandomCrops(
        find_images([data.folder], recursive=True),
        prepare.size[-1],
        mean=prepare.mean,
        std=prepare.std,
        scale=data.scale,
        seed=seed if data.seed is None else data.seed,
    )
    return Base(_with_layers(found.classifier, section.layers), section.name_or_path, crops, read=found.read)


def load_failures(recipe: EditViTRecipe, base: Base) -> Failures | None:
    """What the section `evaluation` edits; nothing without one.

    Raises:
        ThurlError: a manifest that does not belong to the model, or pictures that have changed.
    """
    section = recipe.evaluation
    if section is None:
        return None
    if base.digits is not None:
        return digit_failures(base.classifier, base.digits)
    assert base.read is not None and section.manifest is not None and section.pictures is not None
    return benchmark_failures(base.classifier, section.manifest, section.pictures, base.read)


def meta_settings(recipe: EditViTRecipe) -> MetaSettings:
    """The recipe's sections `meta` and `cutmix`, as the library takes them."""
    values = recipe.meta.model_dump()
    outside = {name: values.pop(name) for name in ("updates", "bce_weight")}
    return MetaSettings(SearchSettings(**values), CutMixSettings(**recipe.cutmix.model_dump()), **outside)


def build_trainer(recipe: EditViTRecipe, args: TrainingArguments, base: Base) -> MethodTrainer:
    """The trainer of the recipe; the hypernetwork's first weights follow `training.seed`."""
    set_seed(args.seed)
    meta = meta_settings(recipe)
    model = hypernetwork_for(
        base.classifier, base_model=base.name, meta_training=asdict(meta), **recipe.hypernetwork.model_dump()
    )
    card = method_card(
        recipe,
        name="hypernetwork that says where to edit a vision transformer",
        paper="Learning Where to Edit Vision Transformers",
        paper_id="2411.01948",
        tags=("model-editing",),
        task="image-classification",
        base_model=base.name,
        loading=(
            "from thurl.editing.hypernetwork import MaskHypernetwork\n\n"
            'network = MaskHypernetwork.from_pretrained("USER/NAME")  # or: thurl edit run --hypernetwork USER/NAME'
        ),
        limits=(
            f"Its masks mean something for one base model alone: {Path(base.name).name}.",
            "It was trained on pictures with pasted rectangles, not on real failures.",
        ),
    )
    return MetaTrainer(model, args, classifier=base.classifier, meta=meta, train_dataset=base.pictures, card=card)


def _with_layers(classifier: Classifier, layers: Sequence[int] | None) -> Classifier:
    return classifier if layers is None else classifier.with_units(resolve_ffn(classifier.model, layers))
