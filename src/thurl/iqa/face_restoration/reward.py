"""The per-picture part of the score as a reward for training restorers.

reward = sum of normalised terms - hinge, with hinge = max(0, threshold - identity similarity). FID is a number of the
set and has no place in it. The challenge's terms are normalised as in its score, other metrics by their range.

Metrics that are optimised stop measuring: keep metrics that the reward does not contain for the evaluation.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from thurl.errors import DataError, UsageError
from thurl.iqa.face_restoration.interface import FaceBatch, Metric, MetricContext, SetMetric, metric_class
from thurl.iqa.face_restoration.landmarks import ffhq_points
from thurl.iqa.face_restoration.protocol import TERMS, score_terms
from thurl.iqa.face_restoration.settings import IDENTITY


__all__ = ["FaceRestorationReward", "RewardResult"]


@dataclass(frozen=True)
class RewardResult:
    """Rewards of a batch.

    Attributes:
        reward: (B,) float64; NaN where a metric is undefined, never a made-up number.
        terms: metric name to normalised, unweighted term, (B,).
        penalty: (B,), what the identity check takes off; 0 without it.
    """

    reward: torch.Tensor
    terms: Mapping[str, torch.Tensor]
    penalty: torch.Tensor


class FaceRestorationReward:
    """Rewards of restored faces.

    ```python
    reward = FaceRestorationReward(["musiq", "clipiqa"], {"clipiqa": 2.0}, context=MetricContext(weights_dir=folder))
    result = reward(restored, lq=lq, threshold=0.3)  # (B, 3, H, W) RGB in [0, 1]
    ```

    Args:
        metrics: names, or metrics that are built already. No metrics of a whole set.
        weights: weight per metric name; 1 where none is given.
        identity: subtract the hinge; needs AdaFace.
        context: for metrics given by name and for the identity check.

    Raises:
        UsageError: a metric of a whole set, one without a finite range and without a normalisation, unknown weights.
        MissingRequirementError: weights of a metric are not there.
    """

    def __init__(
        self,
        metrics: Sequence[str | Metric],
        weights: Mapping[str, float] | None = None,
        *,
        identity: bool = False,
        context: MetricContext | None = None,
    ):
        context = context or MetricContext()
        chosen = [metric_class(m) if isinstance(m, str) else m for m in metrics]
        names = [metric.name for metric in chosen]
        problems = []
        for metric in chosen:
            if issubclass(metric if isinstance(metric, type) else type(metric), SetMetric):
                problems.append(f"{metric.name} is a metric of a whole set; a reward is one number per picture")
            elif metric.name not in TERMS and (
                metric.lower_is_better is None or not all(map(math.isfinite, metric.range))
            ):
                problems.append(
                    f"{metric.name}: a reward needs a direction and a finite range, {metric.range} is none"
                )
        if unknown := sorted(set(weights or {}) - set(names)):
            problems.append(f"weights for {', '.join(unknown)}, which are no metrics of the reward")
        if not names or len(set(names)) < len(names):
            problems.append("a reward needs metrics, each once")
        if problems:
            raise UsageError(problems)
        self.metrics = [metric(context) if isinstance(metric, type) else metric for metric in chosen]
        self.identity = metric_class(IDENTITY)(context) if identity else None
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in names}

    def __call__(
        self,
        restored: torch.Tensor,
        *,
        lq: torch.Tensor | None = None,
        gt: torch.Tensor | None = None,
        landmarks: np.ndarray | None = None,
        threshold: float | torch.Tensor = 0.3,
    ) -> RewardResult:
        """Rewards of a batch.

        Args:
            restored: (B, 3, H, W) RGB in [0, 1]; rounded to 8 bits, as a file would be.
            lq, gt: inputs and originals, where a metric needs them.
            landmarks: (B, 5, 2) pixels of the input; the fixed points of FFHQ-aligned pictures when None.
            threshold: of the identity check, one for all or (B,).

        Raises:
            DataError: pictures of a wrong shape or out of range, or inputs that a metric needs and that are not given.
        """
        pictures = {
            kind: _bytes(tensor, kind)
            for kind, tensor in (("restored", restored), ("lq", lq), ("gt", gt))
            if tensor is not None
        }
        count = len(restored)
        if landmarks is None:
            height, width = pictures.get("lq", pictures["restored"]).shape[-2:]
            landmarks = np.repeat(np.array(ffhq_points(width, height))[None], count, axis=0)
        digests = [hashlib.sha1(p.numpy().tobytes(), usedforsecurity=False).hexdigest() for p in pictures["restored"]]
        batch = FaceBatch([str(i) for i in range(count)], pictures, landmarks, digests)
        users = [*self.metrics, *([self.identity] if self.identity is not None else [])]
        lacking = {kind for metric in users for kind in metric.needs - {"landmarks"} if kind not in pictures}
        if lacking:
            raise DataError(f"the reward's metrics need {', '.join(sorted(lacking))}, which is not given")
        terms = {metric.name: _normalised(metric, metric.score(batch)) for metric in self.metrics}
        reward = torch.stack([terms[name] * weight for name, weight in self.weights.items()]).sum(dim=0)
        penalty = torch.zeros_like(reward)
        if self.identity is not None:
            similarity = self.identity.score(batch).to(torch.float64)
            # torch's clamp keeps NaN, so an undefined similarity leaves an undefined reward.
            penalty = (torch.as_tensor(threshold, dtype=torch.float64) - similarity).clamp_min(0.0)
        return RewardResult(reward - penalty, terms, penalty)


def _normalised(metric: Metric, values: torch.Tensor) -> torch.Tensor:
    values = values.detach().cpu().to(torch.float64)
    if metric.name in TERMS:
        return torch.tensor([score_terms({metric.name: v})[metric.name] for v in values.tolist()], dtype=torch.float64)
    low, high = metric.range
    share = (values - low) / (high - low)
    return 1.0 - share if metric.lower_is_better else share


def _bytes(pictures: torch.Tensor, kind: str) -> torch.Tensor:
    if pictures.dim() != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
        raise DataError(
            f"{kind}: {tuple(pictures.shape)} {pictures.dtype}, (B, 3, H, W) of floating numbers is needed"
        )
    values = pictures.detach().cpu().to(torch.float64)
    if not values.isfinite().all() or values.min() < -1e-6 or values.max() > 1 + 1e-6:
        raise DataError(f"{kind}: pixels outside [0, 1]; clamp what the restorer puts out first")
    return torch.round(values * 255.0).clamp(0, 255).to(torch.uint8)
