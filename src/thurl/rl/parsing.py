"""From the text of a completion to a score, and the reward for keeping the answer format.

Paper: arXiv 2505.14460 (VisualQuality-R1), Section 3.2. Two readings exist side by side:

- `official` does exactly what the published training code does (fork of VLM-R1), short of its random fallback;
- `strict` (default) takes a score only where the model was asked to put it and only when it is one plain number, so
  "4,5", "4/5", "between 2 and 3" and "I see 2 dogs" are failures and not the numbers 4, 4, 2 and 2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal


__all__ = ["SCORE_RANGE", "ParseMode", "format_reward", "parse_score"]

SCORE_RANGE = (1.0, 5.0)
"""The range the question asks for (arXiv 2505.14460, prompt)."""

ParseMode = Literal["strict", "official"]

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_OFFICIAL_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_PLAIN_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_OFFICIAL_FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_STRICT_FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")


def _check_mode(mode: str) -> None:
    if mode not in ("strict", "official"):
        raise ValueError(f"`mode` is {mode!r}; it must be 'strict' or 'official'.")


def parse_score(text: str, mode: ParseMode = "strict") -> float | None:
    """Read the score out of a completion.

    Args:
        text: decoded completion, special tokens removed.
        mode: `"strict"`: the last `<answer>...</answer>` must hold one plain ASCII decimal number and nothing else
            but white space. `"official"`: the first match of `-?\\d+(\\.\\d+)?` inside the last answer, or inside the
            whole text when there is no answer tag (arXiv 2505.14460, official code).

    Returns:
        The score as written, not clamped to any range, or None where the official code draws a random number.
        `"strict"` returns only finite values; `"official"` returns `inf` for a number too long for a float.

    Raises:
        ValueError: unknown `mode`.
    """
    _check_mode(mode)
    answers = _ANSWER.findall(text)
    if mode == "official":
        match = _OFFICIAL_NUMBER.search((answers[-1] if answers else text).strip())
        return float(match.group()) if match else None
    if not answers:
        return None
    answer = answers[-1].strip()
    if not _PLAIN_NUMBER.fullmatch(answer):
        return None
    score = float(answer)
    return score if math.isfinite(score) else None


def format_reward(texts: Sequence[str], mode: Literal["official", "strict"] = "official") -> list[float]:
    """1.0 for each text in the think-then-answer format, else 0.0.

    Args:
        texts: decoded completions.
        mode: `"official"`: the whole text matches `<think>.*?</think>\\s*<answer>.*?</answer>`, unstripped, as the
            published code does (several answers or empty tags pass, a trailing newline fails). `"strict"`: exactly
            one think block that says something, then exactly one answer that `parse_score` accepts, white space
            around them allowed.

    Returns:
        One reward per text.

    Raises:
        ValueError: unknown `mode`.
    """
    _check_mode(mode)
    if mode == "official":
        return [1.0 if _OFFICIAL_FORMAT.fullmatch(text) else 0.0 for text in texts]
    return [1.0 if _is_strict(text) else 0.0 for text in texts]


def _is_strict(text: str) -> bool:
    match = _STRICT_FORMAT.fullmatch(text)
    if match is None or len(_TAG.findall(text)) != 4:
        return False
    return bool(match.group(1).strip()) and parse_score(text) is not None
