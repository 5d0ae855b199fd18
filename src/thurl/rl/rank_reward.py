"""Reward functions in TRL's contract: usable in any `trl.GRPOTrainer`, not only in thurl's.

Paper: arXiv 2505.14460 (VisualQuality-R1). The comparison set is made of the completions of all processes, because
the groups of one generation batch are spread over them; every process computes all rewards and returns its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import groupby
from typing import Any, Literal

from thurl.rl.parsing import ParseMode, format_reward, parse_score
from thurl.rl.rewards import RankRewardOptions, RankRewards, rank_rewards, threshold_rewards


__all__ = ["FormatReward", "RankReward", "ThresholdReward", "completion_text"]


def completion_text(completion: str | Sequence[dict[str, Any]]) -> str:
    """The text of a completion in TRL's plain or conversational form."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content)


class FormatReward:
    """1.0 for a completion in the think-then-answer format, else 0.0; see `thurl.rl.parsing.format_reward`."""

    def __init__(self, mode: Literal["official", "strict"] = "official") -> None:
        format_reward([], mode)  # an unknown mode is refused here rather than in the first step
        self.mode = mode
        self.__name__ = "format"

    def __call__(self, completions: Sequence[Any], **_: Any) -> list[float]:
        return format_reward([completion_text(completion) for completion in completions], self.mode)


class RankReward:
    """Thurstone fidelity reward over the whole generation batch of all processes (arXiv 2505.14460, Eq. 1 to 4).

    Needs a dataset column `mos`; uses `dataset`, `image_id` and `mos_std` where they exist. Rows of one image must be
    consecutive, as TRL's and thurl's samplers yield them; a group may be split over processes.

    Logged through TRL: `rank/parse_rate`, `rank/score_mean`, `rank/score_std` (mean over images of the standard
    deviation of their scores), `rank/batch_srcc` (mean over datasets), `rank/no_partner` (share of images without an
    opponent); the completions table gets `score` and `opponents`.

    Args:
        num_generations: K. None: taken from the runs of equal `image_id`.
        parse_mode: how a score is read, see `thurl.rl.parsing.parse_score`. Default: `"official"` in
            `mode="official"`, else `"strict"`.
        block_size: with `scope="device"`, the comparison set is each run of this many images in the order of the
            processes, whatever their number; None: the images whose first completion is on one process.
        options: all options of `RankRewardOptions` at once; **overrides: single ones.

    Raises:
        ValueError: unknown option; at call time, on every process alike: a MOS that is no number, rows of one image
            that are not consecutive, fewer than two completions per image.
    """

    def __init__(
        self,
        num_generations: int | None = None,
        *,
        parse_mode: ParseMode | None = None,
        block_size: int | None = None,
        options: RankRewardOptions | None = None,
        **overrides: Any,
    ) -> None:
        if options is not None and overrides:
            raise ValueError("Give either `options` or single options, not both.")
        if num_generations is not None and num_generations < 2:
            raise ValueError(f"`num_generations` is {num_generations}; a variance needs at least 2 completions.")
        self.options = RankRewardOptions(**overrides) if options is None else options
        self.parse_mode: ParseMode = parse_mode or ("official" if self.options.mode == "official" else "strict")
        parse_score("", self.parse_mode)
        self.num_generations = num_generations
        self.block_size = block_size
        self.__name__ = "thurstone_fidelity"

    def __call__(
        self,
        completions: Sequence[Any],
        mos: Sequence[float],
        dataset: Sequence[Hashable] | None = None,
        image_id: Sequence[Hashable] | None = None,
        mos_std: Sequence[float] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One reward per completion of this process, None where undefined. Collective: every process calls it."""
        scores = [parse_score(completion_text(completion), self.parse_mode) for completion in completions]
        n = len(scores)
        local = list(
            zip(
                scores,
                mos,
                dataset if dataset is not None else [""] * n,
                image_id if image_id is not None else [None] * n,
                mos_std if mos_std is not None else [None] * n,
                strict=True,
            )
        )
        per_process = _gather(local)
        table = GatheredScores.from_rows(per_process, self.num_generations, self.block_size)
        result = table.rewards(self.options)
        if log_metric is not None:
            for name, value in table.metrics(result).items():
                if math.isfinite(value):
                    log_metric(f"rank/{name}", value)
        start = sum(len(rows) for rows in per_process[: _process_index()])
        if log_extra is not None:
            _log_scores(log_extra, scores, image_id)
            log_extra("opponents", result.opponents.repeat_interleave(table.k)[start : start + n].tolist())
        rewards = result.rewards.flatten()[start : start + n].tolist()
        return [None if math.isnan(reward) else reward for reward in rewards]


class ThresholdReward:
    """1 where the score is within `threshold` of the MOS: Q-Insight's regression reward, as a baseline.

    Needs the columns `mos` on the scale of the scores; rescale datasets first (`normalise: true` in a recipe).
    """

    def __init__(self, threshold: float = 0.35, parse_mode: ParseMode = "strict") -> None:
        if not threshold > 0:
            raise ValueError(f"`threshold` is {threshold}; it must be positive (score units).")
        self.threshold, self.parse_mode = threshold, parse_mode
        self.__name__ = "threshold"

    def __call__(
        self,
        completions: Sequence[Any],
        mos: Sequence[float],
        image_id: Sequence[Hashable] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **_: Any,
    ) -> list[float]:
        import torch

        scores = [parse_score(completion_text(completion), self.parse_mode) for completion in completions]
        values = torch.tensor([[math.nan if score is None else score] for score in scores], dtype=torch.float64)
        rewards = threshold_rewards(values, ~torch.isnan(values), torch.tensor(mos).double(), threshold=self.threshold)
        if log_metric is not None and scores:
            log_metric("rank/parse_rate", sum(score is not None for score in scores) / len(scores))
        if log_extra is not None:
            _log_scores(log_extra, scores, image_id)
        return rewards.flatten().tolist()


class GatheredScores:
    """The scores of one generation batch over all processes, as (B, K) with one entry per image for the rest."""

    def __init__(self, scores, mos: list, dataset: list, image_id: list, mos_std: list, device: list) -> None:
        self.scores, self.mos, self.dataset = scores, mos, dataset
        self.image_id, self.mos_std, self.device = image_id, mos_std, device
        self.k = scores.shape[1]

    @classmethod
    def from_rows(
        cls, per_process: Sequence[Sequence[tuple]], num_generations: int | None = None, block_size: int | None = None
    ) -> GatheredScores:
        """Regroup rows (score, mos, dataset, image_id, mos_std), in process order, to one group per image."""
        import torch

        rows = [(*row, process) for process, rows in enumerate(per_process) for row in rows]
        k = _group_size(rows, num_generations)
        heads = rows[::k]
        bad = [
            f"{head[3]!r}: {head[1]!r}"
            for head in heads
            if not isinstance(head[1], (int, float)) or isinstance(head[1], bool) or not math.isfinite(head[1])
        ]
        if bad:
            raise ValueError(
                f"`mos` must be a finite number for every image; found (image: mos) {', '.join(bad[:10])}."
            )
        values = [math.nan if row[0] is None else row[0] for row in rows]
        scores = torch.tensor(values, dtype=torch.float64).view(-1, k)
        ids = [head[3] for head in heads]
        if any(identity is None for identity in ids):
            ids = list(range(len(heads)))
        device = [index // block_size for index in range(len(heads))] if block_size else [head[5] for head in heads]
        return cls(scores, [float(h[1]) for h in heads], [h[2] for h in heads], ids, [h[4] for h in heads], device)

    def rewards(self, options: RankRewardOptions) -> RankRewards:
        import torch

        mos_std = None
        if options.targets == "soft":
            missing = [str(i) for i, std in zip(self.image_id, self.mos_std, strict=True) if std is None]
            if missing:
                raise ValueError(
                    f"targets='soft' needs `mos_std` for every image; missing for {', '.join(missing[:10])}"
                    f"{' ...' if len(missing) > 10 else ''}. Use label files with a std column, or targets='hard'."
                )
            mos_std = torch.tensor(self.mos_std, dtype=torch.float64)
        return rank_rewards(
            self.scores,
            ~torch.isnan(self.scores),
            torch.tensor(self.mos, dtype=torch.float64),
            self.dataset,
            self.image_id,
            mos_std=mos_std,
            device=self.device,
            options=options,
        )

    def metrics(self, result: RankRewards) -> dict[str, float]:
        """Numbers to watch during training; NaN where undefined. See `RankReward`."""
        import numpy as np

        from thurl.metrics import srcc

        mean = result.mean.numpy()
        valid = result.valid.numpy()
        rated = np.isfinite(mean)
        mos, dataset = np.asarray(self.mos), np.asarray([str(name) for name in self.dataset])
        correlations = [
            srcc(mean[rated & (dataset == name)], mos[rated & (dataset == name)])
            for name in sorted(set(dataset.tolist()))
            if (rated & (dataset == name)).sum() > 1
        ]
        correlations = [value for value in correlations if math.isfinite(value)]
        scores = np.where(valid, self.scores.numpy(), np.nan)
        several = scores[np.isfinite(scores).sum(axis=1) > 1]
        return {
            "parse_rate": float(valid.mean()),
            "score_mean": float(np.nanmean(scores)) if valid.any() else math.nan,
            "score_std": float(np.nanstd(several, axis=1, ddof=1).mean()) if len(several) else math.nan,
            "batch_srcc": float(np.mean(correlations)) if correlations else math.nan,
            "no_partner": float((result.opponents == 0).double().mean()),
        }


def _group_size(rows: list[tuple], num_generations: int | None) -> int:
    """K: given, or the shortest run of rows of one image; checked against the rows."""
    runs = [len(list(run)) for _, run in groupby(rows, key=lambda row: row[3])]
    known = all(row[3] is not None for row in rows)
    k = num_generations
    if known and (k is None or any(run % k for run in runs)):
        # Evaluation may use another number of completions per image than training.
        k = math.gcd(*runs)
    if k is None:
        raise ValueError("`num_generations` is unknown: pass it to `RankReward`, or give an `image_id` column.")
    if k < 2:
        raise ValueError(
            "Found a single completion of an image in a row; a variance needs at least 2. Rows of one image must be "
            "consecutive and `num_generations` at least 2."
        )
    if len(rows) % k:
        raise ValueError(f"{len(rows)} completions are no multiple of num_generations={k}.")
    return k


def _log_scores(
    log_extra: Callable[[str, list], None], scores: Sequence[float | None], image_id: Sequence[Hashable] | None
) -> None:
    """Columns of the table of completions: the picture, its score, and whether none could be read."""
    if image_id is not None:
        log_extra("image_id", list(image_id))
    log_extra("score", list(scores))
    log_extra("failed", [score is None for score in scores])


def _gather(local: list) -> list[list]:
    """The rows of every process, one list per process in rank order."""
    from accelerate.utils import gather_object

    return gather_object([local])


def _process_index() -> int:
    from accelerate import PartialState

    return PartialState().process_index
