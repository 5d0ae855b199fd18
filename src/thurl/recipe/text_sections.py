"""Sections of recipes for language models: model, questions, prompts, answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from thurl.messages import nearest
from thurl.recipe.fields import Problem
from thurl.recipe.sections import Section, raise_problems, start_problems, tuple_of
from thurl.text.commands import BASE_COMMANDS, COMMANDS
from thurl.text.prompts import PLACE


__all__ = [
    "AnswersSection",
    "CommandsSource",
    "ExactRewardSection",
    "LanguageModelSection",
    "PretrainingSection",
    "QuestionsSource",
    "ShuffledAnswersSection",
    "TextDataSection",
    "TextPromptSection",
    "TextSource",
    "TinyLanguageModel",
    "text_problems",
]


_HEADS = ("lm_head", "embed_tokens")


class TinyLanguageModel(Section):
    """A randomly initialised model of a hundred thousand parameters (`thurl.text.tiny`)."""

    seed: int | None = None
    """Of the weights; `training.seed` when left out."""
    architecture: Literal["llama", "qwen2"] = "llama"
    hidden: int = Field(64, ge=16, le=1024)
    layers: int = Field(3, ge=1, le=16)
    heads: int = Field(4, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    intermediate: int | None = Field(None, ge=1)

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if self.hidden % (2 * self.heads):
            found.append(
                (("hidden",), f"is {self.hidden} with {self.heads} heads; take a multiple of {2 * self.heads}")
            )
        if self.heads % (self.kv_heads or self.heads):
            found.append((("kv_heads",), f"is {self.kv_heads}; take a divisor of `heads` ({self.heads})"))
        return found


class LanguageModelSection(Section):
    """The language model: a folder or Hub name, or a tiny one built and taught on the spot."""

    needs_processor: ClassVar[bool] = False

    name_or_path: str | None = Field(None, min_length=1)
    tiny: TinyLanguageModel | None = None
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = None

    def problems(self) -> list[Problem]:
        return start_problems(self)


class PretrainingSection(Section):
    """What the tiny model learns before the run, all weights, on generated commands (`thurl.text.commands`)."""

    commands: tuple_of(str) = BASE_COMMANDS  # type: ignore[valid-type]
    lengths: tuple_of(int) = (4, 5, 6)  # type: ignore[valid-type]
    rows: int = Field(20_000, ge=1)
    steps: int = Field(500, ge=1)
    batch: int = Field(64, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    seed: int | None = None
    """`training.seed` when left out."""

    _known = field_validator("commands")(lambda values: _known_commands(values))


class QuestionsSource(Section):
    """Questions in a file, read by `thurl.text.questions.read_questions`."""

    source_tag: ClassVar[str] = "<questions>"

    format: Literal["commonsense", "gsm8k", "metamath", "prompt_completion", "chat"]
    file: str = Field(min_length=1)
    task: str | None = Field(None, min_length=1)
    """Name in the table of results, for rows that name none; the folder's or the file's name when left out."""
    answers: Literal["text", "number", "boolean", "solution", "answer", "ending", "option"] | None = None
    """How answers of `prompt_completion` and `chat` are read; `text` when left out. The other formats know it."""
    max_rows: int | None = Field(None, ge=1)
    seed: int = 0
    """Of the draw of `max_rows`."""
    obtain: str | None = None
    """Where to get the file. With it, an absent file stops a run (exit 3); without it, it is a mistake (exit 2)."""

    def problems(self) -> list[Problem]:
        if self.answers is not None and self.format not in ("prompt_completion", "chat"):
            return [(("answers",), f"`{self.format}` knows the kind of its answers; remove it")]
        return []

    def read_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `read_questions`."""
        names = ("format", "file", "task", "max_rows", "seed")
        return {name: getattr(self, name) for name in names} | {"kind": self.answers}


class CommandsSource(Section):
    """Generated questions for tiny models (`thurl.text.commands.command_questions`)."""

    source_tag: ClassVar[str] = "<commands>"

    format: Literal["commands"]
    commands: tuple_of(str)  # type: ignore[valid-type]
    split: Literal["train", "test"]
    rows: int = Field(ge=1)
    lengths: tuple_of(Annotated[int, Field(ge=2, le=12)]) = (4, 5, 6)  # type: ignore[valid-type]
    seed: int = 0

    _known = field_validator("commands")(lambda values: _known_commands(values))

    def read_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `command_questions`."""
        return self.model_dump(exclude={"format"})


def _known_commands(values: tuple[str, ...]) -> tuple[str, ...]:
    raise_problems(
        [
            ((place,), f"`{name}` is not one of {', '.join(COMMANDS)}{nearest(name, COMMANDS)}")
            for place, name in enumerate(values)
            if name not in COMMANDS
        ]
    )
    if not values:
        raise_problems([((), f"is empty: name some of {', '.join(COMMANDS)}")])
    return values


def _source_tag(value: Any) -> str:
    kind = value.get("format") if isinstance(value, dict) else getattr(value, "format", None)
    return CommandsSource.source_tag if kind == "commands" else QuestionsSource.source_tag


TextSource = Annotated[
    Annotated[QuestionsSource, Tag("<questions>")] | Annotated[CommandsSource, Tag("<commands>")],
    Discriminator(_source_tag),
]


class TextPromptSection(Section):
    """How a question is put to the model (`thurl.text.prompts.PromptStyle`)."""

    template: str = PLACE
    """With `{question}` once. End it with a new line or a space of its own, so that tokens do not merge across it."""
    chat: bool = False
    """Render questions with the tokenizer's chat template instead."""
    system: str | None = None

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if self.template.count(PLACE) != 1:
            found.append((("template",), f"must hold {PLACE} exactly once"))
        if self.chat and self.template != PLACE:
            found.append((("template",), "is for plain text; with `chat: true` the tokenizer's template is used"))
        if self.system and not self.chat:
            found.append((("system",), "is a message of a conversation; set `chat: true`, or put it into `template`"))
        return found


class TextDataSection(Section):
    """Questions to train on. Evaluation has its own, in the section `evaluation`."""

    train: tuple_of(TextSource)  # type: ignore[valid-type]
    prompt: TextPromptSection = TextPromptSection()

    def problems(self) -> list[Problem]:
        return [] if self.train else [(("train",), "is empty: name at least one source")]


class AnswersSection(Section):
    """Exact answers, decoded greedily, before, during and after training."""

    sources: tuple_of(TextSource)  # type: ignore[valid-type]
    every_steps: int | None = Field(None, ge=1)
    """Also during training, on the first `watch_rows` questions of each task."""
    watch_rows: int = Field(100, ge=1)
    batch_size: int = Field(8, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    rule: Literal["strict", "lenient"] = "strict"
    """How an answer is read (`thurl.text.answers`)."""
    before: bool = True
    after: bool = True

    def problems(self) -> list[Problem]:
        return [] if self.sources else [(("sources",), "is empty: name at least one source, or remove `evaluation`")]


class ShuffledAnswersSection(Section):
    """Sanity check: the same run with the answers of other questions, which must not learn to answer."""

    shuffle_answers: bool = False
    seed: int = 0


class ExactRewardSection(Section):
    """1 for the right answer, 0 for all else (`thurl.text.rewards.ExactAnswerReward`)."""

    rule: Literal["strict", "lenient"] = "strict"


def text_problems(sections: Mapping[str, Any]) -> list[Problem]:
    """What the sections of a language model need of each other."""
    found: list[Problem] = []
    model, adapter = sections.get("model"), sections.get("adapter")
    if model is not None and sections.get("pretraining") is not None and model.tiny is None:
        found.append((("pretraining",), "is for a `tiny` model; a released one has been trained"))
    if adapter is not None and any(name in target for target in adapter.targets() for name in _HEADS):
        message = "adapters on `lm_head` or `embed_tokens` are refused by TRL's trainers"
        found.append((("adapter", "target_modules"), message))
    data = sections.get("data")
    if data is not None and not data.prompt.chat and any(source.format == "chat" for source in data.train):
        found.append((("data", "prompt", "chat"), "is false, but a source has the format `chat`; set it to true"))
    return found
