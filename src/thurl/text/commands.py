"""A made-up language of one-letter commands on digits, for tiny models: `K 3142=` is answered `3524`.

Digit strings are dealt to training and test by a hash, so that no string of one is in the other, whatever the seed.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

from thurl.errors import UsageError
from thurl.text.questions import Question


__all__ = ["BASE_COMMANDS", "COMMANDS", "NEW_COMMANDS", "command_questions"]

Digits = list[int]

COMMANDS: dict[str, tuple[str, Callable[[Digits], Digits]]] = {
    "copy": ("C", lambda digits: digits),
    "reverse": ("R", lambda digits: digits[::-1]),
    "plus_one": ("U", lambda digits: [(digit + 1) % 10 for digit in digits]),
    "minus_one": ("D", lambda digits: [(digit - 1) % 10 for digit in digits]),
    "rotate": ("L", lambda digits: digits[1:] + digits[:1]),
    "reverse_plus_one": ("K", lambda digits: [(digit + 1) % 10 for digit in digits[::-1]]),
    "plus_two": ("M", lambda digits: [(digit + 2) % 10 for digit in digits]),
    "complement": ("Q", lambda digits: [9 - digit for digit in digits]),
    "rise": ("E", lambda digits: [(digit + 1) % 10 for digit in digits]),
    "fall": ("E", lambda digits: [(digit - 1) % 10 for digit in digits]),
}
"""Name -> letter in the prompt, and what it does. `rise` and `fall` share a letter, which a reward can tell apart."""

BASE_COMMANDS = ("copy", "reverse", "plus_one", "minus_one", "rotate")
"""What the tiny model is pre-trained on."""
NEW_COMMANDS = ("reverse_plus_one", "plus_two", "complement")
"""What it has never seen; each is close to something it knows."""

_TEST_SHARE = 5
"""One digit string in so many is for testing."""


def command_questions(
    commands: Sequence[str],
    rows: int,
    *,
    split: Literal["train", "test"],
    lengths: Sequence[int] = (4, 5, 6),
    seed: int = 0,
) -> list[Question]:
    """Questions with the commands in turn.

    Args:
        commands: names of `COMMANDS`, the tasks of the questions; one that is named twice has twice the share.
        rows: number of questions.
        split: which digit strings may appear.
        lengths: numbers of digits, drawn evenly.
        seed: of the draw.

    Raises:
        UsageError: an unknown command or length.
    """
    unknown = [name for name in commands if name not in COMMANDS]
    if unknown or not commands:
        raise UsageError(f"commands {unknown or 'are missing'}: choose of {', '.join(COMMANDS)}")
    if not lengths or min(lengths) < 2 or max(lengths) > 12:
        raise UsageError(f"lengths {list(lengths)}: numbers of digits from 2 to 12")
    rng = random.Random(seed)
    questions: list[Question] = []
    while len(questions) < rows:
        name = commands[len(questions) % len(commands)]
        digits = [rng.randrange(10) for _ in range(rng.choice(lengths))]
        text = "".join(map(str, digits))
        if (zlib.crc32(text.encode()) % _TEST_SHARE == 0) != (split == "test"):
            continue
        letter, function = COMMANDS[name]
        answer = "".join(map(str, function(digits)))
        questions.append(Question(f"{letter} {text}=", name, answer, answer))
    return questions
