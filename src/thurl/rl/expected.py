"""A deterministic score without sampling: the mean of the answers the model could give, weighted by probability.

The answer is forced open (`<answer>` after the non-thinking prompt) and the probabilities of its digits are read:

    p[d]    probability of d in 1..5 as first digit, among these five tokens
    s[d]    probability that a decimal point follows d, among all tokens
    q[d,j]  probability of j in 0..9 after "d.", among these ten tokens

The answer "d" has weight p[d] (1 - s[d]) and the answer "d.j" weight p[d] s[d] q[d,j]; the score is the weighted mean
of min(value, 5) and the spread its standard deviation. The second decimal would change a score by less than 0.1 and is
not read. With `decimals=0` only the first digit is: score = sum of d p[d], one pass instead of at most six.

This is the readout idea of Q-Align (arXiv 2312.17090, over level words) applied to the digits of VisualQuality-R1's
numeric answer; it is not part of the VisualQuality-R1 paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thurl.errors import UsageError


__all__ = ["AnswerDigitError", "AnswerTokens", "expected_score", "find_answer_tokens"]

OPENING = "<answer>"
FIRST_DIGITS = tuple("12345")
DECIMAL_DIGITS = tuple("0123456789")
# A first digit less likely than this is not followed further; the largest effect on a score is 5 digits x 1e-7 x 0.9.
NEGLIGIBLE = 1e-7


class AnswerDigitError(UsageError):
    """The tokenizer does not write the digits of an answer as single tokens, so mode "expected" cannot read them."""


@dataclass(frozen=True)
class AnswerTokens:
    """Token ids of an answer.

    Attributes:
        first: ids of "1" to "5" right after the opening.
        point: id of "." after a first digit.
        decimals: ids of "0" to "9" after the point.
    """

    first: tuple[int, ...]
    point: int
    decimals: tuple[int, ...]


def find_answer_tokens(tokenizer: Any, opening: str = OPENING) -> AnswerTokens:
    """Find the single tokens of the digits in the place where an answer has them.

    Each is found by encoding the text up to and including it, so it does not matter how the tokenizer treats spaces.

    Raises:
        AnswerDigitError: a digit or the point is not exactly one token there.
    """

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    problems: list[str] = []

    def one_token(before: str, character: str) -> int:
        head, whole = encode(before), encode(before + character)
        if len(whole) == len(head) + 1 and whole[: len(head)] == head:
            return whole[-1]
        problems.append(f"{character!r} after {before!r}")
        return -1

    first = tuple(one_token(opening, digit) for digit in FIRST_DIGITS)
    points = {one_token(opening + digit, ".") for digit in FIRST_DIGITS}
    decimals = {tuple(one_token(f"{opening}{digit}.", j) for j in DECIMAL_DIGITS) for digit in FIRST_DIGITS}
    if problems or len(set(first)) < len(first) or len(points) > 1 or len(decimals) > 1:
        shown = ", ".join(problems[:5]) or "a digit has different tokens in different answers"
        raise AnswerDigitError(
            f"this tokenizer does not write an answer digit by digit ({shown}), which mode 'expected' needs: "
            "use mode 'direct' or 'think'"
        )
    return AnswerTokens(first, points.pop(), decimals.pop())


def expected_score(
    first: Sequence[float],
    point: Sequence[float] | None = None,
    decimals: Sequence[Sequence[float]] | None = None,
) -> tuple[float, float]:
    """Mean and standard deviation of the answer, from the probabilities of its digits.

    Args:
        first: p[d], 5 probabilities that sum to 1.
        point: s[d], 5 probabilities; None when no decimals are read.
        decimals: q[d, j], 5 x 10 probabilities, each row summing to 1.

    Returns:
        (mean in [1, 5], standard deviation >= 0).
    """
    weights: list[float] = []
    values: list[float] = []
    for i, p in enumerate(first):
        stop = 1.0 if point is None else 1.0 - point[i]
        weights.append(p * stop)
        values.append(i + 1.0)
        if point is not None and decimals is not None:
            weights += [p * point[i] * q for q in decimals[i]]
            values += [min(i + 1 + j / 10, 5.0) for j in range(10)]
    mean = math.fsum(w * v for w, v in zip(weights, values, strict=True))
    variance = math.fsum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True))
    return mean, math.sqrt(max(variance, 0.0))
