"""Runs an A-FINE recipe: data, the stages one after the other with evaluation after each, control, results."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedConfig, TrainingArguments, set_seed

from thurl.errors import DataError, UsageError
from thurl.hub.files import CARD
from thurl.iqa.afine.calibration import BoundedFit, fit_naturalness, moments
from thurl.iqa.afine.config import AFineConfig
from thurl.iqa.afine.evaluation import SCORES, AFineEvaluator, TestSet, evaluate_tests
from thurl.iqa.afine.stages import AFineStageModel
from thurl.iqa.afine.trainer import AFineTrainer, RestartSchedule
from thurl.iqa.afine.triplet_pictures import ComparisonPictures, ScoredTriplets, TripletPictures
from thurl.recipe.afine import AFineRecipe, rated, source_name
from thurl.recipe.afine_data import AFineStudy, load_study
from thurl.recipe.afine_report import write_report
from thurl.recipe.hub import method_card
from thurl.recipe.visualquality_r1_data import fingerprint
from thurl.training.evaluation import EvaluationResults
from thurl.training.model_card import MethodCard
from thurl.training.progress import ProgressLines, quiet_libraries, quiet_trainer
from thurl.training.results import plain, write_atomically


__all__ = ["AFineRun", "run", "starting_model", "train_stages"]

logger = logging.getLogger(__name__)

_LOG_FIELDS = {
    "loss": ("loss", ".4f"),
    "terms/first_second": ("pairs", ".4f"),
    "terms/first_reference": ("first to reference", ".4f"),
    "eval_accuracy": ("validation accuracy", ".3f"),
}
_FINISHED = "finished.json"


@dataclass
class AFineRun:
    """What the stages left behind.

    Attributes:
        before: results of `evaluate_tests` of the starting model; None where not asked for.
        stages: by stage, in order: `tests` (results after it), `calibration` (`eta3`, `eta4`, `images`) where it was
            done, `seconds`, `steps`, `loss` (last logged), `validation` (the entries of evaluation while training).
        seconds: of the whole run.
    """

    before: dict[str, Any] | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0


def run(recipe: AFineRecipe, *, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train, evaluate and report as the recipe says; called by `thurl.recipe.launch` on every process.

    Returns:
        the record of the run, as in the results file.

    Raises:
        ThurlError: data, model or settings that cannot be used.
        StoppedError: SIGTERM came while it trained; the checkpoint is written.
    """
    quiet_libraries()
    folder = Path(recipe.training["output_dir"])
    study = load_study(recipe, folder)
    main = train_stages(recipe, study, folder)
    control = None
    if recipe.control.shuffle_labels:
        logger.info("Control: the same stages on labels turned round by a coin, which must learn nothing")
        control = train_stages(recipe, study.shuffled(recipe.control.seed), folder / "control", name="control")
    return write_report(recipe, study, main, control, recipe_path, overrides)


def train_stages(recipe: AFineRecipe, study: AFineStudy, folder: Path, name: str = "") -> AFineRun:
    """All stages of the recipe; each leaves its model in `folder/<stage>`, the last one also in `folder`.

    With `training.resume_from_checkpoint: auto`, stages that are finished are not trained again, and a stage that was
    interrupted goes on from its last checkpoint.
    """
    started = time.perf_counter()
    done, previous = AFineRun(), None
    trainer = None
    for stage in recipe.stages:
        place = folder / stage
        key = _stage_key(recipe, study, stage, previous)
        args = _arguments(recipe, stage, place, last=stage == recipe.stages[-1] and not name)
        finished = _finished(place, key) if args.resume_from_checkpoint else None
        if finished is not None:
            logger.info("Stage %s is finished, its model is in %s", stage, place)
            done.before = finished.pop("before", None) or done.before
            done.stages[stage], previous = finished, place
            continue
        set_seed(args.seed)
        model = starting_model(recipe) if previous is None else AFineStageModel.from_pretrained(previous)
        model.begin_stage(stage)
        trainer = _trainer(recipe, study, stage, model, args, name)
        if previous is None and recipe.evaluation.before and study.test and not name:
            done.before = _test(recipe, study, trainer)
        entry = _train(recipe, study, stage, trainer, place)
        done.stages[stage] = entry
        if trainer.accelerator.is_main_process:
            kept = {**entry, "before": done.before} if previous is None else entry
            write_atomically(place / _FINISHED, json.dumps({"key": key, **plain(kept)}, allow_nan=False))
        trainer.accelerator.wait_for_everyone()
        previous = place
    if trainer is not None:
        trainer.save_model(str(folder))
    elif previous is not None and PartialState().is_main_process:
        AFineStageModel.from_pretrained(previous).save_pretrained(folder)
    if previous is not None and PartialState().is_main_process:
        write_atomically(folder / CARD, (previous / CARD).read_text(encoding="utf-8"))
    done.seconds = time.perf_counter() - started
    return done


def starting_model(recipe: AFineRecipe) -> AFineStageModel:
    """The model a recipe starts from: a tiny one, an A-FINE folder, or the image tower of a CLIP.

    Raises:
        UsageError: a CLIP with a revision, or one to which an adapter stage cannot be applied.
    """
    section = recipe.model
    changes = {"adapter": section.adapter} if section.adapter else {}
    if section.tiny is not None:
        return AFineStageModel(AFineConfig.tiny(**section.tiny.config_arguments(), **changes))
    name = str(section.name_or_path)
    options = {"attn_implementation": section.attn_implementation} if section.attn_implementation else {}
    found, _ = PreTrainedConfig.get_config_dict(name, revision=section.revision)
    if found.get("model_type") == AFineConfig.model_type:
        return AFineStageModel.from_pretrained(name, revision=section.revision, **changes, **options)
    if recipe.stages[0] != "naturalness":
        raise UsageError(
            f"model.name_or_path: {name} is a {found.get('model_type')}, but stage {recipe.stages[0]} goes on from an "
            "A-FINE model; name the folder of the stage before"
        )
    if section.revision:
        raise UsageError("model.revision: is for an A-FINE model; download the CLIP and name its folder")
    return AFineStageModel.from_clip(name, **changes)


def _train(recipe: AFineRecipe, study: AFineStudy, stage: str, trainer: AFineTrainer, place: Path) -> dict[str, Any]:
    """Training, calibration and evaluation of one stage."""
    began = time.perf_counter()
    logger.info("Stage %s: %d triplets", stage, len(trainer.train_dataset))
    if stage == "adapter" and recipe.adapter.cached:
        triplets = study.triplets(stage)
        dataset = ComparisonPictures((t.reference, image) for t in triplets for image in (t.first, t.second))
        trainer.train_dataset = ScoredTriplets(triplets, dataset.rows, trainer.predict_rows(dataset))
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    entry: dict[str, Any] = {"steps": trainer.state.global_step, "seconds": time.perf_counter() - began}
    log = trainer.state.log_history
    entry["loss"] = next((line["loss"] for line in reversed(log) if "loss" in line), None)
    entry["validation"] = [
        {"step": line["step"], "accuracy": line["eval_accuracy"]} for line in log if "eval_accuracy" in line
    ]
    if stage == "naturalness" and recipe.calibration.kind != "none":
        fit, images = _calibrate(recipe, study, trainer)
        with torch.no_grad():
            trainer.model.naturalness_map.centre.fill_(fit.eta3)
            trainer.model.naturalness_map.width.fill_(fit.eta4)
        entry["calibration"] = {"eta3": fit.eta3, "eta4": fit.eta4, "images": images}
        logger.info("Naturalness map: centre %.4f, width %.4f, from %d images", fit.eta3, fit.eta4, images)
    entry["tests"] = _test(recipe, study, trainer) if study.test else {}
    for name, found in entry["tests"].items():
        accuracy = {f"accuracy {quantity}": found["accuracy"][quantity]["all"] for quantity in SCORES}
        trainer.evaluation_results[name] = EvaluationResults(accuracy)
    trainer.save_model(str(place))
    trainer.create_model_card()
    return entry


def _trainer(
    recipe: AFineRecipe, study: AFineStudy, stage: str, model: AFineStageModel, args: TrainingArguments, name: str
) -> AFineTrainer:
    schedule = recipe.schedule
    evaluator = AFineEvaluator(study.validation, stage_quantity(stage)) if study.validation else None
    trainer = AFineTrainer(
        model,
        args,
        schedule=None if schedule is None else RestartSchedule(**schedule.model_dump()),
        train_dataset=TripletPictures(
            study.triplets(stage), augment=recipe.data.augment, seed=args.seed, keep_mib=recipe.data.keep_mib
        ),
        eval_dataset=evaluator.dataset if evaluator else None,
        evaluator=evaluator,
        card=_card(recipe, stage),
    )
    quiet_trainer(trainer)
    trainer.add_callback(ProgressLines(_LOG_FIELDS, f"{name} {stage}: ".lstrip()))
    return trainer


def stage_quantity(stage: str) -> str:
    """What a stage ranks, as a key of `thurl.iqa.afine.evaluation.SCORES`."""
    return "afine" if stage == "adapter" else stage


def _test(recipe: AFineRecipe, study: AFineStudy, trainer: AFineTrainer) -> dict[str, Any]:
    """Results of the test sets, on every process."""
    dataset = ComparisonPictures(pair for test in study.test for pair in test.pairs())
    section = recipe.evaluation
    table = evaluate_tests(
        study.test, dataset.rows, trainer.predict_rows(dataset), intervals=section.intervals, seed=section.seed
    )
    for name, entry in table.items():
        numbers = ", ".join(f"{quantity} {entry['accuracy'][quantity]['all']:.3f}" for quantity in SCORES)
        logger.info("%s, %d pairs: %s", name, entry["pairs"], numbers)
    return table


def _calibrate(recipe: AFineRecipe, study: AFineStudy, trainer: AFineTrainer) -> tuple[BoundedFit, int]:
    section = recipe.calibration
    sources = recipe.data.train
    if section.kind == "moments":
        pairs = [pair for place in study.stages["naturalness"] for pair in study.train[place].pairs()]
        dataset = ComparisonPictures(_some(list(dict.fromkeys(pairs)), section.max_images))
        raw = trainer.predict_rows(dataset)[SCORES["naturalness"]]
        return moments(raw), len(raw)
    places = [
        place
        for place, source in enumerate(sources)
        if rated(source) and section.dataset in (None, source_name(source))
    ]
    part: TestSet = study.train[places[0]]
    records = _some(list(part.records), section.max_images)
    if len(records) < 3:
        raise DataError(f"calibration: {part.name} has {len(records)} rated images; at least 3 are needed")
    dataset = ComparisonPictures((record.reference or "", record.image) for record in records)
    raw = trainer.predict_rows(dataset)[SCORES["naturalness"]]
    rows = [dataset.rows[record.reference or "", record.image] for record in records]
    return fit_naturalness(raw[rows], [record.mos for record in records]), len(records)


def _some(items: list[Any], count: int) -> list[Any]:
    if len(items) <= count:
        return items
    return [items[place] for place in np.sort(np.random.default_rng(0).choice(len(items), count, replace=False))]


def _arguments(recipe: AFineRecipe, stage: str, place: Path, *, last: bool) -> TrainingArguments:
    fields = {**recipe.stage_training(stage), "output_dir": str(place)}
    resume = fields.get("resume_from_checkpoint")
    # A checkpoint named for one stage is none of the others, and none of the control.
    if resume not in (None, "auto") and Path(str(resume)).resolve().parent != place.resolve():
        fields["resume_from_checkpoint"] = "auto"
    return TrainingArguments(**fields)


def _stage_key(recipe: AFineRecipe, study: AFineStudy, stage: str, previous: Path | None) -> str:
    """Digest of all that decides what a stage trains."""
    before = json.loads((previous / _FINISHED).read_text())["key"] if previous is not None else ""
    settings = {
        "stage": stage,
        "training": {k: v for k, v in recipe.stage_training(stage).items() if k != "resume_from_checkpoint"},
        "model": recipe.model.model_dump() if previous is None else before,
        "schedule": recipe.schedule.model_dump() if recipe.schedule else None,
        "calibration": recipe.calibration.model_dump() if stage == "naturalness" else None,
        "triplets": study.digest(stage),
        "augment": recipe.data.augment,
        "cached": stage == "adapter" and recipe.adapter.cached,
    }
    return fingerprint(settings)


def _finished(place: Path, key: str) -> dict[str, Any] | None:
    try:
        found = json.loads((place / _FINISHED).read_text())
    except (OSError, ValueError):
        return None
    return found if found.pop("key", None) == key else None


def _card(recipe: AFineRecipe, stage: str) -> MethodCard:
    return method_card(
        recipe,
        name=f"A-FINE, stage {stage}",
        paper="Toward Generalized Image Quality Assessment: Relaxing the Perfect Reference Quality Assumption",
        paper_id="2503.11221",
        tags=("image-quality-assessment", "afine"),
        base_model=recipe.model.name_or_path,
        relation="finetune",
        loading='from thurl.iqa.afine import AFine\n\nmetric = AFine.from_pretrained("USER/NAME")',
        limits=(
            "Lower is better. The score is not symmetric: reference and test image cannot change places.",
            "Past a turning point of the adapter a less natural image gets a better score; the model flags it.",
        ),
    )
