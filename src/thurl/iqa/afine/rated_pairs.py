"""Triplets from opinion scores, where each reference has its distorted images: TID2013, KADID-10k, PIPAL, SRIQA-Bench.

Paper: arXiv 2503.11221. Training takes `n round(log2 n)` ordered pairs of the n images of a reference, the reference
itself among them with the best score there is; evaluation on SRIQA-Bench takes all pairs of a scene.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from thurl.data.records import RatedImage
from thurl.data.splits import select_references
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.iqa.afine.triplets import Triplet, compare


__all__ = ["all_pairs", "drawn_pairs", "select_part", "with_reference_paths"]

FRACTIONS = (0.7, 0.1, 0.2)
"""Training, validation and test share of the references (paper)."""

_ENDINGS = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


def drawn_pairs(records: Sequence[RatedImage], *, seed: int = 0, type: str = "") -> list[Triplet]:
    """`n round(log2 n)` ordered pairs per reference: each image meets so many different others, drawn at random.

    The reference is one of the n images and better than all others. A pair may appear in both orders. What is drawn
    depends on the seed, the data set's and the reference's name and the order of the records, on nothing else.

    Args:
        records: rated images with `reference` as a path (`with_reference_paths`); a row about the reference itself
            is left out, since it has the best score by construction.
        seed: of the draw.
        type: of the triplets.

    Raises:
        DataError: a record without a reference.
    """
    found: list[Triplet] = []
    for (dataset, reference), group in _scenes(records).items():
        images = [(record.image, record.mos) for record in group if record.image != reference]
        images.append((reference, math.inf))
        count = len(images)
        draws = round(math.log2(count))
        key = [ord(letter) for letter in f"{dataset}/{Path(reference).name}"]
        rng = np.random.default_rng([seed, *key])
        for place, (first, score) in enumerate(images):
            others = [other for other in range(count) if other != place]
            for other in rng.choice(others, size=min(draws, count - 1), replace=False).tolist():
                second, against = images[other]
                g1r, g2r = compare(score, math.inf), compare(against, math.inf)
                found.append(
                    Triplet(first, second, reference, compare(score, against), g1r, g2r, type=type, dataset=dataset)
                )
    return found


def all_pairs(records: Sequence[RatedImage], *, type: str = "") -> list[Triplet]:
    """Each unordered pair of each scene once, in the order of the records: 55 for the 11 images of SRIQA-Bench.

    The reference takes part where it is rated. Its label against an image is known only then.
    """
    found: list[Triplet] = []
    for (dataset, reference), group in _scenes(records).items():
        own = next((record.mos for record in group if record.image == reference), None)
        for a, b in combinations(group, 2):
            g1r, g2r = (math.nan if own is None else compare(item.mos, own) for item in (a, b))
            found.append(
                Triplet(a.image, b.image, reference, compare(a.mos, b.mos), g1r, g2r, type=type, dataset=dataset)
            )
    return found


def with_reference_paths(
    records: Sequence[RatedImage], folder: str | os.PathLike[str], *, pattern: str = "{name}"
) -> list[RatedImage]:
    """The records with `reference` as the path of the picture found in `folder`, whatever its ending and case.

    The official script writes `.png` for all references; TID2013's are `I01.BMP`, KADID-10k's `I01.png`.

    Args:
        folder: of the references.
        pattern: stem of the file of reference `name`; SRIQA-Bench needs `{name}_Original`.

    Raises:
        MissingRequirementError: references without a picture, all together.
        DataError: a record without a reference.
    """
    import dataclasses

    root = Path(folder)
    if not root.is_dir():
        raise MissingRequirementError(f"folder of the references {root} does not exist; give it as `references`")
    listed: dict[str, str] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in _ENDINGS:
            listed.setdefault(path.stem.lower(), str(path))
    _check_references(records)
    missing = []
    found: dict[str, str] = {}
    for name in dict.fromkeys(record.reference or "" for record in records):
        base = Path(name.replace("\\", "/")).name
        stem = base.rpartition(".")[0] if base.lower().endswith(_ENDINGS) else base
        place = listed.get(pattern.format(name=stem).lower())
        if place is None:
            missing.append(f"reference {name}: no picture {pattern.format(name=stem)} in {root}; check the folder")
        else:
            found[name] = place
    if missing:
        raise MissingRequirementError(missing[:20] + ([f"... and {len(missing) - 20} more"] if missing[20:] else []))
    return [dataclasses.replace(record, reference=found[record.reference or ""]) for record in records]


def select_part(
    records: Sequence[RatedImage], split: str, *, references: Iterable[str] | None = None, seed: int = 0
) -> list[RatedImage]:
    """Images of one part, 7:1:2 by reference, or of the published list of references.

    Args:
        split: "train", "validation", "test" or "all".
        references: names; then `split` must be "all".
        seed: of the split.

    Raises:
        UsageError: an unknown split, both a split and a list, or unknown references.
        DataError: fewer than three references.
    """
    from thurl.data.splits import SPLITS, split_by_reference

    if split not in (*SPLITS, "all"):
        raise UsageError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}, all")
    if references is not None:
        if split != "all":
            raise UsageError(f"split {split!r} and a list of references are two ways to choose; keep one")
        return select_references(records, references)
    return list(records) if split == "all" else split_by_reference(records, fractions=FRACTIONS, seed=seed)[split]


def _scenes(records: Sequence[RatedImage]) -> dict[tuple[str, str], list[RatedImage]]:
    _check_references(records)
    scenes: dict[tuple[str, str], list[RatedImage]] = {}
    for record in records:
        scenes.setdefault((record.dataset, record.reference or ""), []).append(record)
    return scenes


def _check_references(records: Sequence[RatedImage]) -> None:
    bare = [record.where for record in records if not record.reference]
    if bare:
        more = f" and {len(bare) - 20} more" if len(bare) > 20 else ""
        raise DataError(f"no reference for {', '.join(bare[:20])}{more}; a pair is judged against one")
