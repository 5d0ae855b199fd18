"""Runs an EXIF recipe: photographs, training, one-class detector, evaluation, control, results and report.

All processes train; what follows (features, mixture, thresholds, report) is done by the first one alone, so that the
others do not wait for it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments, set_seed

from thurl.errors import UsageError
from thurl.forensics.exif.blades import BladesModel
from thurl.forensics.exif.config import BladesConfig, ExifEncoderConfig, ExifOrdinalConfig
from thurl.forensics.exif.dataset import collate_faces
from thurl.forensics.exif.ordinal import ExifOrdinalModel
from thurl.forensics.exif.pretext import PretextEvaluator
from thurl.forensics.exif.starts import imagenet_file, load_encoder, load_imagenet, load_text_tower
from thurl.forensics.exif.tiny import tiny_blades_config, tiny_encoder_config
from thurl.forensics.processing import FaceImageProcessor
from thurl.recipe.exif_data import FaceStudy, load_study, shuffled
from thurl.recipe.exif_detection import DETECTOR_FILE, detect
from thurl.recipe.exif_report import FaceRun, write_report
from thurl.recipe.hub import method_card
from thurl.training.evaluation import EvaluationResults
from thurl.training.method_trainer import MethodTrainer
from thurl.training.optimizers import one_group_optimizer
from thurl.training.progress import ProgressLines, quiet_libraries, quiet_trainer


__all__ = ["build_model", "build_trainer", "run", "train", "training_arguments"]

logger = logging.getLogger(__name__)

_LOG_FIELDS = {
    "loss": ("loss", ".4f"),
    "eval_proxy_loss": ("validation", ".4f"),
    "terms/iso": ("ISO", ".3f"),
    "terms/coarse_face": ("edits", ".3f"),
    "eval_srcc_iso": ("SRCC of ISO", ".3f"),
    "eval_auc_manipulated": ("AUC of edits", ".3f"),
    "weights/coarse_face": ("weight of edits", ".3f"),
}
_PAPERS = {
    "exif_ordinal": (
        "EXIF-supervised one-class detection of generated faces",
        "Self-Supervised Learning for Detecting AI-Generated Faces as Anomalies",
        "2501.02207",
    ),
    "blades": (
        "BLADES",
        "Bi-Level Optimization for Self-Supervised AI-Generated Face Detection",
        "2507.22824",
    ),
}
_LIMITS = (
    "A verdict is about the origin of pixels as the training photographs show it. False-alarm rates hold for "
    "photographs like those of the calibration, and only for those.",
)
_SIMULATED = "Trained on pictures of a simulated camera: it shows that the method works, and knows no real photograph."


def run(recipe: Any, *, recipe_path: str, overrides: Sequence[str] = (), shuffle: bool = False) -> dict[str, Any]:
    """Train, fit, calibrate, evaluate and report as the recipe says; called on every process.

    Args:
        recipe: an `ExifOrdinalRecipe` or `BladesRecipe`.
        recipe_path, overrides: for the results file.
        shuffle: make the control the run: settings of other photographs, drawn with `control.seed`.

    Returns:
        the record of the run, as in the results file; on other processes than the first its seed only.

    Raises:
        ThurlError: data, weights or settings that cannot be used; see the modules called.
        StoppedError: SIGTERM came while it trained; the checkpoint is written.
    """
    quiet_libraries()
    # The checkpoint with the best loss on settings that mean nothing is mostly the first, which is hardly trained.
    control_changes = {"load_best_model_at_end": False}
    args = training_arguments(recipe, **(control_changes if shuffle else {}))
    started = time.perf_counter()
    study = load_study(recipe, Path(args.output_dir))
    if shuffle:
        study = shuffled(study, recipe.control.seed)
    data_seconds = time.perf_counter() - started
    main = train(recipe, args, study)
    control = None
    if recipe.control.shuffle_settings:
        logger.info("Control: the same run with the settings of other photographs, which must not learn them")
        # A checkpoint named for the run is not one of the control.
        resume = "auto" if args.resume_from_checkpoint else None
        folder = str(Path(args.output_dir) / "control")
        changes = {"output_dir": folder, "resume_from_checkpoint": resume, **control_changes}
        control_args = training_arguments(recipe, **changes)
        control = train(recipe, control_args, shuffled(study, recipe.control.seed), name="control")
    if not PartialState().is_main_process:
        return {"seed": args.seed}
    main = _with_detection(recipe, study, main, before=recipe.evaluation is not None and recipe.evaluation.before)
    if control is not None:
        control = _with_detection(recipe, study, control, before=False)
    main.seconds.update(data=data_seconds, total=time.perf_counter() - started)
    return write_report(recipe, args.seed, study, main, control, recipe_path, overrides)


def training_arguments(recipe: Any, **changes: Any) -> TrainingArguments:
    """The recipe's `training` section as a trainer configuration; `changes` win."""
    return TrainingArguments(**{"remove_unused_columns": False, **recipe.training, **changes})


def train(recipe: Any, args: TrainingArguments, study: FaceStudy, name: str = "") -> FaceRun:
    """One training run; the pretext tasks are evaluated before and after it."""
    trainer = build_trainer(recipe, args, study)
    quiet_trainer(trainer)
    trainer.add_callback(ProgressLines(_LOG_FIELDS, f"{name}: " if name else ""))
    processor = trainer.processing_class
    tests = {}
    if study.labelled:
        tests = {"test": study.faces(recipe, processor, "test", edits=False)}
        tests["test_edits"] = study.faces(recipe, processor, "test")
    clock = time.perf_counter()
    before = _pretext(trainer, tests) if recipe.evaluation is not None and recipe.evaluation.before else {}
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    ended = time.perf_counter()
    trainer.save_model()
    after = _pretext(trainer, {"validation": trainer.eval_dataset, **tests})
    seconds = {"training": ended - began, "evaluation": began - clock + time.perf_counter() - ended}
    return FaceRun(trainer, list(trainer.state.log_history), before, after, seconds)


def build_trainer(recipe: Any, args: TrainingArguments, study: FaceStudy) -> MethodTrainer:
    """The trainer of a recipe, its model at its start."""
    set_seed(args.seed)
    model = build_model(recipe)
    processor = FaceImageProcessor(
        **{**recipe.transform.model_dump(), "image_mean": list(recipe.transform.image_mean),
           "image_std": list(recipe.transform.image_std)}
    )  # fmt: skip
    bilevel = getattr(recipe, "bilevel", None)
    outer = bilevel is not None and bilevel.outer == "held_out"
    title, paper, paper_id = _PAPERS[recipe.method]
    simulated = recipe.data.source.format == "simulated"
    card = method_card(
        recipe,
        name=title,
        paper=paper,
        paper_id=paper_id,
        tags=("face-forensics", "one-class"),
        task="image-classification",
        loading=(
            "from thurl.forensics.exif import FaceDetector\n\n"
            f'detector = FaceDetector.from_pretrained("USER/NAME", "USER/NAME")  # the encoder and {DETECTOR_FILE}'
        ),
        limits=(*_LIMITS, _SIMULATED) if simulated else _LIMITS,
    )
    trainer = MethodTrainer(
        model,
        args,
        train_dataset=study.faces(recipe, processor, "train"),
        eval_dataset=study.faces(recipe, processor, "validation"),
        outer_dataset=study.faces(recipe, processor, "outer") if outer else None,
        data_collator=collate_faces,
        processing_class=processor,
        evaluator=PretextEvaluator(() if bilevel is None else bilevel.primary),
        bilevel=None if bilevel is None else bilevel.config(),
        card=card,
        optimizers=(one_group_optimizer(recipe.optimizer.kind, model.to(args.device), args), None),
    )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UsageError(
            "The launcher splits the parameters (DeepSpeed or FSDP), which the detector needs whole. Start with "
            "accelerate_configs/ddp.yaml, or with torchrun alone."
        )
    return trainer


def build_model(recipe: Any) -> ExifOrdinalModel | BladesModel:
    """The model of a recipe with its first weights; random ones from torch's present seed.

    Raises:
        MissingRequirementError, DataError: weights that are not there, or do not fit.
    """
    section = recipe.model
    encoder = ExifEncoderConfig() if section.tiny is None else tiny_encoder_config(**section.tiny.model_dump())
    model: ExifOrdinalModel | BladesModel
    if recipe.columns is None:
        model = ExifOrdinalModel(ExifOrdinalConfig(encoder_config=encoder, rank_scale=section.rank_scale))
    else:
        options = {"columns": recipe.columns, "rank_scale": section.rank_scale, "focal_gamma": section.focal_gamma}
        if section.tiny_text is None:
            config = BladesConfig(encoder_config=encoder, **options)
        else:
            config = tiny_blades_config(encoder, **section.tiny_text.model_dump(), **options)
        model = BladesModel(config)
        if section.text_path is not None:
            load_text_tower(model, section.text_path)
    if section.start == "folder":
        load_encoder(model.visual, section.path)
    elif section.start == "imagenet":
        load_imagenet(model.visual, section.path or imagenet_file())
    return model


def _pretext(trainer: MethodTrainer, datasets: dict[str, Any]) -> dict[str, EvaluationResults]:
    for name, dataset in datasets.items():
        trainer.evaluate(dataset, metric_key_prefix=name)
    return {name: trainer.evaluation_results[name] for name in datasets}


def _with_detection(recipe: Any, study: FaceStudy, trained: FaceRun, *, before: bool) -> FaceRun:
    """Detectors of the trained encoder and, for comparison, of the one it started from; the card says what they do."""
    trainer = trained.trainer
    clock = time.perf_counter()
    path = Path(str(trainer.args.output_dir)) / DETECTOR_FILE
    after = detect(recipe, study, trainer.model, trainer.processing_class, path)
    first = None
    if before:
        set_seed(trainer.args.seed)
        first = detect(recipe, study, build_model(recipe).to(trainer.args.device), trainer.processing_class, None)
    if after.metrics:
        trainer.evaluation_results["detection"] = EvaluationResults(after.metrics)
    trainer.create_model_card()
    seconds = {**trained.seconds, "detection": time.perf_counter() - clock}
    return dataclasses.replace(trained, detection=after, detection_before=first, seconds=seconds)
