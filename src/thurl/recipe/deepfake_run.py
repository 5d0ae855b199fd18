"""Runs a DeepFake recipe: faces, training, thresholds from validation, test sets, results and report.

All processes train and validate; the test sets are scored by the first one alone, so that the others do not wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments, set_seed

from thurl.errors import UsageError
from thurl.forensics.deepfake.evaluation import Thresholds, evaluate_frames
from thurl.forensics.deepfake.graph import LabelGraph, load_graph
from thurl.forensics.deepfake.scoring import FaceScorer
from thurl.forensics.deepfake.validation import MEASURED, FaceEvaluator
from thurl.forensics.processing import FaceImageProcessor
from thurl.recipe.deepfake_data import FaceStudy, load_study
from thurl.recipe.deepfake_model import build_model
from thurl.recipe.deepfake_report import write_report
from thurl.recipe.hub import method_card
from thurl.training.evaluation import EvaluationResults
from thurl.training.method_trainer import MethodTrainer
from thurl.training.optimizers import one_group_optimizer
from thurl.training.progress import ProgressLines, quiet_libraries, quiet_trainer


__all__ = ["FaceRun", "build_trainer", "run", "training_arguments"]

logger = logging.getLogger(__name__)

_LOG_FIELDS = {
    "loss": ("loss", ".4f"),
    "terms/binary": ("real or fake", ".3f"),
    "terms/global": ("attributes", ".3f"),
    "terms/local": ("regions", ".3f"),
    "eval_video_auc": ("video AUC", ".3f"),
    "eval_region_auc": ("region AUC", ".3f"),
    "weights/local": ("weight of regions", ".3f"),
}
_LIMITS = (
    "Probabilities are about forgeries of the kinds trained on. A probability says how sure the model is, and is no "
    "proof that a face is real or forged.",
)
_DRAWN = "Trained on drawn faces: it shows that the code works, and knows no photograph."


@dataclass(frozen=True)
class FaceRun:
    """What a run left behind.

    Attributes:
        trainer: with the trained model.
        log: its log history.
        validation: metrics of the chosen weights on the validation part.
        test, before: `thurl.forensics.deepfake.evaluation.evaluate_frames` of the test sets, after and before
            training; None where there are none.
        perturbed: name of a perturbation to the same.
        unusable: pictures of the test sets that could not be used, with their reasons.
        seconds: by phase.
    """

    trainer: Any
    log: list[dict[str, Any]]
    validation: Mapping[str, float]
    test: dict[str, Any] | None
    before: dict[str, Any] | None
    perturbed: dict[str, dict[str, Any]]
    unusable: list[str]
    seconds: dict[str, float] = field(default_factory=dict)


def run(recipe: Any, *, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train, evaluate and report as the recipe says; called on every process.

    Args:
        recipe: a `DeepFakeRecipe`.
        recipe_path, overrides: for the results file.

    Returns:
        the record of the run, as in the results file; on other processes than the first its seed only.

    Raises:
        ThurlError: data, weights or settings that cannot be used; see the modules called.
        StoppedError: SIGTERM came while it trained; the checkpoint is written.
    """
    quiet_libraries()
    args = training_arguments(recipe)
    started = time.perf_counter()
    graph = load_graph(recipe.model.graph)
    study = load_study(recipe, Path(args.output_dir), graph)
    seconds = {"data": time.perf_counter() - started}
    trainer = build_trainer(recipe, args, study, graph)
    quiet_trainer(trainer)
    trainer.add_callback(ProgressLines(_LOG_FIELDS, ""))
    first = PartialState().is_main_process
    before = None
    if recipe.evaluation is not None and recipe.evaluation.before and first:
        before, _ = _tested(recipe, study, trainer, Thresholds())
    clock = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds["training"] = time.perf_counter() - clock
    trainer.save_model()
    clock = time.perf_counter()
    trainer.evaluate(metric_key_prefix="validation")
    if not first:
        return {"seed": args.seed}
    validation = trainer.evaluation_results["validation"]
    thresholds = Thresholds(validation.settings["threshold_frame"], validation.settings["threshold_video"])
    test, unusable = _tested(recipe, study, trainer, thresholds)
    names = () if recipe.evaluation is None else recipe.evaluation.perturbations
    perturbed = {name: _tested(recipe, study, trainer, thresholds, name)[0] or {} for name in names}
    if test is not None:
        shown = {name: value for name, value in test["mean"].items() if name in MEASURED}
        trainer.evaluation_results["test"] = EvaluationResults(shown)
    trainer.create_model_card()
    seconds |= {"evaluation": time.perf_counter() - clock, "total": time.perf_counter() - started}
    found = FaceRun(
        trainer,
        list(trainer.state.log_history),
        dict(validation.metrics),
        test,
        before,
        perturbed,
        unusable,
        seconds,
    )
    return write_report(recipe, args.seed, study, found, recipe_path, overrides)


def training_arguments(recipe: Any, **changes: Any) -> TrainingArguments:
    """The recipe's `training` section as a trainer configuration; `changes` win."""
    return TrainingArguments(**{"remove_unused_columns": False, **recipe.training, **changes})


def build_trainer(recipe: Any, args: TrainingArguments, study: FaceStudy, graph: LabelGraph) -> MethodTrainer:
    """The trainer of a recipe, its model at its start."""
    set_seed(args.seed)
    model = build_model(recipe, graph)
    transform = recipe.transform.model_dump()
    processor = FaceImageProcessor(**transform | {key: list(transform[key]) for key in ("image_mean", "image_std")})
    bilevel = recipe.bilevel
    sources = [*recipe.data.sources, *(recipe.evaluation.sources if recipe.evaluation else ())]
    drawn = (_DRAWN,) if any(source.format == "drawn" for source in sources) else ()
    card = method_card(
        recipe,
        name="SJEDD",
        paper="Semantics-Oriented Multitask Learning for DeepFake Detection: A Joint Embedding Approach",
        paper_id="2408.16305",
        tags=("face-forensics", "deepfake-detection"),
        task="image-classification",
        loading=(
            "from thurl.forensics.deepfake.loading import load_model, load_processor\n\n"
            'model, processor = load_model("USER/NAME"), load_processor("USER/NAME")'
        ),
        limits=(*_LIMITS, *drawn),
    )
    trainer = MethodTrainer(
        model,
        args,
        train_dataset=study.faces(recipe, processor, "train"),
        eval_dataset=study.faces(recipe, processor, "val"),
        outer_dataset=study.faces(recipe, processor, "outer") if "outer" in study.parts else None,
        train_groups=[item.source_key for item in study.parts["train"]] if recipe.data.matched else None,
        processing_class=processor,
        evaluator=FaceEvaluator(),
        weights=dict.fromkeys(graph.tasks, 1.0) if bilevel is None else None,
        bilevel=None if bilevel is None else bilevel.config(),
        card=card,
        optimizers=(one_group_optimizer(recipe.optimizer.kind, model.to(args.device), args), None),
    )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UsageError(
            "The launcher splits the parameters (DeepSpeed or FSDP), which the bi-level step needs whole. Start with "
            "accelerate_configs/ddp.yaml, or with torchrun alone."
        )
    return trainer


def _tested(
    recipe: Any, study: FaceStudy, trainer: MethodTrainer, thresholds: Thresholds, perturbation: str = "none"
) -> tuple[dict[str, Any] | None, list[str]]:
    """Metrics of the test sets and the pictures that could not be used."""
    if not study.test:
        return None, []
    scorer = FaceScorer(
        trainer.model,
        trainer.processing_class,
        batch_size=trainer.args.per_device_eval_batch_size,
        workers=trainer.args.dataloader_num_workers,
    )
    table, errors = scorer.table(study.test, perturbation)
    options = {"thresholds": thresholds, "resamples": recipe.evaluation.resamples, "seed": trainer.args.seed}
    result = evaluate_frames(table, trainer.model.graph.tasks, **options)
    named = [f"{item.where}: {error}" for item, error in zip(study.test, errors, strict=True) if error]
    if perturbation == "none":
        for name, reason in result["not_scored"].items():
            logger.warning("The test set %r is not scored: it %s.", name, reason)
        for line in named[:10]:
            logger.warning("Not usable: %s", line)
    return result, named
