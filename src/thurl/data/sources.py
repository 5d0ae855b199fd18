"""From a label file and a folder to rated pictures that are known to be there, and known to decode.

Everything that can be wrong with the data is found here, before a model is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from thurl.data.formats.tables import read_text, require_choice
from thurl.data.hub_pictures import is_hub_image
from thurl.data.images import MAX_PIXELS, ImageError, open_image
from thurl.data.labels import LABEL_FORMATS, read_labels
from thurl.data.records import RatedImage, RowProblems, check_rated_images, listed
from thurl.data.splits import select_references, select_split
from thurl.data.summary import summary
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.messages import closest


__all__ = ["check_pictures", "find_pictures", "load_source", "load_sources", "normalise_mos", "summary"]

logger = logging.getLogger(__name__)


def load_source(
    format: str,
    labels: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    split: str | None = None,
    references: Sequence[str] | str | os.PathLike[str] | None = None,
    normalise: bool = False,
    max_images: int | None = None,
    check_images: str = "all",
    on_corrupt: str = "error",
    *,
    seed: int = 0,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
    options: Mapping[str, Any] | None = None,
) -> list[RatedImage]:
    """Rated pictures of one label file, every picture present.

    Order of work: read, normalise over the whole file, select the split and the references, draw `max_images`, find
    the pictures, decode them.

    Args:
        format: a name of `thurl.data.labels.LABEL_FORMATS`.
        labels: label file.
        images: picture folder, or the folder of the release that holds it; the label file's folder when `None`.
        dataset: name of the data set; see `read_labels`.
        split: "train", "validation", "test" or "all"; see `thurl.data.splits.select_split`.
        references: keep pictures of these references only: names, or a text file with one name per line.
        normalise: map the MOS of each data set to 1..5; see `normalise_mos`. Ranking needs none.
        max_images: keep at most so many pictures, drawn with `seed`.
        check_images: "all" decodes every picture once, "none" only looks whether the files exist.
        on_corrupt: "error", or "skip" to leave pictures that do not decode out, with a warning that counts them.
        seed: of the split (where none is published) and of the draw.
        allow_outside: accept picture paths that are absolute or leave `images`.
        max_pixels: largest picture, in pixels.
        options: further arguments of the format, see `read_labels`.

    Raises:
        MissingRequirementError: the label file or pictures are missing; the first 20 and the count.
        DataError: rows or pictures that cannot be used; the first 20 and the count.
        UsageError: a wrong option.
    """
    records = _load(**locals())
    _warn_without_partner(records)
    return records


def load_sources(sources: Iterable[Mapping[str, Any]]) -> list[RatedImage]:
    """Rated pictures of several sources, one after the other; the keys of each are the arguments of `load_source`.

    Raises:
        UsageError: no source, or unknown and missing keys, all of them at once.
        DataError: a picture is rated in two sources under one data set name.
    """
    sources = list(sources)
    known = inspect.signature(load_source).parameters
    problems = [] if sources else ["no data source; give at least one with format and labels"]
    for number, source in enumerate(sources):
        for key in source:
            if key not in known:
                near = closest(str(key), known)
                problems.append(f"source {number}: unknown key {key!r}" + (f"; nearest: {near!r}" if near else ""))
        problems += [f"source {number}: {key!r} is missing" for key in ("format", "labels") if key not in source]
    if problems:
        raise UsageError(problems)
    records = []
    for source in sources:
        arguments = inspect.signature(load_source).bind(**source)
        arguments.apply_defaults()
        records += _load(**arguments.arguments)
    twice = RowProblems("data sources", fix="Give the sources different data set names, or remove these rows.")
    check_rated_images(records, twice)
    twice.raise_if_any()
    _warn_without_partner(records)
    return records


def normalise_mos(records: Sequence[RatedImage]) -> list[RatedImage]:
    """MOS of each data set mapped to 1..5: (mos - min) / (max - min) * 4 + 1 (spec of the official data script).

    Standard deviations are scaled by the same factor, so that they stay comparable with the MOS; the official script
    leaves them as they are. The map is increasing: it changes no comparison, only regression needs it.

    Raises:
        DataError: all MOS of a data set are equal.
    """
    figures = summary(records)
    flat = [name for name, figure in figures.items() if figure["mos_min"] == figure["mos_max"]]
    if flat:
        raise DataError(f"normalise: all MOS of {', '.join(flat)} are equal, so there is no range to map to 1..5")
    result = []
    for record in records:
        low, high = figures[record.dataset]["mos_min"], figures[record.dataset]["mos_max"]
        std = None if record.std is None else record.std * 4 / (high - low)
        result.append(dataclasses.replace(record, mos=(record.mos - low) / (high - low) * 4 + 1, std=std))
    return result


def find_pictures(
    records: Sequence[RatedImage], images: str | os.PathLike[str] | None = None, *, folders: Sequence[str] = ()
) -> list[RatedImage]:
    """The records with the path each picture was found at.

    Looked for at the path itself, then below `images` in each of `folders`, then in the same places without regard to
    case (TID2013 spells I01_01_1.bmp and i01_01_1.bmp).

    Args:
        images: picture folder; `folders` are below it.

    Raises:
        MissingRequirementError: pictures that are nowhere, all together: the first 20 and the count.
    """
    root = Path(images) if images is not None else None
    listings: dict[Path, dict[str, list[str]]] = {}
    found, missing = [], []
    for record in records:
        place = _find(record.image, root, folders, listings)
        if place is None:
            missing.append(record)
        else:
            found.append(record if place == record.image else dataclasses.replace(record, image=place))
    if missing:
        raise MissingRequirementError(_missing(missing, len(records), root))
    return found


def check_pictures(
    records: Sequence[RatedImage],
    *,
    on_corrupt: str = "error",
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
) -> list[RatedImage]:
    """Decodes every picture once, in threads, and returns the records of those that can be used.

    Args:
        on_corrupt: "error", or "skip" to leave bad ones out with a warning that counts them.
        max_pixels: see `thurl.data.images.open_image`.
        workers: threads; one per core, at most 8, when `None`. Each holds one decoded picture.

    Raises:
        DataError: pictures that cannot be used, with their rows: the first 20 and the count; or not one is left.
    """
    require_choice("on_corrupt", on_corrupt, ("error", "skip"))

    def problem(record: RatedImage) -> str | None:
        try:
            open_image(record.image, max_pixels=max_pixels)
        except ImageError as error:
            return f"{record.source} row {record.row}: {error}"
        return None

    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(problem, records))
    bad = [result for result in results if result is not None]
    if not bad:
        return list(records)
    lines = listed(bad)
    if on_corrupt == "error":
        raise DataError(
            f"{len(bad)} of {len(records)} pictures cannot be used:\n{lines}\n"
            "Replace them, remove their rows, or set on_corrupt: skip."
        )
    if len(bad) == len(records):
        raise DataError(f"not one of the {len(records)} pictures can be used:\n{lines}\nGive other pictures.")
    logger.warning("%d of %d pictures left out because they cannot be used:\n%s", len(bad), len(records), lines)
    return [record for record, result in zip(records, results, strict=True) if result is None]


def _load(
    format: str,
    labels: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    dataset: str | None,
    split: str | None,
    references: Sequence[str] | str | os.PathLike[str] | None,
    normalise: bool,
    max_images: int | None,
    check_images: str,
    on_corrupt: str,
    seed: int,
    allow_outside: bool,
    max_pixels: int,
    options: Mapping[str, Any] | None,
) -> list[RatedImage]:
    # The body of load_source without the warning, which load_sources gives for all sources together.
    require_choice("check_images", check_images, ("all", "none"))
    require_choice("on_corrupt", on_corrupt, ("error", "skip"))
    if max_images is not None and max_images < 1:
        raise UsageError(f"max_images is {max_images}; it must be 1 or more")
    records = read_labels(
        labels, format=format, images=images, dataset=dataset, allow_outside=allow_outside, **(options or {})
    )
    if normalise:
        records = normalise_mos(records)
    if split is not None:
        records = select_split(records, split, seed=seed)
    if references is not None:
        records = select_references(records, _reference_names(references))
    if max_images is not None and len(records) > max_images:
        records = _draw(records, max_images, seed)
    root: Path | None = Path(images) if images is not None else Path(labels).parent
    if root is not None and not root.exists() and not LABEL_FORMATS[format].is_file:
        root = None  # several folders joined by ":", or a Hub data set
    records = find_pictures(records, root, folders=LABEL_FORMATS[format].folders)
    if check_images == "all":
        records = check_pictures(records, on_corrupt=on_corrupt, max_pixels=max_pixels)
    return records


def _reference_names(references: Sequence[str] | str | os.PathLike[str]) -> list[str]:
    if isinstance(references, (str, os.PathLike)):
        return [line.strip() for line in read_text(references).split("\n") if line.strip()]
    return list(references)


def _draw(records: list[RatedImage], count: int, seed: int) -> list[RatedImage]:
    # Hash order, so that the draw does not depend on the order of the rows or the place of the folder.
    def rank(record: RatedImage) -> bytes:
        name = record.image if is_hub_image(record.image) else Path(record.image).name
        return hashlib.sha256(f"{seed}\0{record.dataset}\0{name}".encode()).digest() + record.image.encode()

    chosen = {id(record) for record in sorted(records, key=rank)[:count]}
    return [record for record in records if id(record) in chosen]


def _find(
    image: str, root: Path | None, folders: Sequence[str], listings: dict[Path, dict[str, list[str]]]
) -> str | None:
    if is_hub_image(image) or os.path.exists(image):
        return image
    places = [Path(image)]
    if root is not None:
        relative = os.path.relpath(image, root)
        if not relative.startswith(".."):
            places += [root / folder / relative for folder in folders]
    for place in places:
        if place.exists():
            return str(place)
    for place in places:
        if place.parent not in listings:
            names = listings[place.parent] = {}
            if place.parent.is_dir():
                for name in sorted(os.listdir(place.parent)):
                    names.setdefault(name.lower(), []).append(name)
        spelled = listings[place.parent].get(place.name.lower(), [])
        if len(spelled) == 1:
            return str(place.with_name(spelled[0]))
    return None


def _missing(missing: Sequence[RatedImage], total: int, root: Path | None) -> str:
    hint = "Check the picture folder."
    if root is not None and not root.exists():
        hint = f"The picture folder {root} does not exist; download the data set and give its folder as `images`."
    elif root is not None and root.is_dir() and not any(root.iterdir()):
        hint = f"The picture folder {root} is empty; download the data set into it."
    elif root is not None:
        hint = f"Check the picture folder {root}: are the pictures in another folder below it?"
    lines = listed([record.where for record in missing])
    return f"{len(missing)} of {total} pictures are missing:\n{lines}\n{hint}"


def _warn_without_partner(records: Sequence[RatedImage]) -> None:
    for dataset, count in Counter(record.dataset for record in records).items():
        if count == 1:
            logger.warning(
                "data set %r has one picture: it has no partner to be compared with and earns no ranking reward. "
                "Add pictures to it or leave it out.",
                dataset,
            )
