"""The faces of a DeepFake recipe: read from manifests, or drawn and forged first; parts that share no person."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from thurl.errors import DataError
from thurl.forensics.deepfake.checks import check_pictures
from thurl.forensics.deepfake.dataset import LabelledFaces
from thurl.forensics.deepfake.drawn_faces import write_drawn_faces
from thurl.forensics.deepfake.expansion import expand
from thurl.forensics.deepfake.expansion_plan import ExpansionConfig
from thurl.forensics.deepfake.graph import LabelGraph
from thurl.forensics.deepfake.identity_split import split_by_identity
from thurl.forensics.deepfake.manifest import FaceItem, read_manifest
from thurl.forensics.deepfake.sampling import sample_frames
from thurl.forensics.processing import FaceImageProcessor
from thurl.recipe.deepfake_sections import PARTS
from thurl.recipe.written_once import write_once


__all__ = ["FaceStudy", "load_study"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FaceStudy:
    """Faces of a recipe, by use.

    Attributes:
        parts: `train`, `val` and, where a bi-level step draws from it, `outer`; they share no person and no video.
        test: faces of the test sets, told apart by their `dataset`.
    """

    parts: Mapping[str, Sequence[FaceItem]]
    test: Sequence[FaceItem] = field(default_factory=tuple)

    def counts(self) -> str:
        """How many faces serve for what, in words."""
        words = {"train": "to train on", "outer": "for the outer step", "val": "to choose a checkpoint by"}
        text = ", ".join(f"{len(self.parts[name])} {use}" for name, use in words.items() if name in self.parts)
        sets = len({item.dataset for item in self.test})
        return text + (f"; {len(self.test)} in {sets} test set{'s' if sets != 1 else ''}" if self.test else "")

    def faces(self, recipe: Any, processor: FaceImageProcessor, part: str) -> LabelledFaces:
        """The data set of a part; spoilt now and then except for validation."""
        return LabelledFaces(
            self.parts[part],
            processor,
            augmentation=0.0 if part == "val" else recipe.data.augmentation,
            seed=int(recipe.training.get("seed", 42)),
            keep_mib=64,
        )


def load_study(recipe: Any, folder: Path, graph: LabelGraph) -> FaceStudy:
    """Read, and for drawn sources first write, all faces that a recipe names.

    Args:
        recipe: a `DeepFakeRecipe`.
        folder: of the run; drawn faces lie below it.
        graph: of the labels.

    Raises:
        MissingRequirementError, DataError: see `read_manifest` and `split_by_identity`; a part without faces, or
            without real or forged ones; a test set that shares a picture or a person with the other parts.
    """
    seed = int(recipe.training.get("seed", 42))
    data, evaluation = recipe.data, recipe.evaluation
    items = _all_items(data.sources, folder / "data" / "faces", graph, seed)
    outer = recipe.bilevel is not None and recipe.bilevel.outer == "held_out"
    parts = _parts(items, data, outer)
    parts = {name: _sampled(own, data.frames) for name, own in parts.items()}
    _check_classes("train", parts["train"], "learned from it")
    by_set: dict[str, list[FaceItem]] = {}
    for item in parts["val"]:
        by_set.setdefault(item.dataset, []).append(item)
    if not any(_lacking(own) == [] for own in by_set.values()):
        _check_classes("val", parts["val"], "chosen by it")
        raise DataError(
            "the part 'val' has no data set (`dataset`) with both real and forged faces, which an AUC needs"
        )
    test: Sequence[FaceItem] = ()
    if evaluation is not None:
        test = _sampled(_all_items(evaluation.sources, folder / "data" / "test", graph, seed), evaluation.frames)
        _check_disjoint(test, parts)
    lists = {source.manifest for source in data.sources if source.format == "manifest"}
    check_pictures(item for own in parts.values() for item in own if item.source in lists)
    study = FaceStudy(parts, test)
    logger.info("Faces: %s", study.counts())
    return study


def _all_items(sources: Sequence[Any], place: Path, graph: LabelGraph, seed: int) -> list[FaceItem]:
    found: list[FaceItem] = []
    for number, source in enumerate(sources):
        if source.format == "manifest":
            own = read_manifest(source.manifest, graph, images=source.images, allow_outside=source.allow_outside)
            chosen = [item for item in own if source.split is None or item.split == source.split]
            if not chosen:
                splits = ", ".join(sorted({item.split or "(none)" for item in own}))
                raise DataError(f"{source.manifest}: no row has the split {source.split!r}; there are {splits}")
            found += chosen
        else:
            found += _drawn(source, place.with_name(f"{place.name}_{number}"), graph, seed)
    return found


def _drawn(source: Any, place: Path, graph: LabelGraph, seed: int) -> list[FaceItem]:
    """Drawn faces, and forgeries in which one region is another person's, in its own colours."""
    settings = source.model_dump()
    settings["seed"] = seed if source.seed is None else source.seed

    def write() -> None:
        logger.info("Drawing faces of %d people to %s", sum(source.people.values()), place)
        options = {name: settings[name] for name in ("people", "videos", "frames", "seed", "size")}
        real = write_drawn_faces(place / "real", graph, **options)
        config = ExpansionConfig(
            regions=dict.fromkeys(source.regions, 1.0),
            donors={"other": 1.0},
            copies=source.copies,
            colour=(0.0, 0.0),
            seed=settings["seed"],
        )
        expand(real, place / "forged", graph, config)

    write_once(place, settings, write)
    both = [item for name in ("real", "forged") for item in read_manifest(place / name / "manifest.jsonl", graph)]
    return [replace(item, dataset=source.dataset) for item in both]


def _parts(items: Sequence[FaceItem], data: Any, outer: bool) -> dict[str, list[FaceItem]]:
    """Faces by use, with people of their own for the outer batches where these are wanted."""
    if data.parts is not None:
        by_split = split_by_identity(items, data.parts, seed=data.split_seed)
    else:
        by_split = {}
        for item in items:
            by_split.setdefault(item.split, []).append(item)
        if unknown := sorted(set(by_split) - set(PARTS)):
            raise DataError(
                f"data.sources: {len(by_split[unknown[0]])} faces have the split {unknown[0]!r}; a split is one of "
                f"{', '.join(PARTS)}. Correct the manifest, or let `data.parts` split the faces anew"
            )
    if lacking := [name for name in ("train", "val") if not by_split.get(name)]:
        raise DataError(f"data.sources: no face has the split {' or '.join(lacking)}; `data.parts` makes splits")
    train = by_split["train"]
    parts = {"train": train, "val": by_split["val"]}
    if outer and by_split.get("outer"):
        parts["outer"] = by_split["outer"]
    elif outer:
        try:
            two = split_by_identity(
                train, {"train": 1 - data.outer_share, "outer": data.outer_share}, seed=data.split_seed
            )
        except DataError as error:
            raise DataError(f"faces for the outer batches: {error}; or set `bilevel.outer: train`") from None
        parts |= two
    return parts


def _sampled(items: Sequence[FaceItem], frames: int | None) -> Sequence[FaceItem]:
    return items if frames is None else sample_frames(items, frames).items


def _lacking(items: Sequence[FaceItem]) -> list[str]:
    return [what for what, label in (("real", 0), ("forged", 1)) if not any(item.fake == label for item in items)]


def _check_classes(name: str, items: Sequence[FaceItem], use: str) -> None:
    if lacking := _lacking(items):
        raise DataError(
            f"the part {name!r} has no {' and no '.join(lacking)} face; nothing can be {use}. Add such faces, or "
            "split anew with `data.parts`"
        )


def _check_disjoint(test: Sequence[FaceItem], parts: Mapping[str, Sequence[FaceItem]]) -> None:
    """Test faces of people, or pictures, that were trained on would be no test."""
    for name, items in parts.items():
        paths = {item.path for item in items}
        people = {(item.dataset, person) for item in items for person in item.identities}
        both = [
            item
            for item in test
            if item.path in paths or any((item.dataset, person) in people for person in item.identities)
        ]
        if both:
            raise DataError(
                f"evaluation.sources: {len(both)} of {len(test)} faces are of the part {name!r}, or of people in it, "
                f"first {both[0].where}; take other people, or give their data set another name"
            )
