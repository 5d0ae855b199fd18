"""What both EXIF recipes have in common: sections, files, impossible combinations, and what a run needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from thurl.forensics.exif.calibration import smallest_sample
from thurl.forensics.exif.pretext import metric_names
from thurl.forensics.exif.starts import IMAGENET_URL, imagenet_file
from thurl.messages import nearest
from thurl.recipe.exif_sections import (
    BilevelSection,
    DetectorSection,
    FaceDataSection,
    FaceEvaluationSection,
    FaceModelSection,
    ShuffledSettingsSection,
    TransformSection,
    parts_of,
)
from thurl.recipe.fields import Problem, field_value, method_problems, usable_fields
from thurl.recipe.method_sections import OptimizerSection, absent_pictures
from thurl.recipe.sections import HubSection, MethodRecipe, ReportSection, TrainingFields


__all__ = ["ExifRecipe"]

_SOURCES = (("data", "source"), ("detector", "photographs"), ("evaluation", "photographs"))


class ExifRecipe(MethodRecipe):
    """`training` holds verbatim `transformers.TrainingArguments` fields."""

    training_schema: ClassVar[str] = "training_arguments"
    packages: ClassVar[tuple[str, ...]] = ("sklearn",)
    components: ClassVar[int]
    """Of the paper's mixture."""
    files: ClassVar[tuple[tuple[str, ...], ...]] = (
        *((*place, key) for place in _SOURCES for key in ("manifest", "images", "folder")),
        ("evaluation", "generated", "*", "folder"),
    )
    weights: ClassVar[tuple[str, ...]] = ("path", "text_path")

    method: str
    model: FaceModelSection
    data: FaceDataSection
    training: TrainingFields
    transform: TransformSection = TransformSection()
    optimizer: OptimizerSection = OptimizerSection()
    detector: DetectorSection = DetectorSection()
    evaluation: FaceEvaluationSection | None = None
    control: ShuffledSettingsSection = ShuffledSettingsSection()
    hub: HubSection = HubSection()
    report: ReportSection = ReportSection()

    @property
    def columns(self) -> dict[str, int] | None:
        """Columns per task of a joint embedding; None for the five-headed model."""
        return None

    @classmethod
    def cross_problems(cls, sections: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
        """Impossible combinations across the sections that are valid alone (the others are missing here)."""
        known = "bilevel" not in cls.model_fields or "bilevel" in sections
        found = _part_problems(sections) + _rate_problems(sections) if known else []
        training = sections.get("training")
        if not isinstance(training, dict):
            return found
        found += [(("training", *path), message) for path, message in method_problems(training)]
        usable = usable_fields(training, cls.training_schema)
        best = field_value(usable, "metric_for_best_model", cls.training_schema)
        if best is None and field_value(usable, "load_best_model_at_end", cls.training_schema):
            best = "loss"  # what transformers takes
        names = metric_names(cls.metric_columns(sections))
        if best is not None and best.removeprefix("eval_") not in names:
            where = ("training", "metric_for_best_model")
            found.append((where, f"is {best}, which is not measured{nearest(best, names)}; take `proxy_loss`"))
        if training.get("deepspeed"):
            message = "splits parameters that the detector and the bi-level step need whole; remove it, train with DDP"
            found.append((("training", "deepspeed"), message))
        if sections.get("optimizer") is not None and sections["optimizer"].kind != "training" and "optim" in training:
            message = f"is not used by `optimizer.kind: {sections['optimizer'].kind}`; remove one of them"
            found.append((("training", "optim"), message))
        return found

    @classmethod
    def metric_columns(cls, sections: Mapping[str, Any]) -> dict[str, int] | None:
        """`columns` of a recipe whose sections may be wrong."""
        return None

    def missing_weights_and_data(self) -> list[str]:
        """What is not on this machine, one message each with where to get it. Opens no picture and no weights."""
        model, missing = self.model, []
        folder = Path(model.path or "")
        if model.start == "folder" and not ((folder / "config.json").is_file() and any(folder.glob("*.safetensors"))):
            missing.append(
                f"model weights: {model.path} is no folder of an encoder (config.json, *.safetensors). Convert a "
                "checkpoint with `thurl.forensics.exif.convert_checkpoint` (EXIF as Language: "
                "https://github.com/hellomuffin/exif-as-language), set `model.path` to a folder that has one, or "
                "`model.start=imagenet model.path=null`"
            )
        if model.start == "imagenet":
            place = Path(model.path) if model.path else imagenet_file()
            if not place.is_file():
                missing.append(
                    f"model weights: {place} is not there; download {IMAGENET_URL} to it, or set `model.path` to "
                    "where it is"
                )
        text = getattr(model, "text_path", None)
        if text is not None and not os.path.isfile(text):
            missing.append(
                f"model weights: {text} is not there; get it with `hf download timm/resnet50_clip.openai "
                "open_clip_model.safetensors`, or set `model.text_path=null` for a random start"
            )
        for section, key in _SOURCES:
            source = getattr(getattr(self, section), key, None)
            if getattr(source, "format", None) == "manifest" and os.path.isfile(source.manifest):
                missing += _absent_pictures(source, f"{section}.{key}")
        return missing


def _absent_pictures(source: Any, where: str) -> list[str]:
    from thurl.errors import ThurlError
    from thurl.forensics.exif.manifest import read_manifest

    try:
        records = read_manifest(source.manifest, images=source.images, allow_outside=source.allow_outside)
    except ThurlError:
        return []  # the run says what is wrong with its lines
    return absent_pictures(where, [record.image for record in records], source.obtain)


def _part_problems(sections: Mapping[str, Any]) -> list[Problem]:
    data, bilevel = sections.get("data"), sections.get("bilevel")
    if data is None or data.parts is None:
        return []
    draws = isinstance(bilevel, BilevelSection) and bilevel.outer == "held_out"
    if draws and "outer" not in data.parts:
        message = "lacks `outer`, which the bi-level step draws from; add it, or set `bilevel.outer: train`"
        return [(("data", "parts"), message)]
    if not draws and "outer" in data.parts:
        return [(("data", "parts", "outer"), "is used by a bi-level step with `outer: held_out` only; remove it")]
    return []


def _rate_problems(sections: Mapping[str, Any]) -> list[Problem]:
    """Too few simulated photographs to calibrate on; of other sources the run counts them."""
    data, detector = sections.get("data"), sections.get("detector")
    if data is None or detector is None:
        return []
    if detector.photographs is None:
        source, share = data.source, parts_of(data, sections.get("bilevel"))["calibration"]
    else:
        source, share = detector.photographs, detector.calibration_share
    if source.format != "simulated":
        return []
    count, smallest = round(source.count * share), min(detector.rates)
    if count < smallest_sample(smallest):
        message = (
            f"has {smallest:g}, which needs {smallest_sample(smallest)} calibration photographs; there are {count}"
        )
        return [(("detector", "rates"), message)]
    return []
