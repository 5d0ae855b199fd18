"""How well scores agree with people: per dataset, per reference picture, per degradation, over datasets.

VisualQuality-R1 (arXiv 2505.14460, Table 2) reports SRCC and PLCC per dataset and their plain mean; whether a logistic
was fitted before PLCC, and whether sets made from reference pictures are judged over everything or inside each
reference, is not said. Here the raw PLCC comes first with the five-parameter logistic second, and a result always says
which of the two groupings its numbers are.

Failed answers. The correlations are over the pictures that got a score; how many did not is counted beside them. A
model could then shine by answering only what is easy, so `srcc_all` and `plcc_all` give every picture without a score
the mean of the predicted scores, the guess that knows nothing, and correlate over all.

Importing this module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from thurl.data.records import RatedImage
from thurl.errors import DataError, UsageError
from thurl.metrics import bootstrap_interval, fit_logistic, per_group, plcc, srcc


if TYPE_CHECKING:
    from thurl.rl.decoding import Decoding, QualityScore
    from thurl.rl.scorer import QualityScorer

__all__ = ["GROUPINGS", "evaluate_model", "evaluate_scores", "evaluation_table", "jsonable"]

Grouping = Literal["global", "per_reference", "both"]
GROUPINGS = ("global", "per_reference", "both")
_HEADLINE = ("srcc", "plcc", "plcc_logistic", "srcc_all", "plcc_all")


def evaluate_scores(
    pred: Sequence[float] | np.ndarray,
    mos: Sequence[float] | np.ndarray,
    *,
    dataset: Sequence[str],
    reference: Sequence[str | None] | None = None,
    kind: Sequence[str | None] | None = None,
    ok: Sequence[bool] | None = None,
    grouping: Grouping = "global",
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Agreement of predicted scores with mean opinion scores.

    Args:
        pred: predicted scores, shape (N,); NaN where there is none.
        mos: mean opinion scores, shape (N,), on any scale per dataset.
        dataset: name of the dataset of each picture, length N.
        reference: name of the reference picture each was made from, None for none, length N.
        kind: degradation of each picture, None for none, length N.
        ok: whether there is a score; by default where `pred` is finite.
        grouping: what the headline `srcc` and `plcc` of a dataset with references are: "global" over all its
            pictures, "per_reference" the mean over its references. "both" is "global" with the other reported beside
            it. A dataset without references is always global; `grouping` in its result says so.
        bootstrap: resamples for the intervals; 0 for none. Datasets with references are resampled by reference,
            others by picture (`interval_unit`).
        level: coverage of the intervals.
        seed: seed of the resampling.

    Returns:
        `n`, `n_ok`, `n_failed`, `parse_rate`, `grouping`; `datasets`: for each `n`, `n_ok`, `n_failed`, `parse_rate`,
        `score_mean`, `score_std`, `grouping`, the headline (`srcc`, `plcc`, `plcc_logistic` with `logistic_note`,
        `srcc_all`, `plcc_all`, `srcc_interval`, `plcc_interval`, `interval_unit`), the blocks `global` and
        `per_reference` (None where not asked for or without references), `kinds`; `mean`: plain mean of the headline
        over the datasets where it is defined, with `datasets_used`; `kinds`: mean over datasets. NaN: undefined.

    Raises:
        ValueError: lengths differ.
        UsageError: unknown grouping.
        DataError: no pictures, or a MOS that is not finite.
    """
    if grouping not in GROUPINGS:
        raise UsageError(f"grouping {grouping!r} does not exist: choose one of {', '.join(GROUPINGS)}")
    pred, mos = np.asarray(pred, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    columns: dict[str, Sequence[Any]] = {"mos": mos, "dataset": dataset}
    columns |= {"reference": reference} if reference is not None else {}
    columns |= {"kind": kind} if kind is not None else {}
    columns |= {"ok": ok} if ok is not None else {}
    for name, column in columns.items():
        if len(column) != len(pred):
            raise ValueError(f"{len(column)} values in `{name}` for {len(pred)} predictions: one each is needed")
    if len(pred) == 0:
        raise DataError("no pictures to evaluate: the label file or the selection is empty")
    if not np.isfinite(mos).all():
        raise DataError(
            f"{int((~np.isfinite(mos)).sum())} mean opinion scores are not finite numbers: remove those rows"
        )
    good = np.isfinite(pred) if ok is None else np.asarray(ok, dtype=bool) & np.isfinite(pred)
    pred = np.where(good, pred, np.nan)
    options = {"n": bootstrap, "level": level, "seed": seed}
    names = np.asarray([str(name) for name in dataset])
    datasets = {}
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        datasets[name] = _dataset_result(
            pred[rows],
            mos[rows],
            None if reference is None else [reference[i] for i in rows],
            None if kind is None else [kind[i] for i in rows],
            grouping,
            options,
        )
    return {
        "n": len(pred),
        "n_ok": int(good.sum()),
        "n_failed": int((~good).sum()),
        "parse_rate": float(good.mean()),
        "grouping": grouping,
        "mean": _mean_over(list(datasets.values())),
        "datasets": datasets,
        "kinds": _kinds_over(list(datasets.values())),
    }


def evaluate_model(
    scorer: QualityScorer,
    records: Sequence[RatedImage],
    *,
    decoding: Decoding | None = None,
    batch_size: int = 8,
    grouping: Grouping = "global",
    bootstrap: int = 1000,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score rated pictures and evaluate the scores.

    Args:
        scorer: the model.
        records: rated pictures of one or more datasets. A picture that cannot be opened counts as failed.
        decoding: decoding settings; **options: single fields of `thurl.rl.scorer.Decoding`.
        batch_size: answers generated together.
        grouping, bootstrap: as in `evaluate_scores`.
        progress: called with (pictures done, pictures in all).

    Returns:
        The result of `evaluate_scores` and `settings` (model, prompt, picture sizes, decoding), `sample_parse_rate`
        (over single answers), `sample_std` (mean spread of repeated answers, NaN without), `n_unreadable`, and
        `predictions`: one entry per picture, in order.
    """
    from thurl.rl.decoding import make_decoding

    decoding = make_decoding(decoding, options)
    step = max(1, 4 * batch_size // decoding.n_samples)
    scores: list[QualityScore] = []
    for start in range(0, len(records), step):
        chunk = records[start : start + step]
        scores += scorer.score(chunk, decoding=decoding, batch_size=batch_size, errors="mark")
        if progress is not None:
            progress(len(scores), len(records))
    settings = {**scorer.settings(), **decoding.settings(), "batch_size": batch_size}
    return summarise_scores(scores, records, settings=settings, grouping=grouping, bootstrap=bootstrap)


def summarise_scores(
    scores: Sequence[QualityScore],
    records: Sequence[RatedImage],
    *,
    settings: dict[str, Any],
    grouping: Grouping = "global",
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """The result of `evaluate_model` for scores that are there already."""
    result = evaluate_scores(
        [score.score for score in scores],
        [record.mos for record in records],
        dataset=[record.dataset for record in records],
        reference=[record.reference for record in records],
        kind=[record.extra.get("kind") for record in records],
        ok=[score.ok for score in scores],
        grouping=grouping,
        bootstrap=bootstrap,
    )
    answers = [sample for score in scores for sample in score.samples]
    spreads = [score.std for score in scores if not math.isnan(score.std)]
    return {
        **result,
        "sample_parse_rate": float(np.mean(~np.isnan(answers))) if answers else math.nan,
        "sample_std": float(np.mean(spreads)) if spreads else math.nan,
        "n_unreadable": sum(not score.ok and not score.samples for score in scores),
        "settings": settings,
        "predictions": [
            {
                "image": record.image,
                "dataset": record.dataset,
                "mos": record.mos,
                "score": score.score,
                "std": score.std,
                "ok": score.ok,
                "text": score.text,
                "error": score.error,
            }
            | ({"reference": record.reference} if record.reference is not None else {})
            | ({"kind": record.extra["kind"]} if "kind" in record.extra else {})
            for record, score in zip(records, scores, strict=True)
        ],
    }


def evaluation_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of text for a table of `evaluate_scores`: one row per dataset, then the mean."""
    headings = ["dataset", "n", "failed", "SRCC", "95% interval", "PLCC", "PLCC logistic", "SRCC all", "grouping"]
    rows = []
    for name, entry in result["datasets"].items():
        low, high = entry["srcc_interval"]
        interval = "-" if math.isnan(low) else f"{low:.3f} .. {high:.3f}"
        numbers = [_number(entry[key]) for key in ("srcc", "plcc", "plcc_logistic", "srcc_all")]
        rows.append(
            [name, str(entry["n"]), str(entry["n_failed"]), numbers[0], interval, *numbers[1:], entry["grouping"]]
        )
        if result["grouping"] == "both" and entry["per_reference"] is not None:
            block = entry["per_reference"]
            low, high = block["srcc_interval"]
            interval = "-" if math.isnan(low) else f"{low:.3f} .. {high:.3f}"
            rows.append(["", "", "", _number(block["srcc"]), interval, _number(block["plcc"]), "-"])
            rows[-1] += [_number(block["srcc_all"]), f"per_reference ({block['references_used']})"]
    mean = result["mean"]
    numbers = [_number(mean[key]) for key in ("srcc", "plcc", "plcc_logistic", "srcc_all")]
    used = f"{mean['datasets_used']} of {len(result['datasets'])} sets"
    rows.append(["mean", str(result["n"]), str(result["n_failed"]), numbers[0], "", *numbers[1:], used])
    return headings, rows


def jsonable(value: Any) -> Any:
    """`value` for strict JSON: undefined numbers become null, numpy numbers Python ones, tuples lists."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


def _dataset_result(
    pred: np.ndarray,
    mos: np.ndarray,
    reference: Sequence[str | None] | None,
    kind: Sequence[str | None] | None,
    grouping: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    good = ~np.isnan(pred)
    known = pred[good]
    # Only when every picture has a reference are groups the right unit.
    groups = reference if reference is not None and all(name is not None for name in reference) else None
    whole = _block(pred, mos, groups, inside=False, options=options)
    inside = None
    if groups is not None and grouping != "global":
        inside = _block(pred, mos, groups, inside=True, options=options)
    headline = inside if inside is not None and grouping == "per_reference" else whole
    result: dict[str, Any] = {
        "n": len(pred),
        "n_ok": int(good.sum()),
        "n_failed": int((~good).sum()),
        "parse_rate": float(good.mean()),
        "score_mean": float(known.mean()) if known.size else math.nan,
        "score_std": float(known.std(ddof=1)) if known.size > 1 else math.nan,
        "grouping": "per_reference" if headline is inside and inside is not None else "global",
        **headline,
        "global": whole if grouping != "global" else None,
        "per_reference": inside,
        "kinds": {},
    }
    if kind is not None:
        for name in sorted({name for name in kind if name is not None}):
            rows = np.array([item == name for item in kind])
            some = rows & good
            result["kinds"][name] = {
                "n": int(rows.sum()),
                "n_ok": int(some.sum()),
                "srcc": srcc(pred[some], mos[some]),
                "plcc": plcc(pred[some], mos[some]),
            }
    return result


def _block(
    pred: np.ndarray, mos: np.ndarray, groups: Sequence[Hashable] | None, *, inside: bool, options: dict[str, Any]
) -> dict[str, Any]:
    """The headline numbers over all pictures, or (`inside`) as the mean over groups."""
    good = ~np.isnan(pred)
    filled = np.where(good, pred, pred[good].mean() if good.any() else np.nan)
    known, truth = pred[good], mos[good]
    names = None if groups is None else [group for group, use in zip(groups, good, strict=True) if use]
    result: dict[str, Any]
    if inside and names is not None and groups is not None:
        value, used = per_group(srcc, known, truth, names)
        result = {
            "srcc": value,
            "plcc": per_group(plcc, known, truth, names)[0],
            "plcc_logistic": math.nan,
            "logistic_note": "not fitted inside references: too few pictures in each",
            "srcc_all": per_group(srcc, filled, mos, groups)[0],
            "plcc_all": per_group(plcc, filled, mos, groups)[0],
            "references": len(set(groups)),
            "references_used": used,
        }
    else:
        fit = fit_logistic(known, truth)
        result = {
            "srcc": srcc(known, truth),
            "plcc": plcc(known, truth),
            "plcc_logistic": fit.plcc,
            "logistic_note": fit.reason,
            "srcc_all": srcc(filled, mos),
            "plcc_all": plcc(filled, mos),
        }
    for name, metric in (("srcc", srcc), ("plcc", plcc)):
        interval = (math.nan, math.nan)
        if options["n"] > 0:
            interval = bootstrap_interval(metric, known, truth, groups=names, within_groups=inside, **options)
        result[f"{name}_interval"] = list(interval)
    result["interval_unit"] = None if options["n"] <= 0 else "image" if groups is None else "reference"
    return result


def _mean_over(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key in _HEADLINE:
        values = [entry[key] for entry in entries if not math.isnan(entry[key])]
        result[key] = float(np.mean(values)) if values else math.nan
    result["datasets_used"] = sum(not math.isnan(entry["srcc"]) for entry in entries)
    return result


def _kinds_over(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in sorted({name for entry in entries for name in entry["kinds"]}):
        parts = [entry["kinds"][name] for entry in entries if name in entry["kinds"]]
        result[name] = {"n": sum(part["n"] for part in parts), "n_ok": sum(part["n_ok"] for part in parts)}
        for key in ("srcc", "plcc"):
            values = [part[key] for part in parts if not math.isnan(part[key])]
            result[name][key] = float(np.mean(values)) if values else math.nan
    return result


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
