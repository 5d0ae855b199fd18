"""Computing metrics picture by picture: decoding, batches of equal size, worker processes, results that are kept.

Metrics of the tier "classic" are computed where a picture is decoded, in a worker process if there are any, with one
thread in either case, so that their numbers do not depend on the number of workers. Learned metrics are computed in
the main process on their device. A metric that fails on a batch is tried on each picture alone; what fails then is an
empty cell with a reason, and the run goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from thurl.data.images import ImageError
from thurl.iqa.face_restoration.cache import ResultCache, result_key
from thurl.iqa.face_restoration.discovery import FaceItem
from thurl.iqa.face_restoration.interface import FaceBatch, Metric, MetricContext, SetMetric, SetResult, metric_class
from thurl.iqa.face_restoration.landmarks import ffhq_points
from thurl.iqa.face_restoration.pictures import file_digest, read_picture
from thurl.messages import first_line
from thurl.training.threads import one_thread


__all__ = ["PictureResult", "run_metrics"]

logger = logging.getLogger(__name__)

KINDS = ("restored", "lq", "gt")


@dataclass
class PictureResult:
    """What came out for one picture.

    Attributes:
        item: the picture.
        values: metric name to number; NaN where it is undefined.
        errors: reasons of empty cells and other problems, in order.
        notes: what was done to its files, such as transparency put on black.
        size: width and height of the restored picture, None when it was not decoded.
        copied: the restored file is byte for byte the LQ file.
    """

    item: FaceItem
    values: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    copied: bool = False


def run_metrics(
    items: Sequence[FaceItem],
    names: Sequence[str],
    context: MetricContext,
    *,
    batch_size: int = 8,
    workers: int = 0,
    cache: ResultCache | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[PictureResult], dict[str, SetResult], dict[str, dict[str, str]]]:
    """Compute metrics of all pictures.

    Args:
        items: pictures, in the order of the results.
        names: metrics.
        context: what they are built from. Their requirements have been checked.
        batch_size: pictures per batch, 1 or more.
        workers: processes that decode and compute classic metrics; 0 does all in this one.
        cache: results that are there already.
        progress: called with the number of pictures done.

    Returns:
        one result per item; results of the metrics of the whole set; per metric `version` and `fingerprint`.
    """
    cache = cache or ResultCache()
    metrics = {name: metric_class(name)(context) for name in names}
    identity = {name: {"version": m.version, "fingerprint": m.fingerprint()} for name, m in metrics.items()}
    results = [PictureResult(item, errors=list(item.problems)) for item in items]
    digests = [_digests(result) for result in results]
    keys: list[dict[str, str]] = []
    for result, own in zip(results, digests, strict=True):
        result.copied = "lq" in own and own.get("restored") == own["lq"]
        possible = {name: metric for name, metric in metrics.items() if _possible(metric, result.item, own)}
        keys.append({name: _key(metric, identity[name], result.item, own) for name, metric in possible.items()})
        result.values = {name: math.nan for name, metric in metrics.items() if not isinstance(metric, SetMetric)}
    pending: list[list[str]] = []
    for result, own_keys in zip(results, keys, strict=True):
        wanted = []
        for name, key in own_keys.items():
            if isinstance(metrics[name], SetMetric):
                if cache.features(key) is None:
                    wanted.append(name)
            elif (value := cache.value(key)) is None:
                wanted.append(name)
            else:
                result.values[name] = value
        pending.append(wanted)
    kinds = {"restored"}.union(*(metric.needs for metric in metrics.values())) & set(KINDS)
    jobs = [
        _Job(
            tuple(part),
            tuple(items[i] for i in part),
            tuple(tuple(pending[i]) for i in part),
            tuple(digests[i].get("restored", "") for i in part),
        )
        for part in _chunks([i for i, wanted in enumerate(pending) if wanted], batch_size)
    ]
    done = len(items) - sum(len(job.indices) for job in jobs)
    progress(done)
    for outcome in _outcomes(jobs, names, context, workers):
        for index, error in outcome.errors:
            results[index].errors.append(error)
        for index, kind, seen in outcome.pictures:
            cache.keep_record(_picture_key(kind, digests[index][kind]), seen)
        for index, name, value in outcome.values:
            results[index].values[name] = value
            cache.keep(keys[index][name], value)
        for batch, indices, asked in outcome.batches:
            for name in (name for name in asked if metrics[name].tier != "classic"):
                metric = metrics[name]
                places = [keys[index][name] for index in indices]
                if isinstance(metric, SetMetric) and all(cache.features(key) is not None for key in places):
                    continue  # another metric of the set has brought the same features a moment ago
                values, errors = _score(metric, batch)
                for index, key, value, error in zip(indices, places, values, errors, strict=True):
                    results[index].errors += [error] if error else []
                    if isinstance(value, np.ndarray):
                        cache.keep_features(key, value)
                    elif not isinstance(metric, SetMetric):
                        results[index].values[name] = value
                        cache.keep(key, value)
        cache.flush()
        done += len(outcome.indices)
        progress(done)
    for result, own in zip(results, digests, strict=True):
        for kind in (kind for kind in KINDS if kind in kinds and kind in own):
            if seen := cache.record(_picture_key(kind, own[kind])):
                result.notes += [f"{kind}: {note}" for note in seen["notes"]]
                result.size = tuple(seen["size"]) if kind == "restored" else result.size
    sets = {}
    for name, metric in metrics.items():
        if isinstance(metric, SetMetric):
            found = [cache.features(own[name]) for own in keys if name in own]
            sets[name] = _whole(metric, [row for row in found if row is not None])
    return results, sets, identity


@dataclass(frozen=True)
class _Job:
    indices: tuple[int, ...]
    items: tuple[FaceItem, ...]
    wanted: tuple[tuple[str, ...], ...]
    digests: tuple[str, ...]


@dataclass
class _Outcome:
    indices: tuple[int, ...]
    batches: list[tuple[FaceBatch, list[int], tuple[str, ...]]] = field(default_factory=list)
    values: list[tuple[int, str, Any]] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)
    pictures: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)


class _Jobs(Dataset):
    """Decodes the pictures of a job and computes its classic metrics."""

    def __init__(self, jobs: Sequence[_Job], names: Sequence[str], context: MetricContext):
        self.jobs = jobs
        self.classic = [name for name in names if metric_class(name).tier == "classic"]
        self.context = context
        self._metrics: dict[str, Metric] = {}

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, number: int) -> _Outcome:
        job = self.jobs[number]
        outcome = _Outcome(job.indices)
        groups: dict[Any, list[int]] = {}
        decoded: list[tuple[dict[str, np.ndarray], Any]] = []
        for place, (index, item, wanted) in enumerate(zip(job.indices, job.items, job.wanted, strict=True)):
            looked_at = {"restored"}.union(*(metric_class(name).needs for name in wanted)) & set(KINDS)
            pictures, points = self._decode(index, item, looked_at, outcome), item.landmarks
            decoded.append((pictures, points))
            if "restored" not in pictures:
                continue
            usable = tuple(n for n in wanted if (metric_class(n).needs & set(KINDS)) <= set(pictures))
            shapes = tuple(sorted((kind, picture.shape) for kind, picture in pictures.items()))
            groups.setdefault((shapes, usable), []).append(place)
        with one_thread():
            for (_, wanted), places in groups.items():
                batch = _batch(job, decoded, places)
                indices = [job.indices[place] for place in places]
                for name in (name for name in wanted if name in self.classic):
                    values, errors = _score(self._metric(name), batch)
                    outcome.values += [(i, name, value) for i, value in zip(indices, values, strict=True)]
                    outcome.errors += [(i, error) for i, error in zip(indices, errors, strict=True) if error]
                if any(name not in self.classic for name in wanted):
                    outcome.batches.append((batch, indices, wanted))
        return outcome

    def _decode(self, index: int, item: FaceItem, kinds: set[str], outcome: _Outcome) -> dict[str, np.ndarray]:
        pictures = {}
        for kind in KINDS:
            path = getattr(item, kind)
            if kind not in kinds or path is None:
                continue
            try:
                picture = read_picture(path)
            except ImageError as error:
                # The key names the picture; a machine's folders do not belong into a result.
                outcome.errors.append((index, f"{kind}: {str(error).replace(f'{path}: ', '', 1)}"))
                continue
            pictures[kind] = picture.pixels
            height, width = picture.pixels.shape[:2]
            outcome.pictures.append((index, kind, {"size": [width, height], "notes": list(picture.notes)}))
        return pictures

    def _metric(self, name: str) -> Metric:
        if name not in self._metrics:
            self._metrics[name] = metric_class(name)(self.context)
        return self._metrics[name]


def _outcomes(jobs: Sequence[_Job], names: Sequence[str], context: MetricContext, workers: int) -> Iterator[_Outcome]:
    work = _Jobs(jobs, names, context)
    if workers < 1 or len(jobs) < 2:
        for number in range(len(work)):
            yield work[number]
        return
    yield from DataLoader(work, batch_size=None, num_workers=min(workers, len(jobs)), collate_fn=_as_it_is)


def _as_it_is(outcome: _Outcome) -> _Outcome:
    return outcome


def _batch(job: _Job, decoded: Sequence[tuple[dict[str, np.ndarray], Any]], places: Sequence[int]) -> FaceBatch:
    first = decoded[places[0]][0]
    pictures = {kind: _planes(np.stack([decoded[place][0][kind] for place in places])) for kind in first}
    height, width = first.get("lq", first["restored"]).shape[:2]
    landmarks = [decoded[place][1] or ffhq_points(width, height) for place in places]
    return FaceBatch(
        [job.items[place].key for place in places],
        pictures,
        np.array(landmarks, dtype=np.float64),
        [job.digests[place] for place in places],
    )


def _planes(pictures: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) to (B, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))


def _score(metric: Metric, batch: FaceBatch) -> tuple[list[Any], list[str]]:
    """Values and error texts of a batch; of each picture alone when the batch fails."""
    try:
        if isinstance(metric, SetMetric):
            rows = metric.features(batch).detach().cpu().numpy()
            if rows.ndim != 2 or len(rows) != len(batch):
                raise ValueError(f"features of shape {rows.shape}, ({len(batch)}, D) are needed")
            good = [bool(np.isfinite(row).all()) for row in rows]
            errors = ["" if ok else f"{metric.name}: features are not finite" for ok in good]
            return [row if ok else math.nan for row, ok in zip(rows, good, strict=True)], errors
        scores = torch.as_tensor(metric.score(batch)).detach().cpu().to(torch.float64)
        if scores.shape != (len(batch),):
            raise ValueError(f"values of shape {tuple(scores.shape)}, ({len(batch)},) is needed")
        values = scores.tolist()
        return values, [f"{metric.name}: undefined for this picture" if math.isnan(v) else "" for v in values]
    except Exception as error:  # whatever a plug-in raises concerns this picture, not the run
        if len(batch) == 1:
            logger.debug("%s failed on %s", metric.name, batch.keys[0], exc_info=True)
            return [math.nan], [f"{metric.name}: {first_line(error)}"]
    parts = [_score(metric, batch.single(index)) for index in range(len(batch))]
    return [values[0] for values, _ in parts], [errors[0] for _, errors in parts]


def _whole(metric: SetMetric, rows: Sequence[np.ndarray]) -> SetResult:
    try:
        if rows:
            metric.update(np.stack(rows))
        return metric.compute()
    except Exception as error:  # the values of the pictures must not be lost with it
        return SetResult(math.nan, {"count": len(rows)}, (f"{metric.name}: {first_line(error)}",))


def _digests(result: PictureResult) -> dict[str, str]:
    found = {}
    for kind in KINDS:
        path = getattr(result.item, kind)
        if path is None:
            continue
        try:
            found[kind] = file_digest(path)
        except ImageError as error:
            result.errors.append(f"{kind}: {str(error).replace(f'{path}: ', '', 1)}")
    return found


def _possible(metric: Metric, item: FaceItem, digests: Mapping[str, str]) -> bool:
    if "landmarks" in metric.needs and "without landmarks" in item.problems:
        return False
    return "restored" in digests and (metric.needs & set(KINDS)) <= set(digests)


def _key(metric: Metric, identity: Mapping[str, str], item: FaceItem, digests: Mapping[str, str]) -> str:
    looked_at = {kind: digest for kind, digest in digests.items() if kind == "restored" or kind in metric.needs}
    landmarks = item.landmarks if "landmarks" in metric.needs else None
    name = metric.feature_name if isinstance(metric, SetMetric) else metric.name
    return result_key(name, identity["version"], identity["fingerprint"], looked_at, landmarks)


def _picture_key(kind: str, digest: str) -> str:
    return result_key("picture", "1", "", {kind: digest}, None)


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
