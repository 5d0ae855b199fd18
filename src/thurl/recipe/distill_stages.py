"""The stages of a distillation: warm-up, fit to a size, joint run. Each leaves its state in a folder of its own."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainingArguments, set_seed

from thurl.distillation.balance import balanced_lambda
from thurl.distillation.codec import LatentCodec
from thurl.distillation.controller import RateControl
from thurl.distillation.joint import DistilledSet, JointObjective, decoded
from thurl.distillation.joint_trainer import JointTrainer, LambdaSchedule
from thurl.distillation.pictures import RealBatches
from thurl.distillation.reconstruction import Reconstruction
from thurl.distillation.slices import plan_slices
from thurl.distillation.utility.base import Utility
from thurl.distillation.utility.tm import TrajectoryMatching
from thurl.distillation.warm_up import WarmUpConfig, warm_up
from thurl.errors import UsageError
from thurl.recipe.distill import DistillRecipe
from thurl.recipe.distill_coding import Coded, code
from thurl.recipe.distill_data import DistillStudy, build_utility, codec_config
from thurl.recipe.distill_state import finish, finished_stage, stage_key
from thurl.recipe.hub import method_card
from thurl.training.model_card import MethodCard
from thurl.training.progress import ProgressLines, quiet_trainer


__all__ = ["Distillation", "Stage", "Start"]

logger = logging.getLogger(__name__)

_CORRECTIONS = 3
_LOG_FIELDS = {
    "loss": ("loss", ".4f"),
    "terms/rate": ("bits per pixel", ".4f"),
    "terms/utility": ("utility", ".5f"),
    "rate/lambda": ("lambda", ".3g"),
    "rate/bits": ("bits of latents", ".0f"),
}


@dataclass(frozen=True)
class Start:
    """Codecs of real pictures.

    Args:
        codecs: of the warm-up, one per size of slice.
        labels: (S, B) of each.
        targets: float (N, channels, H, W) in [0, 1], the pictures, in the order of the samples.
    """

    codecs: tuple[LatentCodec, ...]
    labels: tuple[NDArray[np.int64], ...]
    targets: torch.Tensor


@dataclass
class Stage:
    """What a stage left.

    Attributes:
        model: the set.
        coded: as integers, with the bits of its file.
        log: of the trainer, empty for the warm-up.
        seconds: of the stage.
        timing: of the trainer.
    """

    model: DistilledSet
    coded: Coded
    log: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    timing: dict[str, Any] | None = None


class Distillation:
    """Runs the stages of one recipe; all randomness follows from `training.seed`.

    Args:
        recipe: what to do.
        study: real pictures.
        folder: for the states of the stages.
        hints: how to train on the set, for its file.

    Raises:
        UsageError: several processes.
    """

    def __init__(
        self, recipe: DistillRecipe, study: DistillStudy, folder: Path, hints: dict[str, Any] | None = None
    ) -> None:
        self.recipe, self.study, self.folder, self.hints = recipe, study, folder, hints or {}
        self.args = TrainingArguments(**{**recipe.training, "output_dir": str(folder)})
        if self.args.world_size > 1:
            raise UsageError(
                f"{self.args.world_size} processes: a distillation trains one small codec; start one process "
                "(`--num_processes 1`), on one GPU"
            )
        self.device = self.args.device
        self.seed = int(self.args.seed)
        self.utility = build_utility(recipe, study.train)

    @property
    def learned_rate(self) -> float | None:
        """Step size that trajectory matching has learned, to four digits, as the file tells it; None without it."""
        return float(f"{self.utility.lr.item():.4g}") if isinstance(self.utility, TrajectoryMatching) else None

    def start(self) -> tuple[Start, float]:
        """The warm-up, and its seconds; taken from the folder where it is finished and the run is a resumed one."""
        section, config = self.recipe.warm_up, codec_config(self.recipe, self.study.train)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = self.study.train.draw(self.recipe.model.samples_per_class, generator)
        labels = drawn.labels.numpy()
        plan = plan_slices(labels, self.recipe.model.slice_size, shared=self.recipe.model.shared)
        tables = tuple(labels[positions] for positions in plan)
        targets = drawn.images.float() / 255
        order = torch.from_numpy(np.concatenate([positions.ravel() for positions in plan]))
        place, key = self.folder / "warm_up", stage_key(self.recipe, ("model", "data", "warm_up"))
        known = finished_stage(place, key) if self.args.resume_from_checkpoint else None
        if known is not None:
            codecs = tuple(DistilledSet.from_pretrained(place).to(self.device).codecs)
            return Start(codecs, tables, targets[order]), float(known["seconds"])
        began = time.perf_counter()
        logger.info("Warm-up: %d slices of %s samples", sum(map(len, plan)), [p.shape[1] for p in plan])
        settings = WarmUpConfig(
            iterations=section.iterations,
            candidates=section.candidates,
            keep=section.keep,
            rate_weight=section.rate_weight,
            lr=section.learning_rate,
            latents_at_once=self.recipe.quantisation.latents_at_once,
        )
        progress = _Progress("warm-up")
        codecs = tuple(
            warm_up(config, targets[torch.from_numpy(p)].to(self.device), settings, generator, progress=progress)
            for p in plan
        )
        seconds = time.perf_counter() - began
        DistilledSet.of(codecs, tables).save_pretrained(place)
        finish(place, key, {"seconds": seconds})
        return Start(codecs, tables, targets[order]), seconds

    def coded(self, model: DistilledSet, target: float | None) -> Coded:
        """A set as integers, with the finest steps of its networks at which the file is within `target`."""
        learned = None if self.recipe.evaluation.learning_rate else self.learned_rate
        hints = self.hints if learned is None else {**self.hints, "lr": learned}
        return code(model, self.study.train, self.recipe.post_quantisation.max_mse, target, hints)

    def warmed(self, start: Start, seconds: float = 0.0) -> Stage:
        """The warm-up as a stage, its networks at the finest steps."""
        model = DistilledSet.of(start.codecs, start.labels).to(self.device)
        return Stage(model, self.coded(model, None), seconds=seconds)

    def fit(self, start: Start, before: Stage, target: float) -> Stage:
        """The warm-up's objective goes on until the file has `target` bits per class."""
        slices = sum(len(table) for table in start.labels)
        mean, std = self._normalisation()
        utility = Reconstruction(start.targets, mean, std, slices)
        section = self.recipe.fit
        changes = {"max_steps": section.max_steps, "learning_rate": section.learning_rate}
        first = 1 / self.recipe.warm_up.rate_weight
        return self._train("fit", before, utility, target, first, changes)

    def joint(self, before: Stage) -> Stage:
        """The joint run, from `before`."""
        return self._train("joint", before, self.utility, self.recipe.rate.bits_per_class, self.recipe.rate.start, {})

    # -- one run of the trainer ------------------------------------------------------------------------------------

    def _train(
        self,
        name: str,
        before: Stage,
        utility: Utility,
        target: float | None,
        first: float | None,
        changes: dict[str, Any],
    ) -> Stage:
        began = time.perf_counter()
        place = self.folder / name
        # A checkpoint named for the run belongs to the joint stage.
        resume = self.args.resume_from_checkpoint
        args = self._arguments(place, {**changes, "resume_from_checkpoint": "auto" if resume else None})
        sections = ("model", "data", "warm_up", "fit", "utility", "rate", "quantisation", "post_quantisation")
        key = {**stage_key(self.recipe, (*sections, "training")), "target": target}
        known = finished_stage(place, key) if self.args.resume_from_checkpoint else None
        if known is not None:
            model = DistilledSet.from_pretrained(place / "model").to(self.device)
            if isinstance(utility, TrajectoryMatching):
                utility.lr = torch.tensor(float(known["learned_rate"]), requires_grad=True)
            log, timing, seconds = known["log"], known["timing"], float(known["seconds"])
            return Stage(model, self.coded(model, target), log, seconds, timing)
        set_seed(self.seed)
        model = DistilledSet.of(before.model.codecs, before.model.label_tables).to(self.device)
        trainer = self._trainer(model, args, utility, self._rate(before, target), first, name)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        stage = Stage(model, self.coded(model, target), list(trainer.state.log_history), timing=trainer.timing)
        if target is not None:
            self._correct(name, stage, utility, target, model.objective.weight, args)
        stage.seconds = time.perf_counter() - began
        model.save_pretrained(place / "model")
        trainer.create_model_card()
        left = {"seconds": stage.seconds, "log": stage.log, "timing": stage.timing}
        finish(place, key, {**left, "learned_rate": self.learned_rate})
        logger.info("%s: %.0f bits per class in %.0f s", name, stage.coded.bits_per_class, stage.seconds)
        return stage

    def _correct(
        self, name: str, stage: Stage, utility: Utility, target: float, weight: float, args: TrainingArguments
    ) -> None:
        """Short rounds of rounded training while the file is above its size."""
        for number in range(1, _CORRECTIONS + 1):
            if stage.coded.bits_per_class <= target:
                return
            steps = max(20, args.max_steps // 10)
            logger.info(
                "%s: the file has %.0f bits per class, %.0f are wanted; %d more steps",
                *(name, stage.coded.bits_per_class, target, steps),
            )
            place = self.folder / name / f"correction_{number}"
            changes = {"max_steps": steps, "learning_rate": args.learning_rate, "save_strategy": "no"}
            own = self._arguments(place, {**changes, "resume_from_checkpoint": None})
            rate = self._rate(stage, target, ramp=0.0, margin=self.recipe.rate.margin + 0.01 * number)
            trainer = self._trainer(stage.model, own, utility, rate, weight, name, hard_share=1.0)
            trainer.train()
            stage.log += list(trainer.state.log_history)
            weight = stage.model.objective.weight
            stage.coded = self.coded(stage.model, target)

    def _trainer(
        self,
        model: DistilledSet,
        args: TrainingArguments,
        utility: Utility,
        rate: LambdaSchedule | RateControl,
        first: float | None,
        name: str,
        hard_share: float | None = None,
    ) -> JointTrainer:
        section, (mean, std) = self.recipe.quantisation, self._normalisation()
        model.set_objective(
            JointObjective(
                utility,
                RealBatches(self.study.train, self.device),
                mean,
                std,
                args.max_steps,
                sigma=section.sigma,
                temperature=section.temperature,
                hard_share=section.hard_share if hard_share is None else hard_share,
                latents_at_once=section.latents_at_once,
                seed=self.seed,
            )
        )
        if first is None and isinstance(rate, RateControl):
            first = balanced_lambda(model)
            logger.info("%s: gradients of rate and utility are alike at lambda %.3g", name, first)
        trainer = JointTrainer(
            model,
            args,
            rate=rate,
            start=first or 1.0,
            update_every=self.recipe.rate.update_every,
            card=self._card(),
        )
        quiet_trainer(trainer)
        trainer.add_callback(ProgressLines(_LOG_FIELDS, f"{name}: "))
        return trainer

    def _rate(
        self, before: Stage, target: float | None, ramp: float | None = None, margin: float | None = None
    ) -> LambdaSchedule | RateControl:
        """Lambda's stages, or the controller for the latents that `target` leaves room for."""
        section = self.recipe.rate
        if target is None:
            return LambdaSchedule([(stage.steps, stage.value) for stage in section.lambdas])
        rate, classes = before.coded.rate, len(self.study.train.classes)
        _, estimate = decoded(before.model.codecs, self.recipe.quantisation.latents_at_once)
        room = target * classes - (rate.total_bits - rate.latents)
        if room <= 0:
            raise UsageError(
                f"rate.bits_per_class: {target:.0f} for {classes} classes is less than the "
                f"{rate.total_bits - rate.latents} bits of networks and header alone; share decoders "
                "(`model.shared`), take a smaller decoder, or a larger size"
            )
        # Real files are a little longer than the estimate that training sees.
        control = section.control(room * estimate / max(rate.latents, 1))
        options = {"ramp": ramp, "margin": margin}
        return replace(control, **{name: value for name, value in options.items() if value is not None})

    def _arguments(self, place: Path, changes: dict[str, Any]) -> TrainingArguments:
        fields = {**self.recipe.training, "output_dir": str(place), **changes}
        return TrainingArguments(**fields)

    def _normalisation(self) -> tuple[torch.Tensor, torch.Tensor]:
        train = self.study.train
        return torch.tensor(train.mean), torch.tensor(train.std)

    def _card(self) -> MethodCard:
        return method_card(
            self.recipe,
            name="rate-utility dataset distillation",
            paper="Dataset Distillation as Data Compression: A Rate-Utility Perspective",
            paper_id="2507.17221",
            tags=("dataset-distillation",),
            limits=("The state of a training run; the data set itself is the `.ddr` file.",),
        )


class _Progress:
    """A line for every quarter of the warm-up."""

    def __init__(self, name: str) -> None:
        self.name, self.began = name, time.perf_counter()

    def __call__(self, step: int, steps: int) -> None:
        if step % max(1, steps // 4) == 0 or step == steps:
            logger.info("%s: iteration %d of %d, %.0f s", self.name, step, steps, time.perf_counter() - self.began)
