"""`thurl exif fit | calibrate`: features of photographs become a detector file with thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thurl.cli.exif.options import DetectorFile, detector_path, open_tower, table_of
from thurl.cli.output import check_new, echo_json, number
from thurl.cli.picture_options import (
    PICTURES,
    AllowOutside,
    BatchSize,
    Boxes,
    Debug,
    Device,
    Images,
    Json,
    Model,
    Overwrite,
    Recursive,
    Source,
    Workers,
)
from thurl.errors import DataError, UsageError


if TYPE_CHECKING:
    from thurl.forensics.exif.detector import Detector
    from thurl.forensics.exif.inputs import Pictures

__all__ = ["calibrate", "fit", "overlap"]

FITTED = "fitted_to"
CALIBRATED = "calibrated_with"


class Features(StrEnum):
    """What a detector takes."""

    unit = "unit"
    raw = "raw"


class Covariance(StrEnum):
    """Covariances of a mixture."""

    full = "full"
    tied = "tied"
    diag = "diag"


class Fallback(StrEnum):
    """What is fitted when there are too few photographs for full covariances."""

    tied = "tied"
    diag = "diag"
    pca = "pca"
    refuse = "refuse"


_Part = Annotated[str | None, typer.Option("--part", help="Of a manifest: train, outer, validation or calibration.")]
_SplitSeed = Annotated[int, typer.Option("--split-seed", help="Seed of the parts.")]


def fit(
    photographs: Annotated[list[str], typer.Argument(help=PICTURES, metavar="PHOTOGRAPHS...")],
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Detector file; default: detector.safetensors in --model.")
    ] = None,
    generated: Annotated[
        list[str] | None, typer.Option("--generated", "-g", help="Generated faces: fit the binary head instead.")
    ] = None,
    part: _Part = None,
    split_seed: _SplitSeed = 0,
    features: Annotated[
        Features | None, typer.Option("--features", help="Length of features; default: as the model's paper.")
    ] = None,
    components: Annotated[
        int | None, typer.Option("--components", min=1, help="Gaussians; default 10 (unit) or 12 (raw).")
    ] = None,
    covariance: Annotated[Covariance | None, typer.Option("--covariance", help="Default: full.")] = None,
    pca: Annotated[int | None, typer.Option("--pca", min=1, help="Project features to so many columns.")] = None,
    fallback: Annotated[
        Fallback | None, typer.Option("--fallback", help="With too few photographs for full; default: tied.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Binary head: default 20.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Binary head: default 1e-3.")] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", help="Binary head: default 1e-4.")] = None,
    hidden_size: Annotated[
        int | None, typer.Option("--hidden-size", min=1, help="Binary head: default twice the features' width.")
    ] = None,
    pseudo_outliers: Annotated[
        float | None, typer.Option("--pseudo-outliers", help="Binary head: share of photographs called generated.")
    ] = None,
    one_class: Annotated[
        Path | None, typer.Option("--one-class", help="Binary head: detector that ranks for --pseudo-outliers.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the fit; 2024 is the official one.")] = 2024,
    recursive: Recursive = False,
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
    """Fit a detector to photographs: a Gaussian mixture, or with --generated the binary head.

    Calibrate it afterwards with other photographs; a mixture has no threshold before.
    """
    for_mixture = {"--features": features, "--components": components, "--covariance": covariance, "--pca": pca,
                   "--fallback": fallback}  # fmt: skip
    for_head = {"--epochs": epochs, "--learning-rate": learning_rate, "--weight-decay": weight_decay,
                "--hidden-size": hidden_size, "--pseudo-outliers": pseudo_outliers,
                "--one-class": one_class}  # fmt: skip
    strange = [name for name, value in (for_mixture if generated else for_head).items() if value is not None]
    problems = [f"{name} is for {'a mixture' if generated else 'the binary head'}, "
                f"{'leave it out with' if generated else 'which needs'} --generated" for name in strange]  # fmt: skip
    if (pseudo_outliers is None) != (one_class is None) and generated:
        problems.append("--pseudo-outliers and --one-class go together")
    target = output if output is not None else Path(model).expanduser() / "detector.safetensors"
    try:
        check_new("--output", target, overwrite)
    except UsageError as error:
        problems += error.problems
    if output is None and not target.parent.is_dir():
        problems.append(f"--output is missing: --model {model} is no folder in which a detector could lie")
    if problems:
        raise UsageError(problems)
    source = Source(recursive, images, boxes, allow_outside)
    real = _part(photographs, source, part, split_seed)
    fake = source.find(generated) if generated else None
    from thurl.forensics.exif.detector import load_detector, save_detector
    from thurl.forensics.exif.fitting import fit_binary, fit_one_class
    from thurl.forensics.exif.inputs import content_marks

    ranks = None if one_class is None else load_detector(one_class)
    tower = open_tower(model, device, batch_size, workers)
    unit = True if fake is not None else _unit_length(model, features)
    table = table_of(tower, real, "encoded photographs")
    note = {FITTED: content_marks(real.paths)}
    if fake is None:
        detector = fit_one_class(
            table,
            unit_length=unit,
            components=components or (10 if unit else 12),
            covariance=(covariance or Covariance.full).value,
            pca=pca,
            fallback=(fallback or Fallback.tied).value,
            seed=seed,
            training=note,
        )
    else:
        given = {"epochs": epochs, "learning_rate": learning_rate, "weight_decay": weight_decay,
                 "hidden_size": hidden_size, "pseudo_outlier_quantile": pseudo_outliers}  # fmt: skip
        detector = fit_binary(
            table,
            table_of(tower, fake, "encoded generated faces"),
            one_class=ranks,
            seed=seed,
            use_cpu=tower.encoder.device.type == "cpu",
            training=note,
            **{name: value for name, value in given.items() if value is not None},
        )
    save_detector(detector, target)
    settings = {name: value for name, value in detector.training.items() if name != FITTED}
    covariances = getattr(detector.scorer, "covariance", None)
    document = {
        "output": str(target),
        "kind": detector.kind,
        "encoder": detector.encoder,
        "unit_length": detector.unit_length,
        "covariance": covariances,
        "unusable": sum(map(bool, table.errors)),
        **settings,
    }
    if as_json:
        echo_json(document)
        return
    what = f"mixture of {settings['components']} ({covariances} covariances)" if fake is None else "binary head"
    against = "" if fake is None else f" and {settings['generated']} generated faces"
    typer.echo(f"{what} fitted to {settings['photographs']} photographs{against}, written to {target}")
    typer.echo("next: thurl exif calibrate, with photographs that were used neither here nor in training")


def calibrate(
    photographs: Annotated[list[str], typer.Argument(help=PICTURES, metavar="PHOTOGRAPHS...")],
    model: Model,
    detector: DetectorFile = None,
    fpr: Annotated[
        list[float] | None, typer.Option("--fpr", help="False-alarm rates to store, several may follow.")
    ] = None,
    domain: Annotated[str, typer.Option("--domain", help="Name of this kind of photographs; default: none.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Detector file to write; default: --detector itself.")
    ] = None,
    part: _Part = None,
    split_seed: _SplitSeed = 0,
    recursive: Recursive = False,
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
    """Give a detector its thresholds, with photographs of the kind it will judge that no training and no fit has seen.

    5 % needs at least 19 photographs, 1 % at least 99; about 200 are worth the trouble. --domain keeps several kinds
    in one file.
    """
    from thurl.forensics.exif.calibration import DEFAULT_RATES, smallest_sample

    rates = fpr or list(DEFAULT_RATES)
    needed = max(smallest_sample(rate) for rate in rates)
    path = detector_path(model, detector)
    target = output if output is not None else path
    if output is not None:
        check_new("--output", output, overwrite)
    pictures = _part(photographs, Source(recursive, images, boxes, allow_outside), part, split_seed)
    if len(pictures) < needed:
        raise DataError(_too_few(len(pictures), needed, rates))
    from thurl.forensics.exif.detector import load_detector, save_detector
    from thurl.forensics.exif.inputs import content_marks

    before = load_detector(path)
    if domain in before.calibrations and not overwrite:
        name = f"the domain {domain!r}" if domain else "photographs in general"
        raise UsageError(f"{path} has a calibration for {name}: --overwrite replaces it, another --domain adds to it")
    marks = content_marks(pictures.paths)
    if shared := overlap(before, marks, FITTED):
        raise DataError(
            f"{shared} of {len(pictures)} photographs were used to fit the detector, whose scores for them are too "
            "high: the false-alarm rate would be far above what it says. Leave them out"
        )
    tower = open_tower(model, device, batch_size, workers)
    before.check_encoder(tower.encoder)
    table = table_of(tower, pictures, "encoded photographs")
    usable = int(len(table.usable))
    if usable < needed:
        raise DataError(_too_few(usable, needed, rates))
    after = before.calibrated(before.scores(table.usable), rates, domain=domain)
    after = dataclasses.replace(
        after,
        training={**after.training, CALIBRATED: {**after.training.get(CALIBRATED, {}), domain: marks}},
    )
    save_detector(after, target)
    calibration = after.calibrations[domain]
    thresholds = {repr(rate): calibration.threshold(rate) for rate in calibration.rates}
    if as_json:
        echo_json({"output": str(target), "domain": domain, "photographs": usable, "thresholds": thresholds,
                   "unusable": len(pictures) - usable, "domains": sorted(after.calibrations)})  # fmt: skip
        return
    typer.echo(f"calibrated with {usable} photographs{f' as domain {domain}' if domain else ''}, written to {target}")
    for rate in calibration.rates:
        # One calibration's own rate is a draw from Beta(k, n + 1 - k).
        place = calibration.place(rate)
        spread = (place * (usable + 1 - place) / (usable + 2)) ** 0.5 / (usable + 1)
        typer.echo(
            f"false-alarm rate {rate:g}: threshold {number(calibration.threshold(rate))}, "
            f"standard deviation of this rate {spread:.2g}"
        )


def overlap(detector: Detector, marks: Sequence[str], kind: str) -> int:
    """How many of the pictures with these marks the detector was fitted to, or calibrated with.

    Args:
        detector: from `thurl exif fit` or `thurl exif calibrate`; others know nothing, which gives 0.
        marks: from `thurl.forensics.exif.inputs.content_marks`.
        kind: `FITTED` or `CALIBRATED`.
    """
    kept: Any = detector.training.get(kind) or []
    lists = kept.values() if isinstance(kept, dict) else [kept]
    return len({mark for part in lists if isinstance(part, list) for mark in part} & set(marks))


def _part(inputs: Sequence[str], source: Source, part: str | None, split_seed: int) -> Pictures:
    if part is None:
        return source.find(inputs)
    from thurl.forensics.exif.inputs import Pictures
    from thurl.forensics.exif.manifest import PARTS, read_manifest, split_records

    if len(inputs) != 1 or not inputs[0].lower().endswith(".jsonl") or part not in PARTS:
        raise UsageError(f"--part {part}: needs one manifest (.jsonl) alone, and is one of {', '.join(PARTS)}")
    if source.boxes is not None:
        raise UsageError("--boxes with --part: the manifest has boxes of its own")
    records = read_manifest(inputs[0], images=source.images, allow_outside=source.allow_outside)
    chosen = split_records(records, seed=split_seed)[part]
    return Pictures([Path(record.image) for record in chosen], [record.box for record in chosen])


def _unit_length(model: str, features: Features | None) -> bool:
    from thurl.forensics.exif.loading import model_kind, unit_length_of

    found = unit_length_of(model_kind(model)) if features is None else features is Features.unit
    if found is None:
        raise UsageError(
            f"--features is missing: {model} is an encoder alone, and only its training says whether a detector takes "
            "features of length 1 (unit, as BLADES) or as they are (raw, as the one-class paper)"
        )
    return found


def _too_few(found: int, needed: int, rates: Sequence[float]) -> str:
    return (
        f"{found} usable photographs are too few for a false-alarm rate of {min(rates):g}: at least {needed} are "
        "needed; give more, or a larger --fpr"
    )
