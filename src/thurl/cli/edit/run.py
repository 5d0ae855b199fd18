"""`thurl edit run`: failing pictures and their right labels become the file of an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thurl.cli.devices import usable_device
from thurl.cli.edit.masks import MASKS, predicted_batches, source_of
from thurl.cli.edit.options import (
    Classes,
    Debug,
    Device,
    Json,
    Layers,
    MaxSteps,
    Model,
    Overwrite,
    Rate,
    StopLoss,
    Template,
    Units,
    check_units,
    layers_of,
    open_classifier,
    units_of,
)
from thurl.cli.edit.shown import show_edit
from thurl.cli.output import check_new, echo_json
from thurl.errors import DataError, UsageError
from thurl.messages import nearest, printable


__all__ = ["run"]


def run(
    model: Model,
    image: Annotated[list[Path], typer.Option("--image", "-i", help="A failing picture. Again for more.")],
    label: Annotated[
        list[str], typer.Option("--label", "-l", help="Its right class, name or number; one for all, or for each.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the edit to write, .safetensors.")],
    mask: Annotated[str, typer.Option("--mask", help=f"How neurons are chosen: {', '.join(MASKS)}.")] = "grad",
    hypernetwork: Annotated[
        Path | None, typer.Option("--hypernetwork", help="Folder of one for this model: mean, learned, hybrid.")
    ] = None,
    mean_over: Annotated[
        Path | None, typer.Option("--mean-over", help="Folder of pictures whose masks --mask mean averages.")
    ] = None,
    density: Annotated[
        float | None,
        typer.Option("--density", help="Neurons to edit, 0.05; with --min-locality at most, 1."),
    ] = None,
    density_over: Annotated[
        Path | None,
        typer.Option("--density-over", help="Folder: --density is the mean over its pictures, more neurons for some."),
    ] = None,
    layers: Layers = None,
    units: Units = "ffn",
    rate: Rate = 2e-5,
    max_steps: MaxSteps = 100,
    stop_loss: StopLoss = 0.01,
    optimizer: Annotated[str, typer.Option("--optimizer", help="rmsprop, adam or sgd.")] = "rmsprop",
    locality: Annotated[
        Path | None, typer.Option("--locality", help="Folder of pictures whose predictions should stay.")
    ] = None,
    min_locality: Annotated[
        float | None, typer.Option("--min-locality", help="Densest mask that keeps this share of them, such as 0.98.")
    ] = None,
    protect: Annotated[
        float | None,
        typer.Option(
            "--protect", help="Null-space protection of --locality; share of the largest eigenvalue, as 0.01."
        ),
    ] = None,
    float16: Annotated[bool, typer.Option("--float16", help="Half the file; changes are rounded.")] = False,
    originals: Annotated[
        bool, typer.Option("--originals/--no-originals", help="Keep what `revert` needs in the file.")
    ] = True,
    report: Annotated[Path | None, typer.Option("--report", help="Page to write, .html.")] = None,
    classes: Classes = None,
    template: Template = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of --mask random.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures of --locality at a time.")] = 32,
    device: Device = None,
    force: Annotated[bool, typer.Option("--force", help="Use a hypernetwork of another base model.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make failing pictures right by changing a few neurons; the model's files stay as they are.

    Exit code 1 when the edit does not succeed: the file is not written then.
    """
    _check_run(
        mask, hypernetwork, mean_over, density_over, locality, min_locality, protect, units, output, report, overwrite
    )
    chosen = layers_of(layers)
    from thurl.editing.edit import EditSettings

    settings = EditSettings(rate=rate, max_steps=max_steps, stop_loss=stop_loss, optimizer=optimizer)

    import torch

    from thurl.editing.delta_files import save_delta
    from thurl.editing.edit import edit as make_edit
    from thurl.editing.edit_inputs import folder_batches, read_failures
    from thurl.editing.edit_report import describe_edit, locality_changes, write_edit_page
    from thurl.editing.masks import binarise
    from thurl.editing.protection import protect as protection_of
    from thurl.editing.search import Locality, densest_within
    from thurl.editing.thresholds import above, common_threshold

    loaded = open_classifier(model, classes, template)
    pixel_values, labels = read_failures(loaded, image, label)
    where = usable_device(device)
    classifier = loaded.classifier.with_units(units_of(loaded, chosen, units)).to(where)
    pixel_values, labels = pixel_values.to(where), labels.to(where)
    source = source_of(mask, hypernetwork, mean_over, seed, loaded, classifier, where, batch_size, force)
    soft = source.scores(classifier, pixel_values, labels)
    with torch.no_grad():
        before = classifier.logits(pixel_values).cpu()
    kept, files, batches = None, [], []
    if locality is not None:
        files, batches = folder_batches(locality, loaded.preprocessing, batch_size, where)
        kept = Locality(classifier, batches)
    trials = []
    if kept is not None and min_locality is not None:
        most = 1.0 if density is None else density
        found = densest_within(classifier, pixel_values, labels, soft, kept, min_locality, settings,
                               densities=(min(0.01, most), most))  # fmt: skip
        trials = [
            {"density": one.density, "locality": one.locality, "success": one.edit.success} for one in found.trials
        ]
        if found.best is None:
            nearest_one = max(one["locality"] for one in trials)
            raise DataError(
                f"no mask keeps {min_locality:g} of the predictions of {locality}; the best one keeps "
                f"{nearest_one:.4f}. Lower --min-locality or --rate; nothing is written"
            )
        made = found.best.edit
    else:
        share = 0.05 if density is None else density
        if density_over is None:
            binary = binarise(soft, share)
        else:
            pairs = predicted_batches(density_over, loaded, classifier, batch_size, where)
            binary = above(soft, common_threshold(source, classifier, pairs, share))
        guard = None if protect is None else protection_of(classifier, batches, binary, protect)
        made = make_edit(classifier, pixel_values, labels, binary, settings, protection=guard)
    document = {"model": model, "mask": mask, **describe_edit(loaded, image, labels.cpu(), before, made)}
    if kept is not None and locality is not None:
        document["locality"] = locality_changes(loaded, locality, files, kept, made)
        document["trials"] = trials
    if made.success:
        document["rounding"] = save_delta(output, made.delta, "float16" if float16 else "float32", originals)
        document["output"] = str(output)
    if report is not None:
        write_edit_page(report, document, model, mask)
    echo_json(document) if as_json else show_edit(document)
    if not made.success:
        wrong = [one["file"] for one in document["pictures"] if one["after"]["class"] != one["label"]]
        raise DataError(
            f"still wrong after {made.steps} steps: {', '.join(map(printable, wrong))}; raise --max-steps, --rate or "
            "--density. Nothing is written"
        )


def _check_run(
    mask: str,
    hypernetwork: Path | None,
    mean_over: Path | None,
    density_over: Path | None,
    locality: Path | None,
    min_locality: float | None,
    protect: float | None,
    units: str,
    output: Path,
    report: Path | None,
    overwrite: bool,
) -> None:
    problems: list[str] = []
    if mask not in MASKS:
        problems.append(f"--mask {mask!r}: must be one of {', '.join(MASKS)}{nearest(mask, MASKS)}")
    elif (mask in ("mean", "learned", "hybrid")) != (hypernetwork is not None):
        problems.append(f"--mask {mask}: --hypernetwork goes with mean, learned and hybrid, and only with them")
    if (mask == "mean") != (mean_over is not None):
        problems.append(f"--mask {mask}: --mean-over goes with mean, and only with it")
    problems += check_units(units)
    if locality is None and (min_locality is not None or protect is not None):
        problems.append("--min-locality and --protect need --locality, the pictures whose predictions should stay")
    if density_over is not None and min_locality is not None:
        problems.append("--density-over does not go with --min-locality, which looks for the density itself")
    if density_over is not None and mask in ("mean", "random"):
        problems.append(f"--density-over: --mask {mask} scores all pictures alike; give --density alone")
    if min_locality is not None and protect is not None:
        problems.append("--protect does not go with --min-locality; give a --density")
    if min_locality is not None and not 0 <= min_locality <= 1:
        problems.append(f"--min-locality {min_locality}: the share of predictions to keep must be in [0, 1]")
    for option, path in (("--output", output), ("--report", report)):
        if path is not None:
            try:
                check_new(option, path, overwrite)
            except UsageError as error:
                problems += error.problems
    if problems:
        raise UsageError(problems)
