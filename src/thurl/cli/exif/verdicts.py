"""`thurl exif detect | explain`: what a detector and its encoder say about pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thurl.cli.devices import usable_device
from thurl.cli.exif.options import DetectorFile, detector_path, open_tower
from thurl.cli.output import check_new, echo_json, number
from thurl.cli.picture_options import (
    PICTURES,
    AllowOutside,
    BatchSize,
    Boxes,
    Debug,
    Device,
    Images,
    Model,
    Overwrite,
    Recursive,
    Source,
    Workers,
)
from thurl.cli.progress import progress
from thurl.errors import DataError, UsageError
from thurl.messages import printable


if TYPE_CHECKING:
    from thurl.forensics.exif.explanations import Explanation

__all__ = ["detect", "explain"]

_REPORTS = (".csv", ".json", ".jsonl")


def detect(
    inputs: Annotated[list[str], typer.Argument(help=PICTURES, metavar="PICTURES...")],
    model: Model,
    detector: DetectorFile = None,
    fpr: Annotated[
        float | None, typer.Option("--fpr", help="False-alarm rate; default: the smallest one stored.")
    ] = None,
    two_sided: Annotated[
        bool, typer.Option("--two-sided", help="Call scores that are too high generated, too.")
    ] = False,
    domain: Annotated[str, typer.Option("--domain", help="Kind of photographs to compare with.")] = "",
    official: Annotated[
        bool, typer.Option("--official", help="The official threshold, to compare with published numbers.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Report: .csv, .json or .jsonl.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on standard output.")] = False,
    recursive: Recursive = False,
    images: Images = None,
    boxes: Boxes = None,
    allow_outside: AllowOutside = False,
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Judge pictures: photographic or generated, with the p-value of a photograph.

    EXIF is not read: only pixels count. A picture that cannot be used is a line with its error; nothing stops.
    """
    problems = []
    if output is not None:
        if output.suffix.lower() not in _REPORTS:
            problems.append(f"--output {output}: reports end in {', '.join(_REPORTS)}")
        try:
            check_new("--output", output, overwrite)
        except UsageError as error:
            problems += error.problems
    if fpr is not None and not 0 < fpr < 1:
        problems.append(f"--fpr is {fpr:g}: a rate between 0 and 1 is needed, such as 0.05")
    if problems:
        raise UsageError(problems)
    path = detector_path(model, detector)
    pictures = Source(recursive, images, boxes, allow_outside).find(inputs)
    from thurl.forensics.exif.detector import load_detector
    from thurl.forensics.exif.scoring import FaceDetector, Rule, jsonl_text, threshold_of, write_verdicts

    rule = Rule(rate=fpr, two_sided=two_sided, domain=domain, official=official)
    loaded = load_detector(path)
    threshold, rate = threshold_of(loaded, rule)  # a rule without a threshold ends here, before the model is loaded
    judge = FaceDetector(open_tower(model, device, batch_size, workers), loaded)
    verdicts = []
    with progress("judged", len(pictures)) as advance:
        for verdict in judge.iterate(pictures.paths, rule, boxes=pictures.boxes):
            verdicts.append(verdict)
            name = printable(verdict.image)
            if as_json:
                typer.echo(jsonl_text([verdict]), nl=False)
            elif output is None and verdict.ok:
                share = verdict.row()["probability_generated"]
                says = f"p {verdict.p_value:.4f}" if share is None else f"P(generated) {share:.4f}"
                typer.echo(f"{verdict.decision:<12}  {says}  {name}")
            elif output is None:
                typer.echo(f"{'-':<12}  {name}")
            if not verdict.ok:
                typer.echo(f"warning: {printable(verdict.error)}", err=True)
            advance()
    if output is not None:
        write_verdicts(verdicts, output)
        typer.echo(f"written to {output}", err=as_json)
    usable = [verdict for verdict in verdicts if verdict.ok]
    called = sum(verdict.decision == "generated" for verdict in usable)
    by = "a probability of 0.5" if rate != rate else f"a false-alarm rate of {rate:g} (threshold {number(threshold)})"
    sides = ", two-sided" if two_sided else ""
    typer.echo(
        f"{len(usable)} of {len(verdicts)} pictures judged: {called} generated, {len(usable) - called} photographic, "
        f"at {'the official ' if official else ''}{by}{sides}",
        err=True,
    )
    if not usable:
        raise DataError(f"none of the {len(verdicts)} pictures could be used; the reasons are above")
    if loaded.calibration(domain) is not None and not official:
        judge.drift(usable, domain)  # says so itself


def explain(
    inputs: Annotated[list[str], typer.Argument(help=PICTURES, metavar="PICTURES...")],
    model: Model,
    reference: Annotated[
        list[str] | None, typer.Option("--reference", help="Photographs to rank the settings among.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on standard output.")] = False,
    recursive: Recursive = False,
    images: Images = None,
    boxes: Boxes = None,
    allow_outside: AllowOutside = False,
    batch_size: BatchSize = 32,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """What the encoder reads in pictures: camera settings, and the probability of edits by region.

    These are readings of the pretext tasks, not reasons for a verdict.
    """
    source = Source(recursive, images, boxes, allow_outside)
    pictures = source.find(inputs)
    compared = source.find(reference) if reference else None
    from thurl.forensics.exif.explanations import check_explainable, reference_scores
    from thurl.forensics.exif.explanations import explain as read
    from thurl.forensics.exif.loading import load_model, load_processor

    processor = load_processor(model)
    loaded = load_model(model, device=usable_device(device))
    check_explainable(loaded)
    scores = None
    if compared is not None:
        scores = reference_scores(loaded, processor, compared.paths, boxes=compared.boxes, batch_size=batch_size)
        if not len(scores):
            raise DataError(f"--reference: none of {len(compared)} pictures could be used")
    failed = 0
    with progress("read", len(pictures)) as advance:
        for start in range(0, len(pictures), batch_size):
            part = slice(start, start + batch_size)
            for found in read(
                loaded,
                processor,
                pictures.paths[part],
                boxes=pictures.boxes[part],
                reference=scores,
                batch_size=batch_size,
            ):
                failed += bool(found.error)
                if as_json:
                    echo_json({**dataclasses.asdict(found), "error": found.error or None})
                else:
                    typer.echo(_text(found))
                if found.error:
                    typer.echo(f"warning: {printable(found.error)}", err=True)
                advance()
    if failed == len(pictures):
        raise DataError(f"none of the {failed} pictures could be used; the reasons are above")


def _text(found: Explanation) -> str:
    lines = [printable(found.image)]
    if found.error:
        return f"{lines[0]}\n  -"
    for task in dict.fromkeys([*found.settings, *found.ranks]):
        parts = []
        if task in found.settings:
            likely = sorted(found.settings[task].items(), key=lambda item: -item[1])[:3]
            parts.append(", ".join(f"{name} {share:.2f}" for name, share in likely))
        if task in found.levels:
            parts.append(f"level {found.levels[task]:.2f}")
        rank = found.ranks.get(task, float("nan"))
        if rank == rank:
            parts.append(f"above {rank:.0%} of the reference")
        if parts:
            lines.append(f"  {task:<17} {'; '.join(parts)}")
    if found.manipulated == found.manipulated:
        parts = [f"{found.manipulated:.2f}", ", ".join(f"{name} {share:.2f}" for name, share in found.regions.items())]
        lines.append(f"  {'edited':<17} {'; '.join(part for part in parts if part)}")
    return "\n".join(lines)
