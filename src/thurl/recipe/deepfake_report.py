"""What a DeepFake run leaves for a person: a results file, tables on the console and a one-page report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thurl.recipe.run_record import costs, learned_trajectory, logged_points, print_table, say_where, write_run_results
from thurl.training.page import draw_curves, figure, number, section, text_table, write_page
from thurl.training.results import plain
from thurl.training.timing import phase_rows


if TYPE_CHECKING:
    from thurl.recipe.deepfake_data import FaceStudy
    from thurl.recipe.deepfake_run import FaceRun

__all__ = ["node_rows", "run_record", "set_rows", "write_report"]

_SHOWN = {
    "video_auc": "video AUC",
    "frame_auc": "frame AUC",
    "video_ap": "AP",
    "video_eer": "EER",
    "video_accuracy_chosen": "accuracy",
    "video_tpr_at_fpr_1": "found at 1 %",
    "frame_ece": "ECE",
}


def write_report(
    recipe: Any, seed: int, study: FaceStudy, found: FaceRun, recipe_path: str, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Write what the recipe's `report` section asks for and print the tables; on the main process.

    Returns:
        the record of this run, see `run_record`.
    """
    record = run_record(seed, found)
    report = recipe.report
    if report.results:
        write_run_results(
            report.results,
            recipe,
            record,
            recipe_path,
            overrides,
            faces=study.counts(),
            trajectory=learned_trajectory(found.log, "eval_loss"),
            test=plain(found.test),
            before=plain(found.before),
            perturbed=plain(found.perturbed),
            unusable=found.unusable,
        )
    tables = {"Test sets": set_rows(found), "Attributes and regions": node_rows(found)}
    if found.perturbed:
        tables["After perturbations"] = perturbed_rows(found)
    tables = {name: rows for name, rows in tables.items() if len(rows) > 1}
    if report.html:
        _write_html(Path(report.html), recipe, study, found, tables)
    for name, rows in tables.items():
        print_table(name, rows)
    say_where(report.html, report.results, recipe.training["output_dir"])
    return record


def run_record(seed: int, found: FaceRun) -> dict[str, Any]:
    """One record of a results file.

    `validation`: metrics of the chosen weights. `test`, `before`, `perturbed`: means over the test sets, see
    `thurl.forensics.deepfake.evaluation.evaluate_frames`, whose whole result is in the file besides. `attributes`,
    `regions`: AUC by name, means over the sets that have one. `weights`: of the tasks, where learned.
    """
    record: dict[str, Any] = {
        "seed": seed,
        "steps": found.trainer.state.global_step,
        "validation": dict(found.validation),
        "weights": found.trainer.term_weights,
    }
    if found.test is not None:
        record["test"] = found.test["mean"]
        record |= {kind: _nodes(found.test, kind) for kind in ("attributes", "regions")}
        record["unusable"] = len(found.unusable)
    if found.before is not None:
        record["before"] = found.before["mean"]
    if found.perturbed:
        record["perturbed"] = {name: result["mean"] for name, result in found.perturbed.items()}
    return plain({**record, **costs(found.seconds, found.trainer.timing)})


def set_rows(found: FaceRun) -> list[list[str]]:
    """Headings, one row per test set, and their mean where there are several."""
    rows = [["test set", "videos", "frames", *_SHOWN.values(), "attributes", "regions"]]
    if found.test is None:
        return rows
    for name, entry in found.test["datasets"].items():
        cells = [_metric(entry, metric) for metric in _SHOWN]
        counts = [str(entry[kind]["n"]) for kind in ("videos", "frames")]
        rows.append([name or "-", *counts, *cells, number(entry["attribute_auc"]), number(entry["region_auc"])])
    if len(rows) > 2:
        mean = found.test["mean"]
        cells = [number(mean.get(name, float("nan"))) for name in (*_SHOWN, "attribute_auc", "region_auc")]
        rows.append(["mean", "", "", *cells])
    return rows


def node_rows(found: FaceRun) -> list[list[str]]:
    """Headings and one row per attribute and region: AUC over frames, before training where that was measured."""
    moments = {"before": found.before, "after": found.test}
    moments = {name: result for name, result in moments.items() if result is not None}
    rows = [["what", "level", *(f"AUC {name}" if len(moments) > 1 else "AUC" for name in moments)]]
    for kind, level in (("attributes", "attribute"), ("regions", "region")):
        values = [_nodes(result, kind) for result in moments.values()]
        for name in values[0] if values else ():
            rows.append([name, level, *(number(value[name]) for value in values)])
    return rows


def perturbed_rows(found: FaceRun) -> list[list[str]]:
    """Headings and one row per perturbation: means over the test sets."""
    rows = [["perturbation", *_SHOWN.values()]]
    for name, result in found.perturbed.items():
        rows.append([name, *(number(result["mean"].get(metric, float("nan"))) for metric in _SHOWN)])
    return rows


def _metric(entry: Mapping[str, Any], name: str) -> str:
    kind, _, metric = name.partition("_")
    return number(entry[f"{kind}s"][metric])


def _nodes(result: Mapping[str, Any], kind: str) -> dict[str, float]:
    """AUC by name, the mean over the sets that have one."""
    values: dict[str, list[float]] = {}
    for entry in result["datasets"].values():
        for name, value in entry[kind].items():
            values.setdefault(name, [])
            if value == value:
                values[name].append(value)
    return {name: sum(own) / len(own) if own else float("nan") for name, own in values.items()}


def _write_html(
    path: Path, recipe: Any, study: FaceStudy, found: FaceRun, tables: Mapping[str, Sequence[Sequence[str]]]
) -> None:
    sections = [section(name, text_table(rows, total=False) + _CAPTIONS[name]) for name, rows in tables.items()]
    curves = {
        title: {"run": logged_points(found.log, key)}
        for title, key in (("Loss", "loss"), ("Validation loss", "eval_loss"), ("Video AUC", "eval_video_auc"))
    }
    curves = {title: lines for title, lines in curves.items() if lines["run"][0]}
    if curves:
        sections.append(section("Learning curves", figure(draw_curves(curves), "Curves over steps", _CURVES)))
    names = [name for name in (found.log[0] if found.log else ()) if name.startswith("weights/")]
    weights = {name.removeprefix("weights/"): logged_points(found.log, name) for name in names}
    if weights and recipe.bilevel is not None:
        drawing = draw_curves({"Weight of each task": weights}, alike=True)
        sections.append(section("Learned task weights", figure(drawing, "Task weights over steps", _WEIGHTS)))
    facts = []
    if found.test is not None and found.test["mean"]:
        names = ("video_auc", "frame_auc", "attribute_auc", "region_auc")
        facts = [(name.replace("_auc", " AUC"), number(found.test["mean"][name])) for name in names]
    facts.append(("time", f"{found.seconds['total']:.0f} s"))
    timing = found.trainer.timing
    write_page(
        path,
        title="Forged faces, and what was altered in them",
        summary=f"Faces: {study.counts()}.",
        facts=facts,
        sections=sections,
        timing=phase_rows(timing["seconds"], timing["steps"]) if timing else (),
        notes=_notes(recipe, found),
    )


def _notes(recipe: Any, found: FaceRun) -> list[str]:
    args = found.trainer.args
    notes = [f"Training: {found.trainer.state.global_step} steps, learning rate {args.learning_rate:g}, batches of "
             f"{args.per_device_train_batch_size} on each of {args.world_size} process(es)."]  # fmt: skip
    bilevel = recipe.bilevel
    if bilevel is None:
        notes.append("All tasks have the weight 1.")
    else:
        where = "people who are not trained on" if bilevel.outer == "held_out" else "the training faces"
        notes.append(f"Task weights are learned for {', '.join(bilevel.primary)} at a rate of {bilevel.lr:g}, on "
                     f"{where}.")  # fmt: skip
    best = found.trainer.state.best_model_checkpoint
    if recipe.training.get("load_best_model_at_end") and best:
        notes.append(f"The weights are those of {Path(best).name}, best by "
                     f"{recipe.training.get('metric_for_best_model')}.")  # fmt: skip
    if found.test is not None:
        notes += [f"The test set {name!r} is not scored: it {reason}." for name, reason in
                  found.test["not_scored"].items()]  # fmt: skip
    if found.unusable:
        notes.append(f"{len(found.unusable)} test pictures could not be used; the results file names them.")
    if any(source.format == "drawn" for source in recipe.data.sources):
        notes.append("The faces are drawn and the network tiny: this shows that the code works, and is no statement "
                     "about photographs.")  # fmt: skip
    return notes


_CAPTIONS = {
    "Test sets": (
        "<p class='caption'>The score of a video is the mean probability of its frames. Accuracy at the threshold "
        "chosen on the validation part; found at 1 %: share of forged videos found with one false alarm in a hundred, "
        "- where there are fewer than a hundred real videos. ECE: calibration error of the probability, over frames."
        "</p>"
    ),
    "Attributes and regions": "<p class='caption'>Over frames whose label is known.</p>",
    "After perturbations": "<p class='caption'>Means over the test sets; thresholds stay.</p>",
}
_CURVES = "Thin: every entry; thick: running mean (curves of more than 25 points)."
_WEIGHTS = "All weights begin where the recipe says; the outer step raises those that help the primary tasks."
