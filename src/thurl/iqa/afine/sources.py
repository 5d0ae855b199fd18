"""One data set of A-FINE by name and folder: released triplets, DiffIQA, SRIQA-Bench, rated images, generated ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thurl.data.formats.tables import read_text
from thurl.data.labels import LABEL_FORMATS
from thurl.data.records import RatedImage
from thurl.data.sources import load_source
from thurl.errors import DataError, UsageError
from thurl.iqa.afine.diffiqa import read_diffiqa
from thurl.iqa.afine.evaluation import TestSet
from thurl.iqa.afine.rated_pairs import drawn_pairs, select_part, with_reference_paths
from thurl.iqa.afine.sriqa import read_sriqa
from thurl.iqa.afine.triplet_pictures import find_triplet_pictures, picture_sizes
from thurl.iqa.afine.triplets import Triplet, read_triplets
from thurl.messages import nearest


__all__ = ["load_pairs"]


def load_pairs(
    format: str,
    labels: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    references: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    layout: str = "plain",
    type: str | None = None,
    split: str = "all",
    reference_list: str | os.PathLike[str] | None = None,
    part: str = "All",
    seed: int = 0,
    max_triplets: int | None = None,
    check_images: str = "all",
    allow_outside: bool = False,
    options: Mapping[str, Any] | None = None,
) -> TestSet:
    """Triplets of a data set, and its rated images where it has opinions; every picture has been found.

    Args:
        format: "triplets" (a file), "diffiqa" (folder `labels`), "sriqa" (root folder), or a format of
            `thurl.data.labels.LABEL_FORMATS`, whose pairs are drawn (`thurl.iqa.afine.rated_pairs.drawn_pairs`).
        labels: file or folder of the labels.
        images: folder of the pictures.
        references: folder of the references of rated images; `images` when `None`.
        dataset: name; the format's when `None`.
        layout, type: of "triplets", see `read_triplets`.
        split: of rated images, 7:1:2 by reference.
        reference_list: file with one reference per line, instead of `split`.
        part: of "sriqa".
        seed: of split, drawn pairs and `max_triplets`.
        max_triplets: keep so many at random.
        check_images: "all" decodes every picture once, "none" only looks whether it is there.
        allow_outside: accept pictures outside `images`.
        options: further arguments of the format's reader.

    Raises:
        UsageError: unknown format or options that do not go together.
        MissingRequirementError, DataError: files that are not there or cannot be used, all together.
    """
    records: list[RatedImage] = []
    root = Path(images) if images is not None else None
    wanted = _listed_references(reference_list)
    if format == "triplets":
        triplets = read_triplets(
            labels, images=root, layout=layout, dataset=dataset, type=type or "", allow_outside=allow_outside
        )
    elif format == "diffiqa":
        triplets = read_diffiqa(labels, images=root, references=wanted, dataset=dataset)
    elif format == "sriqa":
        records, triplets = read_sriqa(labels, part=part, dataset=dataset or "SRIQA-Bench")
    elif format in LABEL_FORMATS:
        records = load_source(
            format,
            labels,
            images=images,
            dataset=dataset,
            allow_outside=allow_outside,
            options=options or {},
            check_images="none",
        )
        records = select_part(records, split, references=wanted, seed=seed)
        folder = references or images or (labels if Path(labels).is_dir() else Path(labels).parent)
        records = with_reference_paths(records, folder)
        triplets = drawn_pairs(records, seed=seed, type=type or "")
    else:
        names = ["triplets", "diffiqa", "sriqa", *LABEL_FORMATS]
        raise UsageError(f"format {format!r} is not one of {', '.join(names)}{nearest(format, names)}")
    if max_triplets is not None and len(triplets) > max_triplets:
        triplets = _sample(triplets, max_triplets, seed)
    triplets = find_triplet_pictures(triplets, root, check_images=check_images)
    if records and check_images == "all":
        _same_sizes(records)
    return TestSet(dataset or (triplets[0].dataset if triplets else format), triplets, records)


def _listed_references(path: str | os.PathLike[str] | None) -> list[str] | None:
    if path is None:
        return None
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def _sample(triplets: Sequence[Triplet], count: int, seed: int) -> list[Triplet]:
    import numpy as np

    chosen = np.sort(np.random.default_rng(seed).choice(len(triplets), size=count, replace=False))
    return [triplets[place] for place in chosen.tolist()]


def _same_sizes(records: Sequence[RatedImage]) -> None:
    """Rated images that are in no triplet are scored, too."""
    sizes = picture_sizes(name for record in records for name in (record.image, record.reference or ""))
    wrong = [record.where for record in records if sizes[record.image] != sizes[record.reference or ""]]
    if wrong:
        more = f" and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise DataError(f"{', '.join(wrong[:20])}{more}: not of the size of the reference; they must agree")
