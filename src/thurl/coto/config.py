"""Settings of CoTo: plain data, checked on construction, without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from thurl.coto.masks import MinActive
from thurl.coto.schedule import Schedule
from thurl.errors import UsageError


__all__ = ["CoToConfig"]

GroupBy = str | int | Callable[[str], str]


@dataclass(frozen=True)
class CoToConfig:
    """Schedule, mask and choice of adapters (arXiv 2506.05713).

    Args:
        initial_p: p0; the released code has 0.1, the paper's formula 0. Or one by layer: a mapping from regular
            expression to p0, of which the first that is found in a module path of a group counts ("" fits all).
        final_p: p1, after the rise.
        stage1_ratio: share of training in which p rises (paper: 0.75).
        schedule: "linear" (paper), "sine" (faster), "exponential" (slower) or "constant" (p0, then p1).
        group_by: adapters that share a draw. "layer": all of one block, told by the module path up to its last number;
            "module": each its own; an integer: chunks of so many in the order of `named_modules` (released code);
            a function from module path to key.
        min_active: "resample" (released code), "force" or "allow_empty" (`thurl.coto.masks.draw_mask`).
        adapter_name: PEFT's name of the adapter to switch; others are left alone.
        seed: of the masks.
        hold: optimizer steps that share a mask and p. For GRPO: steps_per_generation * num_iterations /
            gradient_accumulation_steps, so that a batch of completions meets one mask.
        include: regular expressions; only module paths in which one of them is found are switched, the others stay on.
        exclude: regular expressions; module paths in which one of them is found stay on.
        min_active_per_tower: an active group in the vision tower and in the language model, not only in one of them.

    Raises:
        UsageError: with all wrong values.
    """

    initial_p: float | Mapping[str, float] = 0.1
    final_p: float = 1.0
    stage1_ratio: float = 0.75
    schedule: Schedule = "linear"
    group_by: GroupBy = "layer"
    min_active: MinActive = "resample"
    adapter_name: str = "default"
    seed: int = 0
    hold: int = 1
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    min_active_per_tower: bool = False

    def __post_init__(self) -> None:
        problems = []
        numbers: dict[str, Any] = {"final_p": self.final_p, "stage1_ratio": self.stage1_ratio}
        if isinstance(self.initial_p, Mapping):
            object.__setattr__(self, "initial_p", dict(self.initial_p))  # its own copy
            if not self.initial_p:
                problems.append("`initial_p` is an empty mapping; give a number, or one for each expression.")
            for pattern, value in self.initial_p.items():
                numbers[f"initial_p[{pattern!r}]"] = value
            problems += _wrong_patterns("initial_p", self.initial_p)
        else:
            numbers["initial_p"] = self.initial_p
        for name, value in numbers.items():
            if not _is_number(value) or not 0 <= value <= 1:  # NaN is refused too
                problems.append(f"`{name}` is {value!r}; it lies in [0, 1].")
        if self.schedule not in get_args(Schedule):
            problems.append(f"`schedule` is {self.schedule!r}; it is one of {', '.join(get_args(Schedule))}.")
        if self.min_active not in get_args(MinActive):
            problems.append(f"`min_active` is {self.min_active!r}; it is one of {', '.join(get_args(MinActive))}.")
        elif self.min_active == "allow_empty" and self.min_active_per_tower:
            problems.append("`min_active_per_tower` forbids what `min_active='allow_empty'` allows; drop one of them.")
        if not (callable(self.group_by) or self.group_by in ("layer", "module") or _is_count(self.group_by)):
            problems.append(
                f"`group_by` is {self.group_by!r}; it is 'layer', 'module', a number of adapters of at least 1, or a "
                "function from module path to key."
            )
        if not _is_count(self.hold):
            problems.append(f"`hold` is {self.hold!r}; it is a number of optimizer steps of at least 1.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            problems.append(f"`seed` is {self.seed!r}; it is an integer.")
        if not isinstance(self.adapter_name, str) or not self.adapter_name:
            problems.append(f"`adapter_name` is {self.adapter_name!r}; it is the name of an adapter.")
        for name in ("include", "exclude"):
            problems += self._read_patterns(name)
        if problems:
            raise UsageError(problems)

    def _read_patterns(self, name: str) -> list[str]:
        value = getattr(self, name)
        if value is None:
            return []
        patterns = (value,) if isinstance(value, str) else tuple(value)
        object.__setattr__(self, name, patterns)
        return _wrong_patterns(name, patterns)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able copy; a function given as `group_by` is named, not stored."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if isinstance(self.initial_p, Mapping):
            values["initial_p"] = dict(self.initial_p)
        if callable(self.group_by):
            function = self.group_by
            name = getattr(function, "__qualname__", type(function).__qualname__)
            values["group_by"] = f"function {getattr(function, '__module__', None)}.{name}"
        for name in ("include", "exclude"):
            if values[name] is not None:
                values[name] = list(values[name])
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CoToConfig:
        """Inverse of `to_dict` (except for a function).

        Raises:
            UsageError: an unknown key or a wrong value.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UsageError(f"Unknown settings of CoTo: {', '.join(unknown)}. There are: {', '.join(known)}.")
        return cls(**values)


def _wrong_patterns(name: str, patterns: Iterable[Any]) -> list[str]:
    problems = []
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            problems.append(f"`{name}` has {pattern!r}, which is no regular expression: {error}.")
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
