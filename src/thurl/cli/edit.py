"""`thurl edit`: a vision transformer is made right on a few failing pictures, reversibly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thurl.cli.devices import usable_device
from thurl.cli.edit_benchmark import benchmark
from thurl.cli.output import check_new, echo_json, table
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.messages import nearest, printable


if TYPE_CHECKING:
    from thurl.editing.classifier_files import LoadedClassifier
    from thurl.editing.masks import MaskSource
    from thurl.editing.units import Unit

__all__ = ["names_of", "register", "source_of"]

edit = typer.Typer(
    name="edit",
    help="Edit image classifiers: a failing picture and its right label in, a small reversible change out "
    "(arXiv 2411.01948).",
    no_args_is_help=True,
)

MASKS = ("grad", "random", "mean", "learned", "hybrid")


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    edit.command("benchmark")(benchmark)
    app.add_typer(edit)


Model = Annotated[
    str,
    typer.Option("--model", "-m", help="Folder of a ViT, DeiT, DINOv2, CLIP or timm classifier; or the Hub's."),
]
Classes = Annotated[
    Path | None, typer.Option("--classes", help="Text file with the name of one class per line; for CLIP zero-shot.")
]
Template = Annotated[
    str | None,
    typer.Option("--prompt-template", help="Of CLIP zero-shot; default 'a photo of a {}.'."),
]
Force = Annotated[bool, typer.Option("--force", help="Also on another base model than it was made for.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]
DeltaFile = Annotated[Path, typer.Argument(help="File of an edit, .safetensors.", metavar="EDIT")]
NewFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")]


@edit.command("run")
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
    layers: Annotated[str | None, typer.Option("--layers", help="From 0, as 7,8,9; default: up to 3/4.")] = None,
    units: Annotated[str, typer.Option("--units", help="ffn or attention (output projections).")] = "ffn",
    rate: Annotated[float, typer.Option("--rate", help="Learning rate.")] = 2e-5,
    max_steps: Annotated[int, typer.Option("--max-steps", help="Steps at most.")] = 100,
    stop_loss: Annotated[float, typer.Option("--stop-loss", help="Cross-entropy in nats at which it ends.")] = 0.01,
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
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda; default: the first GPU.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Use a hypernetwork of another base model.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make failing pictures right by changing a few neurons; the model's files stay as they are.

    Exit code 1 when the edit does not succeed: the file is not written then.
    """
    _check_run(mask, hypernetwork, mean_over, locality, min_locality, protect, units, output, report, overwrite)
    chosen = _layers(layers)
    names = names_of(classes)
    from thurl.editing.edit import EditSettings

    settings = EditSettings(rate=rate, max_steps=max_steps, stop_loss=stop_loss, optimizer=optimizer)

    import torch

    from thurl.editing.classifier_files import load_classifier
    from thurl.editing.delta_files import save_delta
    from thurl.editing.edit import edit as make_edit
    from thurl.editing.edit_inputs import folder_batches, read_failures
    from thurl.editing.edit_report import describe_edit, locality_changes, write_edit_page
    from thurl.editing.masks import binarise
    from thurl.editing.protection import protect as protection_of
    from thurl.editing.search import Locality, densest_within

    loaded = load_classifier(model, names, template)
    pixel_values, labels = read_failures(loaded, image, label)
    where = usable_device(device)
    classifier = loaded.classifier.with_units(_units(loaded, chosen, units)).to(where)
    pixel_values, labels = pixel_values.to(where), labels.to(where)
    soft = source_of(mask, hypernetwork, mean_over, seed, loaded, classifier, where, batch_size, force).scores(
        classifier, pixel_values, labels
    )
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
        binary = binarise(soft, 0.05 if density is None else density)
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
    echo_json(document) if as_json else _show(document)
    if not made.success:
        wrong = [one["file"] for one in document["pictures"] if one["after"]["class"] != one["label"]]
        raise DataError(
            f"still wrong after {made.steps} steps: {', '.join(map(printable, wrong))}; raise --max-steps, --rate or "
            "--density. Nothing is written"
        )


@edit.command("export")
def export(
    delta: DeltaFile,
    model: Model,
    output: NewFolder,
    classes: Classes = None,
    template: Template = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the edited model as a plain checkpoint, which transformers or timm load without thurl."""
    from thurl.editing.classifier_files import save_classifier
    from thurl.editing.delta import apply_delta
    from thurl.editing.delta_files import load_delta

    change = load_delta(delta)
    loaded = _load_any(model, classes, template)
    apply_delta(loaded.classifier.model, change, force)
    save_classifier(loaded, output)
    found = loaded.classifier.fingerprint()
    if as_json:
        echo_json({"output": str(output), "base": change.base, "fingerprint": found})
        return
    typer.echo(f"written to {output}: {change.parameters} weights changed, fingerprint {found[:12]}")


@edit.command("revert")
def revert(
    delta: DeltaFile,
    model: Model,
    output: NewFolder,
    classes: Classes = None,
    template: Template = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take an edit out of an edited checkpoint, bit by bit; later edits of the same neurons first."""
    from thurl.editing.classifier_files import save_classifier
    from thurl.editing.delta import revert_delta
    from thurl.editing.delta_files import load_delta

    change = load_delta(delta)
    loaded = _load_any(model, classes, template)
    revert_delta(loaded.classifier.model, change)
    save_classifier(loaded, output)
    whole = loaded.classifier.fingerprint() == change.base
    if as_json:
        echo_json({"output": str(output), "base": change.base, "is_base": whole})
        return
    what = "the base model, bit by bit" if whole else "without this edit; it is not the base model: others are in it"
    typer.echo(f"written to {output}: {what}")


@edit.command("merge")
def merge(
    deltas: Annotated[list[Path], typer.Argument(help="Two or more edits of one base model.", metavar="EDIT...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the merged edit to write, .safetensors.")],
    overlap: Annotated[str, typer.Option("--overlap", help="Edits of the same neurons: refuse, or sum.")] = "refuse",
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one edit of several, and say where they change the same neurons."""
    if len(deltas) < 2:
        raise UsageError(f"{len(deltas)} edit; give two or more to merge")
    check_new("--output", output, overwrite)
    from thurl.editing.delta_files import load_delta, save_delta
    from thurl.editing.merge import merge_deltas, overlaps

    loaded, problems = [], []
    for path in deltas:
        try:
            loaded.append(load_delta(path))
        except (DataError, MissingRequirementError) as error:
            problems.append(error)
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))
    conflicts = overlaps(loaded)
    if conflicts:
        for index, path in enumerate(deltas):
            typer.echo(f"edit {index}: {printable(str(path))}", err=True)
    merged = merge_deltas(loaded, overlap)
    save_delta(output, merged)
    if as_json:
        found = [
            {"unit": one.unit, "edits": [str(deltas[one.first]), str(deltas[one.second])],
             "neurons": list(one.neurons), "cosine": one.cosine}
            for one in conflicts
        ]  # fmt: skip
        echo_json({"output": str(output), "density": merged.density, "conflicts": found})
        return
    for conflict in conflicts:
        typer.echo(f"added up: {conflict}")
    typer.echo(f"written to {output}: {len(deltas)} edits, density {merged.density:.4g}, {len(conflicts)} conflicts")


@edit.command("convert")
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="File of the official code: a classifier or a hypernetwork.")],
    output: NewFolder,
    kind: Annotated[str, typer.Option("--kind", help="vit or hypernetwork.")] = "vit",
    heads: Annotated[
        int | None,
        typer.Option("--heads", min=1, help="Attention heads; default 12, 6 of a hypernetwork."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="The model a hypernetwork was trained for.")] = None,
    debug: Debug = False,
) -> None:
    """Turn a checkpoint of the official code into a folder; nothing in it is executed."""
    if kind not in ("vit", "hypernetwork"):
        raise UsageError(f"--kind {kind!r}: must be vit or hypernetwork{nearest(kind, ('vit', 'hypernetwork'))}")
    if (kind == "hypernetwork") != (base is not None):
        raise UsageError("--base: a hypernetwork needs the model it was trained for, a classifier takes none")
    if kind == "vit":
        from thurl.editing.official import save_official_vit

        save_official_vit(checkpoint, output, heads or 12)
    else:
        from thurl.editing.classifier_files import load_classifier
        from thurl.editing.official_hypernetwork import convert_hypernetwork

        classifier = load_classifier(str(base)).classifier
        labels = [unit.label for unit in classifier.units]
        convert_hypernetwork(checkpoint, output, heads=heads or 6, base_fingerprint=classifier.fingerprint(),
                             base_model=base, units=labels)  # fmt: skip
    typer.echo(f"written to {output}")


def _check_run(
    mask: str,
    hypernetwork: Path | None,
    mean_over: Path | None,
    locality: Path | None,
    min_locality: float | None,
    protect: float | None,
    units: str,
    output: Path,
    report: Path | None,
    overwrite: bool,
) -> None:
    problems = []
    if mask not in MASKS:
        problems.append(f"--mask {mask!r}: must be one of {', '.join(MASKS)}{nearest(mask, MASKS)}")
    elif (mask in ("mean", "learned", "hybrid")) != (hypernetwork is not None):
        problems.append(f"--mask {mask}: --hypernetwork goes with mean, learned and hybrid, and only with them")
    if (mask == "mean") != (mean_over is not None):
        problems.append(f"--mask {mask}: --mean-over goes with mean, and only with it")
    if units not in ("ffn", "attention"):
        problems.append(f"--units {units!r}: must be ffn or attention")
    if locality is None and (min_locality is not None or protect is not None):
        problems.append("--min-locality and --protect need --locality, the pictures whose predictions should stay")
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


def _layers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"--layers {text!r}: must be numbers of layers from 0 with commas, such as 7,8,9")
    return [int(part) for part in parts]


def names_of(path: Path | None) -> list[str]:
    """Names of classes from a text file, one per line; none without a file."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--classes {path}: cannot be read as text: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def _units(loaded: LoadedClassifier, layers: list[int] | None, units: str) -> list[Unit]:
    from thurl.editing.units import default_layers, resolve_attention_outputs, resolve_ffn

    model = loaded.classifier.model
    resolve = resolve_ffn if units == "ffn" else resolve_attention_outputs
    return resolve(model, default_layers(model) if layers is None else layers)


def source_of(
    mask: str,
    hypernetwork: Path | None,
    mean_over: Path | None,
    seed: int,
    loaded: LoadedClassifier,
    classifier: Any,
    device: str,
    batch_size: int,
    force: bool,
) -> MaskSource:
    """What scores the neurons for `--mask`."""
    from thurl.editing.masks import FixedMask, GradientMask, HybridMask, RandomMask, mean_scores

    if hypernetwork is None:
        return RandomMask(seed) if mask == "random" else GradientMask()
    from thurl.editing.hypernetwork import load_hypernetwork
    from thurl.editing.meta_training import LearnedMask

    labels = [unit.label for unit in classifier.units]
    network = load_hypernetwork(hypernetwork, classifier.fingerprint(), labels, force)
    learned = LearnedMask(network.to(device))
    if mask == "hybrid":
        return HybridMask((learned, GradientMask()))
    if mean_over is None:
        return learned
    from thurl.editing.edit_inputs import folder_batches

    _, batches = folder_batches(mean_over, loaded.preprocessing, batch_size, device)
    # A network that reads gradients takes what the model says of these pictures, which have no labels.
    pairs = [(batch, classifier.logits(batch).argmax(dim=-1).detach()) for batch in batches]
    return FixedMask(mean_scores(learned, classifier, pairs))


def _load_any(model: str, classes: Path | None, template: str | None) -> LoadedClassifier:
    from thurl.editing.classifier_files import load_classifier

    return load_classifier(model, names_of(classes), template)


def _show(document: dict[str, Any]) -> None:
    rows = [
        [
            printable(one["file"]),
            one["label"],
            f"{one['before']['class']} {one['before']['probability']:.3f}",
            f"{one['after']['class']} {one['after']['probability']:.3f}",
        ]
        for one in document["pictures"]
    ]
    table(["picture", "right", "before", "after"], rows)
    if document["already_right"]:
        typer.echo("already right: nothing to edit, the change is zero")
    else:
        table(
            ["unit", "neurons", "of", "relative change", "which"],
            [
                [one["unit"], len(one["neurons"]), one["of"], one["relative_change"],
                 ", ".join(map(str, one["neurons"][:8])) + (", ..." if len(one["neurons"]) > 8 else "")]
                for one in document["units"]
            ],
        )  # fmt: skip
        typer.echo(
            f"{document['steps']} steps, loss {document['loss'][0]:.4g} to {document['loss'][1]:.4g}, density "
            f"{document['density']:.4g} (sparsity {document['sparsity']:.4g})"
        )
    if locality := document.get("locality"):
        for one in locality["changed"][:20]:
            typer.echo(f"changed: {printable(one['file'])}: {one['before']} to {one['after']}")
        typer.echo(
            f"locality {locality['rate']:.4f}: {len(locality['changed'])} of {locality['pictures']} predictions "
            "changed"
        )
    if "output" in document:
        typer.echo(f"written to {printable(document['output'])}", err=True)
