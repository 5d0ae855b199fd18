"""`thurl faces evaluate | compare | leaderboard | metrics | fit-niqe | features | convert`: restored faces."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thurl.cli.progress import progress
from thurl.errors import MissingRequirementError, UsageError


if TYPE_CHECKING:
    from thurl.iqa.face_restoration.compare import Difference
    from thurl.iqa.face_restoration.interface import MetricContext

__all__ = ["register"]


class Protocol(StrEnum):
    """Rules of an evaluation."""

    ntire2025 = "ntire2025"
    free = "free"


class Precision(StrEnum):
    """Precision of Q-Align."""

    bits16 = "16bit"
    bits8 = "8bit"
    bits4 = "4bit"


class Released(StrEnum):
    """Released files that can be converted."""

    adaface = "adaface"
    statistics = "statistics"
    niqe = "niqe"


class Network(StrEnum):
    """Networks whose features can be written."""

    fid = "fid"
    torchvision = "torchvision"


_WeightsDir = Annotated[Path | None, typer.Option("--weights-dir", "-w", help="Folder with the weights of metrics.")]
_Weights = Annotated[
    list[str] | None, typer.Option("--weights", help="NAME=PATH of single weights; may be given several times.")
]
_Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1.")]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of all draws.")]

faces = typer.Typer(
    name="faces",
    help="Evaluate restored faces (NTIRE 2025 Real-World Face Restoration, arXiv 2504.14600).",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    faces.command("evaluate")(evaluate)
    faces.command("compare")(compare)
    faces.command("leaderboard")(leaderboard)
    faces.command("metrics")(metrics)
    faces.command("fit-niqe")(fit_niqe)
    faces.command("features")(features)
    faces.command("convert")(convert)
    app.add_typer(faces)


def evaluate(
    restored: Annotated[Path, typer.Option("--restored", help="Restored pictures, one folder per data set.")],
    lq: Annotated[Path | None, typer.Option("--lq", help="Degraded inputs, same folders and names.")] = None,
    gt: Annotated[Path | None, typer.Option("--gt", help="Originals, same folders and names.")] = None,
    landmarks: Annotated[Path | None, typer.Option("--landmarks", help="CSV with five points per face.")] = None,
    protocol: Annotated[Protocol, typer.Option("--protocol", help="Challenge rules, or none.")] = Protocol.free,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="Names and groups (official, classic, learned, all), by commas.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.")] = None,
    baseline: Annotated[
        list[Path] | None, typer.Option("--baseline", help="Folder of another run to compare with; several.")
    ] = None,
    weights_dir: _WeightsDir = None,
    weights: _Weights = None,
    device: _Device = "auto",
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Pictures per batch.")] = 8,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes for classic metrics.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in a folder that holds results.")] = False,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder for values per picture; default: inside --out.")
    ] = None,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out metrics without weights.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Give a score although pictures are missing.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 when the identity rule is broken.")] = False,
    id_threshold: Annotated[
        float | None, typer.Option("--id-threshold", help="Identity threshold, with --protocol free.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Forbid packages to use the network.")] = False,
    qalign: Annotated[Precision, typer.Option("--qalign", help="Precision of Q-Align.")] = Precision.bits16,
    allow_remote_code: Annotated[
        bool, typer.Option("--allow-remote-code", help="Let Q-Align run the code of its repository.")
    ] = False,
    seed: _Seed = 0,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Evaluate a folder of restored faces.

    Exit codes: 0 done, 1 identity rule broken (with --strict), 2 usage, 3 something is missing, 4 incomplete set.
    """
    if offline:
        # Before the libraries are imported: they read it once.
        os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    from thurl.iqa.face_restoration.settings import EvaluationSettings, choose_metrics

    if out is not None and not resume and (out / "per_image.csv").exists():
        raise UsageError(f"--out {out} holds results: add --resume to go on there, or choose another folder")
    context = _context(weights_dir, weights, seed, allow_remote_code, {"qalign": qalign.value})
    settings = EvaluationSettings(
        restored=restored,
        lq=lq,
        gt=gt,
        landmarks=landmarks,
        protocol=protocol.value,
        metrics=tuple(word.strip() for word in (metrics or "").split(",") if word.strip()),
        context=context,
        batch_size=batch,
        workers=workers,
        skip_missing=skip_missing,
        allow_missing=allow_missing,
        id_threshold=id_threshold,
        cache=cache if cache is not None else out / "cache" if out is not None else None,
    )
    choose_metrics(settings)  # everything that is missing is told before anything heavy is loaded
    settings = replace(settings, context=replace(context, device=_device(device)))
    from thurl.iqa.face_restoration.compare import compare_runs, read_run
    from thurl.iqa.face_restoration.evaluation import evaluate_faces
    from thurl.iqa.face_restoration.report import summary_table, write_evaluation
    from thurl.training.results import plain

    if baseline and out is None:
        raise UsageError("--baseline compares with the files of this run: give --out")
    others = [read_run(folder) for folder in baseline or ()]
    with ExitStack() as stack:
        shown: list[Any] = []

        def tell(done: int, total: int) -> None:
            if not shown:  # the number of pictures is known when the first ones are done
                shown.append(stack.enter_context(progress("scored", total)))
            shown[0](done)

        evaluation = evaluate_faces(settings, tell)
    if out is not None:
        write_evaluation(evaluation, out)
    compared: dict[str, list[Difference]] = {}
    baselines: dict[str, Any] = {}
    if out is not None and others:
        own = read_run(out)
        compared = {other.folder: compare_runs(other, own, seed=seed)[0] for other in others}
        baselines = {folder: [vars(line) for line in lines] for folder, lines in compared.items()}
        write_evaluation(evaluation, out, baselines=baselines)
    summary = evaluation.summary
    for warning in summary["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        typer.echo(json.dumps(plain({**summary, "baselines": baselines}), ensure_ascii=True))
    else:
        _print_table(summary_table(evaluation))
        identity = summary["identity"]
        if identity["failures"] is not None:
            state = {True: "valid", False: "not valid", None: "open"}[identity["valid"]]
            verdict = f"; the entry is {state}" if protocol is Protocol.ntire2025 else ""
            typer.echo(
                f"identity: {identity['failures']} of {identity['checked']} faces failed, {identity['unchecked']} not "
                f"checked{verdict}"
            )
        for folder, lines in compared.items():
            typer.echo(f"\nagainst {folder}:")
            _print_table(_difference_table(lines))
        for reason, names in _by_reason(summary["skipped"]).items():
            typer.echo(f"left out: {', '.join(names)} ({reason})", err=True)
    evaluation.raise_for_status(strict=strict)


def compare(
    run_a: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN_A")],
    run_b: Annotated[Path, typer.Argument(help="Folder of another run.", metavar="RUN_B")],
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Bootstrap resamples.")] = 10_000,
    level: Annotated[float, typer.Option("--level", help="Probability of the intervals.")] = 0.95,
    seed: _Seed = 0,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Paired bootstrap intervals of the differences B - A, metric by metric."""
    from thurl.iqa.face_restoration.compare import compare_runs, read_run
    from thurl.training.results import plain

    lines, warnings = compare_runs(read_run(run_a), read_run(run_b), resamples=resamples, level=level, seed=seed)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        typer.echo(json.dumps(plain([vars(line) for line in lines]), ensure_ascii=True))
    else:
        _print_table(_difference_table(lines))


def leaderboard(
    table: Annotated[Path, typer.Argument(help="CSV: team, the six metrics, failed_ids, score.", metavar="CSV")],
    template: Annotated[bool, typer.Option("--template", help="Write an empty table there instead.")] = False,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0, help="Differences above it are flagged.")] = 0.005,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Compute the scores of a table again, rank the valid entries, flag scores that do not fit their metrics."""
    from thurl.iqa.face_restoration.leaderboard import TEMPLATE, read_leaderboard
    from thurl.training.results import plain, write_atomically

    if template:
        if table.exists():
            raise UsageError(f"{table} exists; choose another name for the empty table")
        write_atomically(table, TEMPLATE)
        return
    entries = read_leaderboard(table, tolerance=tolerance)
    if as_json:
        typer.echo(json.dumps(plain([vars(entry) for entry in entries]), ensure_ascii=True))
        return
    rows = [["rank", "team", "score", "terms", "reported", "difference", "failed ids", "valid", ""]]
    for entry in entries:
        rows.append(
            [
                "-" if entry.rank is None else str(entry.rank),
                entry.team,
                _number(entry.computed, 4),
                entry.label,
                _number(entry.reported, 4),
                _number(entry.difference, 4),
                "-" if entry.failed_ids is None else str(entry.failed_ids),
                {True: "yes", False: "no", None: "-"}[entry.valid],
                "differs" if entry.flagged else "",
            ]
        )
    _print_table(rows)


def metrics(
    weights_dir: _WeightsDir = None,
    weights: _Weights = None,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """All metrics: what they need, their direction, and whether their weights are there."""
    from thurl.iqa.face_restoration.interface import SetMetric, metric_class, metric_names
    from thurl.training.results import plain

    context = _context(weights_dir, weights, 0, False, {})
    found = []
    for name in metric_names():
        cls = metric_class(name)
        found.append(
            {
                "name": name,
                "tier": cls.tier,
                "needs": sorted(cls.needs),
                "lower_is_better": cls.lower_is_better,
                "range": list(cls.range),
                "set": issubclass(cls, SetMetric),
                "missing": cls.missing(context),
            }
        )
    if as_json:
        typer.echo(json.dumps(plain(found), ensure_ascii=True))
        return
    rows = [["metric", "tier", "needs", "better", "range", "ready"]]
    for entry in found:
        low, high = (f"{end:g}" for end in entry["range"])
        rows.append(
            [
                entry["name"],
                entry["tier"] + (", whole set" if entry["set"] else ""),
                ", ".join(entry["needs"]) or "-",
                {True: "lower", False: "higher", None: "-"}[entry["lower_is_better"]],
                f"{low} to {high}",
                f"no: {len(entry['missing'])} missing" if entry["missing"] else "yes",
            ]
        )
    _print_table(rows)


def fit_niqe(
    folder: Annotated[Path, typer.Argument(help="Folder with undistorted photographs.", metavar="DIR")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("pristine.npz"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    debug: _Debug = False,
) -> None:
    """Fit the pristine model behind niqe_fitted and brisque_fitted."""
    from thurl.iqa.face_restoration.pristine import fit_files, save_pristine

    paths = _pictures(folder)
    _free(output, overwrite)
    with progress("read", len(paths)) as advance:
        model, problems = fit_files(paths, advance)
    for problem in problems:
        typer.echo(f"warning: left out: {problem}", err=True)
    save_pristine(output, model)
    typer.echo(f"{output}: {model.patches} patches of {model.pictures} pictures", err=True)


def features(
    folder: Annotated[Path, typer.Argument(help="Folder with reference pictures.", metavar="DIR")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write (.npz).")],
    network: Annotated[Network, typer.Option("--network", help="fid, or torchvision's Inception.")] = Network.fid,
    weights_dir: _WeightsDir = None,
    weights: _Weights = None,
    device: _Device = "auto",
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Pictures per batch.")] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    debug: _Debug = False,
) -> None:
    """Write features and moments of one's own reference pictures, for FID and KID."""
    from thurl.iqa.face_restoration.reference import reference_statistics
    from thurl.iqa.face_restoration.statistics import save_statistics

    paths = _pictures(folder)
    _free(output, overwrite)
    context = replace(_context(weights_dir, weights, 0, False, {}), device=_device(device))
    with progress("read", len(paths)) as advance:
        statistics, problems = reference_statistics(paths, network.value, context, batch_size=batch, progress=advance)
    for problem in problems:
        typer.echo(f"warning: left out: {problem}", err=True)
    save_statistics(output, statistics)
    typer.echo(f"{output}: {statistics.count} pictures, network {statistics.extractor}", err=True)


def convert(
    kind: Annotated[Released, typer.Argument(help="adaface, statistics (FFHQ for FID) or niqe.")],
    source: Annotated[Path, typer.Argument(help="The released file.", metavar="FILE")],
    output: Annotated[Path, typer.Argument(help="Folder (adaface) or .npz file to write.", metavar="OUTPUT")],
    debug: _Debug = False,
) -> None:
    """Turn a released file into one without pickles."""
    if kind is Released.adaface:
        from thurl.iqa.face_restoration.checkpoints import convert_adaface

        model = convert_adaface(source, output)
        typer.echo(f"{output}: AdaFace with {model.config.depths} blocks", err=True)
        return
    _free(output, False)
    if kind is Released.statistics:
        from thurl.iqa.face_restoration.statistics import convert_statistics

        statistics = convert_statistics(source, output)
        typer.echo(f"{output}: moments of {len(statistics.mean)} features", err=True)
    else:
        from thurl.iqa.face_restoration.pristine import convert_niqe

        convert_niqe(source, output)
        typer.echo(f"{output}: NIQE's pristine model", err=True)


def _other_methods() -> None:
    import thurl.recipe.face_metrics  # noqa: F401 - registers the metrics that other methods bring


def _context(
    weights_dir: Path | None,
    weights: Sequence[str] | None,
    seed: int,
    allow_remote_code: bool,
    options: dict[str, str],
) -> MetricContext:
    from thurl.iqa.face_restoration.interface import MetricContext, WeightFile, metric_class, metric_names
    from thurl.messages import nearest

    _other_methods()
    wanted = (item for name in metric_names() for item in metric_class(name).requires)
    known = sorted({item.name for item in wanted if isinstance(item, WeightFile)})
    problems = []
    paths = {}
    for pair in weights or ():
        name, separator, path = pair.partition("=")
        if not separator or not name or not path:
            problems.append(f"--weights {pair}: NAME=PATH is needed, such as adaface=models/adaface_ir50")
        elif name not in known:
            problems.append(
                f"--weights {pair}: no metric takes {name!r}{nearest(name, known)}; {', '.join(known)} do exist"
            )
        paths[name] = Path(path)
    if weights_dir is not None and not weights_dir.is_dir():
        problems.append(f"--weights-dir {weights_dir}: no such folder")
    if problems:
        raise UsageError(problems)
    return MetricContext(weights_dir, paths, "cpu", seed, options, allow_remote_code)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MissingRequirementError(f"--device {name}: there is no CUDA device here; take cpu")
    try:
        return str(torch.device(name))
    except RuntimeError:
        raise UsageError(f"--device {name}: auto, cpu, cuda or cuda:1 are needed") from None


def _pictures(folder: Path) -> list[Path]:
    from thurl.iqa.face_restoration.pictures import ENDINGS

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not paths:
        raise UsageError(f"{folder}: no picture in it (endings: {', '.join(ENDINGS)})")
    return paths


def _free(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; choose another name or remove it first")


def _by_reason(skipped: dict[str, list[str]]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, reasons in skipped.items():
        short = reasons[0] if reasons[0].startswith("--") else "weights or packages are not there"
        names.setdefault(short, []).append(name)
    return names


def _difference_table(lines: Sequence[Difference]) -> list[list[str]]:
    rows = [["metric", "pairs", "A", "B", "B - A", "interval", "better"]]
    for line in lines:
        interval = f"[{_number(line.low, 4)}, {_number(line.high, 4)}]"
        numbers = [_number(value, 4) for value in (line.a, line.b, line.difference)]
        rows.append([line.metric, str(line.pictures), *numbers, interval, line.better.upper() or "-"])
    return rows


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
