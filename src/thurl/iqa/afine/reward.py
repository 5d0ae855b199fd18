"""A-FINE as a reward for reinforcement learning: 1 - D_s / 100, in [0, 1], higher is better.

The policy's completion has to become a picture first: `render` does that, for example by applying the restoration
that the completion names. What renders and what trains are put together where the run is put together (a recipe or a
script, see docs/afine.md); nothing here knows a policy.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from thurl.errors import DataError
from thurl.iqa.afine.metric import AFine
from thurl.iqa.afine.pictures import Picture, as_picture, require_unit_range


__all__ = ["AFineReward", "reward_of"]

logger = logging.getLogger(__name__)

# What TRL passes beside the columns of the data set.
_NOT_COLUMNS = ("prompts", "completion_ids", "trainer_state", "environments")


def reward_of(afine_scaled: torch.Tensor) -> torch.Tensor:
    """`1 - D_s / 100`: [0, 100] and lower is better, to [0, 1] and higher is better. NaN stays NaN."""
    return 1 - afine_scaled / 100


class AFineReward:
    """A reward function for TRL: how good the picture is that a completion leads to.

    The data set has a column with the reference of each row. Completions of one prompt share it, and it goes through
    the tower once. Logs `afine/score` (mean D_s), `afine/failed` and `afine/past_turning_point`, shares of the
    completions.

    Args:
        afine: the metric; its model's device and precision are used, whatever variant it is.
        render: `(completion: str, **columns of the row) -> picture`. It returns None where the reward does not apply
            (the result is None), and raises `ValueError` or a `DataError` where the completion leads to no picture.
        reference: column of the references: paths, PIL pictures, arrays or tensors. A row without one (None) is not
            rewarded by this function.
        failed: reward of a completion without a picture, with one of another size than its reference, or one whose
            score is no finite number: "minimum" (0, so that failing never beats trying) or "none" (None).
        batch_size: pictures that go through the tower together.

    Raises:
        ValueError: an unknown `failed`, or `batch_size` below 1.
    """

    __name__ = "afine"

    def __init__(
        self,
        afine: AFine,
        render: Callable[..., Picture | None],
        *,
        reference: str = "reference",
        failed: Literal["minimum", "none"] = "minimum",
        batch_size: int = 16,
    ):
        if failed not in ("minimum", "none"):
            raise ValueError(f"failed is {failed!r}; it must be minimum or none")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
        self.afine = afine if afine.name == "afine_scaled" else afine.variant("afine_scaled")
        self.render = render
        self.reference = reference
        self.failed = failed
        self.batch_size = batch_size

    def __call__(
        self, completions: Sequence[Any], log_metric: Any = None, log_extra: Any = None, **columns: Any
    ) -> list[float | None]:
        """One reward per completion.

        Raises:
            ValueError: the data set has no column of references.
            ImageError: a reference cannot be read, which is no completion's fault.
        """
        columns = {name: values for name, values in columns.items() if name not in _NOT_COLUMNS}
        if self.reference not in columns:
            raise ValueError(f"no column {self.reference!r} in the data set (columns: {', '.join(sorted(columns))})")
        scores = [math.nan] * len(completions)
        applies = [False] * len(completions)
        pairs: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        opened: dict[Any, torch.Tensor] = {}
        for i, completion in enumerate(completions):
            row = {name: values[i] for name, values in columns.items()}
            if row[self.reference] is None:
                continue
            ref = self._opened(row[self.reference], opened)
            try:
                picture = self._rendered(completion, row)
            except (ValueError, DataError) as error:
                applies[i] = True
                logger.debug("completion %d leads to no picture: %s", i, error)
                continue
            applies[i] = picture is not None
            if picture is not None and picture.shape == ref.shape:
                pairs.append((i, ref, picture))
        turned = 0
        for start in range(0, len(pairs), self.batch_size):
            part = pairs[start : start + self.batch_size]
            with torch.no_grad():
                found = self.afine.components([ref for _, ref, _ in part], [picture for _, _, picture in part])
            turned += int(found["past_turning_point"].sum())
            for (i, _, _), score in zip(part, found["afine_scaled"].tolist(), strict=True):
                scores[i] = score
        _log(scores, applies, turned, log_metric, log_extra)
        return [self._reward(score, applied) for score, applied in zip(scores, applies, strict=True)]

    def _opened(self, reference: Picture, opened: dict[Any, torch.Tensor]) -> torch.Tensor:
        # Paths by their value, everything else by identity: TRL repeats the object for each completion of a prompt.
        key = reference if isinstance(reference, str | os.PathLike) else id(reference)
        if key not in opened:
            opened[key] = as_picture(reference, upright=self.afine.upright)
            require_unit_range(opened[key])
        return opened[key]

    def _rendered(self, completion: Any, row: dict[str, Any]) -> torch.Tensor | None:
        picture = self.render(_text(completion), **row)
        if picture is None:
            return None
        tensor = as_picture(picture, upright=self.afine.upright)
        require_unit_range(tensor)
        return tensor

    def _reward(self, score: float, applied: bool) -> float | None:
        if not applied:
            return None
        if math.isfinite(score):
            return float(reward_of(torch.tensor(score, dtype=torch.float64)))
        return 0.0 if self.failed == "minimum" else None


def _log(scores: list[float], applies: list[bool], turned: int, log_metric: Any, log_extra: Any) -> None:
    judged = [score for score, applied in zip(scores, applies, strict=True) if applied]
    good = [score for score in judged if math.isfinite(score)]
    if log_metric is not None and judged:
        if good:
            log_metric("afine/score", sum(good) / len(good))
        log_metric("afine/failed", 1 - len(good) / len(judged))
        log_metric("afine/past_turning_point", turned / len(judged))
    if log_extra is not None:
        log_extra("afine_scaled", [score if math.isfinite(score) else None for score in scores])


def _text(completion: Any) -> str:
    """The text of a completion in TRL's plain or conversational form."""
    content = completion if isinstance(completion, str) else completion[-1].get("content") or ""
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)
