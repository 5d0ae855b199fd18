"""A run that is judged by its answers: start, evaluation, training, evaluation, control, results and report.

Supervised fine-tuning and GRPO differ in the trainer only; text and pictures differ in the `Task` only.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from thurl.recipe.answers_report import AnswersRun, write_report
from thurl.recipe.answers_task import Evaluation, Task
from thurl.recipe.language_cards import answers_card
from thurl.training.deepspeed_cpu import prepare_deepspeed_on_cpu
from thurl.training.model_card import write_model_card
from thurl.training.progress import ProgressLines, quiet_libraries, quiet_trainer
from thurl.training.results import write_atomically
from thurl.training.timing import phase


__all__ = ["AnswersCallback", "run_recipe", "train"]

logger = logging.getLogger(__name__)

_ENTRY = "answered/"

Arguments = Callable[..., Any]
Trainers = Callable[[Task, Any, Any, Any], Any]


def run_recipe(
    recipe: Any,
    task: Task,
    arguments: Arguments,
    trainers: Trainers,
    fields: dict[str, tuple[str, str]],
    recipe_path: str,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Train, evaluate and report; on every process.

    Args:
        recipe: with the sections `training`, `control`, `evaluation`, `report`.
        task: data and evaluation.
        arguments: makes the trainer's configuration of the recipe's `training`; keyword arguments win.
        trainers: makes a trainer of a task, its configuration, a model and a tokenizer or processor.
        fields: log entries that are printed, see `thurl.training.progress.ProgressLines`.

    Returns:
        the record of the run, as in the results file.
    """
    quiet_libraries()
    field = recipe.training.get
    prepare_deepspeed_on_cpu(field("deepspeed"), bool(field("use_cpu")), float(field("ddp_timeout", 1800)))
    args = arguments()
    started = time.perf_counter()
    logger.info("%s", task.summary)
    model_path = task.start(recipe_path, overrides)
    start_seconds = time.perf_counter() - started
    main = train(recipe, task, args, model_path, trainers, fields)
    main.seconds.update(start=start_seconds, total=time.perf_counter() - started)
    control = None
    if recipe.control.shuffle_answers:
        logger.info("Control: the same run with the answers of other questions, which must learn nothing")
        # A checkpoint named for the run is not one of the control.
        resume = "auto" if args.resume_from_checkpoint else None
        folder = str(Path(args.output_dir) / "control")
        control_args = arguments(output_dir=folder, resume_from_checkpoint=resume)
        control = train(
            recipe, task.shuffled(recipe.control.seed), control_args, model_path, trainers, fields, name="control"
        )
    return write_report(recipe, args.seed, task, main, control, recipe_path, overrides)


def train(
    recipe: Any,
    task: Task,
    args: Any,
    model_path: str,
    trainers: Trainers,
    fields: dict[str, tuple[str, str]],
    name: str = "",
) -> AnswersRun:
    """One training run from the model at `model_path`, with evaluation before, during and after."""
    set_seed(args.seed)  # a new adapter's weights are drawn below
    model, processing_class = task.load(model_path, args)
    trainer = trainers(task, args, model, processing_class)
    quiet_trainer(trainer)
    trainer.add_callback(ProgressLines(fields, f"{name}: " if name else ""))
    section, watch = recipe.evaluation, None
    if section is not None and section.every_steps:
        path = Path(args.output_dir) / "answers.jsonl"
        watch = AnswersCallback(trainer, task, section.every_steps, path, f"{name}: " if name else "")
        trainer.add_callback(watch)
    clock = time.perf_counter()
    before = None
    if section is not None and section.before and not name:
        before = task.evaluate(trainer.model, processing_class)
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    saved = time.perf_counter()
    trainer.save_model()
    after = task.evaluate(trainer.model, processing_class) if section is not None and section.after else None
    seconds = {"training": saved - began, "evaluation": began - clock + time.perf_counter() - saved}
    tasks = {} if after is None else after.tasks
    measured = {name: {key: found[key] for key in found if key != "n"} for name, found in tasks.items()}
    write_model_card(trainer, answers_card(recipe), measured)
    history = watch.history if watch else []
    return AnswersRun(list(trainer.state.log_history), history, before, after, seconds, trainer.timing)


class AnswersCallback(TrainerCallback):
    """Evaluates every so many steps and at the end; leaves `step`, `answered/<metric>` in the trainer's log history.

    All adapters are on: the model is in evaluation mode.

    Args:
        path: JSON Lines file of the entries, written anew with each of them by the main process.
        prefix: put in front of the printed lines.
    """

    def __init__(self, trainer: Any, task: Task, every: int, path: Path, prefix: str = "") -> None:
        self.trainer, self.task, self.every, self.path, self.prefix = trainer, task, every, path, prefix

    @property
    def history(self) -> list[dict[str, float]]:
        """The entries without their prefix; those before a resumed checkpoint are among them."""
        return [
            {key.removeprefix(_ENTRY): value for key, value in entry.items() if key == "step" or _ENTRY in key}
            for entry in self.trainer.state.log_history
            if "loss" not in entry and any(key.startswith(_ENTRY) for key in entry)
        ]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        with phase("evaluation"):
            found: Evaluation | None = self.task.evaluate(
                self.trainer.model, self.trainer.processing_class, watch=True
            )
        if found is None:
            return
        state.log_history.append(
            {"step": state.global_step, **{_ENTRY + key: value for key, value in found.mean.items()}}
        )
        if state.is_world_process_zero:
            write_atomically(self.path, "".join(json.dumps(entry) + "\n" for entry in self.history))
            numbers = ", ".join(f"{key} {value:.3f}" for key, value in found.mean.items() if key != "n")
            logger.info("%safter step %d: %s", self.prefix, state.global_step, numbers)
