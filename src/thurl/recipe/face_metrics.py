"""Metrics of the face evaluator that come from other methods: A-FINE and the vision-language scorer.

They are no part of the challenge's score, hence a check on it: entries that optimised the six terms did not optimise
these. Importing this module registers them; `thurl faces` does so. Both are chosen by name, or by the groups `learned`
and `all` when their weights are given.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from thurl.iqa.face_restoration.interface import (
    FaceBatch,
    Metric,
    MetricContext,
    Package,
    WeightFile,
    register_metric,
)


if TYPE_CHECKING:
    import torch

__all__ = ["AFineToInput", "AFineToOriginal", "VlmQuality"]

AFINE = WeightFile(
    "afine", ("afine", "afine.pth"), "Give the released afine.pth or a converted folder, --weights afine=PATH."
)
VLM = WeightFile(
    "vlm",
    ("vlm",),
    "Give the folder of a model that `thurl score` takes, such as VisualQuality-R1-7B, --weights vlm=PATH.",
)


class _AFine(Metric):
    lower_is_better = True
    range = (0.0, 100.0)
    requires = (Package("thurl.iqa.afine.metric", "This version of thurl comes without A-FINE."), AFINE)
    explicit = True
    _reference: ClassVar[str] = ""

    def __init__(self, context: MetricContext):
        from thurl.iqa.face_restoration.weights import weights_digest

        super().__init__(context)
        path = context.require(AFINE)
        module: Any = import_module("thurl.iqa.afine.metric")
        self.metric = module.AFine.from_pretrained(path, "afine_scaled", device=context.device)
        self._digest = weights_digest(path)

    def score(self, batch: FaceBatch) -> torch.Tensor:
        import torch

        pictures = [batch.pixels(kind, torch.float32, self.context.device) for kind in (self._reference, "restored")]
        return self.metric(*pictures)

    def fingerprint(self) -> str:
        return self._digest


@register_metric
class AFineToInput(_AFine):
    """A-FINE (arXiv 2503.11221), scaled, with the degraded input as a reference that need not be perfect."""

    name = "afine_lq"
    needs = frozenset({"lq"})
    _reference = "lq"


@register_metric
class AFineToOriginal(_AFine):
    """A-FINE, scaled, with the original as reference."""

    name = "afine_gt"
    needs = frozenset({"gt"})
    _reference = "gt"


@register_metric
class VlmQuality(Metric):
    """Expected score, 1 (very poor) to 5 (excellent), of a vision-language model: deterministic, no drawing."""

    name = "vlm"
    range = (1.0, 5.0)
    requires = (VLM,)
    explicit = True

    def __init__(self, context: MetricContext):
        from thurl.rl.scorer import QualityScorer

        super().__init__(context)
        self.scorer = QualityScorer.from_pretrained(context.require(VLM), device=context.device)

    def score(self, batch: FaceBatch) -> torch.Tensor:
        import torch
        from PIL import Image

        pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in batch.pictures["restored"]]
        # One by one: padding beside other pictures moves a score in its last digits.
        results = self.scorer.score(pictures, mode="expected", batch_size=1, errors="mark")
        return torch.tensor([result.score for result in results], dtype=torch.float64)

    def fingerprint(self) -> str:
        import json

        return json.dumps(self.scorer.settings() | {"mode": "expected"}, sort_keys=True, default=str)
