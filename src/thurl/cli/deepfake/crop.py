"""`thurl deepfake crop`: faces cut out of whole pictures and videos."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from thurl.cli.output import echo_json
from thurl.cli.picture_options import PICTURES, AllowOutside, Boxes, Debug, Images, Json, Recursive, Source, say_bad
from thurl.errors import UsageError


__all__ = ["crop"]

_DETECTORS = ("none", "cascade")


def crop(
    inputs: Annotated[list[str], typer.Argument(help=PICTURES + " Videos too.", metavar="PICTURES...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for faces and manifest.")],
    manifest: Annotated[
        bool, typer.Option("--manifest", help="The input is one manifest; labels, boxes and landmarks come from it.")
    ] = False,
    graph: Annotated[str, typer.Option("--graph", help="Label graph: ffpp, ffsc, or a YAML file.")] = "ffpp",
    detector: Annotated[str, typer.Option("--detector", help="none, or cascade (frontal faces).")] = "none",
    size: Annotated[int, typer.Option("--size", help="Side in pixels of faces aligned by landmarks.")] = 317,
    scale: Annotated[float, typer.Option("--scale", help="Side of the crop over that of the face.")] = 1.3,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Of each video, evenly spaced.")] = 32,
    recursive: Recursive = False,
    images: Images = None,
    boxes: Boxes = None,
    allow_outside: AllowOutside = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Cut the faces out of whole pictures and videos, into a new folder with a manifest.

    Where a face is comes from landmarks or a box, or else from a detector. Pictures without a face are named and left
    out. The folder must be new: nothing is replaced. Pictures that come without labels have unknown ones.
    """
    if detector not in _DETECTORS:
        raise UsageError(f"--detector {detector}: it is one of {', '.join(_DETECTORS)}")
    if manifest and (len(inputs) != 1 or boxes is not None):
        raise UsageError("--manifest: give one manifest, whose rows have the boxes, and no --boxes")
    from thurl.forensics.deepfake.crops import crop_faces
    from thurl.forensics.deepfake.folders import new_folder
    from thurl.forensics.deepfake.graph import UNKNOWN, load_graph
    from thurl.forensics.deepfake.manifest import FaceItem, read_manifest
    from thurl.forensics.deepfake.video import VIDEO_ENDINGS, cut_videos
    from thurl.forensics.deepfake.video_verdicts import find_videos
    from thurl.forensics.faces import CascadeDetector

    new_folder(output)
    labels = load_graph(graph)
    if manifest:
        items = read_manifest(inputs[0], labels, images=images, allow_outside=allow_outside)
    else:
        unknown = (UNKNOWN,) * len(labels.names)
        videos, others = find_videos(inputs, recursive=recursive)
        items = []
        if others:
            found = Source(recursive, images, boxes, allow_outside).find(others)
            items += [FaceItem(str(p), unknown, box=b) for p, b in zip(found.paths, found.boxes, strict=True)]
        items += [FaceItem(str(path), unknown, video=str(path)) for path in videos]
    finder = CascadeDetector() if detector == "cascade" else None
    files = [item for item in items if item.path.lower().endswith(VIDEO_ENDINGS)]
    lost: dict[str, str] = {}
    called: dict[str, str] = {}
    # Whole frames of a video are needed once only.
    with tempfile.TemporaryDirectory(prefix="thurl-frames-") as place:
        pictures = [item for item in items if not item.path.lower().endswith(VIDEO_ENDINGS)]
        if files:
            cut, lost = cut_videos(files, Path(place) / "frames", frames=frames)
            pictures += cut
            called = {item.path: f"{item.video}, frame {item.frame}" for item in cut}
        made = crop_faces(pictures, output, labels, size=size, scale=scale, detector=finder, called=called)
    dropped = lost | dict(made.dropped)
    say_bad(list(dropped.values()))
    if as_json:
        echo_json({"folder": str(output), "faces": len(made.items), "dropped": dropped})
        return
    typer.echo(f"{len(made.items)} faces written to {output}; {len(dropped)} pictures or videos left out")
