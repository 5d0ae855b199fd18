"""What the benchmark of ViT editing compares: masks, other editors, layers, and attempts at a better mask."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from transformers import TrainingArguments

from thurl.editing.baselines import ExtraNeurons, LowRank
from thurl.editing.classifier import Classifier
from thurl.editing.cutmix import CutMixSettings, draw_rectangles, paste
from thurl.editing.digits import Digits
from thurl.editing.edit import EditSettings
from thurl.editing.evaluate import EditGroup, EditRow, averages
from thurl.editing.layer_search import search_layers
from thurl.editing.masks import GradientMask, HybridMask, MaskSource, RandomMask
from thurl.editing.meta_step import SearchSettings
from thurl.editing.meta_training import LearnedMask, MetaSettings, MetaTrainer, hypernetwork_for, patch_size
from thurl.editing.methods import EditMethod, FineTuning, MaskedEditing
from thurl.editing.thresholds import common_threshold
from thurl.training.progress import quiet_trainer


DENSITIES = (0.02, 0.05, 0.1, 0.25, 0.5)
LONG = ("fine-tuning", *(f"{name} {density} %" for density in (5, 10) for name in ("learned", "random", "gradient")))
"""What is also edited with more steps."""
TOGETHER = 24
"""Edits computed at a time."""


@dataclass(frozen=True)
class Study:
    """Sizes of a run; the defaults are those of the results.

    Args:
        epochs: of the classifier.
        iterations, batch: of meta-training; a batch is twice the pseudo-failures.
        edits: pictures of each group that are edited.
        searched: the same for each window of layers.
        groups: at most that many, the largest.
        largest: pictures of a group.
        steps, rate: of an edit.
        long_steps: of the edits of `LONG` once more; None: they are not.
        densities: of the masks.
    """

    epochs: int = 24
    iterations: int = 80
    batch: int = 32
    edits: int = 3
    searched: int = 1
    groups: int = 8
    largest: int = 20
    steps: int = 40
    rate: float = 5e-4
    long_steps: int | None = None
    densities: tuple[float, ...] = DENSITIES


META = MetaSettings(
    search=SearchSettings(inner_rate=0.1, penalty=100 / (8 * 6 * 3072)), cutmix=CutMixSettings(smallest=1, largest=2)
)


ATTEMPTS: dict[str, dict[str, Any]] = {
    "learned-long": {"longer": 3},
    "learned-local": {"search": {"locality": 1.0}},
    "learned-gradients": {"network": {"gradient_tokens": True}},
}
"""To make the learned mask better: three times the meta-training; a term for clean pictures in the search; gradients
as an input. Not of the paper. `learned-conditioned` comes on top: one threshold for all pictures, not one density."""


def editors(learned: MaskSource, settings: EditSettings, study: Study, seed: int) -> dict[str, EditMethod]:
    """All methods but the mean mask, which is another one for each group."""
    found: dict[str, EditMethod] = {"fine-tuning": FineTuning(settings, TOGETHER)}
    # No dots, which would part the name in the tables.
    for strength in ("1e-4", "1e-3", "5e-3"):
        found[f"fine-tuning, L1 {strength}"] = FineTuning(replace(settings, l1=float(strength)), TOGETHER)
    for strength in ("1e-2", "1e-1", "1"):
        found[f"fine-tuning, L2 {strength}"] = FineTuning(replace(settings, l2=float(strength)), TOGETHER)
    for rank in (1, 4, 16):
        found[f"LoRA, rank {rank}"] = LowRank(rank, rank, replace(settings, rate=2e-3), seed)
    found["extra neuron"] = ExtraNeurons(replace(settings, rate=0.03, optimizer="adam"))
    sources: dict[str, MaskSource] = {
        "learned": learned,
        "random": RandomMask(seed, per_picture=True),
        "gradient": GradientMask(),
        "hybrid": HybridMask((learned, GradientMask())),
    }
    for name, source in sources.items():
        for density in study.densities if name == "learned" else study.densities[:4]:
            found[f"{name} {percent(density)}"] = MaskedEditing(source, density, settings, TOGETHER)
    return found


def attempted(
    learned: LearnedMask, classifier: Classifier, data: Digits, settings: EditSettings, study: Study, seed: int
) -> tuple[dict[str, EditMethod], dict[str, dict[str, float]]]:
    """Methods of all attempts, and what the meta-training of each says of itself."""
    found: dict[str, EditMethod] = {}
    told = {}
    for name, change in ATTEMPTS.items():
        longer = replace(study, iterations=study.iterations * change.get("longer", 1))
        meta = replace(META, search=replace(META.search, **change.get("search", {})))
        source, told[name] = meta_train(classifier, data, seed, longer, meta, **change.get("network", {}))
        for density in study.densities[:4]:
            found[f"{name} {percent(density)}"] = MaskedEditing(source, density, settings, TOGETHER)
    failing = pseudo_failures(classifier, data, seed)
    for density in study.densities[:4]:
        threshold = common_threshold(learned, classifier, [failing], density)
        found[f"learned-conditioned {percent(density)}"] = MaskedEditing(
            learned, density, settings, TOGETHER, threshold
        )
    return found, told


def pseudo_failures(
    classifier: Classifier, data: Digits, seed: int, count: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Training pictures with a rectangle of another one, and what the model says of them without it."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(data.train), generator=generator)[: 2 * count]
    clean, others = data.train[rows[:count]], data.train[rows[count:]]
    patch = patch_size(classifier.model)
    grid = clean.shape[-2] // patch, clean.shape[-1] // patch
    mixed = paste(clean, others, draw_rectangles(len(clean), grid, META.cutmix, generator), patch)
    with torch.no_grad():
        return mixed, classifier.logits(clean).argmax(dim=-1)


def windows(
    classifier: Classifier, groups: Sequence[EditGroup], unrelated: torch.Tensor, settings: EditSettings, edits: int
) -> dict[str, dict[str, float]]:
    """Fine-tuning of every window of three blocks; `front` is 1 where no other window is better in both rates."""
    found = search_layers(classifier, groups, unrelated, FineTuning(settings, TOGETHER), edits=edits, batch_size=256)
    names = {"SR": "sr", "GR": "gr", "LR_unrelated": "lr_sensitive", "steps": "steps"}
    return {
        one.name: {**{name: one.averages[key].mean for key, name in names.items()}, "front": float(one.on_front)}
        for one in found
    }


def percent(density: float) -> str:
    return f"{100 * density:g} %"


def short(rows: Sequence[EditRow]) -> dict[str, float]:
    """Means over groups, named as in the tables."""
    names = {"SR": "sr", "GR": "gr", "GR_official": "gr_official", "LR_sensitive": "lr_sensitive",
             "LR_right": "lr_clean", "accuracy_drop": "accuracy_drop", "ECE_rise": "ece_rise", "steps": "steps",
             "parameters": "parameters"}  # fmt: skip
    found = averages(rows)
    return {short_name: found[name].mean for name, short_name in names.items()}


def meta_train(
    classifier: Classifier, data: Digits, seed: int, study: Study, meta: MetaSettings = META, **options: Any
) -> tuple[LearnedMask, dict[str, float]]:
    """The hypernetwork as a source of masks, and what meta-training says of itself; options of `hypernetwork_for`."""
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as place:
        torch.manual_seed(seed)
        args = TrainingArguments(
            output_dir=place, per_device_train_batch_size=study.batch, max_steps=study.iterations, learning_rate=1e-3,
            lr_scheduler_type="cosine", optim="rmsprop", max_grad_norm=0.0, logging_steps=1, save_strategy="no",
            report_to=[], seed=seed, use_cpu=True, disable_tqdm=True, dataloader_drop_last=True,
            remove_unused_columns=False, log_level="error",
        )  # fmt: skip
        network = hypernetwork_for(classifier, blocks=3, heads=4, **options)
        pictures: Any = [{"pixel_values": picture} for picture in data.train]
        trainer = MetaTrainer(network, args, classifier=classifier, meta=meta, train_dataset=pictures)
        quiet_trainer(trainer)
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "terms/bce" in entry]
    last = logged[-20:]
    means = {name: fmean(entry[f"terms/{name}"] for entry in last) for name in (
        "bce", "pseudo_kl_unedited", "pseudo_kl_edited", "label_density", "soft_density")}  # fmt: skip
    return LearnedMask(network), {**means, "bce_first": logged[0]["terms/bce"]}
