"""What an EXIF run leaves for a person: a results file, tables on the console and a one-page report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thurl.forensics.exif.tasks import ORDINAL_TASKS
from thurl.recipe.run_record import costs, learned_trajectory, logged_points, print_table, say_where, write_run_results
from thurl.training.page import draw_curves, figure, number, section, text_table, write_page
from thurl.training.results import plain
from thurl.training.timing import phase_rows


if TYPE_CHECKING:
    from thurl.recipe.exif_data import FaceStudy
    from thurl.recipe.exif_detection import Detection
    from thurl.training.evaluation import EvaluationResults

__all__ = ["FaceRun", "detection_rows", "pretext_rows", "run_record", "write_report"]


_SHOWN = ("accuracy", "tpr", "auc", "tpr_two_sided", "auc_two_sided")
_TITLES = {
    "exif_ordinal": "Camera settings find generated faces: one-class method",
    "blades": "Camera settings find generated faces: BLADES",
}


@dataclass(frozen=True)
class FaceRun:
    """What one training run left behind.

    Attributes:
        trainer: with the trained model.
        log: its log history.
        before, after: pretext tasks by data set: `test` (held-out photographs as a detector sees them), `test_edits`
            (the same with edits), `validation`.
        seconds: by phase.
        detection, detection_before: the detector of the trained encoder, and of the one it started from.
    """

    trainer: Any
    log: list[dict[str, Any]]
    before: Mapping[str, EvaluationResults]
    after: Mapping[str, EvaluationResults]
    seconds: dict[str, float]
    detection: Detection | None = None
    detection_before: Detection | None = field(default=None)


def write_report(
    recipe: Any,
    seed: int,
    study: FaceStudy,
    main: FaceRun,
    control: FaceRun | None,
    recipe_path: str,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Write what the recipe's `report` section asks for and print the tables; on the main process.

    Returns:
        the record of this run, see `run_record`.
    """
    record = run_record(seed, main, control)
    report = recipe.report
    if report.results:
        write_run_results(
            report.results,
            recipe,
            record,
            recipe_path,
            overrides,
            photographs=study.counts(),
            trajectory=learned_trajectory(main.log, "eval_proxy_loss"),
            detection=plain(main.detection.evaluation) if main.detection else None,
        )
    tables = {
        "Pretext tasks on held-out photographs": pretext_rows(main, control),
        "False alarms on held-out photographs": alarm_rows(main),
        "Generated faces": detection_rows(main, control),
    }
    tables = {name: rows for name, rows in tables.items() if rows}
    if report.html:
        _write_html(Path(report.html), recipe, study, main, control, record, tables)
    for name, rows in tables.items():
        print_table(name, rows)
    say_where(report.html, report.results, recipe.training["output_dir"], output_is="Model and detector")
    return record


def run_record(seed: int, main: FaceRun, control: FaceRun | None) -> dict[str, Any]:
    """One record of a results file.

    `before`, `after`, `control`: metrics of the pretext tasks by data set. `false_alarms`: rate to what
    `thurl.recipe.exif_detection.false_alarms` found. `generated`: generator to `auc`, `auc_two_sided`, ... after
    training, `auc_before` of the encoder it started from and `auc_control`. `weights`: of the tasks, where learned.
    """
    record: dict[str, Any] = {"seed": seed, "steps": main.trainer.state.global_step}
    for name, found in (("before", main.before), ("after", main.after), ("control", control.after if control else {})):
        record[name] = {where: dict(results.metrics) for where, results in found.items()}
    if main.detection is not None:
        record["false_alarms"] = {
            f"{entry['rate']:g}": {name: value for name, value in entry.items() if name != "rate"}
            for entry in main.detection.alarms
        }
        record["generated"] = _generated(main, control)
    if main.trainer.term_weights:
        record["weights"] = main.trainer.term_weights
    return plain({**record, **costs(main.seconds, main.trainer.timing)})


def _generated(main: FaceRun, control: FaceRun | None) -> dict[str, dict[str, float]]:
    results = main.detection.evaluation if main.detection else None
    if results is None:
        return {}
    others = {"before": main.detection_before, "control": control.detection if control else None}
    found = {}
    for name, entry in results["generators"].items():
        found[name] = dict(entry)
        for when, other in others.items():
            if other is not None and other.evaluation is not None:
                found[name][f"auc_{when}"] = other.evaluation["generators"][name]["auc"]
    return found


def pretext_rows(main: FaceRun, control: FaceRun | None) -> list[list[str]]:
    """Headings and one row per task; none without held-out photographs that have settings."""
    if "test" not in main.after:
        return []
    moments = {"before": main.before, "after": main.after, "control": control.after if control else {}}
    moments = {name: found for name, found in moments.items() if found}
    rows = [["task", "measure", "labelled", *moments]]
    for where, kinds in (("test", ("srcc", "accuracy")), ("test_edits", ("auc",))):
        settings = main.after[where].settings["labelled"]
        for name in main.after[where].metrics:
            kind, _, task = name.partition("_")
            if kind in kinds:
                cells = [number(found[where].metrics[name]) for found in moments.values()]
                rows.append([task.replace("_", " "), kind.upper() if kind != "accuracy" else kind,
                             str(settings[name]), *cells])  # fmt: skip
    return rows


def alarm_rows(main: FaceRun) -> list[list[str]]:
    """Headings and one row per false-alarm rate."""
    if main.detection is None or not main.detection.alarms:
        return []
    rows = [["nominal", "realised", "standard error", "within 3", "both tails", "official threshold"]]
    for entry in main.detection.alarms:
        cells = [number(entry[name]) for name in ("rate", "realised", "standard_error")]
        more = [number(entry[name]) for name in ("realised_two_sided", "official")]
        rows.append([*cells, "yes" if entry["within"] else "no", *more])
    return rows


def detection_rows(main: FaceRun, control: FaceRun | None) -> list[list[str]]:
    """Headings, one row per generator, and their mean where there are several."""
    generated = _generated(main, control)
    if not generated:
        return []
    extra = [name for name in ("auc_before", "auc_control") if name in next(iter(generated.values()))]
    columns = [*_SHOWN, *extra]
    words = {"tpr": "found", "tpr_two_sided": "found, both tails", "auc_two_sided": "AUC, both tails", "auc": "AUC"}
    words |= {"auc_before": "AUC before", "auc_control": "AUC control"}
    rows = [["generator", "n", *(words.get(name, name) for name in columns)]]
    for name, entry in generated.items():
        rows.append([name, str(entry["n"]), *(number(entry[column]) for column in columns)])
    return rows


def _write_html(
    path: Path,
    recipe: Any,
    study: FaceStudy,
    main: FaceRun,
    control: FaceRun | None,
    record: Mapping[str, Any],
    tables: Mapping[str, Sequence[Sequence[str]]],
) -> None:
    sections = [section(name, text_table(rows, total=False) + _CAPTIONS[name]) for name, rows in tables.items()]
    curves = {
        "Loss": _lines(main, control, lambda log: logged_points(log, "loss")),
        "Validation loss": _lines(main, control, lambda log: logged_points(log, "eval_proxy_loss")),
    }
    curves = {name: lines for name, lines in curves.items() if lines}
    if curves:
        sections.append(section("Learning curves", figure(draw_curves(curves), "Curves over steps", _CURVES)))
    weights = {name.removeprefix("weights/"): logged_points(main.log, name) for name in _names(main.log, "weights/")}
    if weights:
        weights = {name.replace("_", " "): line for name, line in weights.items()}
        drawing = draw_curves({"Weight of each task": weights}, alike=True)
        sections.append(section("Learned task weights", figure(drawing, "Task weights over steps", _WEIGHTS)))
    facts = []
    if "test" in main.after:
        metrics = main.after["test"].metrics
        facts += [(f"SRCC of {task.replace('_', ' ')}", number(metrics[f"srcc_{task}"])) for task in ORDINAL_TASKS[:2]]
    facts += [(f"AUC {name}", number(entry["auc"])) for name, entry in list(record.get("generated", {}).items())[:2]]
    for entry in main.detection.alarms[-1:] if main.detection else ():
        facts.append((f"false alarms at {entry['rate']:g}", number(entry["realised"])))
    facts.append(("time", f"{main.seconds['total']:.0f} s"))
    timing = main.trainer.timing
    write_page(
        path,
        title=_TITLES[recipe.method],
        summary=f"Photographs: {study.counts()}. EXIF was read to train; a verdict needs pixels only.",
        facts=facts,
        sections=sections,
        timing=phase_rows(timing["seconds"], timing["steps"]) if timing else (),
        notes=_notes(recipe, main, control),
    )


def _notes(recipe: Any, main: FaceRun, control: FaceRun | None) -> list[str]:
    training, bilevel = recipe.training, getattr(recipe, "bilevel", None)
    args = main.trainer.args
    notes = [f"Training: {main.trainer.state.global_step} steps, learning rate {args.learning_rate:g}, batches of "
             f"{args.per_device_train_batch_size} on each of {args.world_size} process(es)."]  # fmt: skip
    if bilevel is None:
        notes.append("All tasks have the weight 1.")
    else:
        notes.append(f"Task weights are learned for {', '.join(bilevel.primary)} at a rate of {bilevel.lr:g}.")
    best = main.trainer.state.best_model_checkpoint
    if training.get("load_best_model_at_end") and best:
        notes.append(f"The weights are those of {Path(best).name}, best by {training.get('metric_for_best_model')}.")
    detector = main.detection.detector if main.detection else None
    if detector is not None:
        scorer = detector.scorer
        notes.append(f"Detector: {len(scorer.weights)} components, {scorer.covariance} covariances, fitted to "
                     f"{detector.training['photographs']} photographs.")  # fmt: skip
    if recipe.data.source.format == "simulated":
        notes.append("The camera is simulated and the network tiny: this shows that the method works, and is no "
                     "statement about real faces.")  # fmt: skip
    if control:
        notes.append("Control: the same run with the settings of other photographs; it must not learn to rank them. "
                     "Its edits are real, so it may learn to find these.")  # fmt: skip
    return notes


def _names(log: Sequence[Mapping[str, Any]], prefix: str) -> list[str]:
    return list(dict.fromkeys(name for entry in log for name in entry if name.startswith(prefix)))


def _lines(
    main: FaceRun, control: FaceRun | None, points: Callable[[Any], tuple[list[float], list[float]]]
) -> dict[str, tuple[list[float], list[float]]]:
    lines = {"run": points(main.log)}
    if control:
        lines["shuffled settings"] = points(control.log)
    return {name: line for name, line in lines.items() if line[0]}


_CAPTIONS = {
    "Pretext tasks on held-out photographs": (
        "<p class='caption'>SRCC: rank correlation of score and setting. Accuracy: share of right classes. AUC: of "
        "edited against untouched pictures. Photographs that lack a setting do not count for it.</p>"
    ),
    "False alarms on held-out photographs": (
        "<p class='caption'>Share of photographs called generated. Official threshold: the quantile of the scores of "
        "the photographs that the mixture was fitted to.</p>"
    ),
    "Generated faces": (
        "<p class='caption'>Found: share called generated at the smallest rate above, or at that of the recipe. Both "
        "tails: scores that are too high count, too. An AUC below 0.5 means that these faces look more photographic "
        "than photographs do. Before: a detector on the encoder's first weights.</p>"
    ),
}
_CURVES = "Thin: every entry; thick: running mean (curves of more than 25 points). Grey: the control."
_WEIGHTS = "All weights begin where the recipe says; the outer step raises those that help the primary tasks."
