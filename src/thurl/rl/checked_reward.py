"""What happens when a reward function misbehaves: the run stops, on all processes, with an error that names it.

- it raises, returns None instead of a list, another number of rewards than completions, an infinite reward or
  something that is no number: `ThurlError`, before anything is learned from it;
- None or NaN for single completions: no reward from this function. TRL counts it as 0 where another function gives
  a reward and takes completions without any reward out of the learning.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from thurl.errors import ThurlError


__all__ = ["checked_reward", "reward_problem"]


def reward_problem(rewards: Any, count: int) -> str:
    """What is wrong with the rewards of `count` completions; empty when nothing is."""
    if rewards is None:
        return "returned None instead of one reward per completion; is its `return` missing?"
    try:
        values = list(rewards)
    except TypeError:
        return f"returned {rewards!r} instead of one reward per completion"
    if len(values) != count:
        return f"returned {len(values)} rewards for {count} completions; it must return one each"
    wrong = []
    for row, value in enumerate(values):
        try:
            fine = value is None or not math.isinf(value)
        except (TypeError, ValueError):
            fine = False
        if not fine:
            wrong.append(f"{value!r} for completion {row}")
    if not wrong:
        return ""
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"returned {', '.join(wrong[:3])}{more}; a reward is a finite number, or None or NaN where there is none"


def checked_reward(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same reward function, which raises `ThurlError` on every process when it fails on one of them.

    Models, names of models and coroutines are returned as they are.
    """
    import torch
    from trl.trainer.utils import is_async_callable

    if isinstance(function, str | torch.nn.Module) or is_async_callable(function):
        return function
    name = getattr(function, "__name__", None) or type(function).__name__

    def checked(*args: Any, completions: Sequence[Any], **kwargs: Any) -> Any:
        rewards, problem, cause = None, "", None
        try:
            rewards = function(*args, completions=completions, **kwargs)
        except Exception as error:  # reported to all processes; alone it would leave them waiting
            problem, cause = f"raised {type(error).__name__}: {error}", error
        else:
            if not isinstance(rewards, list | tuple) and hasattr(rewards, "tolist"):
                rewards = rewards.tolist()
            problem = reward_problem(rewards, len(completions))
        found = [f"{who}{text}" for who, text in _from_all(problem) if text]
        if found:
            raise ThurlError(f"The reward function `{name}` {'; '.join(found)}.") from cause
        return rewards

    if hasattr(function, "__name__"):
        functools.update_wrapper(checked, function)
    else:
        checked.__name__ = name
    return checked


def _from_all(problem: str) -> list[tuple[str, str]]:
    from accelerate import PartialState
    from accelerate.utils import gather_object

    if PartialState().num_processes == 1:
        return [("", problem)]
    return [(f"(process {rank}) ", text) for rank, text in enumerate(gather_object([problem]))]
