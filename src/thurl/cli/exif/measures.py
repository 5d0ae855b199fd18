"""`thurl exif evaluate | robustness`: how well a detector does on photographs and on faces of known generators."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from thurl.cli.exif.detectors import CALIBRATED, FITTED, overlap
from thurl.cli.exif.options import DetectorFile, detector_path, open_tower, table_of
from thurl.cli.output import check_new, finish_document, table
from thurl.cli.picture_options import (
    AllowOutside,
    BatchSize,
    Boxes,
    Debug,
    Device,
    Images,
    Json,
    Model,
    Overwrite,
    Source,
    Workers,
)
from thurl.cli.progress import progress
from thurl.errors import UsageError


__all__ = ["evaluate", "robustness"]

# Names of `thurl.forensics.exif.evaluation.evaluate_scores` and what the table calls them.
_COLUMNS = {
    "accuracy": "accuracy",
    "fpr": "FPR",
    "tpr": "TPR",
    "auc": "AUC",
    "ap_generated": "AP generated",
    "ap_photographic": "AP photographic",
    "auc_two_sided": "AUC 2-sided",
    "tpr_two_sided": "TPR 2-sided",
    "too_high": "too high",
}

_Generated = Annotated[
    list[str],
    typer.Argument(
        help="Folders or lists of generated faces, one per generator; NAME=FOLDER names it.", metavar="GENERATED..."
    ),
]
_Photographs = Annotated[
    list[str], typer.Option("--photographs", "-p", help="Photographs the detector has never seen; may be repeated.")
]
_Fpr = Annotated[float | None, typer.Option("--fpr", help="False-alarm rate; default: the smallest one stored.")]
_Domain = Annotated[str, typer.Option("--domain", help="Kind of photographs to compare with.")]
_Official = Annotated[
    bool, typer.Option("--official", help="The official threshold, to compare with published numbers.")
]
_Output = Annotated[Path | None, typer.Option("--output", "-o", help="Results file (JSON).")]
_Limit = Annotated[int, typer.Option("--limit", min=1, help="Faces per generator at most, drawn by --seed.")]
_Match = Annotated[
    bool, typer.Option("--match/--all-photographs", help="As many photographs as a generator has faces, or all.")
]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.")]


def evaluate(
    generated: _Generated,
    photographs: _Photographs,
    model: Model,
    detector: DetectorFile = None,
    fpr: _Fpr = None,
    domain: _Domain = "",
    official: _Official = False,
    limit: _Limit = 5000,
    match: _Match = True,
    seed: _Seed = 0,
    output: _Output = None,
    images: Images = None,
    boxes: Boxes = None,
    allow_outside: AllowOutside = False,
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Accuracy, false alarms, detections, AUC and both average precisions per generator, and their unweighted mean.

    Folders are searched with their subfolders.
    """
    if output is not None:
        check_new("--output", output, overwrite)
    path = detector_path(model, detector)
    source = Source(True, images, boxes, allow_outside)
    groups = _groups(photographs, generated, source)
    from thurl.forensics.exif.detector import load_detector
    from thurl.forensics.exif.evaluation import evaluate_tables
    from thurl.forensics.exif.scoring import Rule, threshold_of

    rule = Rule(rate=fpr, domain=domain, official=official)
    loaded = load_detector(path)
    threshold_of(loaded, rule)  # a rule without a threshold ends here, before the model is loaded
    seen = _warn_of_overlap(loaded, groups[""])
    tower = open_tower(model, device, batch_size, workers)
    loaded.check_encoder(tower.encoder)
    tables = {name: table_of(tower, found, f"encoded {name or 'photographs'}") for name, found in groups.items()}
    real = tables.pop("")
    result = evaluate_tables(loaded, real, tables, rule, limit=limit, match=match, seed=seed)
    document = {**_source(model, path, photographs, generated, seen), **result}
    finish_document(document, output, as_json)
    if as_json:
        return
    rows = [[name, entry["n"], *(entry[key] for key in _COLUMNS)] for name, entry in result["generators"].items()]
    if len(rows) > 1:
        rows.append(["mean", "", *(result["mean"][key] for key in _COLUMNS)])
    table(["generator", "faces", *_COLUMNS.values()], rows)
    known = result["photographs"]
    two_sided = "" if known["fpr_two_sided"] != known["fpr_two_sided"] else f", two-sided {known['fpr_two_sided']:.3g}"
    typer.echo(
        f"photographs: {known['n']} (FPR over all of them {known['fpr']:.3g}{two_sided}); not usable: "
        f"{known['unusable']} photographs, {sum(e['unusable'] for e in result['generators'].values())} faces"
    )
    typer.echo(_threshold(result))


def robustness(
    generated: _Generated,
    photographs: _Photographs,
    model: Model,
    detector: DetectorFile = None,
    perturbation: Annotated[
        list[str] | None, typer.Option("--perturbation", help="One of them, may be repeated; default: all.")
    ] = None,
    fpr: _Fpr = None,
    domain: _Domain = "",
    official: _Official = False,
    limit: _Limit = 5000,
    match: _Match = True,
    seed: _Seed = 0,
    output: _Output = None,
    images: Images = None,
    boxes: Boxes = None,
    allow_outside: AllowOutside = False,
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate again after JPEG at 95, 75 and 50, half the size, and a blur of 1 pixel; the threshold stays.

    Photographs are changed, too. Folders are searched with their subfolders.
    """
    if output is not None:
        check_new("--output", output, overwrite)
    path = detector_path(model, detector)
    source = Source(True, images, boxes, allow_outside)
    groups = _groups(photographs, generated, source)
    from thurl.forensics.exif.detector import load_detector
    from thurl.forensics.exif.evaluation import robustness_report
    from thurl.forensics.exif.scoring import Rule, threshold_of
    from thurl.forensics.perturbations import PERTURBATIONS, check_perturbations

    names = list(dict.fromkeys(perturbation or PERTURBATIONS))
    check_perturbations(names)
    rule = Rule(rate=fpr, domain=domain, official=official)
    loaded = load_detector(path)
    threshold_of(loaded, rule)
    seen = _warn_of_overlap(loaded, groups[""])
    tower = open_tower(model, device, batch_size, workers)
    total = sum(map(len, groups.values())) * len(names)
    with progress("encoded", total) as advance:
        report = robustness_report(
            tower,
            loaded,
            groups[""].paths,
            {name: found.paths for name, found in groups.items() if name},
            rule,
            perturbations=names,
            boxes={name: found.boxes for name, found in groups.items()},
            progress=advance,
            limit=limit,
            match=match,
            seed=seed,
        )
    finish_document({**_source(model, path, photographs, generated, seen), "perturbations": report}, output, as_json)
    if as_json:
        return
    generators = list(next(iter(report.values()))["generators"])
    rows = []
    for name, result in report.items():
        aucs = [result["generators"][generator]["auc"] for generator in generators]
        mean = [result["mean"][key] for key in ("accuracy", "tpr", "auc")]
        rows.append([name, result["photographs"]["fpr"], *mean, *(aucs if len(aucs) > 1 else [])])
    headings = ["perturbation", "FPR", "accuracy", "TPR", "AUC"]
    table(headings + [f"AUC {name}" for name in generators if len(generators) > 1], rows)
    lost = next(iter(report.values()))
    bad = lost["photographs"]["unusable"] + sum(entry["unusable"] for entry in lost["generators"].values())
    typer.echo(f"accuracy, TPR and AUC are means over {len(generators)} generators; not usable: {bad} pictures")
    typer.echo(_threshold(lost))


def _groups(photographs: Sequence[str], generated: Sequence[str], source: Source) -> dict[str, Any]:
    """Name of a generator to its pictures; the photographs are under ""."""
    named: dict[str, str] = {}
    problems = []
    for item in generated:
        name, equals, place = item.partition("=")
        if not equals or os.path.exists(item):
            name, place = os.path.basename(os.path.normpath(item)), item
        if not name or not place:
            problems.append(f"{item!r}: write NAME=FOLDER, or the folder alone")
        elif name in named:
            problems.append(f"{item!r}: {named[name]!r} is called {name}, too; give one another name, as NAME=FOLDER")
        else:
            named[name] = place
    if problems:
        raise UsageError(problems)
    return {"": source.find(photographs), **{name: source.find([place]) for name, place in named.items()}}


def _warn_of_overlap(detector: Any, pictures: Any) -> dict[str, int]:
    from thurl.forensics.exif.inputs import content_marks

    marks = content_marks(pictures.paths)
    found = {kind: overlap(detector, marks, kind) for kind in (FITTED, CALIBRATED)}
    for kind, count in found.items():
        if count:
            typer.echo(
                f"warning: {count} of {len(pictures)} photographs were {kind.replace('_', ' ')}: false alarms look "
                "rarer than they are. Evaluate with others",
                err=True,
            )
    return found


def _source(
    model: str, detector: Path, photographs: Sequence[str], generated: Sequence[str], seen: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "model": model,
        "detector": str(detector),
        "inputs": {"photographs": list(photographs), "generated": list(generated)},
        "photographs_seen_before": dict(seen),
    }


def _threshold(result: Mapping[str, Any]) -> str:
    rate = result["fpr_target"]
    if rate != rate:
        return "threshold: a probability of 0.5"
    return f"threshold {result['threshold']:.4g}, {result['rule']}, for a false-alarm rate of {rate:g}"
