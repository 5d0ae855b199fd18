"""Errors that a person can act on. Each carries the exit code the command line ends with.

Every message states the value found, the rule it breaks and the fix.
"""

from __future__ import annotations

from collections.abc import Sequence


__all__ = [
    "DataError",
    "DivergedError",
    "ImageError",
    "MissingRequirementError",
    "PushError",
    "StoppedError",
    "ThurlError",
    "UsageError",
]


class ThurlError(Exception):
    """Base class of every error thurl raises on purpose; exit code 1."""

    exit_code = 1


class DataError(ThurlError):
    """Input data that cannot be used: a corrupt picture, a label that is not a number, an empty set."""


class DivergedError(ThurlError):
    """Loss or weights of a training are NaN or infinite; exit code 1."""


class ImageError(DataError):
    """A picture that cannot be used; the message names it, says what is wrong and what to do."""


class PushError(ThurlError):
    """What was made is whole and here, but did not get to the Hub; exit code 4."""

    exit_code = 4


class StoppedError(ThurlError):
    """SIGTERM ended a run after it had saved itself; exit code 143, a shell's code for that signal."""

    exit_code = 143


class UsageError(ThurlError):
    """A wrong recipe, option or argument; exit code 2. Holds all problems found, not only the first.

    Args:
        problems: one message per problem.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class MissingRequirementError(ThurlError):
    """Something the run needs is not there: weights, data, an optional package, a GPU; exit code 3.

    Args:
        problems: one message per missing thing, each saying how to get it.
    """

    exit_code = 3

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))
