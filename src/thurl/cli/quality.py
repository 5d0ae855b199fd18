"""`thurl score | compare | describe | eval`: a model judges pictures."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thurl.cli.devices import usable_device
from thurl.cli.progress import progress
from thurl.errors import DataError, UsageError


if TYPE_CHECKING:
    from thurl.rl.scorer import QualityScorer

__all__ = ["register"]


class Mode(StrEnum):
    """How a score is obtained."""

    think = "think"
    direct = "direct"
    expected = "expected"


class Group(StrEnum):
    """Over what correlations are taken."""

    everything = "global"
    reference = "reference"
    both = "both"


_Model = Annotated[str, typer.Option("--model", "-m", help="Model folder, adapter folder or Hub name.")]
_Mode = Annotated[Mode, typer.Option("--mode", help="think, direct (no reasoning) or expected (no drawing).")]
_Samples = Annotated[int, typer.Option("--n-samples", "-n", min=1, help="Answers drawn per picture.")]
_Seed = Annotated[int, typer.Option("--seed", help="Seed of the draws.")]
_Temperature = Annotated[float, typer.Option("--temperature", min=0, help="0 takes the most likely answer.")]
_TopK = Annotated[int, typer.Option("--top-k", min=0, help="0 keeps every token; the published code uses 50.")]
_TopP = Annotated[float, typer.Option("--top-p", help="1 keeps every token.")]
_Tokens = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Length limit of an answer.")]
_Batch = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Answers generated together.")]
_Preset = Annotated[
    str | None, typer.Option("--preset", help="thurl or official; default: what the model was trained with.")
]
_Base = Annotated[str | None, typer.Option("--base-model", help="Base of an adapter, when it has moved.")]
_Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: the first GPU.")]
_Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
_MaxPixels = Annotated[int | None, typer.Option("--max-pixels", min=1, help="Shrink pictures above this area.")]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.command("score")(score)
    app.command("compare")(compare)
    app.command("describe")(describe)
    app.command("eval")(evaluate)


def score(
    inputs: Annotated[list[str], typer.Argument(help="Picture files and folders.", metavar="FOLDER_OR_FILES...")],
    model: _Model,
    mode: _Mode = Mode.think,
    n_samples: _Samples = 1,
    seed: _Seed = 0,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Score file; an interrupted run goes on where it ended.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture on standard output.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Also pictures in subfolders.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin the score file anew.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Score pictures without a score again.")
    ] = False,
    resample: Annotated[int, typer.Option("--resample", min=0, help="Draw a failed answer again, so often.")] = 0,
    temperature: _Temperature = 1.0,
    top_k: _TopK = 0,
    top_p: _TopP = 1.0,
    max_new_tokens: _Tokens = None,
    batch_size: _Batch = 8,
    preset: _Preset = None,
    base_model: _Base = None,
    device: _Device = None,
    dtype: _Dtype = "auto",
    max_pixels: _MaxPixels = None,
    debug: _Debug = False,
) -> None:
    """Score pictures from 1 (very poor) to 5 (excellent).

    Pictures that cannot be opened, and answers without a score, are reported and do not stop the run.
    """
    from thurl.rl.decoding import Decoding
    from thurl.rl.score_files import find_images, score_files

    paths = find_images(inputs, recursive=recursive)
    decoding = Decoding(
        mode=mode.value,
        n_samples=n_samples,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        resample=resample,
    )
    scorer = _load(model, preset, base_model, device, dtype, max_pixels)
    failed = resumed = 0
    with progress("scored", len(paths)) as advance:
        for line in score_files(
            scorer,
            paths,
            csv_path=csv,
            decoding=decoding,
            batch_size=batch_size,
            overwrite=overwrite,
            retry_failed=retry_failed,
        ):
            failed += not line.ok
            resumed += line.resumed
            if as_json:
                typer.echo(json.dumps(line.row(), ensure_ascii=True))
            elif csv is None:
                spread = "" if math.isnan(line.std) else f" +- {line.std:.2f}"
                typer.echo(
                    f"{line.score:.2f}{spread}  {_shown(line.image)}" if line.ok else f"-  {_shown(line.image)}"
                )
            if not line.ok and not line.resumed:
                typer.echo(f"warning: {_shown(line.image)}: {line.error}", err=True)
            advance()
    parts = [f"{len(paths) - failed} of {len(paths)} pictures scored ({scorer.preset.name} question, {mode.value})"]
    parts += [f"{resumed} of them already in {csv}"] if resumed else []
    parts += [f"{failed} without a score"] if failed else []
    typer.echo("; ".join(parts), err=True)
    if failed == len(paths):
        raise DataError(
            f"none of the {failed} pictures got a score; the reasons stand above and in the error column. A model "
            "that does not answer in <answer> tags needs training, another --preset, or --mode expected"
        )


def compare(
    a: Annotated[str, typer.Argument(help="First picture.", metavar="A")],
    b: Annotated[str, typer.Argument(help="Second picture.", metavar="B")],
    model: _Model,
    mode: _Mode = Mode.think,
    n_samples: Annotated[
        int | None, typer.Option("--n-samples", "-n", min=1, help="Answers per picture (8; none with expected).")
    ] = None,
    seed: _Seed = 0,
    as_json: _Json = False,
    temperature: _Temperature = 1.0,
    top_k: _TopK = 0,
    top_p: _TopP = 1.0,
    max_new_tokens: _Tokens = None,
    batch_size: _Batch = 8,
    preset: _Preset = None,
    base_model: _Base = None,
    device: _Device = None,
    dtype: _Dtype = "auto",
    max_pixels: _MaxPixels = None,
    debug: _Debug = False,
) -> None:
    """Which of two pictures looks better: both scores and the Thurstone probability for the first."""
    from thurl.rl.decoding import Decoding
    from thurl.rl.evaluation import jsonable

    decoding = Decoding(
        mode=mode.value,
        n_samples=n_samples if n_samples is not None else 1 if mode is Mode.expected else 8,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
    )
    _readable([a, b])
    scorer = _load(model, preset, base_model, device, dtype, max_pixels)
    result = scorer.compare(a, b, decoding=decoding, batch_size=batch_size)
    if as_json:
        sides = {
            name: {"image": path, "score": side.score, "std": side.std, "ok": side.ok, "text": side.text}
            for name, path, side in (("a", a, result.a), ("b", b, result.b))
        }
        typer.echo(json.dumps(jsonable({**sides, "prefers_a": result.preference}), ensure_ascii=True))
    else:
        for path, side in ((a, result.a), (b, result.b)):
            typer.echo(f"{side.score:.2f} +- {side.std:.2f}  {path}" if side.ok else f"-  {path}")
        if not math.isnan(result.preference):
            typer.echo(f"probability that {a} is the better picture: {result.preference:.2f}")
    problems = [f"{path}: {side.error}" for path, side in ((a, result.a), (b, result.b)) if not side.ok]
    if problems:
        raise DataError("no comparison, " + "; ".join(problems))
    if math.isnan(result.preference):
        raise DataError("no probability: fewer than two usable answers for a picture; draw more with --n-samples")


def describe(
    images: Annotated[list[str], typer.Argument(help="Picture files.", metavar="IMAGES...")],
    model: _Model,
    seed: _Seed = 0,
    as_json: _Json = False,
    temperature: _Temperature = 1.0,
    top_k: _TopK = 0,
    top_p: _TopP = 1.0,
    max_new_tokens: _Tokens = None,
    batch_size: _Batch = 8,
    preset: _Preset = None,
    base_model: _Base = None,
    device: _Device = None,
    dtype: _Dtype = "auto",
    max_pixels: _MaxPixels = None,
    debug: _Debug = False,
) -> None:
    """Say in words what is good and bad about a picture."""
    from thurl.rl.decoding import Decoding

    decoding = Decoding(
        mode="describe", seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_new_tokens
    )
    _readable(images)
    scorer = _load(model, preset, base_model, device, dtype, max_pixels)
    for path, text in zip(images, scorer.describe(images, decoding=decoding, batch_size=batch_size), strict=True):
        if as_json:
            typer.echo(json.dumps({"image": path, "text": text}, ensure_ascii=True))
        else:
            typer.echo(f"{path}: {text}" if len(images) > 1 else text)


def evaluate(
    labels: Annotated[Path, typer.Option("--labels", "-l", help="Label file.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model folder, adapter or Hub name.")] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Scores from `thurl score --csv` instead of a model.")
    ] = None,
    format: Annotated[str, typer.Option("--format", "-f", help="Format of the label file.")] = "csv",
    images: Annotated[Path | None, typer.Option("--images", "-i", help="Picture folder.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Name of the dataset.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="train, validation, test or all.")] = None,
    max_images: Annotated[int | None, typer.Option("--max-images", min=1, help="Draw at most so many.")] = None,
    mode: _Mode = Mode.think,
    n_samples: _Samples = 1,
    seed: _Seed = 0,
    group: Annotated[Group, typer.Option("--group", help="Headline over all pictures, or inside references.")] = (
        Group.everything
    ),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Results file (JSON).")] = None,
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=0, help="Resamples for the intervals.")] = 1000,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Pictures without a prediction count as failed.")
    ] = False,
    as_json: _Json = False,
    temperature: _Temperature = 1.0,
    top_k: _TopK = 0,
    top_p: _TopP = 1.0,
    max_new_tokens: _Tokens = None,
    batch_size: _Batch = 8,
    preset: _Preset = None,
    base_model: _Base = None,
    device: _Device = None,
    dtype: _Dtype = "auto",
    max_pixels: _MaxPixels = None,
    debug: _Debug = False,
) -> None:
    """SRCC and PLCC of a model, or of scores that are there already, against mean opinion scores."""
    from thurl.data.labels import read_labels
    from thurl.rl.decoding import Decoding
    from thurl.rl.evaluation import evaluate_model

    if (model is None) == (predictions is None):
        raise UsageError("give either --model or --predictions, one of the two")
    grouping: Any = "per_reference" if group is Group.reference else group.value
    if predictions is not None:
        if split is not None or max_images is not None:
            raise UsageError("--split and --max-images choose pictures for a model: leave them out with --predictions")
        from thurl.rl.predictions import evaluate_predictions

        records = read_labels(labels, format=format, images=images, dataset=dataset)
        result = evaluate_predictions(
            predictions, records, grouping=grouping, bootstrap=bootstrap, allow_missing=allow_missing
        )
    else:
        from thurl.data.sources import load_source

        decoding = Decoding(
            mode=mode.value,
            n_samples=n_samples,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
        )
        # Pictures that do not decode are found while scoring and counted as failed.
        records = load_source(
            format, labels, images, dataset=dataset, split=split, max_images=max_images, check_images="none"
        )
        scorer = _load(str(model), preset, base_model, device, dtype, max_pixels)
        with progress("scored", len(records)) as advance:
            result = evaluate_model(
                scorer,
                records,
                decoding=decoding,
                batch_size=batch_size,
                grouping=grouping,
                bootstrap=bootstrap,
                progress=lambda done, total: advance(done),
            )
    source = {"labels": str(labels), "format": format, "split": split, "max_images": max_images}
    _report(result, source, output, as_json)
    if result["n_ok"] == 0:
        raise DataError(f"none of the {result['n']} pictures has a score, so there is nothing to correlate")


def _report(result: dict[str, Any], source: dict[str, Any], output: Path | None, as_json: bool) -> None:
    from thurl.rl.evaluation import evaluation_table, jsonable
    from thurl.training.results import environment, write_atomically

    document = jsonable({"command": sys.argv[1:], "source": source, "environment": environment(), **result})
    if output is not None:
        write_atomically(output, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if as_json:
        typer.echo(json.dumps({k: v for k, v in document.items() if k != "predictions"}, ensure_ascii=True))
        return
    headings, rows = evaluation_table(result)
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    for row in [headings, *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if result["kinds"]:
        typer.echo("per kind: " + ", ".join(f"{k} {_number(v['srcc'])}" for k, v in result["kinds"].items()))
    settings = result["settings"]
    asked = (settings.get("prompt") or {}).get("name")
    how = [f"question {asked}" if asked else "", f"mode {settings['mode']}" if "mode" in settings else ""]
    how += [f"{key} {settings[key]}" for key in ("n_samples", "temperature", "top_k", "seed") if key in settings]
    parsed = _number(result["sample_parse_rate"])
    typer.echo(f"answers with a score: {parsed}; failed pictures: {result['n_failed']} of {result['n']}")
    typer.echo("SRCC and PLCC are over scored pictures; SRCC all gives the others the mean score. PLCC is raw.")
    typer.echo("; ".join(part for part in how if part))
    if output is not None:
        typer.echo(f"written to {output}")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _load(
    model: str,
    preset: str | None,
    base_model: str | None,
    device: str | None,
    dtype: str,
    max_pixels: int | None,
) -> QualityScorer:
    from thurl.rl.prompts import PRESETS

    problems = []
    if preset is not None and preset not in PRESETS:
        problems.append(f"--preset is {preset!r}: choose one of {', '.join(PRESETS)}")
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        problems.append(f"--dtype is {dtype!r}: choose one of auto, float32, bfloat16, float16")
    if problems:
        raise UsageError(problems)
    from thurl.rl.scorer import QualityScorer

    if device is not None:
        usable_device(device)
    return QualityScorer.from_pretrained(
        model, preset=preset, base_model=base_model, device=device, dtype=dtype, max_pixels=max_pixels
    )


def _readable(paths: Sequence[str]) -> None:
    """Open the pictures before a large model is loaded for them."""
    from thurl.data.images import ImageError, open_image

    problems = []
    for path in paths:
        try:
            open_image(path)
        except ImageError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))


def _shown(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
