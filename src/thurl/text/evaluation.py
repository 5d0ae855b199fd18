"""Exact answers: greedy completions of questions, what could be read of them, accuracy per task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from thurl.errors import UsageError
from thurl.text.answers import Rule, extract_answer
from thurl.text.prompts import PromptStyle, prompt_tokens
from thurl.text.questions import Question


__all__ = ["Reply", "answer_questions", "answer_scores"]


@dataclass(frozen=True)
class Reply:
    """A question with what a model wrote (`text`) and what could be read of it (`answer`, None: nothing)."""

    question: Question
    text: str
    answer: str | None

    @property
    def right(self) -> bool:
        return self.answer is not None and self.answer == self.question.answer


def answer_scores(replies: Sequence[Reply]) -> dict[str, Any]:
    """Scores of replies; a reply that cannot be read is wrong and is counted.

    Returns:
        `tasks`: name -> `accuracy`, `unparsed` (share of replies without a readable answer), `n`; and `mean`: the same
        over tasks, each with equal weight, with `n` questions in all.
    """
    tasks: dict[str, list[Reply]] = {}
    for reply in replies:
        tasks.setdefault(reply.question.task, []).append(reply)
    scores = {
        name: {
            "accuracy": fmean(reply.right for reply in group),
            "unparsed": fmean(reply.answer is None for reply in group),
            "n": len(group),
        }
        for name, group in tasks.items()
    }
    mean = {key: fmean(entry[key] for entry in scores.values()) for key in ("accuracy", "unparsed")} if scores else {}
    return {"mean": {**mean, "n": len(replies)}, "tasks": scores}


def answer_questions(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    style: PromptStyle,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 256,
    rule: Rule = "strict",
) -> list[Reply]:
    """Let the model complete each question greedily; on several processes each takes a share and all get all replies.

    Args:
        model: a causal language model, with or without adapter; its mode is given back as it was.
        tokenizer: its padding side is not changed; prompts are padded on the left here.
        questions: with answers; in any order, batches are made of prompts of similar length.

    Raises:
        UsageError: a question without an answer to compare with.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    unknown = sum(question.answer is None for question in questions)
    if unknown:
        raise UsageError(f"{unknown} of {len(questions)} questions to evaluate on have no `answer` to compare with")
    state = PartialState()
    prompts = [prompt_tokens(tokenizer, style.prompt(question)) for question in questions]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    mine = order[state.process_index :: state.num_processes]
    texts: list[tuple[int, str]] = []
    training = model.training
    model.eval()
    try:
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            width = max(len(prompts[row]) for row in rows)
            pad = tokenizer.pad_token_id
            ids = [[pad] * (width - len(prompts[row])) + prompts[row] for row in rows]
            mask = [[0] * (width - len(prompts[row])) + [1] * len(prompts[row]) for row in rows]
            with torch.no_grad():
                output = model.generate(
                    input_ids=torch.tensor(ids, device=model.device),
                    attention_mask=torch.tensor(mask, device=model.device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    # A released model's settings for sampling would only be warned of.
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    use_cache=True,
                    pad_token_id=pad,
                )
            words = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
            texts += zip(rows, words, strict=True)
    finally:
        model.train(training)
    if state.num_processes > 1:
        texts = gather_object(texts)
    found = dict(texts)
    return [
        Reply(question, found[index], extract_answer(found[index], question.kind, rule))
        for index, question in enumerate(questions)
    ]
