"""Runs a restoration recipe: data, network, evaluation, training, evaluation, control, results and report."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import TrainingArguments, set_seed

from thurl.data.photos import bundled_photos
from thurl.errors import MissingRequirementError
from thurl.iqa.face_restoration.similarity import psnr, ssim
from thurl.recipe.face_restoration import BundledPhotosSource, FaceRestorationRecipe
from thurl.recipe.face_restoration_losses import load_critics
from thurl.recipe.face_restoration_report import RestorationRun, write_report
from thurl.recipe.hub import method_card
from thurl.restoration.cleanup import clean_up
from thurl.restoration.config import RestorationConfig
from thurl.restoration.dataset import RestorationPairs
from thurl.restoration.evaluation import RestorationEvaluator, tuned_strengths
from thurl.restoration.model import RestorationModel
from thurl.restoration.processing import RestorationImageProcessor
from thurl.training.deepspeed_cpu import prepare_deepspeed_on_cpu
from thurl.training.method_trainer import MethodTrainer
from thurl.training.picture_page import PictureRow
from thurl.training.progress import ProgressLines, SaveBeside, quiet_libraries, quiet_trainer


__all__ = [
    "METRICS",
    "Study",
    "build_evaluator",
    "build_model",
    "build_trainer",
    "example_rows",
    "load_study",
    "photographs",
    "run",
    "train",
]

logger = logging.getLogger(__name__)

_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
METRICS = {"psnr": psnr, "ssim": ssim}
"""Of the classic tier of the evaluator, on all three channels."""

_LOG_FIELDS = {
    "loss": ("loss", ".4f"),
    "terms/pixel": ("pixel", ".4f"),
    "terms/features": ("features", ".3f"),
    "terms/identity": ("identity", ".3f"),
    "terms/afine": ("A-FINE", ".3f"),
    "terms/naturalness": ("naturalness", ".3f"),
    "eval_psnr": ("validation PSNR", ".2f"),
    "eval_ssim": ("SSIM", ".4f"),
}


@dataclass(frozen=True)
class Study:
    """The pairs of a recipe by use; `test` is None where the recipe names no test pictures."""

    train: RestorationPairs
    validation: RestorationPairs
    test: RestorationPairs | None


def run(recipe: FaceRestorationRecipe, *, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train, evaluate and report as the recipe says; called by `thurl.recipe.launch` on every process.

    Returns:
        the record of the run, as in the results file.

    Raises:
        ThurlError: data, weights or settings that cannot be used.
        StoppedError: SIGTERM came while it trained; the checkpoint is written.
    """
    quiet_libraries()
    field = recipe.training.get
    prepare_deepspeed_on_cpu(field("deepspeed"), bool(field("use_cpu")), float(field("ddp_timeout", 1800)))
    args = TrainingArguments(**recipe.training)
    started = time.perf_counter()
    study = load_study(recipe, args.seed)
    evaluator = build_evaluator(recipe, study)
    start_seconds = time.perf_counter() - started
    main = train(recipe, args, study, evaluator)
    main.seconds.update(start=start_seconds, total=time.perf_counter() - started)
    control = None
    if recipe.control.unrelated_targets:
        logger.info("Control: the same run with unrelated targets, which must not learn to restore")
        # A checkpoint named for the run is not one of the control.
        changes: dict[str, Any] = {
            "output_dir": str(Path(args.output_dir) / "control"),
            "resume_from_checkpoint": "auto" if args.resume_from_checkpoint else None,
        }
        if recipe.control.max_steps is not None:
            changes["max_steps"] = recipe.control.max_steps
        unrelated = replace(study, train=load_study(recipe, args.seed, unrelated=True).train)
        control = train(recipe, TrainingArguments(**recipe.training | changes), unrelated, evaluator, name="control")
    return write_report(recipe, args.seed, study, main, control, recipe_path, overrides)


def load_study(recipe: FaceRestorationRecipe, seed: int, *, unrelated: bool = False) -> Study:
    """The pairs a recipe names.

    Args:
        seed: of the training pairs where `data.seed` is left out.
        unrelated: give the training pairs targets of other items.
    """
    data, section = recipe.data, recipe.evaluation
    options: dict[str, Any] = {"degradation": recipe.degradation.config(), "crop": data.crop, "zoom": data.zoom}
    training = RestorationPairs(
        photographs(data.train),
        data.size,
        flip=data.flip,
        repeats=data.repeats,
        seed=seed if data.seed is None else data.seed,
        unrelated=unrelated,
        **options,
    )
    size, repeats, first = data.size, 1, 0
    if section is not None:
        size, repeats, first = section.size or data.size, section.repeats, section.seed
    fixed = options | {"flip": False, "fixed": True, "repeats": repeats}
    # Other squares and degradations than those of the test pictures, should a folder be named for both.
    validation = RestorationPairs(photographs(data.validation), size, seed=2 * first, **fixed)
    test = None
    if section is not None and section.sources:
        test = RestorationPairs(photographs(section.sources), size, seed=2 * first + 1, **fixed)
    return Study(training, validation, test)


def photographs(sources: Sequence[Any]) -> dict[str, Any]:
    """Pictures, or the paths of pictures, by name.

    Raises:
        MissingRequirementError: a folder that does not exist or holds no picture; all of them.
    """
    found: dict[str, Any] = {}
    problems = []
    for source in sources:
        if isinstance(source, BundledPhotosSource):
            found.update(bundled_photos(source.split))
            continue
        folder = Path(source.folder).expanduser()
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
        if not paths:
            problems.append(f"folder {folder} has no picture ({' '.join(_ENDINGS)}); name another one")
        found.update((f"{folder.name}/{path.relative_to(folder).as_posix()}", path) for path in paths)
    if problems:
        raise MissingRequirementError(problems)
    return found


def build_evaluator(recipe: FaceRestorationRecipe, study: Study) -> RestorationEvaluator | None:
    """The evaluator; clean-ups get the strengths that are best on the validation pictures."""
    if recipe.evaluation is None:
        return None
    strengths = tuned_strengths(study.validation, recipe.evaluation.cleanups)
    shown = ", ".join(f"{name} {value:g}" for name, value in strengths.items())
    logger.info("Clean-ups to beat, strengths chosen on the validation pictures: %s", shown or "none")
    return RestorationEvaluator(METRICS, strengths)


def build_model(recipe: FaceRestorationRecipe) -> RestorationModel:
    """The network with the critics of the recipe's losses."""
    losses, section = recipe.losses, recipe.model
    if section.name_or_path is None:
        model = RestorationModel(RestorationConfig(**section.network_options()))
    else:
        model = RestorationModel.from_pretrained(section.name_or_path)
    model.config.pixel_loss, model.config.charbonnier_eps = losses.pixel.kind, losses.pixel.eps
    model.set_critics(load_critics(losses))
    return model


def build_trainer(
    recipe: FaceRestorationRecipe, args: TrainingArguments, study: Study, evaluator: RestorationEvaluator | None
) -> MethodTrainer:
    """The trainer of the recipe; the network's first weights follow `training.seed`."""
    set_seed(args.seed)
    data = recipe.data
    card = method_card(
        recipe,
        name="blind restoration baseline",
        tags=("image-restoration",),
        task="image-to-image",
        base_model=recipe.model.name_or_path,
        loading='from thurl.restoration.restorer import Restorer\n\nrestorer = Restorer.from_pretrained("USER/NAME")',
        limits=(
            "Trained on synthetic degradations; real ones may differ.",
            "A network trained on distances to the clean picture returns what is common to all pictures that fit the "
            "input. It removes noise and artefacts, and does not invent detail.",
        ),
    )
    return MethodTrainer(
        build_model(recipe),
        args,
        weights=recipe.losses.weights(),
        evaluator=evaluator,
        card=card,
        train_dataset=study.train,
        eval_dataset=study.validation,
        processing_class=RestorationImageProcessor(size=data.size if data.crop == "whole" else None),
    )


def train(
    recipe: FaceRestorationRecipe,
    args: TrainingArguments,
    study: Study,
    evaluator: RestorationEvaluator | None,
    name: str = "",
) -> RestorationRun:
    """One run, with evaluation on the test pictures before and after."""
    trainer = build_trainer(recipe, args, study, evaluator)
    quiet_trainer(trainer)
    trainer.add_callback(ProgressLines(_LOG_FIELDS, f"{name}: " if name else ""))
    trainer.add_callback(SaveBeside(trainer.processing_class.save_pretrained))
    section, judged = recipe.evaluation, study.test or study.validation
    clock, before, after = time.perf_counter(), None, None
    if section is not None and section.before and not name:
        trainer.evaluate(judged, metric_key_prefix="before")
        before = trainer.evaluation_results["before"]
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    saved = time.perf_counter()
    if section is not None and section.after:
        trainer.evaluate(judged, metric_key_prefix="test")
        after = trainer.evaluation_results["test"]
    pictures = example_rows(trainer, evaluator, judged, recipe.report.examples) if after is not None else []
    seconds = {"training": saved - began, "evaluation": began - clock + time.perf_counter() - saved}
    trainer.save_model()
    trainer.create_model_card()
    return RestorationRun(list(trainer.state.log_history), before, after, seconds, trainer.timing, pictures)


def example_rows(
    trainer: MethodTrainer, evaluator: RestorationEvaluator | None, pairs: RestorationPairs, count: int
) -> list[PictureRow]:
    """Test pictures for the report, evenly spread over the data set: degraded, cleaned up, restored, clean."""
    rows = sorted({round(place * (len(pairs) - 1) / max(1, count - 1)) for place in range(min(count, len(pairs)))})
    if not rows or evaluator is None:
        return []
    restored = trainer.predict_rows([{"pixel_values": pairs[row]["pixel_values"]} for row in rows])["restored"]
    found = []
    for row, pixels in zip(rows, restored, strict=True):
        degraded, clean, drawn = pairs.pair(row)
        states = {"degraded": Image.fromarray(degraded)}
        for name, strength in evaluator.strengths.items():
            states[name] = Image.fromarray(clean_up(degraded[None], name, strength)[0])
        states["restored"] = RestorationImageProcessor.picture(torch.from_numpy(pixels))
        states["clean"] = Image.fromarray(clean)
        facts = f"{pairs.name(row)}: blur {drawn.sigma[0]:.1f} and {drawn.sigma[1]:.1f} pixels, shrunk by "
        facts += f"{drawn.factor:.1f}, noise {drawn.noise:.0f} grey values, JPEG quality {drawn.quality}"
        found.append(PictureRow(states, facts))
    return found
