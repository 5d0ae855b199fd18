"""Scoring many picture files: batches of one size, every reference through the tower once, bad files as rows.

A picture that cannot be opened, has no reference or another size than its reference is a row with its error and
without numbers; the others are not affected.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from thurl.data.images import MAX_PIXELS, ImageError
from thurl.iqa.afine.features import AFineFeatures, by_size
from thurl.iqa.afine.model import AFineModel
from thurl.iqa.afine.pairing import Pair
from thurl.iqa.afine.pictures import as_picture


__all__ = ["COLUMNS", "AFineRow", "score_pairs"]

_UNDEFINED = math.nan


@dataclass(frozen=True)
class AFineRow:
    """Scores of one picture. Lower is better in all of them; NaN is undefined.

    Attributes:
        ref: the reference's path, empty without one.
        dis: the picture's path.
        ok: whether there are scores.
        afine_scaled: D_s, in [0, 100].
        afine: D.
        fidelity: F, in (-2, 2).
        naturalness_dis, naturalness_ref: N, in (-2, 2).
        adapter_weight: lambda.
        past_turning_point: where D is not to be trusted (`thurl.iqa.afine.mathematics`).
        fidelity_raw, naturalness_dis_raw, naturalness_ref_raw: before the maps.
        error: why there are no scores; empty otherwise.
    """

    ref: str
    dis: str
    ok: bool = False
    afine_scaled: float = _UNDEFINED
    afine: float = _UNDEFINED
    fidelity: float = _UNDEFINED
    naturalness_dis: float = _UNDEFINED
    naturalness_ref: float = _UNDEFINED
    adapter_weight: float = _UNDEFINED
    past_turning_point: bool = False
    fidelity_raw: float = _UNDEFINED
    naturalness_dis_raw: float = _UNDEFINED
    naturalness_ref_raw: float = _UNDEFINED
    error: str = ""

    def row(self) -> dict[str, Any]:
        """As a JSON object; undefined numbers are null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


COLUMNS = tuple(field.name for field in fields(AFineRow))
_SCORES = COLUMNS[3 : COLUMNS.index("error")]


def score_pairs(
    model: AFineModel,
    pairs: Sequence[Pair],
    *,
    batch_size: int = 8,
    batch_pixels: int = 2**23,
    cache_bytes: int = 2**28,
    upright: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[AFineRow]:
    """Scores of every pair, in order. Pairs without a reference and without a problem get naturalness alone.

    Args:
        model: in evaluation mode, on its device.
        pairs: from `pair_files`.
        batch_size: pictures that are opened, and at most go through the tower, together.
        batch_pixels: at most so many pixels go through the tower together, but always one picture.
        cache_bytes: memory for references that later pairs need again; a reference beyond it is computed again.
        upright: whether EXIF orientation is applied.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        ValueError: `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
    scorer = _Scorer(
        model,
        {"upright": upright, "max_pixels": max_pixels},
        batch_pixels,
        cache_bytes,
        Counter(pair.ref for pair in pairs if pair.ref is not None),
    )
    for start in range(0, len(pairs), batch_size):
        yield from scorer.score(pairs[start : start + batch_size])


class _Scorer:
    def __init__(
        self, model: AFineModel, options: dict[str, Any], batch_pixels: int, cache_bytes: int, waiting: Counter[str]
    ):
        self.model = model
        self.options = options
        self.batch_pixels = batch_pixels
        self.cache_bytes = cache_bytes
        self.waiting = waiting  # how many pairs still need a reference
        self.cache: dict[str, AFineFeatures] = {}
        self.unusable: dict[str, str] = {}  # references that do not open, with the reason

    @torch.no_grad()
    def score(self, pairs: Sequence[Pair]) -> list[AFineRow]:
        """Rows of pairs that are opened together."""
        errors = {i: pair.problem for i, pair in enumerate(pairs) if pair.problem}
        pictures: dict[int, torch.Tensor] = {}
        references: dict[str, torch.Tensor] = {}
        for i, pair in enumerate(pairs):
            if i in errors:
                continue
            try:
                pictures[i] = as_picture(pair.dis, **self.options)
                if pair.ref is not None:
                    self._check_size(self._reference_size(pair.ref, references), pictures[i])
            except (ImageError, _Unusable) as error:
                errors[i] = str(error)
        scores: dict[int, dict[str, Any]] = {}
        usable = [i for i in pictures if i not in errors]
        for alone in (True, False):
            mine = [i for i in usable if (pairs[i].ref is None) is alone]
            for group in by_size([pictures[i] for i in mine]).values():
                for members in self._portions([mine[place] for place in group], pictures):
                    if alone:
                        found = self._naturalness(members, pictures)
                    else:
                        refs = [pairs[i].ref or "" for i in members]
                        found = self._compare(members, refs, pictures, references)
                    values = {name: tensor.tolist() for name, tensor in found.items()}
                    scores |= {i: {name: values[name][at] for name in values} for at, i in enumerate(members)}
        self._forget(pairs)
        return [_row(pair, scores.get(i, {}), errors.get(i, "")) for i, pair in enumerate(pairs)]

    def _reference_size(self, ref: str, references: dict[str, torch.Tensor]) -> tuple[int, int]:
        """Size of a reference, which is opened unless its features are there or it has failed before."""
        if ref in self.cache:
            return self.cache[ref].size
        if ref in self.unusable:
            raise _Unusable(self.unusable[ref])
        if ref not in references:
            try:
                references[ref] = as_picture(ref, **self.options)
            except ImageError as error:
                self.unusable[ref] = f"the reference: {error}"
                raise _Unusable(self.unusable[ref]) from None
        return references[ref].shape[-2], references[ref].shape[-1]

    def _check_size(self, size: tuple[int, int], picture: torch.Tensor) -> None:
        height, width = picture.shape[-2:]
        if size != (height, width):
            raise _Unusable(
                f"the picture has {width}x{height} pixels, its reference {size[1]}x{size[0]}; both must have the same "
                "size: resize one of them before"
            )

    def _portions(self, members: list[int], pictures: dict[int, torch.Tensor]) -> Iterator[list[int]]:
        """Pictures of one size that may go through the tower together."""
        step = max(1, self.batch_pixels // pictures[members[0]][0].numel())
        for start in range(0, len(members), step):
            yield members[start : start + step]

    def _features(self, pictures: list[torch.Tensor], *, keep_levels: bool = True) -> AFineFeatures:
        return self.model.features(torch.stack(pictures).to(self.model.device), keep_levels=keep_levels)

    def _naturalness(self, members: list[int], pictures: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        raw = self.model.naturalness_raw(self._features([pictures[i] for i in members], keep_levels=False))
        return {"naturalness_dis_raw": raw, "naturalness_dis": self.model.naturalness_map(raw)}

    def _compare(
        self,
        members: list[int],
        refs: list[str],
        pictures: dict[int, torch.Tensor],
        references: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        new = [ref for ref in dict.fromkeys(refs) if ref not in self.cache]
        features = self._features([references[ref] for ref in new] + [pictures[i] for i in members])
        known = {ref: features[place : place + 1] for place, ref in enumerate(new)}
        for ref, found in known.items():
            if self.waiting[ref] > 1 and self._cached_bytes() + found.nbytes <= self.cache_bytes:
                # Copied: a slice would keep the whole batch in memory.
                self.cache[ref] = found.clone()
        parts = [
            known[ref] if ref in known else self.cache[ref] for ref in (refs[:1] if len(set(refs)) == 1 else refs)
        ]
        output = self.model.compare(AFineFeatures.cat(parts), features[len(new) :])
        return {name: output[name] for name in _SCORES}

    def _cached_bytes(self) -> int:
        return sum(features.nbytes for features in self.cache.values())

    def _forget(self, pairs: Sequence[Pair]) -> None:
        """Drop references that no later pair needs."""
        self.waiting.subtract(pair.ref for pair in pairs if pair.ref is not None)
        for ref in [ref for ref in self.cache if self.waiting[ref] <= 0]:
            del self.cache[ref]


class _Unusable(Exception):
    """A picture and a reference that cannot be compared; never leaves this module."""


def _row(pair: Pair, scores: dict[str, Any], error: str) -> AFineRow:
    numbers = [value for value in scores.values() if not isinstance(value, bool)]
    if scores and not all(math.isfinite(value) for value in numbers):
        scores, error = {}, "the model gave a score that is no finite number"
    return AFineRow(pair.ref or "", pair.dis, ok=bool(scores), error=error, **scores)
