"""The reward for reinforcement learning on checkable answers: 1 for the right answer, 0 for all else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thurl.text.answers import Rule, extract_answer


__all__ = ["ExactAnswerReward"]


class ExactAnswerReward:
    """A reward function for TRL; the data set has the columns `answer` (canonical) and `kind`.

    Logs `answers/accuracy` and `answers/unparsed`, shares of the completions.

    Args:
        rule: how an answer is read, see `thurl.text.answers`.
    """

    __name__ = "exact_answer"

    def __init__(self, rule: Rule = "strict") -> None:
        self.rule = rule

    def __call__(
        self,
        completions: Sequence[Any],
        answer: Sequence[str],
        kind: Sequence[Any],
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float]:
        texts = [
            completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions
        ]
        read = [extract_answer(text, of, self.rule) for text, of in zip(texts, kind, strict=True)]
        rewards = [float(found is not None and found == right) for found, right in zip(read, answer, strict=True)]
        if log_metric is not None and rewards:
            log_metric("answers/accuracy", sum(rewards) / len(rewards))
            log_metric("answers/unparsed", sum(found is None for found in read) / len(read))
        return rewards
