"""Find the answer in what a model wrote, and compare it with the right one. Unreadable is None, never a guess.

| kind | right answers | where |
|---|---|---|
| `boolean` | true, false | BoolQ |
| `solution` | solution1, solution2 | PIQA |
| `answer` | answer1 to answer5 | SIQA, ARC, OpenBookQA |
| `ending` | ending1 to ending4 | HellaSwag |
| `option` | option1, option2 | WinoGrande |
| `number` | a number | GSM8K, MetaMathQA |
| `text` | the whole text, without white space around it | |

Two rules. "strict": the text names exactly one of the words; a number stands behind its marker (`#### 18`,
`The answer is: 18`, `\\boxed{18}`), and all markers say the same. "lenient": the first of the words (as the released
evaluation of LLM-Adapters does), the last number of the text.
"""

from __future__ import annotations

import re
from typing import Literal, get_args


__all__ = ["CHOICES", "AnswerKind", "Rule", "canonical_answer", "choice_kind", "extract_answer"]

AnswerKind = Literal["text", "number", "boolean", "solution", "answer", "ending", "option"]
Rule = Literal["strict", "lenient"]

CHOICES: dict[str, tuple[str, ...]] = {
    "boolean": ("true", "false"),
    "solution": ("solution1", "solution2"),
    "answer": ("answer1", "answer2", "answer3", "answer4", "answer5"),
    "ending": ("ending1", "ending2", "ending3", "ending4"),
    "option": ("option1", "option2"),
}
"""The words of each kind of choice, in lower case."""

_WORDS = {
    kind: re.compile(rf"(?<![^\W_])(?:{'|'.join(words)})(?![^\W_])", re.IGNORECASE) for kind, words in CHOICES.items()
}
_MARKED = re.compile(
    r"####[ \t]*(?P<hashes>[^\n]*)|\bthe answer is:?[ \t]*(?P<words>[^\n]*)|\\boxed\{(?P<box>[^{}]*)\}", re.I
)
_ANYWHERE = re.compile(r"(?<![\w.,])[-+\N{MINUS SIGN}]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w/]|[.,]\d)")
_WHOLE = re.compile(r"([-+]?)((?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)")


def choice_kind(answer: str) -> AnswerKind | None:
    """The kind of choice a right answer belongs to, None for no word of any of them."""
    word = answer.strip().lower()
    return next((kind for kind in get_args(AnswerKind) if word in CHOICES.get(kind, ())), None)


def canonical_answer(text: str, kind: AnswerKind) -> str | None:
    """A right answer as it is compared: lower-case word, plain number (`1,250.0` is `1250`), stripped text.

    None where the text is no answer of that kind: an empty text, another word, a number with letters or a fraction.
    """
    text = text.strip()
    if kind == "text":
        return text or None
    if kind == "number":
        return _plain_number(text)
    return text.lower() if text.lower() in CHOICES[kind] else None


def extract_answer(text: str, kind: AnswerKind, rule: Rule = "strict") -> str | None:
    """The answer in a model's words, as `canonical_answer` writes it; None where there is none to be read."""
    if kind == "text":
        return text.strip() or None
    if kind == "number":
        return _marked_number(text) if rule == "strict" else _last_number(text)
    found = [word.lower() for word in _WORDS[kind].findall(text)]
    if not found or (rule == "strict" and len(set(found)) > 1):
        return None
    return found[0]


def _marked_number(text: str) -> str | None:
    found = set()
    for match in _MARKED.finditer(text):
        words = next(group for group in match.groups() if group is not None).split()
        # "18 dollars": the number is the first word; "x = 18" and "one half" have none there.
        head = "".join(words[:2]) if words[:1] == ["$"] else (words[0] if words else "")
        found.add(_plain_number(head))
    return found.pop() if len(found) == 1 else None


def _last_number(text: str) -> str | None:
    found = _ANYWHERE.findall(text)
    return _plain_number(found[-1]) if found else None


def _plain_number(text: str) -> str | None:
    """A number without thousands separators, currency, percent sign and trailing zeros, None for anything else."""
    text = text.strip().strip("*").rstrip(".,;:!)*").replace("\N{MINUS SIGN}", "-").strip("$%\\")
    text = re.sub(r"^([-+]?)\$", r"\1", text)
    match = _WHOLE.fullmatch(text)
    if match is None or not match[2]:
        return None
    whole, _, part = match[2].replace(",", "").partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    plain = f"{whole}.{part}" if part else whole
    return f"-{plain}" if match[1] == "-" and plain != "0" else plain
