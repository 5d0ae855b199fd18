"""The data sets an A-FINE recipe names: read, or for the tiny recipes first made."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState

from thurl.data.labels import read_labels
from thurl.errors import DataError
from thurl.iqa.afine.evaluation import TestSet, joined
from thurl.iqa.afine.generated import photo_contents, texture_contents, write_generated
from thurl.iqa.afine.rated_pairs import with_reference_paths
from thurl.iqa.afine.sources import load_pairs
from thurl.iqa.afine.triplets import Triplet, shuffle_labels
from thurl.recipe.afine import AFineRecipe
from thurl.recipe.afine_sections import GeneratedSource, PairSource
from thurl.recipe.visualquality_r1_data import fingerprint


__all__ = ["AFineStudy", "load_study"]

logger = logging.getLogger(__name__)

# Textures of different parts share no content.
_PART = ("train", "train", "train", "validation", "held_out")
_DRAW = {"train": 0, "validation": 1, "held_out": 2}


@dataclass(frozen=True)
class AFineStudy:
    """The data sets of a recipe by use; `stages` says which of them each stage trains on."""

    train: list[TestSet]
    stages: dict[str, list[int]]
    validation: list[TestSet]
    test: list[TestSet]

    def triplets(self, stage: str) -> list[Triplet]:
        """All triplets of a stage, data set by data set."""
        return [triplet for place in self.stages[stage] for triplet in self.train[place].triplets]

    def digest(self, stage: str) -> str:
        """Of the triplets of a stage, pictures by path."""
        found = hashlib.sha256()
        for triplet in self.triplets(stage):
            found.update("\0".join([*triplet.images, f"{triplet.g12} {triplet.g1r} {triplet.g2r}\n"]).encode())
        return found.hexdigest()

    def shuffled(self, seed: int) -> AFineStudy:
        """The same study with training labels that carry no information."""
        train = [replace(part, triplets=shuffle_labels(part.triplets, seed + i)) for i, part in enumerate(self.train)]
        return replace(self, train=train)


def load_study(recipe: AFineRecipe, folder: Path) -> AFineStudy:
    """Read (and, for generated sources, first write) the data sets of all sources.

    Raises:
        MissingRequirementError, DataError, UsageError: see `thurl.iqa.afine.sources.load_pairs`.
    """
    train = _load(recipe.data.train, folder)
    stages = {
        stage: [place for place, source in enumerate(recipe.data.train) if stage in source.stages]
        for stage in recipe.stages
    }
    validation, test = (joined(_load(part, folder)) for part in (recipe.data.validation, recipe.evaluation.sources))
    study = AFineStudy(train, stages, validation, test)
    if "naturalness" in stages:
        _need_all_labels([train[place] for place in stages["naturalness"]])
    for name, parts in (("train", study.train), ("validate", study.validation), ("test", study.test)):
        for part in parts:
            logger.info("%s: %d triplets to %s", part.name, len(part.triplets), name)
    return study


def _load(sources: Sequence[PairSource | GeneratedSource], folder: Path) -> list[TestSet]:
    found: list[TestSet] = []
    for source in sources:
        if isinstance(source, GeneratedSource):
            part = _generated(source, folder)
        else:
            arguments = source.model_dump(exclude={"obtain", "stages"})
            # Decoding every picture takes minutes: one process does it, and ends the others when it finds a bad one.
            with PartialState().main_process_first():
                if not PartialState().is_main_process:
                    arguments["check_images"] = "none"
                part = load_pairs(**arguments)
        found.append(part)
    return found


def _generated(source: GeneratedSource, folder: Path) -> TestSet:
    """Written once by one process, taken from there when it is complete."""
    settings = source.model_dump(exclude={"folder", "stages", "references", "dataset", "type"})
    key = fingerprint(settings)
    place = Path(source.folder) if source.folder else folder / "data" / f"{source.format}_{key[:12]}"
    done = place / "complete.json"
    state = PartialState()
    if state.is_main_process and not (done.is_file() and done.read_text() == key):
        logger.info("Writing %s to %s", source.format.replace("_", " "), place)
        write_generated(place, _contents(source), kinds=source.kinds, triplets=source.triplets, seed=_seed(source))
        done.write_text(key)
    state.wait_for_everyone()
    name, images = source.dataset or source.references, place / "images"
    part = load_pairs(
        "triplets",
        place / f"{source.references}.csv",
        images=images,
        dataset=name,
        type=source.type,
        check_images="none",
    )
    if source.references == "imperfect":
        return part
    opinions = read_labels(place / "mos", format="by_reference", images=images, dataset=name)
    return replace(part, records=with_reference_paths(opinions, images))


def _seed(source: GeneratedSource) -> int:
    return len(_DRAW) * source.seed + _DRAW[source.split]


def _contents(source: GeneratedSource):  # noqa: ANN202 - pictures by name
    if source.format == "textures":
        return texture_contents(source.contents, size=source.size, seed=_seed(source))
    from thurl.data.photos import bundled_photos, folder_photos

    if source.photos:
        every = folder_photos(source.photos)
        photos = {name: photo for place, (name, photo) in enumerate(every.items()) if _PART[place % 5] == source.split}
    else:
        photos = bundled_photos(source.split)
    return photo_contents(photos, source.contents, size=source.size, seed=_seed(source), scale=source.scale)


def _need_all_labels(parts: Sequence[TestSet]) -> None:
    bare = [part.name for part in parts if any(t.g1r != t.g1r or t.g2r != t.g2r for t in part.triplets)]
    if bare:
        raise DataError(
            f"{', '.join(bare)}: triplets without the labels g1r and g2r, which stage naturalness learns from; give a "
            "training file (x1,x2,ref,g12,g1r,g2r)"
        )
