"""The evaluator of training: metrics of frames and videos of a validation part, its losses, and thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from thurl.forensics.deepfake.evaluation import choose_thresholds, evaluate_frames
from thurl.forensics.deepfake.score_tables import FrameScores
from thurl.forensics.deepfake.scoring import probabilities
from thurl.training.evaluation import EvaluationResults, Predict


__all__ = ["MEASURED", "FaceEvaluator"]

MEASURED = (
    "video_auc",
    "frame_auc",
    "video_ap",
    "video_eer",
    "video_accuracy",
    "frame_ece",
    "attribute_auc",
    "region_auc",
)
"""Means over the sets with both classes; besides there are `loss` and `loss_<task>`."""


@dataclass(frozen=True)
class FaceEvaluator:
    """Evaluator of `MethodTrainer` for `thurl.forensics.deepfake.dataset.LabelledFaces`.

    Its `settings` hold `threshold_frame` and `threshold_video`, chosen on this data (`choose_thresholds`).
    """

    def __call__(self, model: Any, dataset: Any, predict: Predict) -> EvaluationResults:
        found = predict(dataset)
        graph = model.graph
        table = FrameScores.of_items(dataset.items, graph.names, probabilities(found["log_odds"]))
        means = evaluate_frames(table, graph.tasks, resamples=0)["mean"]
        metrics = {name: means.get(name, float("nan")) for name in MEASURED}
        terms = model.compute_terms(torch.from_numpy(found["logits"]), dataset.labels())
        losses = {f"loss_{task}": float(term) for task, term in terms.items()}
        thresholds = choose_thresholds(table)
        settings = {
            "pictures": len(dataset),
            "threshold_frame": thresholds.frame,
            "threshold_video": thresholds.video,
        }
        return EvaluationResults({**metrics, "loss": sum(losses.values()), **losses}, (), settings)
