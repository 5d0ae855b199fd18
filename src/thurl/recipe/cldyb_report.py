"""What a CLDyB run leaves for a person: a results file, tables on the console, a page and a picture."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thurl.continual.replay import agreements, transfer_matrix
from thurl.continual.report import builder_rows, write_picture
from thurl.continual.report import write_report as write_page
from thurl.continual.report_drawings import METRICS, groups_of, mean_of
from thurl.continual.search import Built
from thurl.continual.transfer import transfer_table, write_transfer
from thurl.recipe.cldyb_data import CLDyBStudy
from thurl.recipe.run_record import print_table, say_where, write_run_results
from thurl.training.page import number


__all__ = ["CLDyBOutcome", "run_record", "write_report"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CLDyBOutcome:
    """What a run gave.

    Attributes:
        seed: of the search.
        study: pool and learners.
        document: the sequence file, with the baselines.
        found: the sequence with its cost.
        individual: sequence file of each learner alone.
        tested: replay of the found sequence (`search`) and of that of each learner; empty without a replay.
        drawn: replays of the random sequences.
        processes: that trained.
        seconds: of everything.
    """

    seed: int
    study: CLDyBStudy
    document: dict[str, Any]
    found: Built
    individual: dict[str, dict[str, Any]]
    tested: dict[str, dict[str, Any]]
    drawn: list[dict[str, Any]]
    processes: int
    seconds: float


def run_record(outcome: CLDyBOutcome) -> dict[str, Any]:
    """One record of a results file.

    `tasks`; `searched` (AA of every builder on the split of the search, mean over the learners); `builders` (`search`
    and `random`, trained again: metrics, and AA of the learners held out); `transfer` (AA of each learner on the
    sequence found for each) and `agreement` (Kendall's tau between orders of the learners); `cost`; `encoder_fit`,
    `processes`, `seconds`.
    """
    found, document = outcome.found, outcome.document
    walked = sum(step["path_trainings"] for step in found.steps)
    return {
        "seed": outcome.seed,
        "tasks": document["tasks"],
        "pool_hash": document["pool_hash"],
        "searched": {
            name: float(np.mean([mean_of(record, "aa") for record in records]))
            for name, records in groups_of(document).items()
        },
        "builders": _builders(outcome),
        "transfer": _transfer(outcome),
        "agreement": agreements(_orders(outcome)),
        "cost": {
            "trainings": found.cost.trainings,
            "trained": found.cost.trained,
            "path_trainings": walked,
            "training_seconds": found.cost.seconds,
            "wall_seconds": found.wall,
            "saved_by_prefixes": 1 - found.cost.trainings / walked,
        },
        "encoder_fit": outcome.study.encoder_fit,
        "processes": outcome.processes,
        "seconds": outcome.seconds,
    }


def write_report(
    recipe: Any, outcome: CLDyBOutcome, recipe_path: str, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Write what the recipe's `report` section asks for and print the tables.

    Returns:
        the record of this run, see `run_record`.
    """
    record, section = run_record(outcome), recipe.report
    if section.results:
        write_run_results(section.results, recipe, record, recipe_path, overrides)
    print_table("On the split of the search, whose numbers are selected", builder_rows(outcome.document))
    tables = []
    if record["builders"]:
        caption = f"test split, {len(recipe.replay.seeds)} fresh seeds; random sequences with the first of them"
        tables.append(("Beside random sequences, trained again", _builder_table(record["builders"]), caption))
    if record["transfer"]:
        caption = "AA of each learner (columns) on the sequence found for each (rows)"
        tables.append(("Transfer", transfer_table(record["transfer"]), caption))
        caption = "1: the same order, -1: the opposite, undefined where all are equal in one"
        tables.append(("Do they rank the learners alike? Kendall's tau", _pairs(record["agreement"]), caption))
        for ending in ("csv", "json"):
            place = Path(recipe.training["output_dir"]) / f"transfer.{ending}"
            write_transfer(place, record["transfer"], record["agreement"], {"seeds": list(recipe.replay.seeds)})
    for heading, rows, caption in tables:
        print_table(f"{heading} ({caption})", rows)
    if section.html:
        write_page(section.html, outcome.document, outcome.tested.get("search"), tables)
    if section.png:
        write_picture(section.png, outcome.document)
    cost = record["cost"]
    logger.info(
        "Search: %d trainings (%d new) in %.1f s; the paths it tried have %d, so keeping states saved %.0f %%",
        *(cost["trainings"], cost["trained"], cost["wall_seconds"], cost["path_trainings"]),
        100 * cost["saved_by_prefixes"],
    )
    say_where(section.html, section.results, f"{recipe.training['output_dir']}/sequence.json", output_is="Sequence")
    return record


def _transfer(outcome: CLDyBOutcome) -> dict[str, dict[str, float]]:
    replays = {name: outcome.tested[name] for name in outcome.individual if name in outcome.tested}
    return transfer_matrix(replays)


def _orders(outcome: CLDyBOutcome) -> dict[str, dict[str, float]]:
    """AA of the searched learners in every benchmark."""
    names = [learner.name for learner in outcome.study.learners]
    searched = outcome.document["found"]["metrics"]
    found = {"search, selected": {name: searched[name]["aa"] for name in names}}
    for owner, replayed in outcome.tested.items():
        label = "search" if owner == "search" else f"for {owner}"
        found[label] = {name: replayed["learners"][name]["mean"]["aa"] for name in names}
    if outcome.drawn:
        found["random"] = {name: _over(outcome.drawn, name, "aa") for name in names}
    return found


def _builders(outcome: CLDyBOutcome) -> dict[str, dict[str, float]]:
    groups = {"search": [outcome.tested["search"]] if outcome.tested else [], "random": outcome.drawn}
    searched = [learner.name for learner in outcome.study.learners]
    held_out = [learner.name for learner in outcome.study.held_out]
    found = {}
    for builder, replays in groups.items():
        if not replays:
            continue
        found[builder] = {key: float(np.mean([_over(replays, name, key) for name in searched])) for key in METRICS}
        if held_out:
            found[builder]["held_out_aa"] = float(np.mean([_over(replays, name, "aa") for name in held_out]))
    return found


def _over(replays: Sequence[Mapping[str, Any]], learner: str, key: str) -> float:
    values = [replayed["learners"][learner]["mean"][key] for replayed in replays]
    return float(np.mean([math.nan if value is None else value for value in values]))


def _builder_table(builders: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    keys = list(next(iter(builders.values())))
    rows = [["builder", *("held out AA" if key == "held_out_aa" else key.upper() for key in keys)]]
    return rows + [[name, *(number(values[key]) for key in keys)] for name, values in builders.items()]


def _pairs(agreement: Mapping[str, float]) -> list[list[str]]:
    return [["benchmarks", "tau"], *([name, number(value)] for name, value in agreement.items())]
