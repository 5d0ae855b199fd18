"""`thurl deepfake predict`: how likely pictures are forged, and what was altered in them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from thurl.cli.devices import usable_device
from thurl.cli.output import check_new, echo_json, jsonable
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
from thurl.cli.progress import progress
from thurl.errors import DataError, UsageError
from thurl.messages import printable


__all__ = ["predict"]

_REPORTS = (".csv", ".json", ".jsonl")


def predict(
    inputs: Annotated[list[str], typer.Argument(help=PICTURES + " Videos too.", metavar="PICTURES...")],
    model: Model,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="Probability from which a face counts as forged.")
    ] = 0.5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Report with all probabilities: .csv, .json or .jsonl.")
    ] = None,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Of each video, evenly spaced.")] = 32,
    least: Annotated[
        int, typer.Option("--least-frames", min=1, help="Usable frames below which a video has no verdict.")
    ] = 8,
    as_json: Json = False,
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
    """Judge pictures of faces: probabilities of a forgery, of altered attributes and regions, and what that means.

    Pictures are faces, or have a box around one; frames of videos are faces. A picture or a video that cannot be used
    is a line with its error; nothing stops.
    """
    if output is not None:
        if output.suffix.lower() not in _REPORTS:
            raise UsageError(f"--output {output}: reports end in {', '.join(_REPORTS)}")
        check_new("--output", output, overwrite)
    from thurl.forensics.deepfake.video_verdicts import find_videos, judge_video
    from thurl.forensics.exif.inputs import Pictures

    videos, others = find_videos(inputs, recursive=recursive)
    find = Source(recursive, images, boxes, allow_outside).find
    pictures = find(others) if others else Pictures([], [])
    from thurl.forensics.deepfake.explanations import explain_energies
    from thurl.forensics.deepfake.loading import load_model, load_processor
    from thurl.forensics.deepfake.scoring import FaceScorer

    processor = load_processor(model)
    loaded = load_model(model, device=usable_device(device))
    scorer = FaceScorer(loaded, processor, batch_size=batch_size, workers=workers)
    found: list[dict[str, Any]] = []

    def add(name: str, error: str, verdict: Any, **more: Any) -> None:
        entry = {"image": name, **more, "error": error or None}
        found.append(entry | ({} if verdict is None else verdict.plain()))
        _say(found[-1], as_json, output)

    with progress("judged", len(pictures) + len(videos)) as advance:
        for errors, energies in scorer.energies(pictures.paths, pictures.boxes):
            for error, row in zip(errors, energies, strict=True):
                own = None if error else explain_energies(loaded.graph, row[None], threshold=threshold)[0]
                add(str(pictures.paths[len(found)]), error, own)
                advance()
        for path in videos:
            verdict = judge_video(scorer, path, frames=frames, least=least, threshold=threshold)
            for one in verdict.frames:
                add(str(path), one.error, one.explanation, frame=one.frame)
            used = sum(one.explanation is not None for one in verdict.frames)
            add(str(path), verdict.error, verdict.explanation, frames=used)
            advance()
    if output is not None:
        _write(found, loaded.graph.names, output)
        typer.echo(f"written to {output}", err=as_json)
    judged = [entry for entry in found if "frame" not in entry]
    usable = [entry for entry in judged if not entry["error"]]
    forged = sum(entry["p_fake"] >= threshold for entry in usable)
    kind = "pictures and videos" if videos else "pictures"
    typer.echo(
        f"{len(usable)} of {len(judged)} {kind} judged: {forged} forged, {len(usable) - forged} not, at a "
        f"probability of {threshold:g}",
        err=True,
    )
    if not usable:
        raise DataError(f"none of the {len(judged)} pictures could be used; the reasons are above")


def _say(entry: Mapping[str, Any], as_json: bool, output: Path | None) -> None:
    if as_json:
        echo_json(dict(entry))
    elif output is None:
        place = f" frame {entry['frame']}" if "frame" in entry else ""
        typer.echo(f"{printable(entry['image'])}{place}\n  {printable(entry.get('text', '-'))}")
    if entry["error"]:
        typer.echo(f"warning: {printable(entry['error'])}", err=True)


def _write(entries: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> None:
    from thurl.training.results import write_atomically

    if path.suffix.lower() == ".csv":
        text = _csv([_row(entry, names) for entry in entries])
    elif path.suffix.lower() == ".jsonl":
        text = "".join(json.dumps(jsonable(dict(entry)), allow_nan=False) + "\n" for entry in entries)
    else:
        text = json.dumps(jsonable([dict(entry) for entry in entries]), indent=2, allow_nan=False) + "\n"
    write_atomically(path, text)


def _row(entry: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """One line with all probabilities; those of a picture that could not be used are empty."""
    values = {names[0]: entry.get("p_fake"), **entry.get("global", {}), **entry.get("local", {})}
    state = [name for name, on in entry.get("most_probable_state", {}).items() if on]
    return {
        "image": entry["image"],
        "frame": entry.get("frame"),
        "frames": entry.get("frames"),
        **{f"p_{name}": values.get(name) for name in names},
        "most_probable_state": "+".join(state),
        "text": entry.get("text", ""),
        "error": entry["error"] or "",
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
