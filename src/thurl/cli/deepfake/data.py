"""`thurl deepfake import | expand | convert`: lists to manifests, real faces to forged ones, released files to
models."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from thurl.cli.output import check_new, echo_json
from thurl.cli.picture_options import AllowOutside, Debug, Images, Json, Overwrite, say_bad
from thurl.errors import DataError, UsageError
from thurl.messages import nearest


__all__ = ["convert", "expand", "import_faces"]

_FORMATS = ("deepfakebench", "ffpp", "sjedd", "csv", "celebdf", "dfdc")
_Graph = Annotated[str, typer.Option("--graph", help="Label graph: ffpp, ffsc, or a YAML file.")]


def import_faces(
    source: Annotated[Path, typer.Argument(help="JSON file, folder, list or CSV file.", metavar="SOURCE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Manifest to write (.jsonl).")],
    form: Annotated[str, typer.Option("--format", "-f", help=f"One of {', '.join(_FORMATS)}.")],
    graph: _Graph = "ffpp",
    images: Images = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Name of the data set.")] = None,
    split: Annotated[
        str, typer.Option("--split", help="Read only this one (deepfakebench); that of all (sjedd, celebdf, dfdc).")
    ] = "",
    splits: Annotated[Path | None, typer.Option("--splits", help="Folder of the official split files (ffpp).")] = None,
    compression: Annotated[str, typer.Option("--compression", help="c23, c40 or raw (deepfakebench, ffpp).")] = "c23",
    landmarks: Annotated[
        bool, typer.Option("--landmarks", help="Take landmark files beside the frames (deepfakebench).")
    ] = False,
    allow_outside: AllowOutside = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Faces of another list as a manifest; everything that cannot be is named with its row."""
    if form not in _FORMATS:
        raise UsageError(f"--format {form}: it is one of {', '.join(_FORMATS)}{nearest(form, _FORMATS)}")
    check_new("--output", output, overwrite)
    from thurl.forensics.deepfake import importers, video_lists
    from thurl.forensics.deepfake.deepfakebench import read_deepfakebench
    from thurl.forensics.deepfake.ffpp import read_ffpp_folders
    from thurl.forensics.deepfake.graph import load_graph
    from thurl.forensics.deepfake.manifest import write_manifest

    labels = load_graph(graph)
    named = {} if dataset is None else {"dataset": dataset}
    where: dict[str, Any] = {"images": images, "allow_outside": allow_outside}
    if form == "deepfakebench":
        chosen = {"splits": [split]} if split else {}
        items = read_deepfakebench(source, labels, compression=compression, landmarks=landmarks, **chosen, **where)
    elif form == "ffpp":
        items = read_ffpp_folders(source, labels, splits=splits, compression=compression, **named)
    elif form == "sjedd":
        items = importers.read_sjedd_list(source, labels, dataset=dataset or "", split=split, **where)
    elif form in ("celebdf", "dfdc"):
        read = video_lists.read_celebdf_list if form == "celebdf" else video_lists.read_dfdc_list
        items = read(source, labels, **named, **({"split": split} if split else {}), **where)
    else:
        items = importers.read_face_csv(source, labels, **where)
    write_manifest(output, items, labels)
    counts = {name or "-": count for name, count in Counter(item.manipulation for item in items).items()}
    videos = len({item.video_key for item in items})
    if as_json:
        echo_json({"manifest": str(output), "faces": len(items), "videos": videos, "manipulations": counts})
        return
    _say_counts(counts)
    typer.echo(f"{len(items)} faces of {videos} videos written to {output}")


def expand(
    manifest: Annotated[Path, typer.Argument(help="Manifest of real faces with landmarks.", metavar="MANIFEST")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for pictures, masks and manifest.")],
    graph: _Graph = "ffpp",
    edit: Annotated[
        list[str] | None,
        typer.Option("--edit", help="region, identity, expression or physical; may be repeated. Default: region."),
    ] = None,
    region: Annotated[
        list[str] | None, typer.Option("--region", help="May be repeated. Default: eye, mouth and nose.")
    ] = None,
    donor: Annotated[
        list[str] | None, typer.Option("--donor", help="aligned, self or other; may be repeated. Default: all.")
    ] = None,
    combine: Annotated[float, typer.Option("--combine", help="Chance of one region more.")] = 0.0,
    copies: Annotated[int, typer.Option("--copies", min=1, help="Forged videos per real one.")] = 1,
    split: Annotated[list[str] | None, typer.Option("--split", help="Only these splits; may be repeated.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything that is drawn.")] = 0,
    images: Images = None,
    allow_outside: AllowOutside = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make forged faces of real ones: regions replaced or attributes edited, with labels, masks and provenance.

    The procedure is thurl's own; the paper's is not published. Splits stay as they are.
    """
    from thurl.forensics.deepfake.expansion import expand as make
    from thurl.forensics.deepfake.expansion_plan import ExpansionConfig
    from thurl.forensics.deepfake.graph import load_graph
    from thurl.forensics.deepfake.manifest import read_manifest

    chosen = {
        name: dict.fromkeys(values, 1.0)
        for name, values in (("edits", edit), ("regions", region), ("donors", donor))
        if values
    }
    config = ExpansionConfig(combine=combine, copies=copies, seed=seed, **chosen)
    labels = load_graph(graph)
    items = read_manifest(manifest, labels, images=images, allow_outside=allow_outside)
    if split:
        items = [item for item in items if item.split in split]
        if not items:
            raise DataError(f"{manifest}: no row has the split {' or '.join(split)}")
    made = make(items, output, labels, config)
    say_bad([f"{path}: {reason}" for path, reason in made.skipped.items()])
    if as_json:
        echo_json({"folder": str(output), "faces": len(made.items), "manipulations": dict(made.counts),
                   "skipped": dict(made.skipped), "redrawn": made.redrawn})  # fmt: skip
        return
    _say_counts(made.counts)
    typer.echo(f"{len(made.items)} forged faces written to {output}; {len(made.skipped)} real ones left out")


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Released file (.pth, .pt).", metavar="CHECKPOINT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    graph: _Graph = "ffpp",
    fold: Annotated[
        bool, typer.Option("--fold", help="Drop the text tower: the same probabilities, and no further training.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """A released checkpoint as a folder that thurl loads, with its image processor.

    Pickles are read without running what is in them.
    """
    from thurl.forensics.deepfake.graph import load_graph
    from thurl.forensics.deepfake.official import convert_checkpoint

    model = convert_checkpoint(checkpoint, output, graph=load_graph(graph).plain())
    if fold:
        model = model.fold_text()
        model.save_pretrained(output)
    weights = sum(value.numel() for value in model.state_dict().values())
    if as_json:
        echo_json({"output": str(output), "graph": graph, "weights": weights, "folded": fold})
        return
    typer.echo(f"model of {weights / 1e6:.1f} million weights written to {output}")


def _say_counts(counts: Any) -> None:
    for name, count in counts.items():
        typer.echo(f"{count:>8}  {name}")
