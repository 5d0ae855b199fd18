"""Questions for language models, read from files: the layouts of LLM-Adapters, GSM8K and MetaMathQA, and one's own.

| format | file | row |
|---|---|---|
| `commonsense` | JSON list | `instruction`, `input`, `output`, `answer` (LLM-Adapters) |
| `gsm8k` | JSON Lines | `question`, `answer` that ends with `#### 18` |
| `metamath` | JSON list or JSON Lines | `query`, `response` |
| `prompt_completion` | JSON Lines | `prompt`, `completion` and/or `answer`, perhaps `task` |
| `chat` | JSON Lines | `messages` with `role` and `content`, the assistant last, and/or `answer`, perhaps `task` |

A row that breaks its layout stops the reading, with the numbers of all such rows.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.text.answers import CHOICES, AnswerKind, canonical_answer, choice_kind, extract_answer


__all__ = ["QUESTION_FORMATS", "Message", "Question", "read_questions", "shuffle_answers"]

logger = logging.getLogger(__name__)

Message = Mapping[str, str]

_SHOWN = 5


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        prompt: what is asked, before a template is put around it; messages of a conversation for `chat`.
        task: data set or kind of question, a row of the table of results.
        completion: what a model is to write, None where only the answer is known.
        answer: the right answer in canonical form (`canonical_answer`), None where it cannot be checked.
        kind: how an answer is read and compared.
    """

    prompt: str | tuple[Message, ...]
    task: str
    completion: str | None = None
    answer: str | None = None
    kind: AnswerKind = "text"


def read_questions(
    format: str,
    file: str | os.PathLike[str],
    *,
    task: str | None = None,
    kind: AnswerKind | None = None,
    max_rows: int | None = None,
    seed: int = 0,
) -> list[Question]:
    """Read the questions of a file, in its order.

    Args:
        format: see the module.
        file: UTF-8.
        task: name of the questions that name none themselves; the folder's or the file's name when left out.
        kind: of the answers of `prompt_completion` and `chat`; "text" when left out.
        max_rows: draw so many without replacement, kept in the order of the file.
        seed: of the draw.

    Raises:
        MissingRequirementError: no such file.
        UsageError: an unknown format.
        DataError: not the layout; all bad rows are counted, the first ones described.
    """
    if format not in QUESTION_FORMATS:
        raise UsageError(f"question format {format!r} is not one of {', '.join(QUESTION_FORMATS)}")
    path = Path(file)
    if not path.is_file():
        raise MissingRequirementError(f"{path}: no such file")
    rows = _rows(path, lines=format not in ("commonsense",))
    name = task or (path.parent.name if path.stem in ("train", "test", "validation") else path.stem) or path.stem
    questions, problems = [], []
    for number, row in rows:
        try:
            question = QUESTION_FORMATS[format](row, kind or "text")
        except DataError as error:
            problems.append(f"row {number}: {error}")
            continue
        questions.append(question if question.task else replace(question, task=name))
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            f"{path}: {len(problems)} of {len(rows)} rows are no `{format}` rows "
            f"({'; '.join(problems[:_SHOWN])}{more}). Mend or remove them, or choose another `format`."
        )
    if not questions:
        raise DataError(f"{path}: holds no question")
    contradicting = sum(map(_contradicts, questions))
    if contradicting:
        logger.warning("%s: the completions of %d of %d rows say another answer", path, contradicting, len(rows))
    if max_rows is not None and max_rows < len(questions):
        chosen = sorted(random.Random(seed).sample(range(len(questions)), max_rows))
        questions = [questions[index] for index in chosen]
    return questions


def shuffle_answers(questions: Sequence[Question], seed: int) -> list[Question]:
    """The same questions with the completions and answers of others of their task: nothing is left to learn.

    No question of a task with at least two different completions keeps its place's pair by design; by chance the
    answer may still be right, as often as two random answers agree.
    """
    rng = random.Random(seed)
    by_task: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        by_task.setdefault(question.task, []).append(index)
    shuffled = list(questions)
    for places in by_task.values():
        order = places[:]
        rng.shuffle(order)
        # A cycle through a random order gives nobody its own.
        for place, giver in zip(order, order[1:] + order[:1], strict=True):
            other = questions[giver]
            shuffled[place] = replace(questions[place], completion=other.completion, answer=other.answer)
    return shuffled


def _contradicts(question: Question) -> bool:
    if question.completion is None or question.answer is None or question.kind == "text":
        return False
    return extract_answer(question.completion, question.kind, "lenient") != question.answer


# -- layouts -------------------------------------------------------------------------------------------------------


def _commonsense(row: Mapping[str, Any], kind: AnswerKind) -> Question:
    instruction, output = _text(row, "instruction"), _text(row, "output")
    more = row.get("input") or ""
    if not isinstance(more, str):
        raise DataError(f"`input` is {more!r}, but must be text")
    answer = _text(row, "answer").lower()
    known = choice_kind(answer)
    if known is None:
        words = ", ".join(word for words in CHOICES.values() for word in words)
        raise DataError(f"`answer` is {answer!r}, but must be one of {words}")
    prompt = f"{instruction}\n\n{more}" if more else instruction
    return Question(prompt, "", output, answer, known)


def _gsm8k(row: Mapping[str, Any], kind: AnswerKind) -> Question:
    question, solution = _text(row, "question"), _text(row, "answer")
    _, marker, end = solution.rpartition("####")
    answer = extract_answer(marker + end, "number") if marker else None
    if answer is None:
        raise DataError(f"`answer` ends with {solution[-40:]!r}, but must end with `#### ` and a number")
    return Question(question, "", solution, answer, "number")


def _metamath(row: Mapping[str, Any], kind: AnswerKind) -> Question:
    query, response = _text(row, "query"), _text(row, "response")
    # Many of its answers are formulas; such rows train, but cannot be checked.
    return Question(query, "", response, extract_answer(response, "number"), "number")


def _prompt_completion(row: Mapping[str, Any], kind: AnswerKind) -> Question:
    prompt = _text(row, "prompt")
    completion, answer = _completion_and_answer(row, row.get("completion"), "completion", kind)
    return Question(prompt, _task(row), completion, answer, kind)


def _chat(row: Mapping[str, Any], kind: AnswerKind) -> Question:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError("`messages` is missing or no list")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f"message {place} has no text `role` and `content`")
        if message["role"] not in ("system", "user", "assistant"):
            raise DataError(f"message {place} has the role {message['role']!r}, not system, user or assistant")
    last = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
    asked = messages[:-1] if last is not None else messages
    if not asked or asked[-1]["role"] != "user":
        raise DataError("before the answer there must be a message of the user")
    completion, answer = _completion_and_answer(row, last, "message of the assistant", kind)
    prompt = tuple({"role": message["role"], "content": message["content"]} for message in asked)
    return Question(prompt, _task(row), completion, answer, kind)


QUESTION_FORMATS: dict[str, Callable[[Mapping[str, Any], AnswerKind], Question]] = {
    "commonsense": _commonsense,
    "gsm8k": _gsm8k,
    "metamath": _metamath,
    "prompt_completion": _prompt_completion,
    "chat": _chat,
}
"""Name of a layout to the reader of one row, which raises `DataError`."""


def _completion_and_answer(
    row: Mapping[str, Any], completion: Any, what: str, kind: AnswerKind
) -> tuple[str | None, str | None]:
    answer = row.get("answer")
    if completion is None and answer is None:
        raise DataError(f"there is neither a {what} nor an `answer`")
    if completion is not None and (not isinstance(completion, str) or not completion.strip()):
        raise DataError(f"the {what} is {completion!r}, but must be text")
    if answer is None:
        return completion, extract_answer(completion or "", kind)
    text = answer if isinstance(answer, str) else json.dumps(answer)
    right = canonical_answer(text, kind)
    if right is None:
        raise DataError(f"`answer` {answer!r} is no answer of the kind `{kind}`")
    return completion, right


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"`{key}` is {'missing' if key not in row else repr(value)}, but must be text")
    return value.strip()


def _task(row: Mapping[str, Any]) -> str:
    task = row.get("task", "")
    if not isinstance(task, str):
        raise DataError(f"`task` is {task!r}, but must be text")
    return task


def _rows(path: Path, *, lines: bool) -> list[tuple[int, Any]]:
    """(number from 1, object) of each row; of JSON Lines the number of the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if not lines or text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error})") from None
        if not isinstance(rows, list):
            raise DataError(f"{path}: holds {type(rows).__name__}, but must hold a list of rows")
        numbered = list(enumerate(rows, start=1))
    else:
        numbered = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    numbered.append((number, json.loads(line)))
                except (json.JSONDecodeError, RecursionError) as error:
                    raise DataError(f"{path}, line {number}: not JSON ({error})") from None
    wrong = [number for number, row in numbered if not isinstance(row, dict)]
    if wrong:
        raise DataError(f"{path}: rows {wrong[:_SHOWN]} are no objects ({len(wrong)} of {len(numbered)})")
    return numbered
