"""`thurl distill encode|decode|info|verify`: data sets in `.ddr` files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from thurl.cli.output import check_new, echo_json, table
from thurl.cli.progress import progress
from thurl.errors import DataError, UsageError
from thurl.messages import printable


__all__ = ["register"]

distill = typer.Typer(
    name="distill",
    help="Distilled data sets in .ddr files (arXiv 2507.17221): encode, decode, info, verify.",
    no_args_is_help=True,
)

FileArgument = Annotated[Path, typer.Argument(help="A .ddr file.", metavar="FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]
MaxBytesOption = Annotated[
    int, typer.Option("--max-bytes", min=1, help="Refuse files that decode to more bytes of pictures.")
]
_MAX_BYTES = 2**29
_NAMES = 20


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(distill)


@distill.command("encode")
def encode(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with a folder of pictures per class, or .npz with images and labels.", metavar="IN"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .ddr file to write.")],
    per_class: Annotated[
        int | None, typer.Option("--per-class", "-n", min=1, help="Pictures of each class, drawn with --seed.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=2, help="Side of the square that pictures are resized to.")
    ] = None,
    grey: Annotated[bool, typer.Option("--grey", help="One channel.")] = False,
    bits_per_class: Annotated[
        float | None, typer.Option("--bits-per-class", help="Size to reach, all counted; takes several fits.")
    ] = None,
    rate_weight: Annotated[
        float, typer.Option("--rate-weight", help="Of bits per pixel against mean squared error: more is smaller.")
    ] = 0.01,
    decoder: Annotated[str, typer.Option("--decoder", help="Version of the synthesis, v0-0 to v7.")] = "v0-0",
    context: Annotated[int, typer.Option("--context", help="Neighbours the entropy network sees: 8, 16, 24, 32.")] = 8,
    depth: Annotated[int, typer.Option("--depth", help="Hidden layers of the entropy network.")] = 2,
    shared: Annotated[bool, typer.Option("--shared", help="One decoder for all classes.")] = False,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="Of each of two stages of the fit.")] = 400,
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="Random starts; the best is kept.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw and the fit.")] = 0,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: the first GPU.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Code real pictures as they are, without distillation, which is a recipe.

    Pictures of a class share a small decoder that is fitted to them.
    """
    check_new("--out", out, overwrite)
    from thurl.cli.devices import usable_device
    from thurl.distillation import ddr
    from thurl.distillation.encoding import EncodingConfig, encode_pictures
    from thurl.distillation.picture_folders import read_classes
    from thurl.distillation.warm_up import WarmUpConfig

    fit = WarmUpConfig(
        iterations=iterations,
        candidates=candidates,
        keep=min(2, candidates),
        rate_weight=rate_weight,
        straight_through=0.1,
    )
    config = EncodingConfig(
        decoder=decoder, context=context, depth=depth, shared=shared, bits_per_class=bits_per_class, warm_up=fit
    )
    where = usable_device(device)
    pictures = read_classes(source, per_class=per_class, size=size, channels=1 if grey else 3, seed=seed)
    with progress("fitted", None) as advance:
        found = encode_pictures(
            pictures.images, pictures.labels, pictures.classes, config, seed=seed, device=where, progress=advance
        )
    rate = ddr.write(found.dataset, out)
    row = {
        "file": str(out), "pictures": len(pictures.labels), **rate.row(), "psnr": found.psnr(pictures.images)
    }  # fmt: skip
    if as_json:
        echo_json(row)
        return
    _show_rate(row)
    typer.echo(f"{len(pictures.labels)} pictures at {row['psnr']:.2f} dB written to {printable(str(out))}", err=True)


@distill.command("decode")
def decode(
    file: FileArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for CLASS/0001.png ...")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
    max_bytes: MaxBytesOption = _MAX_BYTES,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write all pictures as PNG files, one folder per class, numbered in the order of the file."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: this is a file; give the name of a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UsageError(f"--out {out}: this folder is not empty; choose another, or --overwrite to write into it")
    from thurl.distillation import ddr
    from thurl.distillation.picture_folders import write_pictures

    found = ddr.inspect(file, max_bytes=max_bytes)
    folders = write_pictures(found.images(), found.dataset.labels, found.dataset.classes, out)
    if as_json:
        echo_json({"file": str(file), "folder": str(out), "pictures": len(found.dataset.labels), "classes": folders})
        return
    typer.echo(f"{len(found.dataset.labels)} pictures written into {printable(str(out))}", err=True)


@distill.command("info")
def info(
    file: FileArgument, max_bytes: MaxBytesOption = _MAX_BYTES, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Show what a file holds and where its bits are."""
    from thurl.distillation import ddr

    row = describe(ddr.inspect(file, max_bytes=max_bytes))
    if as_json:
        echo_json(row)
        return
    _show_rate(row)
    names = row["classes"]
    shown = ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")
    samples = [part["samples"] for part in row["slices"]]
    shapes = {f"context {p['context']}, depth {p['depth']}, widths {p['widths']}" for p in row["slices"]}
    typer.echo(f"pictures: {row['pictures']} of {row['size']}")
    typer.echo(f"classes: {len(names)}: {printable(shown)}")
    typer.echo(
        f"decoders: {len(samples)}, for {min(samples)} to {max(samples)} pictures each; {'; '.join(sorted(shapes))}"
    )
    typer.echo(f"decoding: {row['multiplications_per_picture']:,} multiplications per picture")
    typer.echo(f"normalisation: mean {row['normalisation']['mean']}, std {row['normalisation']['std']}")
    typer.echo(f"soft labels: {'yes' if row['soft_labels'] else 'no'}")
    typer.echo(
        f"training: {printable(json.dumps(row['training'], ensure_ascii=False)) if row['training'] else 'not said'}"
    )
    for kind, times in row["times_smaller_than"].items():
        typer.echo(f"smaller than pixels of {kind}: {times:.1f} times")


@distill.command("verify")
def verify(
    file: FileArgument, max_bytes: MaxBytesOption = _MAX_BYTES, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Decode everything and compare with the checksums in the file; exit code 1 with the reason where one differs."""
    from thurl.distillation import ddr

    try:
        found = ddr.inspect(file, max_bytes=max_bytes)
        images = found.images()
    except DataError as error:
        if as_json:
            echo_json({"file": str(file), "ok": False, "reason": str(error)})
        raise
    if as_json:
        echo_json(
            {"file": str(file), "ok": True, "pictures": len(images), "checksum": f"{found.picture_checksum:08x}"}
        )
        return
    typer.echo(f"{printable(str(file))}: {len(images)} pictures as they were written")


def describe(found: Any) -> dict[str, Any]:
    """What `info` shows of a file that was read."""
    from thurl.distillation.dataset_card import plain_bits
    from thurl.distillation.ddr_limits import decoding_work

    dataset, rate = found.dataset, found.rate.row()
    config = dataset.slices[0].config
    return {
        "file": found.name,
        **rate,
        "pictures": len(dataset.labels),
        "multiplications_per_picture": max(decoding_work(part.config) for part in dataset.slices),
        "size": f"{config.width}x{config.height}, {config.channels} channels",
        "classes": list(dataset.classes),
        "slices": [
            {"samples": len(part.labels), "context": part.config.context, "depth": part.config.depth,
             "widths": list(part.config.widths)}
            for part in dataset.slices
        ],
        "normalisation": {"mean": list(dataset.mean), "std": list(dataset.std)},
        "soft_labels": dataset.soft_labels is not None,
        "training": dataset.hints,
        "times_smaller_than": {kind: bits / rate["total_bits"] for kind, bits in plain_bits(dataset).items()},
    }  # fmt: skip


def _show_rate(row: dict[str, Any]) -> None:
    parts = ("latents", "nets", "labels", "header")
    rows = [[name, row[name], 100 * row[name] / row["total_bits"]] for name in parts]
    rows.append(["all", row["total_bits"], 100.0])
    table(["part", "bits", "%"], rows)
    typer.echo(f"{row['bpc']:,.0f} bits per class, {row['total_bits'] // 8:,} bytes")
