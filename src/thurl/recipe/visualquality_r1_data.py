"""The rated pictures a VisualQuality-R1 recipe names: read, or for the tiny recipes first made."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from thurl.data.records import RatedImage
from thurl.recipe.sections import DegradedPhotosSource, LabelsSource
from thurl.recipe.visualquality_r1 import VisualQualityR1Recipe
from thurl.version import __version__


__all__ = ["Study", "fingerprint", "load_sources", "load_study"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """The rated pictures of a recipe, by use."""

    train: list[RatedImage]
    validation: list[RatedImage] = field(default_factory=list)
    test: list[RatedImage] = field(default_factory=list)


def load_study(recipe: VisualQualityR1Recipe, folder: Path) -> Study:
    """Read (and, for generated sources, first write) the pictures of all sources.

    Raises:
        MissingRequirementError, DataError, UsageError: see `thurl.data.sources.load_source`.
    """
    validation = load_sources(recipe, recipe.data.validation, folder)
    tests = recipe.evaluation.sources if recipe.evaluation else ()
    study = Study(load_sources(recipe, recipe.data.train, folder), validation, load_sources(recipe, tests, folder))
    counts = f"{len(study.train)} pictures to train on"
    for name, records in (("validate", study.validation), ("test", study.test)):
        counts += f", {len(records)} to {name}" if records else ""
    logger.info("%s: %s", ", ".join(sorted({record.dataset for record in study.train})), counts)
    return study


def load_sources(
    recipe: VisualQualityR1Recipe, sources: Sequence[LabelsSource | DegradedPhotosSource], folder: Path
) -> list[RatedImage]:
    from thurl.data.sources import load_source

    records: list[RatedImage] = []
    for source in sources:
        if isinstance(source, DegradedPhotosSource):
            records += load_source("csv", _written_photos(source, folder), check_images="none")
            continue
        arguments = source.load_arguments()
        if recipe.data.on_corrupt == "error":
            # Decoding every picture takes minutes: one process does it, and ends the others when it finds a bad one.
            with PartialState().main_process_first():
                if not PartialState().is_main_process:
                    arguments["check_images"] = "none"
                records += load_source(**arguments)
        else:
            records += load_source(**arguments, on_corrupt=recipe.data.on_corrupt)
    return records


def _written_photos(source: DegradedPhotosSource, folder: Path) -> Path:
    """The label file of a generated source; written once by one process, taken from there when it is complete."""
    from thurl.data.photos import folder_photos
    from thurl.rl.degraded_photos import write_degraded_photos

    arguments = source.write_arguments()
    key = fingerprint({**arguments, "photos": source.photos})
    place = Path(source.folder) if source.folder else folder / "data" / (source.dataset or source.split)
    done = place / "complete.json"
    state = PartialState()
    if state.is_main_process and not (done.is_file() and done.read_text() == key):
        logger.info("Writing degraded photographs to %s", place)
        photos = folder_photos(source.photos) if source.photos else None
        write_degraded_photos(place, **arguments, photos=photos)
        done.write_text(key)
    state.wait_for_everyone()
    return place / "labels.csv"


def fingerprint(settings: dict[str, Any]) -> str:
    """A digest of settings and version: what was made under another one is made again."""
    text = json.dumps({**settings, "thurl": __version__}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
