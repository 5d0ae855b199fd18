"""Learners by name, as they stand on a command line and in a sequence file."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from thurl.continual.closed_form import LDA, RanPAC, SimpleCIL
from thurl.continual.gradient import ExperienceReplay, Finetune, LoRA, SLCALike
from thurl.continual.learner import Learner
from thurl.errors import UsageError
from thurl.messages import nearest


__all__ = ["LEARNERS", "learner_options", "learners_of", "make_learner", "parse_learner"]

LEARNERS: dict[str, type[Any]] = {
    kind.name: kind for kind in (SimpleCIL, RanPAC, LDA, Finetune, LoRA, ExperienceReplay, SLCALike)
}
"""Name to class. Those that train an encoder take it as their first argument."""


def parse_learner(text: str) -> dict[str, Any]:
    """`ranpac` or `ranpac:width=200,ridge=10` as `{"name": ..., option: number}`.

    Raises:
        UsageError: an unknown name or option, or a value that is no number.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {"name": name.strip()}
    problems = []
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            number = float(value)
            options[key.strip()] = int(number) if number.is_integer() and "." not in value else number
        except ValueError:
            problems.append(f"learner {text!r}: {part!r} must be option=number")
    if problems:
        raise UsageError(problems)
    _check(options)
    return options


def make_learner(options: dict[str, Any], encoder: nn.Module | None = None) -> Learner:
    """A learner from what `parse_learner` or a learner's `config` gives; a fingerprint in it is not an option.

    Raises:
        UsageError: an unknown name or option, or an encoder is needed and not there.
    """
    options = {key: value for key, value in options.items() if key != "encoder"}
    _check(options)
    kind = LEARNERS[options.pop("name")]
    if kind.frozen_encoder:
        return kind(**options)
    if encoder is None:
        raise UsageError(f"learner {kind.name!r} trains the encoder itself; give --encoder, not features alone")
    return kind(encoder, **options)


def learners_of(all_options: Sequence[dict[str, Any]], encoder: nn.Module | None = None) -> list[Learner]:
    """Several learners; all problems together.

    Raises:
        UsageError: see `make_learner`.
    """
    found, problems = [], []
    for options in all_options:
        try:
            found.append(make_learner(options, encoder))
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)
    return found


def learner_options(name: str) -> dict[str, inspect.Parameter]:
    """What may be set of a learner, with its annotation and default.

    Args:
        name: of `LEARNERS`.
    """
    valid: dict[str, inspect.Parameter] = {}
    for kind in reversed(LEARNERS[name].__mro__):
        if "__init__" in vars(kind) and kind is not object:
            valid |= inspect.signature(kind, eval_str=True).parameters
    return {key: value for key, value in valid.items() if key not in ("encoder", "settings")}


def _check(options: dict[str, Any]) -> None:
    name = options.get("name")
    if name not in LEARNERS:
        raise UsageError(f"learner {name!r}: choose from {', '.join(sorted(LEARNERS))}{nearest(name, LEARNERS)}")
    valid = learner_options(name)
    unknown = [key for key in options if key != "name" and key not in valid]
    if unknown:
        raise UsageError(
            [
                f"learner {name!r}: unknown option {key!r}; "
                + (f"choose from {', '.join(sorted(valid))}{nearest(key, valid)}" if valid else "it has none")
                for key in unknown
            ]
        )
