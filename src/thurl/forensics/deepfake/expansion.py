"""Forged faces out of real ones with landmarks: a data set's regions replaced and attributes edited, automatically.

"Semantics-Oriented Multitask Learning for DeepFake Detection" (arXiv 2408.16305) broadens its training set with
altered regions and attributes and publishes neither the procedure nor the pictures; what is here is ours, and every
picture is marked so.

| edit | what is done | labels |
|---|---|---|
| region | eyes, brows, nose, mouth, lips or skin replaced | the regions, and attributes above them in the graph |
| identity | all of the face replaced by another person's | those of `FaceSwap`, or else of `identity` |
| expression | the mouth's corners moved, the lips drawn apart or together | those of `Face2Face`, or else of `smile` |
| physical | eyes, nose and mouth lit from another side | physical inconsistency of these regions |

Donors of a region: `aligned`, a fake frame of the same video and number, as FaceForensics++ has them; `self`, the
same face moved, recoloured and compressed; `other`, another person of the same split, warped by the landmarks. What
is done is drawn once per video and copy, its strength and border once per frame. A picture is kept when it has changed
enough inside the mask and not outside; it is drawn again otherwise, and counted. Everything depends on the seed and
the names of data sets and videos only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thurl.data.images import open_image
from thurl.errors import DataError
from thurl.forensics.deepfake.expansion_plan import DonorPool, ExpansionConfig, Plan, edit_labels, plan_of
from thurl.forensics.deepfake.folders import new_folder, write_face
from thurl.forensics.deepfake.forgeries import (
    Blend,
    blend_regions,
    change,
    expression_donor,
    relit_donor,
    self_donor,
    warped_donor,
)
from thurl.forensics.deepfake.graph import LabelGraph
from thurl.forensics.deepfake.manifest import FaceItem, VideoKey, write_manifest
from thurl.forensics.deepfake.regions import LANDMARK_COUNTS
from thurl.forensics.faces import read_landmarks
from thurl.training.results import write_atomically


__all__ = ["Expansion", "expand"]

_PROCEDURE = "thurl region and attribute expansion; the procedure of arXiv 2408.16305 is not published"


@dataclass(frozen=True)
class Expansion:
    """What was made.

    Attributes:
        items: the forged faces, as in the manifest.
        skipped: real picture to the reason why nothing was made of it.
        redrawn: how many pictures were drawn again because they had changed too little or in the wrong place.
        counts: manipulation to how many pictures.
    """

    items: list[FaceItem]
    skipped: Mapping[str, str] = field(default_factory=dict)
    redrawn: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)


def expand(
    items: Iterable[FaceItem],
    folder: str | os.PathLike[str],
    graph: LabelGraph,
    config: ExpansionConfig | None = None,
) -> Expansion:
    """Forged faces of all real items that have landmarks, written as a data set.

    Args:
        items: of a manifest. Fakes among them serve as aligned donors.
        folder: gets `frames/`, `masks/` and `landmarks/`, each `MANIPULATION/[DATASET/]VIDEO/FRAME`, further
            `manifest.jsonl` and `provenance.jsonl` with one line per picture. Must be new or empty.
        graph: what the labels are of.
        config: what is made.

    Returns:
        The items, those left out with their reasons, and counts. Splits are those of the real pictures.

    Raises:
        UsageError: a folder that holds something, or an edit that the graph has no labels for.
        DataError: no real face among the items, or nothing could be made of any.
    """
    config = config or ExpansionConfig()
    edit_labels(graph, config)
    folder = new_folder(folder)
    items = list(items)
    videos: dict[VideoKey, list[FaceItem]] = {}
    for item in items:
        if item.fake == 0:
            videos.setdefault(item.video_key, []).append(item)
    if not videos:
        raise DataError(f"no real face among {len(items)}; forged faces are made of real ones")
    pool = DonorPool(items)
    made: list[FaceItem] = []
    lines: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    redrawn = 0
    taken: dict[str, int] = Counter()
    for frames in videos.values():
        for copy in range(config.copies):
            key = _key(frames[0])
            plan = plan_of(frames[0], graph, config, pool, np.random.default_rng((config.seed, key, copy)))
            if isinstance(plan, str):
                skipped |= dict.fromkeys((item.path for item in frames), plan)
                continue
            parts = (plan.manipulation, frames[0].dataset, _video_name(frames[0], copy))
            place = "/".join(_file_name(part) for part in parts if part)
            taken[place] += 1
            place += f"~{taken[place]}" if taken[place] > 1 else ""
            numbered = all(item.frame is not None for item in frames)
            for number, item in enumerate(frames):
                try:
                    forged = _forge(item, plan, config, pool, (config.seed, key, copy, number))
                except DataError as error:
                    skipped[item.path] = str(error)
                    continue
                redrawn += forged.attempt
                if forged.reason:
                    skipped[item.path] = forged.reason
                    continue
                name = f"{item.frame if numbered else number:04d}"
                new = _write(folder, f"{place}/{name}", item, plan, forged, copy)
                made.append(new)
                lines.append(_provenance(folder, new, item, plan, forged, config))
    if not made:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in Counter(skipped.values()).most_common(3))
        raise DataError(f"nothing could be made of {sum(map(len, videos.values()))} real faces: {reasons}")
    write_manifest(folder / "manifest.jsonl", made, graph)
    write_atomically(
        folder / "provenance.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    )
    return Expansion(made, skipped, redrawn, dict(Counter(item.manipulation for item in made)))


@dataclass(frozen=True)
class _Forged:
    pixels: NDArray[np.uint8]
    mask: NDArray[np.float64]
    landmarks: NDArray[np.float64]
    blend: Blend
    inside: float
    outside: float
    attempt: int
    donor: FaceItem | None
    reason: str


def _forge(item: FaceItem, plan: Plan, config: ExpansionConfig, pool: DonorPool, seed: tuple[int, ...]) -> _Forged:
    """The first picture that is altered as it should be, or the last one with the reason why it is not."""
    real, landmarks = _read(item)
    donor_item = pool.frame(item, plan)
    if plan.donor in ("aligned", "other") and donor_item is None:
        raise DataError(f"{item.where}: the {plan.donor} donor has no such frame")
    for attempt in range(config.attempts):
        rng = np.random.default_rng((*seed, attempt))
        blend = config.draw_blend(plan.edit, rng)
        donor = _donor(real, landmarks, plan, donor_item, rng)
        pixels, mask = blend_regions(real, landmarks, donor, plan.regions, blend)
        inside, outside = change(real, pixels, mask)
        fine = inside >= config.least_change and outside <= config.most_outside
        if fine:
            break
    reason = "" if fine else f"changed by {inside:.1f} grey values inside the mask, {outside:.1f} outside"
    return _Forged(pixels, mask, landmarks, blend, inside, outside, attempt, donor_item, reason)


def _donor(
    real: NDArray[np.uint8],
    landmarks: NDArray[np.float64],
    plan: Plan,
    donor: FaceItem | None,
    rng: np.random.Generator,
) -> NDArray[np.floating]:
    if plan.donor == "expression":
        return expression_donor(real, landmarks, rng)
    if plan.donor == "relit":
        return relit_donor(real, landmarks, rng)
    if donor is None:
        return self_donor(real, landmarks, rng)
    if plan.donor == "aligned":
        aligned = np.asarray(open_image(donor.path, upright=False), dtype=np.float64)
        if aligned.shape != real.shape:
            size, wanted = (f"{shape[1]}x{shape[0]}" for shape in (aligned.shape, real.shape))
            raise DataError(f"{donor.where}: {size} pixels; the real frame it should be aligned with has {wanted}")
        return aligned
    picture, points = _read(donor)
    return warped_donor(picture, points, landmarks, real.shape[:2], plan.regions)


def _read(item: FaceItem) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    if item.landmarks is None:
        raise DataError(f"{item.where}: no landmarks")
    picture = open_image(item.path, upright=False)
    points = read_landmarks(item.landmarks, picture.size, reference=None, counts=LANDMARK_COUNTS)
    if (points.max(0) < 0).any() or (points.min(0) >= picture.size).any():
        raise DataError(f"{item.where}: the landmarks lie outside the picture")
    return np.asarray(picture), points


def _write(folder: Path, place: str, item: FaceItem, plan: Plan, forged: _Forged, copy: int) -> FaceItem:
    mask = np.rint(255 * forged.mask).astype(np.uint8)
    frame, mask_path, points = write_face(folder, place, forged.pixels, mask=mask, landmarks=forged.landmarks)
    others = () if forged.donor is None else forged.donor.identities
    return FaceItem(
        path=frame,
        labels=plan.labels,
        video=_video_name(item, copy),
        frame=item.frame,
        dataset=item.dataset,
        split=item.split,
        manipulation=plan.manipulation,
        identities=tuple(dict.fromkeys((*item.identities, *others))),
        original=item.video,
        mask=mask_path,
        landmarks=points,
        box=item.box,
    )


def _provenance(
    folder: Path, new: FaceItem, item: FaceItem, plan: Plan, forged: _Forged, config: ExpansionConfig
) -> dict[str, Any]:
    def names(face: FaceItem | None) -> dict[str, Any] | None:
        if face is None:
            return None
        named = {key: getattr(face, key) for key in ("dataset", "manipulation", "video", "frame")}
        return {"file": Path(face.path).name, **named}

    return {
        "path": Path(new.path).relative_to(folder).as_posix(),
        "procedure": _PROCEDURE,
        "real": names(item),
        "edit": plan.edit,
        "regions": list(plan.regions),
        "donor_kind": plan.donor,
        "donor": names(forged.donor),
        "dilation": forged.blend.dilation,
        "jitter": forged.blend.jitter,
        "feather": forged.blend.feather,
        "colour": forged.blend.colour,
        "change_inside": round(forged.inside, 3),
        "change_outside": round(forged.outside, 3),
        "attempt": forged.attempt,
        "seed": config.seed,
    }


def _key(item: FaceItem) -> int:
    """A number for a video that does not depend on the folder it lies in."""
    names = (item.dataset, item.manipulation, item.video or Path(item.path).name)
    return int.from_bytes(hashlib.sha256("\0".join(names).encode()).digest()[:8], "big")


def _video_name(item: FaceItem, copy: int) -> str:
    name = item.video or Path(item.path).stem
    return f"{name}~{copy}" if copy else name


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.~+-]", "_", name).lstrip(".") or "_"
