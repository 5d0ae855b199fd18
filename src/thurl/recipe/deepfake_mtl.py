"""SJEDD (arXiv 2408.16305) as a recipe: faces and sentences in one embedding, weights learned by a bi-level step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from thurl.messages import nearest
from thurl.recipe.deepfake_sections import (
    DeepFakeDataSection,
    DeepFakeEvaluationSection,
    DeepFakeLossSection,
    DeepFakeModelSection,
    DeepFakeTransformSection,
    DeepFakeWeightsSection,
)
from thurl.recipe.fields import Problem, field_value, method_problems, usable_fields
from thurl.recipe.method_sections import OptimizerSection, absent_pictures
from thurl.recipe.sections import HubSection, MethodRecipe, ReportSection, TrainingFields


__all__ = ["DeepFakeRecipe"]

_MEASURED = (
    *("video_auc", "frame_auc", "video_ap", "video_eer", "video_accuracy", "frame_ece", "attribute_auc", "region_auc"),
    *("loss", "loss_binary", "loss_global", "loss_local"),
)
"""What `thurl.forensics.deepfake.validation` measures, written out since a recipe is checked without torch."""


class DeepFakeRecipe(MethodRecipe):
    """`training` holds verbatim `transformers.TrainingArguments` fields. Without `bilevel` all weights stay 1."""

    training_schema: ClassVar[str] = "training_arguments"
    packages: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("data", "sources", "*", "manifest"),
        ("data", "sources", "*", "images"),
        ("evaluation", "sources", "*", "manifest"),
    )
    weights: ClassVar[tuple[str, ...]] = ("path", "graph")

    method: Literal["deepfake_mtl"]
    model: DeepFakeModelSection
    data: DeepFakeDataSection
    training: TrainingFields
    losses: DeepFakeLossSection = DeepFakeLossSection()
    bilevel: DeepFakeWeightsSection | None = None
    transform: DeepFakeTransformSection = DeepFakeTransformSection()
    optimizer: OptimizerSection = OptimizerSection()
    evaluation: DeepFakeEvaluationSection | None = None
    hub: HubSection = HubSection()
    report: ReportSection = ReportSection()

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Impossible combinations across the sections that are valid alone (the others are missing here)."""
        found = _model_problems(sections)
        training = sections.get("training")
        if not isinstance(training, dict):
            return found
        found += [(("training", *path), message) for path, message in method_problems(training)]
        usable = usable_fields(training, cls.training_schema)
        best = field_value(usable, "metric_for_best_model", cls.training_schema)
        if best is not None and best.removeprefix("eval_") not in _MEASURED:
            where = ("training", "metric_for_best_model")
            found.append((where, f"is {best}, which is not measured{nearest(best, _MEASURED)}; take `video_auc`"))
        if training.get("deepspeed"):
            message = "splits parameters that the bi-level step needs whole; remove it, train with DDP"
            found.append((("training", "deepspeed"), message))
        if sections.get("optimizer") is not None and sections["optimizer"].kind != "training" and "optim" in training:
            message = f"is not used by `optimizer.kind: {sections['optimizer'].kind}`; remove one of them"
            found.append((("training", "optim"), message))
        return found

    def missing_weights_and_data(self) -> list[str]:
        """What is not on this machine, one message each with where to get it. Opens no picture and no weights."""
        model, missing = self.model, []
        folder = Path(model.path or "")
        if model.start != "random" and not ((folder / "config.json").is_file() and any(folder.glob("*.safetensors"))):
            how = {
                "clip": "get it with `hf download openai/clip-vit-base-patch32 --local-dir " + str(model.path) + "`",
                "folder": "convert a released checkpoint with `thurl deepfake convert`, or train a model",
            }[model.start]
            missing.append(f"model weights: {model.path} is no folder of a model (config.json, *.safetensors); {how}")
        for section in (self.data, self.evaluation):
            for source in getattr(section, "sources", ()):
                if source.format == "manifest" and os.path.isfile(source.manifest):
                    missing += _absent_pictures(source, self.model.graph)
        return missing


def _absent_pictures(source: Any, graph: str) -> list[str]:
    from thurl.errors import ThurlError
    from thurl.forensics.deepfake.graph import load_graph
    from thurl.forensics.deepfake.manifest import read_manifest

    try:
        items = read_manifest(
            source.manifest, load_graph(graph), images=source.images, allow_outside=source.allow_outside
        )
    except ThurlError:
        return []  # the run says what is wrong with its lines
    return absent_pictures(source.manifest, [item.path for item in items], source.obtain)


def _model_problems(sections: Mapping[str, Any]) -> list[Problem]:
    model, transform = sections.get("model"), sections.get("transform")
    if model is None or transform is None or model.tiny is None or transform.size % model.tiny.patch_size == 0:
        return []
    message = f"is {transform.size}, which patches of {model.tiny.patch_size} do not divide (`model.tiny.patch_size`)"
    return [(("transform", "size"), message)]
