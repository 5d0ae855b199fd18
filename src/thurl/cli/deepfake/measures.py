"""`thurl deepfake evaluate`: metrics of test sets, per frame, video, attribute and region."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from thurl.cli.devices import usable_device
from thurl.cli.output import check_new, finish_document, table
from thurl.cli.picture_options import (
    AllowOutside,
    BatchSize,
    Debug,
    Device,
    Images,
    Json,
    Model,
    Overwrite,
    Workers,
    say_bad,
)
from thurl.cli.progress import progress
from thurl.errors import DataError
from thurl.messages import printable


__all__ = ["evaluate"]

_COLUMNS = {
    "video AUC": ("videos", "auc"),
    "low": ("videos", "auc_low"),
    "high": ("videos", "auc_high"),
    "frame AUC": ("frames", "auc"),
    "AP": ("videos", "ap"),
    "EER": ("videos", "eer"),
    "accuracy": ("videos", "accuracy"),
    "at threshold": ("videos", "accuracy_chosen"),
    "TPR at 1 %": ("videos", "tpr_at_fpr_1"),
    "ECE": ("frames", "ece"),
}


def evaluate(
    manifests: Annotated[list[Path], typer.Argument(help="Manifests of test faces.", metavar="MANIFESTS...")],
    model: Model,
    validation: Annotated[
        Path | None, typer.Option("--validation", help="Manifest to choose the threshold on, of other faces.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only test faces of this split.")] = None,
    validation_split: Annotated[
        str | None, typer.Option("--validation-split", help="Only faces of this split for the threshold.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="Frames of each video, evenly spaced; default: all.")
    ] = None,
    perturbation: Annotated[
        list[str] | None, typer.Option("--perturbation", help="Evaluate again after it; may be repeated.")
    ] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=0, help="Of the bootstrap over videos.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Results file (JSON).")] = None,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="All probabilities of all frames beside their labels (CSV).")
    ] = None,
    images: Images = None,
    allow_outside: AllowOutside = False,
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """AUC and more of each data set in the manifests, over frames and videos, and AUC of attributes and regions.

    Videos are told apart by data set, label, manipulation and name. A set of one class is named and not scored.
    """
    for option, path in (("--output", output), ("--scores", scores)):
        if path is not None:
            check_new(option, path, overwrite)
    from thurl.forensics.perturbations import check_perturbations

    names = list(dict.fromkeys(perturbation or ()))
    check_perturbations(names)
    from thurl.forensics.deepfake.evaluation import Thresholds, choose_thresholds, evaluate_frames
    from thurl.forensics.deepfake.loading import load_model, load_processor
    from thurl.forensics.deepfake.scoring import FaceScorer

    processor = load_processor(model)
    loaded = load_model(model, device=usable_device(device))
    options = {"images": images, "allow_outside": allow_outside}
    items = [item for path in manifests for item in _faces(path, loaded.graph, split, frames, options)]
    chosen = [] if validation is None else _faces(validation, loaded.graph, validation_split, frames, options)
    scorer = FaceScorer(loaded, processor, batch_size=batch_size, workers=workers)
    tables: dict[str, Any] = {}
    thresholds = Thresholds()
    errors: list[str] = []
    with progress("judged", len(chosen) + len(items) * (1 + len(names))) as advance:
        done = 0
        if chosen:
            found, _ = scorer.table(chosen, progress=advance)
            thresholds = choose_thresholds(found)
            done += len(chosen)
        for name in ["none", *(name for name in names if name != "none")]:
            start = done
            tables[name], lost = scorer.table(items, name, lambda count, start=start: advance(start + count))
            errors = errors or lost
            done += len(items)
    bad = [f"{item.where}: {error}" if error else "" for item, error in zip(items, errors, strict=True)]
    say_bad(bad)
    if all(bad):
        raise DataError(f"none of the {len(items)} pictures could be used; the reasons are above")
    measured = {
        name: evaluate_frames(found, loaded.graph.tasks, thresholds=thresholds, resamples=resamples, seed=seed)
        for name, found in tables.items()
    }
    result = measured.pop("none")
    document = {"model": model, "inputs": [str(path) for path in manifests], **result}
    document |= {"unusable": [text for text in bad if text], "perturbations": measured}
    if scores is not None:
        _write_scores(scores, items, tables["none"], errors)
    finish_document(document, output, as_json)
    for name, reason in result["not_scored"].items():
        typer.echo(f"warning: test set {printable(name or '-')} is not scored: it {reason}", err=True)
    if as_json:
        return
    _tables(result, measured)


def _faces(path: Path, graph: Any, split: str | None, frames: int | None, options: dict[str, Any]) -> list[Any]:
    from thurl.forensics.deepfake.manifest import read_manifest
    from thurl.forensics.deepfake.sampling import sample_frames

    items = read_manifest(path, graph, **options)
    if split is not None and not any(item.split == split for item in items):
        raise DataError(f"{path}: no row has the split {split!r}")
    items = [item for item in items if split is None or item.split == split]
    return items if frames is None else sample_frames(items, frames).items


def _tables(result: dict[str, Any], measured: dict[str, dict[str, Any]]) -> None:
    rows = []
    for name, entry in result["datasets"].items():
        if name in result["not_scored"]:
            continue
        cells = [entry[kind][metric] for kind, metric in _COLUMNS.values()]
        rows.append([name or "-", entry["videos"]["n"], entry["frames"]["n"], *cells])
    if rows:
        table(["test set", "videos", "frames", *_COLUMNS], rows)
    rows = []
    for name, entry in result["datasets"].items():
        for kind in ("attributes", "regions"):
            rows += [[name or "-", kind[:-1], what, value] for what, value in entry[kind].items() if value == value]
    if rows:
        typer.echo("")
        table(["test set", "level", "name", "AUC"], rows)
    rows = [
        [name, *(other["mean"].get(key) for key in ("video_auc", "frame_auc", "attribute_auc", "region_auc"))]
        for name, other in measured.items()
        if other["mean"]
    ]
    if rows:
        typer.echo("")
        table(["perturbation", "video AUC", "frame AUC", "attributes", "regions"], rows)


def _write_scores(path: Path, items: Sequence[Any], found: Any, errors: Sequence[str]) -> None:
    from thurl.training.results import write_atomically

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    known = ["path", "dataset", "split", "manipulation", "video", "frame"]
    writer.writerow([*known, *(f"label_{n}" for n in found.names), *(f"p_{n}" for n in found.names), "error"])
    for item, values, error in zip(items, found.probabilities, errors, strict=True):
        labels = ["" if label < 0 else label for label in item.labels]
        cells = ["" if value != value else repr(float(value)) for value in values]
        writer.writerow([*(getattr(item, name) for name in known), *labels, *cells, error])
    write_atomically(path, buffer.getvalue())
