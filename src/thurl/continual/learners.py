"""Learners by name, as they stand on a command line and in a sequence file."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from thurl.continual.closed_form import LDA, RanPAC, SimpleCIL
from thurl.continual.gradient import (
    APER,
    EWC,
    ExperienceReplay,
    Finetune,
    ICaRL,
    Joint,
    L2PLike,
    LoRA,
    LwF,
    SLCALike,
    TunedRanPAC,
)
from thurl.continual.learner import Learner
from thurl.errors import UsageError
from thurl.messages import nearest


__all__ = ["LEARNERS", "learner_options", "learners_of", "make_learner", "parse_learner"]

LEARNERS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        SimpleCIL,
        RanPAC,
        LDA,
        Finetune,
        LoRA,
        ExperienceReplay,
        SLCALike,
        APER,
        LwF,
        EWC,
        ICaRL,
        L2PLike,
        Joint,
    )
}
"""Name to class. Those that train an encoder take it as their first argument."""

_TUNED: dict[str, type[Any]] = {"ranpac": TunedRanPAC}
"""Learners of a frozen encoder that tune it first where `tune` says so."""

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def parse_learner(text: str) -> dict[str, Any]:
    """`ranpac`, `ranpac:width=200,ridge=10` or `aper:tune=lora,rank=8` as `{"name": ..., option: value}`.

    A value is a number, `true` or `false`, or a word.

    Raises:
        UsageError: an unknown name or option, or a value of a kind that the option does not take.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {"name": name.strip()}
    problems = []
    for part in filter(None, rest.split(",")):
        key, _, value = (side.strip() for side in part.partition("="))
        found = _value(value)
        if found is None:
            problems.append(f"learner {text!r}: {part!r} must be option=value, a number, true, false or a word")
        elif key in options:
            problems.append(f"learner {text!r}: {key!r} is there twice; give it once")
        else:
            options[key] = found
    if problems:
        raise UsageError(problems)
    _check(options)
    return options


def _value(text: str) -> bool | int | float | str | None:
    if text in ("true", "false"):
        return text == "true"
    try:
        number = float(text)
    except ValueError:
        return text if _WORD.fullmatch(text) else None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and "." not in text else number


def make_learner(options: dict[str, Any], encoder: nn.Module | None = None) -> Learner:
    """A learner from what `parse_learner` or a learner's `config` gives; a fingerprint in it is not an option.

    Raises:
        UsageError: an unknown name or option, a value of another kind, or an encoder is needed and not there.
    """
    options = {key: value for key, value in options.items() if key != "encoder"}
    kind = _check(options)
    options.pop("name")
    if kind.frozen_encoder:
        options.pop("tune", None)
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
    """What may be set of a learner, with annotation and default; not all of it together where `tune` chooses a kind.

    Args:
        name: of `LEARNERS`.
    """
    kinds = [LEARNERS[name], *([_TUNED[name]] if name in _TUNED else [])]
    return {
        key: value
        for kind in kinds
        for base in reversed(kind.__mro__)
        if "__init__" in vars(base) and base is not object
        for key, value in inspect.signature(base, eval_str=True).parameters.items()
        if key in _options(kind)
    }


def _check(options: dict[str, Any]) -> type[Any]:
    """The class that these options are of."""
    name = options.get("name")
    if name not in LEARNERS:
        raise UsageError(f"learner {name!r}: choose from {', '.join(sorted(LEARNERS))}{nearest(name, LEARNERS)}")
    kind = LEARNERS[name]
    offered = _options(kind)
    if name in _TUNED:
        tuned = options.get("tune", "none") != "none"
        offered = _options(_TUNED[name]) if tuned else {**offered, "tune": "str"}
        kind = _TUNED[name] if tuned else kind
    problems = []
    for key, value in options.items():
        if key == "name":
            continue
        if key not in offered:
            choice = f"choose from {', '.join(sorted(offered))}{nearest(key, offered)}" if offered else "it has none"
            problems.append(f"learner {name!r}: unknown option {key!r}; {choice}")
        elif not _fits(value, offered[key]):
            problems.append(f"learner {name!r}: {key} is {value!r}; it must be {_kinds(offered[key])}")
    if problems:
        raise UsageError(problems)
    return kind


def _options(kind: type[Any]) -> dict[str, str]:
    """Option to annotation, of the class and those it hands further settings on to."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if "__init__" in vars(base) and base is not object:
            found |= {key: str(value.annotation) for key, value in inspect.signature(base).parameters.items()}
    hidden = ("encoder", "settings", *getattr(kind, "fixed", ()))
    return {key: value for key, value in found.items() if key not in hidden}


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a word"),
    "None": ((type(None),), "nothing"),
}


def _fits(value: Any, annotation: str) -> bool:
    names = [part.strip() for part in annotation.split("|")]
    if isinstance(value, bool):
        return "bool" in names
    # A learner of one's own may take other kinds, which it checks itself.
    return any(name not in _KINDS or isinstance(value, _KINDS[name][0]) for name in names)


def _kinds(annotation: str) -> str:
    names = [part.strip() for part in annotation.split("|")]
    return " or ".join(_KINDS[name][1] for name in names if name != "None")
