"""`thurl exif scan | import | convert`: photographs, label files and released checkpoints become ours."""

from __future__ import annotations

import dataclasses
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thurl.cli.output import check_new, check_plot, echo_json
from thurl.cli.picture_options import Debug, Json, Overwrite
from thurl.cli.progress import progress
from thurl.errors import DataError, MissingRequirementError, UsageError


if TYPE_CHECKING:
    from thurl.forensics.exif.manifest import FaceRecord
    from thurl.forensics.exif.scan import ScanResult

__all__ = ["convert", "import_labels", "scan"]

MANIFEST = "manifest.jsonl"
_SHOWN = 20


class GroupBy(StrEnum):
    """What may not be torn apart by a split."""

    folder = "folder"
    camera = "camera"
    file = "file"


class Labels(StrEnum):
    """Official label formats."""

    icassp = "icassp"
    blades = "blades"


class Parse(StrEnum):
    """How texts become numbers."""

    correct = "correct"
    official = "official"


class Layout(StrEnum):
    """Released checkpoints."""

    blades_oc = "blades_oc"
    blades_bc = "blades_bc"
    icassp = "icassp"
    visual = "visual"


_Plot = Annotated[Path | None, typer.Option("--plot", help="Histograms as a picture: .png, .svg or .pdf.")]


def scan(
    folder: Annotated[Path, typer.Argument(help="Folder of photographs.", metavar="FOLDER")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=f"Manifest; default: {MANIFEST} in the folder.")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Write no manifest.")] = False,
    plot: _Plot = None,
    group_by: Annotated[
        GroupBy, typer.Option("--group-by", help="What is never split: pictures of a folder, a camera, a file.")
    ] = GroupBy.folder,
    canon_evaluative: Annotated[
        bool, typer.Option("--canon-evaluative", help="Metering code 5 of a Canon is its class evaluative.")
    ] = False,
    check_pixels: Annotated[
        bool, typer.Option("--check-pixels/--no-check-pixels", help="Decode every picture to find truncated ones.")
    ] = True,
    keep_unlabelled: Annotated[
        bool, typer.Option("--keep-unlabelled", help="Keep pictures without any setting, to fit a detector on.")
    ] = False,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Processes that read files.")] = 1,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read the EXIF of a folder of photographs into a manifest, and report what it covers.

    Files that cannot be used are listed with their reason and do not stop the scan.
    """
    target = output if output is not None else folder / MANIFEST
    if report_only and output is not None:
        raise UsageError("--report-only writes no manifest: leave --output out")
    check_plot(plot)
    if not report_only:
        check_new("--output", target, overwrite)
    from thurl.forensics.exif.scan import scan_folder

    with progress("scanned", None) as advance:
        found = scan_folder(
            folder,
            group_by=group_by.value,
            canon_evaluative=canon_evaluative,
            check_pixels=check_pixels,
            keep_unlabelled=keep_unlabelled,
            processes=processes,
            progress=advance,
        )
    written = None if report_only or not found.records else _write(found.records, target, folder)
    _report(found, written, folder, plot, as_json)
    if not found.records:
        raise DataError(
            f"{folder}: none of {len(found.skipped)} files can be used, no manifest was written; the reasons are "
            "above. --keep-unlabelled keeps pictures without EXIF"
        )


def import_labels(
    labels: Annotated[
        Path,
        typer.Argument(help="Folder of JSON files (one-class paper) or a JSON file (BLADES).", metavar="LABELS"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Manifest to write (.jsonl).")],
    images: Annotated[
        Path | None, typer.Option("--images", "-i", help="Folder of the pictures; BLADES: default, that of LABELS.")
    ] = None,
    format: Annotated[
        Labels | None, typer.Option("--format", "-f", help="Default: a folder is icassp, a file is blades.")
    ] = None,
    parse: Annotated[
        Parse, typer.Option("--parse", help="icassp: official gives the official, wrong numbers, to compare.")
    ] = Parse.correct,
    prefix: Annotated[str, typer.Option("--prefix", help="blades: beginning of the paths that is cut off.")] = "",
    boxes: Annotated[
        Path | None, typer.Option("--boxes", help="Face boxes of Flickr Diverse Faces (fdf_metainfo.json).")
    ] = None,
    plot: _Plot = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read the label files of the two official repositories into a manifest."""
    kind = format or (Labels.icassp if labels.is_dir() else Labels.blades)
    problems = []
    if kind is Labels.icassp and images is None:
        problems.append("--images is missing: the folder of the pictures that the label files name")
    if kind is Labels.icassp and prefix:
        problems.append("--prefix is for blades, whose file holds paths")
    if kind is Labels.blades and parse is not Parse.correct:
        problems.append("--parse official is for icassp; the numbers of a blades file are taken as they are")
    if problems:
        raise UsageError(problems)
    check_plot(plot)
    check_new("--output", output, overwrite)
    from thurl.forensics.exif.importers import read_blades_labels, read_icassp_labels

    if kind is Labels.icassp and images is not None:
        root, records = images, read_icassp_labels(labels, images=images, parse=parse.value)
    else:
        root = labels.parent if images is None else images
        records = read_blades_labels(labels, images=images, prefix=prefix)
    # Records come joined with the folder; a manifest holds paths that start from it.
    records = [
        dataclasses.replace(
            record,
            image=os.path.relpath(record.image, root),
            edited={name: os.path.relpath(path, root) for name, path in record.edited.items()},
        )
        for record in records
    ]
    if boxes is not None:
        records = _boxed(records, root, boxes)
    _report(records, _write(records, output, root), root, plot, as_json)


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Released file, such as OC.pth.", metavar="CHECKPOINT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")],
    layout: Annotated[
        Layout | None, typer.Option("--layout", help="Which release; found from its keys by default.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="config.json of a model of other sizes than the released ones.")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=1, help="Side of the encoder's input in pixels.")] = 224,
    antialias: Annotated[
        bool, typer.Option("--antialias/--no-antialias", help="Anti-aliasing; released weights had none.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Start of parts that the file lacks.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn a released checkpoint into a folder with model and image processor (and detector, for BC.pth).

    The file is read with torch's restricted unpickler. Every weight of the visual tower must be there; other missing
    parts stay untrained and are named.
    """
    if not checkpoint.is_file():
        raise MissingRequirementError(f"{checkpoint}: no such file; download the released checkpoint first")
    import torch

    from thurl.forensics.exif.official import DETECTOR_FILE, convert_checkpoint
    from thurl.forensics.processing import FaceImageProcessor

    torch.manual_seed(seed)
    converted = convert_checkpoint(
        checkpoint,
        output,
        layout=None if layout is None else layout.value,
        config=None if config is None else _config(config),
        processor=FaceImageProcessor(size=size, antialias=antialias),
    )
    untrained = list(getattr(converted.model.config, "untrained", []))
    notes = []
    if converted.layout == "icassp":
        notes.append(
            "fc_et ranks the focal length and fc_fl the exposure time, whose sign is turned: the official labels were "
            "swapped, and mostly 1/t. The heads are named here after what they rank."
        )
    if converted.layout != "blades_bc":
        notes.append("no detector in the file: fit and calibrate one (`thurl exif fit`, `thurl exif calibrate`).")
    if converted.layout == "visual":
        notes.append("an encoder alone, the start of training; there is nothing to explain with.")
    document = {
        "output": str(output),
        "layout": converted.layout,
        "model": type(converted.model).__name__,
        "detector": str(output / DETECTOR_FILE) if converted.head is not None else None,
        "untrained": untrained,
        "missing": converted.missing,
        "unused": converted.unused,
        "notes": notes,
    }
    if as_json:
        echo_json(document)
        return
    typer.echo(f"{converted.layout}: {type(converted.model).__name__} written to {output}")
    for name, keys in (("missing", converted.missing), ("unused", converted.unused)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            typer.echo(f"{len(keys)} keys {name}: {', '.join(keys[:3])}{more}")
    if untrained:
        typer.echo(f"untrained, holding random numbers: {', '.join(untrained)}; explain refuses to use them")
    for note in notes:
        typer.echo(f"note: {note}")


def _write(records: list[FaceRecord], target: Path, root: Path) -> dict[str, Any]:
    from thurl.forensics.exif.manifest import write_manifest

    try:
        write_manifest(target, records)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}): choose another place with --output") from None
    same = target.resolve().parent == root.resolve()
    return {"manifest": str(target), "images": None if same else str(root)}


def _report(
    found: ScanResult | list[FaceRecord], written: dict[str, Any] | None, root: Path, plot: Path | None, as_json: bool
) -> None:
    from thurl.forensics.exif.coverage import coverage, coverage_plot, coverage_text

    report = coverage(found)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        coverage_plot(report, plot)
    if as_json:
        echo_json({**(written or {"manifest": None, "images": None}), "plot": None if plot is None else str(plot),
                   **report})  # fmt: skip
        return
    typer.echo(coverage_text(report), nl=False)
    skipped = list(report["skipped_files"].items())
    if skipped:
        typer.echo("\nskipped, one by one")
    for name, reason in skipped[:_SHOWN]:
        typer.echo(f"  {name}: {reason}")
    if len(skipped) > _SHOWN:
        typer.echo(f"  and {len(skipped) - _SHOWN} more, all of them with --json")
    typer.echo("")
    if written is not None:
        start = "" if written["images"] is None else f"; its paths start from {root}: give --images {root} with it"
        typer.echo(f"manifest written to {written['manifest']}{start}")
    if plot is not None:
        typer.echo(f"histograms written to {plot}")


def _boxed(records: list[FaceRecord], root: Path, path: Path) -> list[FaceRecord]:
    """With face boxes in pixels, for the pictures that the file has one for."""
    from thurl.forensics.exif.importers import read_fdf_boxes
    from thurl.forensics.exif.reader import read_exif

    shares = read_fdf_boxes(path)
    found = []
    for record in records:
        share = shares.get(Path(record.image).stem)
        size = None if share is None else read_exif(root / record.image).size
        if share is None or size is None:
            found.append(record)
            continue
        # The official code multiplies both axes by the height; its pictures are square.
        left, top, right, bottom = (side * size[1] for side in share)
        found.append(dataclasses.replace(record, box=(left, top, right, bottom), size=size))
    without = sum(record.box is None for record in found)
    if without == len(found):
        raise DataError(f"{path}: no box for any of the {len(found)} pictures; ids are the names of the files")
    if without:
        typer.echo(f"warning: {without} of {len(found)} pictures have no box and are used whole", err=True)
    return found


def _config(path: Path) -> Any:
    import json

    from thurl.forensics.exif.config import BladesConfig, ExifEncoderConfig, ExifOrdinalConfig

    kinds = {kind.model_type: kind for kind in (BladesConfig, ExifEncoderConfig, ExifOrdinalConfig)}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return kinds[settings["model_type"]].from_dict(settings)
    except FileNotFoundError:
        raise MissingRequirementError(f"--config {path}: no such file") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"--config {path}: no configuration of one of the kinds {', '.join(kinds)} ({type(error).__name__}: "
            f"{error})"
        ) from None
