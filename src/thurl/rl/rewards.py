"""Thurstone fidelity rewards of a whole comparison set, as pure functions on arrays.

Paper: "VisualQuality-R1: Reasoning-Induced Image Quality Assessment via Reinforcement Learning to Rank",
arXiv 2505.14460, Eq. 1 to 4 (default), Eq. 7 (comparison with every score of the opponent), and its ablation
(fixed variance). Symbols: B images, K completions each, `q[i, k]` the score in completion k of image i.

    p[i, k, j] = Phi((q[i, k] - mean_j) / sqrt(var_i + var_j + eps))     own single score against the opponent's mean
    g[i, j]    = 1, 0 or 0.5 as MOS_i is above, below or equal to MOS_j
    r[i, k]    = mean over j of sqrt(p g + eps) + sqrt((1 - p)(1 - g) + eps)

Deliberate differences from the official code (all undone by `mode="official"`):
- a completion without a score, or with one outside the asked range, is left out of its image's mean and variance and
  earns the minimum; officially it gets a random score;
- pairs are formed inside one dataset only, and never between two copies of one image;
- what is undefined is NaN; officially it is p = 0.5 or an exception.

No torch.distributed in here: `thurl.rl.rank_reward` gathers, this computes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from thurl.ranking import fidelity, preference_probability
from thurl.rl.parsing import SCORE_RANGE


if TYPE_CHECKING:
    import torch


__all__ = ["RankRewardOptions", "RankRewards", "rank_rewards", "threshold_rewards", "thurstone_fidelity_rewards"]


@dataclass(frozen=True)
class RankRewardOptions:
    """How scores are compared. The defaults are the paper's comparison with safe handling of failures.

    Args:
        mode: `"default"`, or `"official"` for the numbers of the published code: scores are used however far out of
            range, and an undefined comparison counts as p = 0.5.
        comparison: `"mean"`: own score against the opponent's mean (Eq. 1); `"scores"`: p averaged over the
            opponent's single scores (Eq. 7).
        variance: `"sample"`: unbiased variance over an image's valid scores; `"fixed"`: `variance_value` for every
            image (Thurstone case V); `"floored"`: sample variance, at least `variance_value`, which keeps groups that
            have become certain from saturating.
        variance_value: score units squared; must be positive for `"fixed"` and `"floored"`.
        targets: `"hard"`: g in {0, 0.5, 1}; `"soft"`: g = Phi((MOS_i - MOS_j) / sqrt(sd_i^2 + sd_j^2)) from the
            standard deviations of the opinions (an extension; needs `mos_std`).
        tie_margin: MOS units; a smaller or equal difference of MOS is a tie (g = 0.5). Hard targets only.
        out_of_range: what a score outside `score_range` is: `"official"` used as written, `"clip"` moved to the
            nearest end, `"invalid"` a failed completion.
        score_range: lowest and highest admissible score.
        scope: `"global"`: an image meets all others of its dataset; `"device"`: only those with the same `device`
            entry (the official comparison set).
        failed: reward of a failed completion: `"minimum"` (0, so that failing never beats answering) or `"none"`
            (NaN, the reward does not apply).
        eps: see `thurl.ranking`.
    """

    mode: Literal["default", "official"] = "default"
    comparison: Literal["mean", "scores"] = "mean"
    variance: Literal["sample", "fixed", "floored"] = "sample"
    variance_value: float = 1.0
    targets: Literal["hard", "soft"] = "hard"
    tie_margin: float = 0.0
    out_of_range: Literal["official", "clip", "invalid"] | None = None
    score_range: tuple[float, float] = SCORE_RANGE
    scope: Literal["global", "device"] = "global"
    failed: Literal["minimum", "none"] = "minimum"
    eps: float = 1e-6

    _CHOICES = {
        "mode": ("default", "official"),
        "comparison": ("mean", "scores"),
        "variance": ("sample", "fixed", "floored"),
        "targets": ("hard", "soft"),
        "out_of_range": ("official", "clip", "invalid"),
        "scope": ("global", "device"),
        "failed": ("minimum", "none"),
    }

    def __post_init__(self) -> None:
        if self.out_of_range is None:
            object.__setattr__(self, "out_of_range", "official" if self.mode == "official" else "invalid")
        for name, allowed in self._CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}.")
        if self.variance != "sample" and not self.variance_value > 0:
            raise ValueError(
                f"`variance_value` is {self.variance_value}; with variance={self.variance!r} it must be positive."
            )
        if self.tie_margin < 0:
            raise ValueError(f"`tie_margin` is {self.tie_margin}; it must be 0 or more (MOS units).")
        if self.tie_margin and self.targets == "soft":
            raise ValueError(
                f"`tie_margin` is {self.tie_margin} with targets='soft'; soft targets have no ties. Set one."
            )
        low, high = self.score_range
        if not low < high:
            raise ValueError(f"`score_range` is {self.score_range}; the first number must be below the second.")
        if not self.eps > 0:
            raise ValueError(f"`eps` is {self.eps}; it must be positive, or the gradient is infinite at p = 0 and 1.")


CHUNK = 2**15
"""Comparisons made at a time: 256 KiB in float64 stay in the cache, where a million at once take twice the time."""

OPTION_NAMES = frozenset(field.name for field in fields(RankRewardOptions))


@dataclass(frozen=True)
class RankRewards:
    """Rewards and what they were made of; tensors in the dtype of the scores.

    Attributes:
        rewards: (B, K); NaN where undefined.
        valid: (B, K) bool; scores that took part, after the range rule.
        mean, var: (B,); over an image's valid scores, NaN where undefined. `var` is the variance used.
        opponents: (B,) int; images this image was compared with.
    """

    rewards: torch.Tensor
    valid: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor
    opponents: torch.Tensor


def thurstone_fidelity_rewards(
    scores: torch.Tensor,
    valid: torch.Tensor,
    mos: torch.Tensor,
    dataset: Sequence[Hashable] | torch.Tensor | None = None,
    image_id: Sequence[Hashable] | torch.Tensor | None = None,
    *,
    mos_std: torch.Tensor | None = None,
    device: Sequence[Hashable] | torch.Tensor | None = None,
    options: RankRewardOptions | None = None,
    **overrides: Any,
) -> torch.Tensor:
    """Reward of every completion for ranking its image rightly among the others (arXiv 2505.14460, Eq. 1 to 4).

    Vectorised over images and completions; computed in float64 and returned in the dtype of `scores`, so that
    nearly equal large scores do not lose their difference.

    Args:
        scores: (B, K) float32 or float64, parsed scores; entries that are not `valid` may hold anything.
        valid: (B, K) bool, True where a score was read.
        mos: (B,) mean opinion scores; only their order inside a dataset matters with hard targets.
        dataset: (B,) names or codes; pairs are formed inside one dataset. None: all images are of one.
        image_id: (B,) names or codes; two entries of one dataset with the same id are copies of one image and are
            not compared. None: all differ.
        mos_std: (B,) standard deviations of the opinions in MOS units, >= 0; needed by soft targets.
        device: (B,) which comparison set an image belongs to; needed by `scope="device"`.
        options: all options at once; **overrides: single fields of `RankRewardOptions`.

    Returns:
        (B, K) rewards in [0, 1 + eps + sqrt(eps)]. NaN where undefined: a valid completion of an image without an
        opponent or without a variance (fewer than two valid scores under sample variance). A failed completion has
        0 (`failed="minimum"`) or NaN (`failed="none"`).

    Raises:
        ValueError: shapes that do not fit, a MOS that is not finite, unknown options, a missing `mos_std` or `device`.
    """
    return rank_rewards(
        scores, valid, mos, dataset, image_id, mos_std=mos_std, device=device, options=options, **overrides
    ).rewards


def rank_rewards(
    scores: torch.Tensor,
    valid: torch.Tensor,
    mos: torch.Tensor,
    dataset: Sequence[Hashable] | torch.Tensor | None = None,
    image_id: Sequence[Hashable] | torch.Tensor | None = None,
    *,
    mos_std: torch.Tensor | None = None,
    device: Sequence[Hashable] | torch.Tensor | None = None,
    options: RankRewardOptions | None = None,
    **overrides: Any,
) -> RankRewards:
    """`thurstone_fidelity_rewards` together with the means, variances and opponent counts behind them."""
    import torch

    options = _resolve(options, overrides)
    scores = torch.as_tensor(scores)
    out_dtype = scores.dtype if scores.dtype.is_floating_point else torch.get_default_dtype()
    _check_shapes(scores, valid, mos, mos_std, options)
    where = scores.device
    q = scores.to(torch.float64)
    mos = torch.as_tensor(mos, device=where).to(torch.float64)
    valid = torch.as_tensor(valid, device=where, dtype=torch.bool)
    mos_std = None if mos_std is None else torch.as_tensor(mos_std, device=where).to(torch.float64)
    if not bool(torch.isfinite(mos).all()):
        bad = (~torch.isfinite(mos)).nonzero().flatten().tolist()
        raise ValueError(f"`mos` is not finite at position {bad}; every image needs a number. Leave such rows out.")
    if mos_std is not None and not bool((mos_std >= 0).all()):
        bad = (~(mos_std >= 0)).nonzero().flatten().tolist()
        raise ValueError(f"`mos_std` at position {bad} is negative or not a number; standard deviations are >= 0.")

    q, valid = _apply_range(q, valid, options)
    mean, var, usable = _statistics(q, valid, options)
    sets = _codes(dataset, len(mos), "dataset")
    if options.scope == "device":
        if device is None:
            raise ValueError("`scope='device'` compares inside a device's images: give `device`, one entry per image.")
        sets = _codes(list(zip(sets.tolist(), _codes(device, len(mos), "device").tolist(), strict=True)), len(mos))
    ids = torch.as_tensor(_codes(image_id, len(mos), "image_id"), device=where)

    rewards = torch.full_like(q, torch.nan)
    opponents = torch.zeros(len(mos), dtype=torch.long, device=where)
    # One comparison set at a time: a set's numbers then do not depend, to the last bit, on which others are around.
    for code in np.unique(sets):
        members = torch.as_tensor(np.flatnonzero(sets == code), device=where)
        per_image = q.shape[1] * len(members) * (q.shape[1] if options.comparison == "scores" else 1)
        for own in members.split(max(1, CHUNK // per_image)):
            opposed = usable[members][None, :] & (ids[own][:, None] != ids[members][None, :])  # (c, b)
            p = _preferences(own, members, q, valid, mean, var, options)  # (c, K, b)
            g = _targets(own, members, mos, mos_std, options)  # (c, b)
            f = torch.where(opposed[:, None, :], fidelity(p, g[:, None, :], options.eps), 0.0)
            count = opposed.sum(dim=1)
            rewards[own] = f.sum(dim=2) / count[:, None]  # 0 / 0 is the NaN of an image without opponents
            opponents[own] = count

    rewards = torch.where(usable[:, None], rewards, torch.nan)
    rewards = torch.where(valid, rewards, 0.0 if options.failed == "minimum" else torch.nan)
    return RankRewards(rewards.to(out_dtype), valid, mean.to(out_dtype), var.to(out_dtype), opponents)


def threshold_rewards(
    scores: torch.Tensor, valid: torch.Tensor, mos: torch.Tensor, *, threshold: float = 0.35
) -> torch.Tensor:
    """1 where a score is closer to the MOS than `threshold`, else 0: the regression reward of Q-Insight.

    A baseline for comparison (Q-Insight, official code: strict `<`). Needs MOS on the scale of the scores.

    Args:
        scores: (B, K); valid: (B, K) bool; mos: (B,) on the scale of the scores; threshold: score units, > 0.

    Returns:
        (B, K) of 0 and 1 in the dtype of `scores`; a failed completion earns 0.

    Raises:
        ValueError: `threshold` not positive, or a MOS that is not finite.
    """
    import torch

    if not threshold > 0:
        raise ValueError(f"`threshold` is {threshold}; it must be positive (score units).")
    mos = torch.as_tensor(mos, dtype=scores.dtype, device=scores.device)
    if not bool(torch.isfinite(mos).all()):
        raise ValueError("`mos` holds a value that is not finite; every image needs a number.")
    close = (scores - mos[:, None]).abs() < threshold
    return (close & valid).to(scores.dtype)


def _resolve(options: RankRewardOptions | None, overrides: dict[str, Any]) -> RankRewardOptions:
    unknown = sorted(set(overrides) - OPTION_NAMES)
    if unknown:
        raise ValueError(f"Unknown option {', '.join(unknown)}; known are {', '.join(sorted(OPTION_NAMES))}.")
    if options is None:
        return RankRewardOptions(**overrides)
    return replace(options, **overrides) if overrides else options


def _check_shapes(scores, valid, mos, mos_std, options: RankRewardOptions) -> None:
    if scores.dim() != 2:
        raise ValueError(f"`scores` has shape {tuple(scores.shape)}; it must be (images, completions per image).")
    if tuple(np.shape(valid)) != tuple(scores.shape):
        raise ValueError(
            f"`valid` has shape {tuple(np.shape(valid))}; it must be that of `scores`, {tuple(scores.shape)}."
        )
    if tuple(np.shape(mos)) != (len(scores),):
        raise ValueError(f"`mos` has shape {tuple(np.shape(mos))}; it must be ({len(scores)},), one per image.")
    if options.targets == "soft" and mos_std is None:
        raise ValueError("`targets='soft'` needs `mos_std`, one standard deviation per MOS; or use targets='hard'.")
    if mos_std is not None and tuple(np.shape(mos_std)) != (len(scores),):
        raise ValueError(
            f"`mos_std` has shape {tuple(np.shape(mos_std))}; it must be ({len(scores)},), one per image."
        )


def _codes(values, length: int, name: str = "set") -> np.ndarray:
    """Integer codes (B,) of arbitrary hashable labels; `None` means one set, or all different for image ids."""
    if values is None:
        return np.arange(length) if name == "image_id" else np.zeros(length, dtype=int)
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(values) != length:
        raise ValueError(f"`{name}` has {len(values)} entries; it must have {length}, one per image.")
    table: dict[Hashable, int] = {}
    return np.asarray([table.setdefault(value, len(table)) for value in values], dtype=int)


def _apply_range(q, valid, options: RankRewardOptions):
    import torch

    low, high = options.score_range
    if options.out_of_range == "clip":
        q = torch.where(torch.isnan(q), q, q.clamp(low, high))
    elif options.out_of_range == "invalid":
        valid = valid & (q >= low) & (q <= high)
    if options.mode != "official":
        valid = valid & torch.isfinite(q)
    return torch.where(valid, q, 0.0), valid


def _statistics(q, valid, options: RankRewardOptions):
    """Mean, variance (B,) over the valid scores, and which images can be compared at all."""
    import torch

    n = valid.sum(dim=1)
    mean = q.sum(dim=1) / n  # 0 / 0 = NaN: no score
    if options.variance == "fixed":
        var = torch.where(n > 0, options.variance_value, torch.nan).to(q.dtype)
    else:
        squares = torch.where(valid, (q - mean[:, None]) ** 2, 0.0).sum(dim=1)
        # Unbiased, as torch.var in the official code; one score has no variance.
        var = torch.where(n > 1, squares / (n - 1).clamp(min=1), torch.nan)
        if options.variance == "floored":
            var = var.clamp(min=options.variance_value)
    usable = n > 0 if options.mode == "official" else ~torch.isnan(var)
    return mean, var, usable


def _preferences(own, others, q, valid, mean, var, options: RankRewardOptions):
    """p[i, k, j] (c, K, b): completion k of image own[i] is judged better than image others[j]."""
    import torch

    score, spread = q[own], var[own]
    if options.comparison == "mean":
        p = preference_probability(
            score[:, :, None],
            mean[others][None, None, :],
            spread[:, None, None],
            var[others][None, None, :],
            options.eps,
        )
    else:
        each = preference_probability(
            score[:, :, None, None],
            q[others][None, None],
            spread[:, None, None, None],
            var[others][None, None, :, None],
            options.eps,
        )  # (c, K, b, K)
        weight = valid[others].to(q.dtype) / valid[others].sum(dim=1, keepdim=True).clamp(min=1)
        p = (torch.nan_to_num(each, nan=0.5) if options.mode == "official" else each) * weight
        p = p.sum(dim=3)
    if options.mode == "official":
        p = torch.nan_to_num(p, nan=0.5)  # what the official exception handler does for K = 1 and infinite scores
    return p


def _targets(own, others, mos, mos_std, options: RankRewardOptions):
    """g[i, j] (c, b) in [0, 1]: image own[i] is rated better than image others[j]."""
    import torch

    difference = mos[own][:, None] - mos[others][None, :]
    if options.targets == "soft":
        variance = mos_std**2
        g = torch.special.ndtr(difference / torch.sqrt(variance[own][:, None] + variance[others][None, :]))
        return torch.where(torch.isnan(g), 0.5, g)  # equal MOS and no spread: 0 / 0, a tie
    tie = difference.abs() <= options.tie_margin
    return torch.where(tie, 0.5, (difference > 0).to(mos.dtype))
