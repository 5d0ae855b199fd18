"""What a VisualQuality-R1 run leaves for a person: a results file, a table on the console and a one-page report."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from thurl.data.images import open_image
from thurl.recipe.run_record import costs, say_where, write_run_results
from thurl.rl.evaluation import jsonable
from thurl.training.report import Judgement, QualityRow, quality_table, write_quality_report
from thurl.training.timing import phase_rows


if TYPE_CHECKING:
    from thurl.recipe.visualquality_r1 import VisualQualityR1Recipe
    from thurl.recipe.visualquality_r1_data import Study

__all__ = ["Story", "TrainedRun", "run_record", "table_rows", "write_report"]


@dataclass(frozen=True)
class TrainedRun:
    """What one training run left behind.

    `log` is the trainer's log history, `validation` the entries of `QualityEvalCallback.history`; `before` and `after`
    are results of `evaluate_model` on the test sets, None where not asked for. `timing` is the trainer's
    (`thurl.training.timed_trainer`), None of a run that had no step to do.
    """

    log: list[dict[str, Any]]
    validation: list[dict[str, float]]
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    seconds: dict[str, float]
    timing: dict[str, Any] | None = None


@dataclass(frozen=True)
class Story:
    """Words of the page that depend on how the model was trained: title, how it was taught, the curve to show."""

    title: str = "VisualQuality-R1: learning to rank picture quality"
    taught: str = "by comparison alone (GRPO with Thurstone fidelity rewards)"
    curve: tuple[str, str] = ("Reward", "reward")


def write_report(
    recipe: VisualQualityR1Recipe,
    seed: int,
    study: Study,
    main: TrainedRun,
    control: TrainedRun | None,
    recipe_path: str,
    overrides: Sequence[str] = (),
    story: Story | None = None,
) -> dict[str, Any]:
    """Write what the recipe's `report` section asks for and print the table; only the main process does.

    Returns:
        the record of this run, see `run_record`.
    """
    record = run_record(seed, main, control)
    if not PartialState().is_main_process:
        return record
    section = recipe.report
    rows = table_rows(main, control)
    if section.results:
        write_run_results(
            section.results,
            recipe,
            record,
            recipe_path,
            overrides,
            validation=jsonable(main.validation),
            decoding=jsonable(main.after["settings"]) if main.after else None,
        )
    if section.html and main.after:
        _write_html(Path(section.html), recipe, study, main, control, rows, record, story or Story())
    if rows:
        _print_table(rows, record)
    say_where(section.html if main.after else None, section.results, recipe.training["output_dir"])
    return record


def run_record(seed: int, main: TrainedRun, control: TrainedRun | None) -> dict[str, Any]:
    """One record of a results file: `seed`, correlations before and after, `srcc_control`, `per_degradation`, seconds.

    `seconds_by_phase` are the parts of the whole run, `seconds_per_step` the phases of an optimizer step.

    The correlations are means over the test sets; `srcc_control` of a policy that gives every picture the same score
    is null, and so are numbers that were not asked for.
    """
    record: dict[str, Any] = {"seed": seed}
    for name, result in (("before", main.before), ("after", main.after), ("control", control and control.after)):
        for metric in ("srcc", "plcc"):
            record[f"{metric}_{name}"] = result["mean"][metric] if result else None
    if main.after:
        record["plcc_logistic_after"] = main.after["mean"]["plcc_logistic"]
        record["parse_rate_after"] = main.after["sample_parse_rate"]
        record["per_degradation"] = {name: entry["srcc"] for name, entry in main.after["kinds"].items()}
        record["per_dataset"] = {name: entry["srcc"] for name, entry in main.after["datasets"].items()}
    return jsonable({**record, **costs(main.seconds, main.timing, control.seconds if control else None)})


def table_rows(main: TrainedRun, control: TrainedRun | None) -> list[QualityRow]:
    """One row per degradation, one per test set where there are several, and the overall one; none without a test."""
    if main.after is None:
        return []
    results = {"before": main.before, "after": main.after, "control": control.after if control else None}
    rows = [_row(name, results, ("kinds", name)) for name in main.after["kinds"]]
    if len(main.after["datasets"]) > 1:
        rows += [_row(name, results, ("datasets", name)) for name in main.after["datasets"]]
    return [*rows, _row("overall", results, ("mean",), n=main.after["n"], total=True)]


def _row(name: str, results: Mapping[str, Any], path: Sequence[str], **more: Any) -> QualityRow:
    values: dict[str, Any] = {}
    for when, result in results.items():
        entry: Any = result
        for key in path:
            entry = entry[key] if entry is not None else None
        if entry is None:
            continue
        values[f"srcc_{when}"] = entry["srcc"]
        if when != "control":
            values[f"plcc_{when}"] = entry["plcc"]
        values.setdefault("n", entry.get("n"))
    return QualityRow(name, **{**values, **more})


def _print_table(rows: Sequence[QualityRow], record: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print()
    console.print(quality_table(rows, title="Agreement with the true order on pictures never seen in training"))
    before, after = (_text(record[f"srcc_{when}"]) for when in ("before", "after"))
    console.print(f"SRCC {before} before, {after} after, in {record['seconds']:.0f} s")


def _write_html(
    path: Path,
    recipe: VisualQualityR1Recipe,
    study: Study,
    main: TrainedRun,
    control: TrainedRun | None,
    rows: Sequence[QualityRow],
    record: Mapping[str, Any],
    story: Story,
) -> None:
    examples = recipe.report.examples
    judgements = [
        Judgement(
            predicted=entry["score"] if entry["ok"] else math.nan,
            true=entry["mos"],
            kind=entry.get("kind") or entry["dataset"],
            text=entry["text"],
            name=_caption(record_),
        )
        for entry, record_ in zip(main.after["predictions"], study.test, strict=True)
    ]
    order = sorted(
        (i for i, judgement in enumerate(judgements) if math.isfinite(judgement.predicted)),
        key=lambda i: judgements[i].predicted,
    )
    heading, key = story.curve
    curves = {
        heading: _lines(main, control, lambda run: [(e["step"], e[key]) for e in run.log if key in e]),
        "Validation SRCC": _lines(main, control, lambda run: [(e["step"], e["eval_srcc"]) for e in run.validation]),
    }
    after = record["srcc_after"]
    summary = (
        f"{len(study.train)} pictures of {len({r.dataset for r in study.train})} rated sets taught the model "
        f"{story.taught}; {len(study.test)} others test it."
    )
    facts = [("SRCC after", _text(after)), ("SRCC before", _text(record["srcc_before"]))]
    facts += [("SRCC control", _text(record["srcc_control"]))] if control else []
    facts += [("PLCC after", _text(record["plcc_after"])), ("Time", f"{record['seconds']:.0f} s")]
    notes = [
        f"Scores: {main.after['settings']['mode']} mode, {main.after['settings'].get('n_samples', 1)} answers per "
        "picture, mean of those that hold a score.",
        f"Training: {len(main.log) and main.log[-1].get('step')} steps, {_settings(recipe)}.",
    ]
    if recipe.model.tiny is not None:
        notes.append(
            "The model is tiny and the degradations are generated: this shows that the method learns, and is no "
            "statement about real picture quality."
        )
    if control:
        notes.append("Control: the same run with the ratings shuffled inside each set; it must not learn the order.")
    write_quality_report(
        path,
        title=story.title,
        summary=summary,
        curves=curves,
        scatter=judgements,
        table_rows=rows,
        best=[_with_image(judgements[i], study.test[i].image) for i in order[::-1][:examples]],
        worst=[_with_image(judgements[i], study.test[i].image) for i in order[:examples]],
        misjudged=[
            _with_image(judgements[i], study.test[i].image) for i in _largest_errors(judgements, order, examples)
        ],
        facts=facts,
        notes=notes,
        timing=phase_rows(main.timing["seconds"], main.timing["steps"]) if main.timing else (),
    )


def _settings(recipe: VisualQualityR1Recipe) -> str:
    """The numbers of a training run that a reader asks for first."""
    training, adapter, coto = recipe.training, recipe.adapter, recipe.coto
    words = [f"learning rate {training.get('learning_rate')}"]
    if "num_generations" in training:
        words.insert(0, f"{training['num_generations']} completions per picture")
        words.append(f"KL coefficient {training.get('beta')}")
    if adapter is not None:
        words.append(f"{adapter.kind} adapter of rank {adapter.r}")
    if coto is not None:
        words.append(f"CoTo with {coto.words()}")
    return ", ".join(words)


def _largest_errors(judgements: Sequence[Judgement], order: Sequence[int], count: int) -> list[int]:
    """Pictures whose place by score is furthest from their place by rating; only the order is trained."""
    from scipy.stats import rankdata

    predicted = rankdata([judgements[i].predicted for i in order])
    true = rankdata([judgements[i].true for i in order])
    furthest = sorted(range(len(order)), key=lambda place: -abs(predicted[place] - true[place]))
    return [order[place] for place in furthest[:count]]


def _lines(main: TrainedRun, control: TrainedRun | None, points: Any) -> dict[str, tuple[list[float], list[float]]]:
    lines = {}
    for name, run in (("run", main), ("shuffled labels", control)):
        pairs = points(run) if run else []
        if pairs:
            lines[name] = ([step for step, _ in pairs], [value for _, value in pairs])
    return lines


def _caption(record: Any) -> str:
    words = [record.reference or Path(record.image).name]
    if "kind" in record.extra:
        words.append(f"{record.extra['kind']} {record.extra.get('level', '')}".strip())
    return ", ".join(words)


def _with_image(judgement: Judgement, image: str) -> Judgement:
    from dataclasses import replace

    return replace(judgement, image=open_image(image))


def _text(value: float | None) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.3f}"
