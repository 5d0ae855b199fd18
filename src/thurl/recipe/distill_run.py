"""Runs a distillation recipe: warm-up, fit, joint run, choice on held-out pictures, one file, test, baselines."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from thurl.distillation import ddr
from thurl.distillation.evaluation import OTHER_LR, EvaluationConfig
from thurl.distillation.joint import DistilledSet
from thurl.recipe.distill import DistillRecipe
from thurl.recipe.distill_baselines import baseline_records, judged, make_baselines
from thurl.recipe.distill_choice import Candidate, choose
from thurl.recipe.distill_coding import Coded
from thurl.recipe.distill_data import DistillStudy, build_utility, evaluation_config, load_study, network_config
from thurl.recipe.distill_report import DistillOutcome, write_report
from thurl.recipe.distill_stages import Distillation
from thurl.training.checkpoints import last_whole_checkpoint
from thurl.training.progress import quiet_libraries


__all__ = ["FILE", "distil", "run"]

logger = logging.getLogger(__name__)

FILE = "data.ddr"
"""Name of the set in `training.output_dir`."""


def run(recipe: DistillRecipe, *, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Distil, evaluate and report as the recipe says; called by `thurl.recipe.launch`.

    Returns:
        the record of the run, as in the results file.

    Raises:
        ThurlError: data or settings that cannot be used.
        StoppedError: SIGTERM came while it trained; the checkpoint is written.
    """
    quiet_libraries()
    outcome = distil(recipe)
    return write_report(recipe, outcome, recipe_path, overrides)


def distil(recipe: DistillRecipe, study: DistillStudy | None = None) -> DistillOutcome:
    """All but the report.

    Args:
        study: the pictures of the recipe where they are loaded already.
    """
    began = time.perf_counter()
    study = study or load_study(recipe)
    work = Distillation(recipe, study, Path(recipe.training["output_dir"]), hints(recipe, study))
    start, warm_up_seconds = work.start()
    warmed = work.warmed(start, warm_up_seconds)
    logger.info("Warm-up: %.0f bits per class", warmed.coded.bits_per_class)
    target = recipe.rate.bits_per_class
    if target is not None:
        reference = work.fit(start, warmed, target)
        joint = work.joint(reference)
    else:
        joint = work.joint(warmed)
        reference = warmed
        if warmed.coded.bits_per_class > joint.coded.bits_per_class:
            reference = work.fit(start, warmed, joint.coded.bits_per_class)
    config = evaluation_config(recipe, study.train, work.learned_rate)
    if work.learned_rate is not None:  # the joint run has learned it, and files tell how networks are trained on them
        limit = joint.coded.bits_per_class if target is None else target
        reference.coded = work.coded(reference.model, limit)
    candidates = [Candidate("joint", joint.coded), *_checkpoints(work, target), Candidate("warm_up", reference.coded)]
    choice = choose(candidates, target, lambda coded: _judge(recipe, study.held_out, config, coded, work.device))
    chosen = choice.chosen.coded
    folder = Path(recipe.training["output_dir"])
    rate = ddr.write(chosen.dataset, folder / FILE)
    clock = time.perf_counter()
    shipped = ddr.load(folder / FILE)  # from here on, only what the file gives
    decode_seconds = time.perf_counter() - clock
    logger.info("%s: %d bytes, %.0f bits per class", folder / FILE, rate.total_bits // 8, rate.row()["bpc"])
    tests = {
        candidate.name: _test(recipe, study, config, candidate.coded.images, candidate.coded.labels, work.device)
        for candidate in candidates
        if candidate.name in ("joint", "warm_up") and candidate is not choice.chosen
    }
    tests[choice.chosen.name] = _test(recipe, study, config, shipped.images, shipped.labels, work.device)
    hub, network = recipe.hub, config.network.name
    shipped.save_pretrained(
        folder,
        license=hub.license,
        tags=hub.tags,
        datasets=hub.datasets,
        results={f"test accuracy of {network}": tests[choice.chosen.name]["mean"]},
    )
    return DistillOutcome(
        seed=work.seed,
        study=study,
        warmed=warmed,
        reference=reference,
        joint=joint,
        choice=choice,
        rate=rate,
        decode_seconds=decode_seconds,
        images=shipped.images,
        labels=shipped.labels,
        test=tests,
        across=_across(recipe, study, config, shipped.images, shipped.labels, work.device),
        baselines=_baselines(recipe, study, config, work, rate.row()["bpc"]),
        targets=start.targets,
        seconds=time.perf_counter() - began,
    )


def hints(recipe: DistillRecipe, study: DistillStudy) -> dict[str, Any]:
    """How to train on the set, for the header of its file."""
    config = evaluation_config(recipe, study.train)
    network = config.network
    return {
        "network": {"name": network.name, "filters": network.filters, "depth": network.depth, "norm": network.norm},
        "lr": config.lr,
        "batch": config.batch,
        **({"images": config.images} if config.images is not None else {"epochs": config.epochs}),
        "augmentation": "dsa" if config.dsa is not None else "none",
    }


def _checkpoints(work: Distillation, target: float | None) -> list[Candidate]:
    """The last whole checkpoints of the joint run, but for that of its end."""
    count = work.recipe.choice.checkpoints
    folder = work.folder / "joint"
    places = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    last = last_whole_checkpoint(folder)
    places = [path for path in places if last is not None and path.name != f"checkpoint-{work.args.max_steps}"]
    found = []
    for place in places[-count:] if count else []:
        model = DistilledSet.from_pretrained(place).to(work.device)
        found.append(Candidate(place.name, work.coded(model, target)))
    return found


def _judge(
    recipe: DistillRecipe, pictures: Any, config: EvaluationConfig, coded: Coded, device: Any
) -> dict[str, Any]:
    return judged(coded.images, coded.labels, pictures, config, recipe.choice.seeds, device)


def _test(
    recipe: DistillRecipe,
    study: DistillStudy,
    config: EvaluationConfig,
    images: torch.Tensor,
    labels: torch.Tensor,
    device: Any,
) -> dict[str, Any]:
    return judged(images, labels, study.test, config, recipe.evaluation.seeds, device)


def _across(
    recipe: DistillRecipe,
    study: DistillStudy,
    config: EvaluationConfig,
    images: torch.Tensor,
    labels: torch.Tensor,
    device: Any,
) -> dict[str, Any]:
    """Other networks on the shipped set, by name."""
    found = {}
    for name in recipe.evaluation.architectures:
        network = network_config(recipe, study.train, name=name)
        other = replace(config, network=network, lr=OTHER_LR)
        found[name] = judged(images, labels, study.test, other, recipe.evaluation.seeds, device)
    return found


def _baselines(
    recipe: DistillRecipe, study: DistillStudy, config: EvaluationConfig, work: Distillation, budget: float
) -> dict[str, Any]:
    section, device = recipe.baselines, work.device
    if not section.names:
        return {}

    def score(baseline: Any) -> float:
        seeds = recipe.choice.seeds
        return judged(baseline.images, baseline.labels, study.held_out, config, seeds, device)["mean"]

    made = make_baselines(
        section.names,
        study.train,
        budget,
        qualities=section.qualities,
        score=score,
        utility=lambda: build_utility(recipe, study.train),
        pixel_steps=section.pixel_steps or recipe.fit.max_steps + work.args.max_steps,
        pixel_learning_rate=section.pixel_learning_rate,
        seed=work.seed,
        device=device,
    )
    return baseline_records(made, lambda images, labels: _test(recipe, study, config, images, labels, device))
