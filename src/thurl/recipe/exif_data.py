"""The photographs and fakes of an EXIF recipe: read, or for the tiny recipes first taken by the simulated camera."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from thurl.errors import DataError
from thurl.forensics.exif.calibration import smallest_sample
from thurl.forensics.exif.camera import write_fakes, write_photographs
from thurl.forensics.exif.dataset import CameraFaces
from thurl.forensics.exif.landmarks import with_average_landmarks
from thurl.forensics.exif.manifest import FaceRecord, read_manifest, split_records, write_manifest
from thurl.forensics.exif.scan import SUFFIXES, scan_folder
from thurl.forensics.processing import FaceImageProcessor
from thurl.recipe.exif_sections import parts_of
from thurl.recipe.written_once import write_once


__all__ = ["FaceStudy", "load_study", "shuffled"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FaceStudy:
    """Pictures of a recipe, by use.

    Attributes:
        parts: `train`, `validation`, `calibration` and perhaps `outer`; disjoint.
        fit, calibration: photographs of the detector.
        test: held-out photographs.
        labelled: whether these have camera settings.
        generated: generator to its pictures.
    """

    parts: dict[str, list[FaceRecord]]
    fit: list[FaceRecord]
    calibration: list[FaceRecord]
    test: list[FaceRecord] = field(default_factory=list)
    labelled: bool = False
    generated: dict[str, list[FaceRecord]] = field(default_factory=dict)

    def counts(self) -> str:
        """How many photographs serve for what, in words."""
        words = {"train": "to train on", "outer": "for the outer step", "validation": "to choose a checkpoint by"}
        text = ", ".join(f"{len(self.parts[name])} {use}" for name, use in words.items() if name in self.parts)
        text += f"; the detector is fitted to {len(self.fit)} and calibrated on {len(self.calibration)}"
        return text + (f"; {len(self.test)} held out" if self.test else "")

    def faces(self, recipe: Any, processor: FaceImageProcessor, part: str, *, edits: bool = True) -> CameraFaces:
        """The data set of a part, or of the held-out photographs (`test`)."""
        return CameraFaces(
            self.test if part == "test" else self.parts[part],
            processor,
            manipulations=recipe.data.manipulations if edits else None,
            match_resampling=recipe.data.match_resampling,
            regions=3,
            seed=int(recipe.training.get("seed", 42)),
        )


def load_study(recipe: Any, folder: Path) -> FaceStudy:
    """Read, and for simulated sources first write, all pictures that a recipe names.

    Args:
        recipe: an `ExifRecipe`.
        folder: of the run; simulated pictures lie below it.

    Raises:
        MissingRequirementError, DataError: see `read_manifest` and `split_records`; no picture in a folder.
    """
    seed = int(recipe.training.get("seed", 42))
    data, detector, evaluation = recipe.data, recipe.detector, recipe.evaluation
    records = _records(data.source, folder / "data" / "photographs", seed)
    if data.landmarks == "average":
        records = with_average_landmarks(records)
    shares = parts_of(data, getattr(recipe, "bilevel", None))
    parts = split_records(records, parts=shares, seed=data.split_seed)
    fit, calibration = parts["train"], parts["calibration"]
    if detector.photographs is not None:
        own = _records(detector.photographs, folder / "data" / "detector", seed)
        share = detector.calibration_share
        two = split_records(own, parts={"fit": 1 - share, "calibration": share}, seed=data.split_seed)
        fit, calibration = two["fit"], two["calibration"]
    test: list[FaceRecord] = []
    generated: dict[str, list[FaceRecord]] = {}
    if evaluation is not None:
        test = _records(evaluation.photographs, folder / "data" / "test", seed)
        if data.landmarks == "average" and evaluation.photographs.format != "folder":
            test = with_average_landmarks(test)
        for name, source in evaluation.generated.items():
            generated[name] = _records(source, folder / "data" / "generated" / name, seed)
        _check_disjoint(test, {**parts, "fit": fit, "calibration of the detector": calibration})
    _check_calibration(recipe, len(calibration))
    study = FaceStudy(
        parts,
        fit[: detector.max_photographs],
        calibration,
        test,
        evaluation is not None and evaluation.photographs.format != "folder",
        generated,
    )
    logger.info("Photographs: %s", study.counts())
    if generated:
        logger.info("Generated: %s", ", ".join(f"{len(own)} {name}" for name, own in generated.items()))
    return study


def shuffled(study: FaceStudy, seed: int) -> FaceStudy:
    """The same with the camera settings of other photographs, within each part; the held-out ones keep theirs."""
    parts = {}
    for place, (name, records) in enumerate(study.parts.items()):
        order = np.random.default_rng((seed, place)).permutation(len(records))
        parts[name] = [replace(record, settings=records[i].settings) for record, i in zip(records, order, strict=True)]
    return replace(study, parts=parts)


def _records(source: Any, place: Path, seed: int) -> list[FaceRecord]:
    if source.format == "manifest":
        return read_manifest(source.manifest, images=source.images, allow_outside=source.allow_outside)
    if source.format == "folder":
        return _pictures(Path(source.folder), source.max_pictures)
    options = source.model_dump(exclude={"format", "count"})
    options["seed"] = seed if source.seed is None else source.seed
    options["start"] = options.pop("first")
    if source.format == "simulated_fakes":
        kind = options.pop("kind")
        settings = {"kind": kind, **options, "count": source.count}
        write_once(place, settings, lambda: write_fakes(place, kind, source.count, **options))
        return _pictures(place, None)
    write_once(place, {**options, "count": source.count}, lambda: _take_photographs(place, source.count, options))
    return read_manifest(place / "manifest.jsonl")


def _take_photographs(place: Path, count: int, options: dict[str, Any]) -> None:
    write_photographs(place, count, **options)
    write_manifest(place / "manifest.jsonl", scan_folder(place, group_by="file").records)


def _pictures(folder: Path, count: int | None) -> list[FaceRecord]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"{folder}: no picture ending in {', '.join(SUFFIXES)} below it")
    return [FaceRecord(image=str(path)) for path in found[:count]]


def _check_calibration(recipe: Any, count: int) -> None:
    """Too few photographs are better found before training than after it."""
    needed = {f"detector.rates: {rate:g}": smallest_sample(rate) for rate in recipe.detector.rates}
    if recipe.evaluation is not None:
        rate = min(recipe.detector.rates) if recipe.evaluation.rate is None else recipe.evaluation.rate
        needed[f"evaluation.rate: {rate:g} on two sides"] = smallest_sample(rate, two_sided=True)
    problems = [
        f"{where} needs {least} calibration photographs, there are {count}; give more (`data.parts.calibration`, or "
        "`detector.calibration_share`) or a larger rate"
        for where, least in needed.items()
        if count < least
    ]
    if problems:
        raise DataError("\n".join(problems))


def _check_disjoint(test: list[FaceRecord], parts: dict[str, list[FaceRecord]]) -> None:
    """Held-out photographs that are trained on would be no test."""
    for name, records in parts.items():
        known = {record.image for record in records} | {record.sha256 for record in records if record.sha256}
        both = [record.image for record in test if record.image in known or record.sha256 in known]
        if both:
            raise DataError(
                f"evaluation.photographs: {len(both)} of {len(test)} are in the part `{name}`, first {both[0]}; take "
                "photographs that are not in `data.source`"
            )
