"""Evaluation of restored faces by the rules of NTIRE 2025 (arXiv 2504.14600), and beyond them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thurl.lazy import lazy_names


# name -> module. Resolved on first use, so that the command line does not import torch.
_PUBLIC = {
    "AdaFaceConfig": "thurl.iqa.face_restoration.adaface",
    "AdaFaceModel": "thurl.iqa.face_restoration.adaface",
    "EvaluationSettings": "thurl.iqa.face_restoration.settings",
    "FaceBatch": "thurl.iqa.face_restoration.interface",
    "FaceRestorationReward": "thurl.iqa.face_restoration.reward",
    "Metric": "thurl.iqa.face_restoration.interface",
    "MetricContext": "thurl.iqa.face_restoration.interface",
    "SetMetric": "thurl.iqa.face_restoration.interface",
    "SetResult": "thurl.iqa.face_restoration.interface",
    "WeightFile": "thurl.iqa.face_restoration.interface",
    "compare_runs": "thurl.iqa.face_restoration.compare",
    "evaluate_faces": "thurl.iqa.face_restoration.evaluation",
    "frechet_distance": "thurl.iqa.face_restoration.frechet",
    "kernel_distance": "thurl.iqa.face_restoration.frechet",
    "read_leaderboard": "thurl.iqa.face_restoration.leaderboard",
    "read_run": "thurl.iqa.face_restoration.compare",
    "register_metric": "thurl.iqa.face_restoration.interface",
    "weighted_score": "thurl.iqa.face_restoration.protocol",
    "write_evaluation": "thurl.iqa.face_restoration.report",
}

__all__ = [
    "AdaFaceConfig",
    "AdaFaceModel",
    "EvaluationSettings",
    "FaceBatch",
    "FaceRestorationReward",
    "Metric",
    "MetricContext",
    "SetMetric",
    "SetResult",
    "WeightFile",
    "compare_runs",
    "evaluate_faces",
    "frechet_distance",
    "kernel_distance",
    "read_leaderboard",
    "read_run",
    "register_metric",
    "weighted_score",
    "write_evaluation",
]

if TYPE_CHECKING:
    from thurl.iqa.face_restoration.adaface import AdaFaceConfig, AdaFaceModel
    from thurl.iqa.face_restoration.compare import compare_runs, read_run
    from thurl.iqa.face_restoration.evaluation import evaluate_faces
    from thurl.iqa.face_restoration.frechet import frechet_distance, kernel_distance
    from thurl.iqa.face_restoration.interface import (
        FaceBatch,
        Metric,
        MetricContext,
        SetMetric,
        SetResult,
        WeightFile,
        register_metric,
    )
    from thurl.iqa.face_restoration.leaderboard import read_leaderboard
    from thurl.iqa.face_restoration.protocol import weighted_score
    from thurl.iqa.face_restoration.report import write_evaluation
    from thurl.iqa.face_restoration.reward import FaceRestorationReward
    from thurl.iqa.face_restoration.settings import EvaluationSettings

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
