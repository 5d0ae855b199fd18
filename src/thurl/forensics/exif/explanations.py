"""What an encoder sees in a picture: guessed camera settings, edits, regions.

The joint embedding (BLADES) has a probability for every sentence. The five-headed model has scores that only order
pictures, so a rank among reference pictures is given where there are some.

These are readings of the pretext tasks, not reasons for the detector's verdict: that comes from the density of the
features, and nothing here says which pixels moved it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from thurl.data.images import ImageError
from thurl.errors import DataError, UsageError
from thurl.forensics.exif.blades import BladesModel
from thurl.forensics.exif.losses import HEADS
from thurl.forensics.exif.ordinal import ExifOrdinalModel
from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, ORDINAL_TASKS, class_names, columns_of
from thurl.forensics.reading import Picture, picture_name
from thurl.ranking import expected_level


__all__ = ["Explanation", "check_explainable", "explain", "explain_scores", "reference_scores"]


@dataclass(frozen=True)
class Explanation:
    """Readings of one picture.

    Attributes:
        image: path, or "picture 0" and so on.
        settings: task to class or level to probability, the sum is 1 (joint embedding only).
        levels: ordinal task to expected level, in [1, number of levels] (joint embedding only).
        ranks: ordinal task to the share of reference pictures that score lower, in [0, 1]; NaN without reference.
        manipulated: probability that a part of the face was edited, NaN if the model has no such task.
        regions: region to the probability that it was edited.
        error: why the picture could not be used, else "".
    """

    image: str
    settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    manipulated: float = float("nan")
    regions: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


def explain(
    model: BladesModel | ExifOrdinalModel,
    processor: Any,
    pictures: Sequence[Picture],
    *,
    boxes: Sequence[Sequence[float] | None] | None = None,
    reference: torch.Tensor | None = None,
    batch_size: int = 32,
) -> list[Explanation]:
    """Readings of pictures; a picture that cannot be used comes back with its error.

    Args:
        model: trained, put into evaluation mode.
        processor: its image processor.
        pictures: paths, encoded bytes, PIL pictures or arrays.
        boxes: a face box in pixels for each picture, None for pictures used whole.
        reference: (M, columns) scores of photographs of the same kind, from `reference_scores`, for ranks.
        batch_size: pictures that go through the model together.

    Raises:
        UsageError: another number of boxes.
        DataError: a converted model whose text tower or heads were not in the checkpoint: its readings are random.
    """
    check_explainable(model)
    scores, errors = _scores(model, processor, pictures, boxes, batch_size)
    names = [picture_name(picture, place) for place, picture in enumerate(pictures)]
    found = iter(
        explain_scores(model, scores, [name for name, e in zip(names, errors, strict=True) if not e], reference)
    )
    return [
        Explanation(name, error=error) if error else next(found) for name, error in zip(names, errors, strict=True)
    ]


def reference_scores(
    model: BladesModel | ExifOrdinalModel,
    processor: Any,
    pictures: Sequence[Picture],
    *,
    boxes: Sequence[Sequence[float] | None] | None = None,
    batch_size: int = 32,
) -> torch.Tensor:
    """(M, columns) scores of the usable ones of `pictures`, for the ranks of `explain`."""
    return _scores(model, processor, pictures, boxes, batch_size)[0]


def check_explainable(model: Any) -> None:
    """Raise if a model has nothing to read.

    Raises:
        DataError: parts of a converted model were not in the checkpoint.
        UsageError: another kind of model.
    """
    if not isinstance(model, BladesModel | ExifOrdinalModel):
        raise UsageError(f"{type(model).__name__} has no pretext tasks; explain a BladesModel or an ExifOrdinalModel")
    if model.config.untrained:
        raise DataError(
            f"the checkpoint this model was converted from lacked {', '.join(model.config.untrained)}: there is "
            "nothing to explain with. The encoder is whole, detection works."
        )


def explain_scores(
    model: BladesModel | ExifOrdinalModel,
    scores: torch.Tensor,
    names: Sequence[str],
    reference: torch.Tensor | None = None,
) -> list[Explanation]:
    """Readings of a model's scores.

    Args:
        model: says what the columns are.
        scores: (N, columns), the `scores` of its output.
        names: N.
        reference: (M, columns) scores for ranks.

    Raises:
        DataError, UsageError: see `check_explainable`.
    """
    check_explainable(model)
    rows = scores.detach().cpu().double()
    if isinstance(model, ExifOrdinalModel):
        ordinal = {task: rows[:, column] for column, task in enumerate(HEADS) if task in ORDINAL_TASKS}
        compared = {} if reference is None else {task: reference[:, HEADS.index(task)] for task in ordinal}
        ranks = _ranks(ordinal, compared)
        manipulated = rows[:, HEADS.index("coarse_face")].sigmoid().tolist()
        return [
            Explanation(name, ranks=_row(ranks, place), manipulated=manipulated[place])
            for place, name in enumerate(names)
        ]
    columns = columns_of(model.config.columns)
    ordinal = {task: expected_level(rows[:, columns[task]]) for task in ORDINAL_TASKS if task in columns}
    compared = (
        {} if reference is None else {task: expected_level(reference[:, columns[task]].double()) for task in ordinal}
    )
    ranks = _ranks(ordinal, compared)
    shares = {
        task: rows[:, columns[task]].softmax(dim=1)
        for task in (*ORDINAL_TASKS, *CATEGORICAL_TASKS, "coarse_face")
        if task in columns
    }
    regions = rows[:, columns["fine_face"]].sigmoid() if "fine_face" in columns else None
    result = []
    for place, name in enumerate(names):
        settings = {
            task: dict(zip(class_names(task, share.shape[1]), share[place].tolist(), strict=True))
            for task, share in shares.items()
            if task != "coarse_face"
        }
        fine = {}
        if regions is not None:
            fine = dict(zip(class_names("fine_face", regions.shape[1]), regions[place].tolist(), strict=True))
        result.append(
            Explanation(
                name,
                settings=settings,
                levels={task: float(level[place]) for task, level in ordinal.items()},
                ranks=_row(ranks, place),
                manipulated=float(shares["coarse_face"][place, 1]) if "coarse_face" in shares else float("nan"),
                regions=fine,
            )
        )
    return result


def _scores(
    model: BladesModel | ExifOrdinalModel,
    processor: Any,
    pictures: Sequence[Picture],
    boxes: Sequence[Sequence[float] | None] | None,
    batch_size: int,
) -> tuple[torch.Tensor, list[str]]:
    """Scores of the usable pictures, and an error or "" for each."""
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: at least 1 is needed")
    if boxes is not None and len(boxes) != len(pictures):
        raise UsageError(f"{len(boxes)} boxes for {len(pictures)} pictures; one each, None for a whole picture")
    model.eval()
    device = next(model.parameters()).device
    errors, parts, waiting = [], [], []
    for place, picture in enumerate(pictures):
        box = None if boxes is None else boxes[place]
        try:
            waiting.append(processor([picture], boxes=[box], return_tensors="pt")["pixel_values"][0])
            errors.append("")
        except (ImageError, ValueError) as error:
            errors.append(str(error) or type(error).__name__)
        if waiting and (len(waiting) == batch_size or place == len(pictures) - 1):
            with torch.no_grad():
                parts.append(model(torch.stack(waiting).to(device)).scores.float().cpu())
            waiting = []
    width = len(HEADS) if isinstance(model, ExifOrdinalModel) else sum(model.config.columns.values())
    return (torch.cat(parts) if parts else torch.empty(0, width)), errors


def _ranks(values: Mapping[str, torch.Tensor], compared: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Share of `compared` below each value, equal ones counting one half."""
    found = {}
    for task, own in values.items():
        if task not in compared or not len(compared[task]):
            found[task] = np.full(len(own), np.nan)
            continue
        ordered = np.sort(compared[task].detach().cpu().double().numpy())
        low = np.searchsorted(ordered, own.numpy(), side="left")
        high = np.searchsorted(ordered, own.numpy(), side="right")
        found[task] = (low + high) / 2 / len(ordered)
    return found


def _row(ranks: Mapping[str, np.ndarray], place: int) -> dict[str, float]:
    return {task: float(values[place]) for task, values in ranks.items()}
