"""How a question is put to a model: a text template, or the chat template of its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thurl.errors import UsageError
from thurl.text.questions import Question


__all__ = ["PLACE", "PromptStyle", "prompt_tokens", "training_rows"]

PLACE = "{question}"


@dataclass(frozen=True)
class PromptStyle:
    """Args:
    template: text with `{question}` once; the question alone by default. Not used with `chat`.
    chat: questions become messages of a user, rendered by the tokenizer's chat template.
    system: first message, with `chat`.
    """

    template: str = PLACE
    chat: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        if self.template.count(PLACE) != 1:
            raise UsageError(f"`template` {self.template!r} must hold {PLACE} exactly once")
        if self.system and not self.chat:
            raise UsageError("`system` is a message of a conversation; set `chat: true`, or put it into `template`")

    def prompt(self, question: Question) -> str | list[dict[str, str]]:
        """The prompt in one of TRL's two forms: text, or messages."""
        if isinstance(question.prompt, str):
            if not self.chat:
                return self.template.replace(PLACE, question.prompt)
            messages = [{"role": "user", "content": question.prompt}]
        elif self.chat:
            messages = [dict(message) for message in question.prompt]
        else:
            raise UsageError(
                f"a question of {question.task!r} is a conversation; set `data.prompt.chat: true` to put it to a model"
            )
        if self.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        return messages

    def completion(self, text: str) -> str | list[dict[str, str]]:
        """A completion in the form that goes with `prompt`."""
        return [{"role": "assistant", "content": text}] if self.chat else text


def prompt_tokens(tokenizer: Any, prompt: str | list[dict[str, str]]) -> list[int]:
    """As TRL tokenizes prompts: special tokens of the tokenizer for text, those of the template for a conversation."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
    ids: Mapping[str, Any] = encoded
    return list(ids["input_ids"])


def training_rows(questions: Sequence[Question], style: PromptStyle) -> list[dict[str, Any]]:
    """Rows `prompt`, `completion` as TRL's supervised trainer takes them (it adds the end token itself).

    Raises:
        UsageError: a question without a completion.
    """
    silent = [question for question in questions if question.completion is None]
    if silent:
        raise UsageError(
            f"{len(silent)} of {len(questions)} questions have no completion to learn, the first of them in "
            f"{silent[0].task!r}: add `completion`, or train with `method: coto_grpo`, which needs answers only"
        )
    return [
        {"prompt": style.prompt(question), "completion": style.completion(question.completion or "")}
        for question in questions
    ]
