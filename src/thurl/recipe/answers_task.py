"""What a recipe on questions trains on and is judged by: data, model, and exact answers as the evaluation."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from thurl.errors import UsageError
from thurl.recipe.start import built_once
from thurl.recipe.text_sections import CommandsSource, TextSource
from thurl.text.commands import command_questions
from thurl.text.evaluation import Reply, answer_questions, answer_scores
from thurl.text.loading import load_language_model
from thurl.text.prompts import PromptStyle, training_rows
from thurl.text.questions import Question, read_questions, shuffle_answers
from thurl.training.sharded import whole_parameters


__all__ = ["Evaluation", "QuestionTask", "Task", "load_questions"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores of one moment of a run.

    Attributes:
        mean: metric -> value over all tasks; `accuracy`, `unparsed` and `n` for questions.
        tasks: task -> the same of that task.
        examples: what the report shows: task, question, reply, right answer, whether it was right.
    """

    mean: dict[str, float]
    tasks: dict[str, dict[str, float]]
    examples: list[dict[str, Any]] = field(default_factory=list)


class Task(Protocol):
    """What `thurl.recipe.answers_run.run_recipe` asks of a kind of data; text here, pictures may be another."""

    summary: str
    """One sentence on the data, for the report."""

    def start(self, recipe_path: str, overrides: Sequence[str]) -> str:
        """Folder or Hub name of the model to train; a tiny one is built first."""

    def load(self, model_path: str, args: Any) -> tuple[Any, Any]:
        """Model, and the tokenizer or processor that the trainer gets."""

    def rows(self) -> Any:
        """`datasets.Dataset` for the trainer."""

    def shuffled(self, seed: int) -> Task:
        """The same task with nothing to learn, for the control run."""

    def evaluate(self, model: Any, processing_class: Any, *, watch: bool = False) -> Evaluation | None:
        """Scores of a model, None where the recipe evaluates nothing; `watch`: on the few questions of every_steps.

        Called on every process; all must return the same.
        """


def load_questions(sources: Sequence[TextSource]) -> list[Question]:
    """The questions of all sources, in their order.

    Raises:
        MissingRequirementError, DataError: see `thurl.text.questions.read_questions`.
    """
    questions: list[Question] = []
    for source in sources:
        if isinstance(source, CommandsSource):
            questions += command_questions(**source.read_arguments())
        else:
            questions += read_questions(**source.read_arguments())
    return questions


class QuestionTask:
    """Questions in text.

    Args:
        recipe: a `CoToSFTRecipe` or `CoToGRPORecipe`.
        answers_only: rows for reinforcement learning, which need an answer and no completion.
    """

    def __init__(self, recipe: Any, *, answers_only: bool = False) -> None:
        section = recipe.data.prompt
        self.recipe, self.answers_only = recipe, answers_only
        self.style = PromptStyle(section.template, section.chat, section.system)
        self.questions = load_questions(recipe.data.train)
        self.tests = load_questions(recipe.evaluation.sources) if recipe.evaluation else []
        tasks = ", ".join(dict.fromkeys(question.task for question in self.questions))
        self.summary = f"{len(self.questions)} questions to train on ({tasks}), {len(self.tests)} others to test."
        if answers_only:
            silent = sum(question.answer is None for question in self.questions)
            if silent:
                logger.warning(
                    "%d of %d questions have no checkable answer and are left out", silent, len(self.questions)
                )
            self.questions = [question for question in self.questions if question.answer is not None]
            if not self.questions:
                raise UsageError("data.train: no question has an `answer` that a reward could be given for")

    def start(self, recipe_path: str, overrides: Sequence[str]) -> str:
        recipe = self.recipe
        if recipe.model.tiny is None:
            return str(recipe.model.name_or_path)
        from thurl.recipe.visualquality_r1_data import fingerprint

        place = Path(recipe.training["output_dir"]) / "start"
        tiny, seed = recipe.model.tiny.model_dump(), recipe.training.get("seed", 42)
        pretraining = recipe.pretraining.model_dump() if recipe.pretraining else None
        key = fingerprint({"model": tiny, "pretraining": pretraining, "seed": seed})
        return built_once(place, key, lambda: build_start(recipe, place), [__name__, recipe_path, *overrides])

    def load(self, model_path: str, args: Any) -> tuple[Any, Any]:
        section = self.recipe.model
        dtype = section.dtype
        if self.recipe.adapter is None and not args.deepspeed and (args.bf16 or args.fp16) and dtype != "float32":
            # An update of a bfloat16 weight rounds to nothing at usual learning rates.
            logger.info("model.dtype %s: float32 weights, computed in lower precision (no adapter)", dtype)
            dtype = "float32"
        return load_language_model(
            model_path, dtype=dtype, revision=section.revision, attn_implementation=section.attn_implementation
        )

    def rows(self) -> Any:
        from datasets import Dataset

        if not self.answers_only:
            return Dataset.from_list(training_rows(self.questions, self.style))
        return Dataset.from_list(
            [
                {"prompt": self.style.prompt(question), "answer": question.answer, "kind": question.kind}
                for question in self.questions
            ]
        )

    def shuffled(self, seed: int) -> QuestionTask:
        other = object.__new__(QuestionTask)
        other.__dict__.update(self.__dict__, questions=shuffle_answers(self.questions, seed))
        return other

    def evaluate(self, model: Any, processing_class: Any, *, watch: bool = False) -> Evaluation | None:
        section = self.recipe.evaluation
        if section is None:
            return None
        tests = _first_of_each(self.tests, section.watch_rows) if watch else self.tests
        with whole_parameters(model):
            replies = answer_questions(
                model,
                processing_class,
                tests,
                self.style,
                batch_size=section.batch_size,
                max_new_tokens=section.max_new_tokens,
                rule=section.rule,
            )
        scores = answer_scores(replies)
        return Evaluation(scores["mean"], scores["tasks"], [_example(reply) for reply in replies])


def build_start(recipe: Any, place: Path) -> None:
    """Build a tiny model, teach it the commands of `pretraining`, and save it with its tokenizer."""
    from thurl.text.tiny import build_tiny_language_model, pretrain

    tiny, section = recipe.model.tiny, recipe.pretraining
    seed = int(recipe.training.get("seed", 42))
    sizes = tiny.model_dump(exclude={"seed"})
    model, tokenizer = build_tiny_language_model(seed if tiny.seed is None else tiny.seed, **sizes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info("Built a %s of %d parameters", type(model).__name__, parameters)
    if section is not None:
        own = seed if section.seed is None else section.seed
        questions = command_questions(section.commands, section.rows, split="train", lengths=section.lengths, seed=own)
        settings = {name: getattr(section, name) for name in ("steps", "batch", "learning_rate")}
        result = pretrain(model, tokenizer, questions, place / "pretraining", seed=own, **settings)
        commands = ", ".join(section.commands)
        logger.info("Pre-trained on %s in %.0f s: loss %.3f", commands, result["seconds"], result["loss"])
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def _first_of_each(questions: Sequence[Question], count: int) -> list[Question]:
    seen: dict[str, int] = {}
    chosen = []
    for question in questions:
        seen[question.task] = seen.get(question.task, 0) + 1
        if seen[question.task] <= count:
            chosen.append(question)
    return chosen


def _example(reply: Reply) -> dict[str, Any]:
    asked = reply.question.prompt
    text = asked if isinstance(asked, str) else asked[-1]["content"]
    return {
        "task": reply.question.task,
        "question": text,
        "reply": reply.text,
        "answer": reply.question.answer,
        "read": reply.answer,
        "right": reply.right,
    }


def _main(recipe_path: str, overrides: Sequence[str]) -> None:
    from thurl.recipe.validate import load_recipe

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = load_recipe(recipe_path, overrides).recipe
    QuestionTask(recipe).start(recipe_path, overrides)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
