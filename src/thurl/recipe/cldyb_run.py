"""Runs a CLDyB recipe: pool, encoder, search, baselines, replay with fresh seeds, one search per learner, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from thurl.continual.evaluator import Evaluator, Tasks
from thurl.continual.mdp import SearchSettings
from thurl.continual.prefix_store import PrefixStore
from thurl.continual.ranks import Ranks
from thurl.continual.replay import replay_all
from thurl.continual.search import Built
from thurl.continual.sequence_card import sequence_card
from thurl.continual.sequence_file import sequence_document, write_sequence
from thurl.continual.session import find_sequence
from thurl.hub.files import CARD
from thurl.recipe.cldyb import CLDyBRecipe
from thurl.recipe.cldyb_data import CLDyBStudy, load_study
from thurl.recipe.cldyb_report import CLDyBOutcome, write_report
from thurl.training.progress import quiet_libraries
from thurl.training.results import write_atomically


__all__ = ["benchmark", "run"]

logger = logging.getLogger(__name__)


def run(recipe: CLDyBRecipe, *, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Search, test and report as the recipe says; called by `thurl.recipe.launch` on every process.

    What was trained is kept in `training.output_dir`: the same recipe, killed and started again, goes on from there
    and finds the same sequence.

    Returns:
        the record of the run, as in the results file.

    Raises:
        ThurlError: data, encoder or settings that cannot be used, or a learner that failed; on every process.
    """
    quiet_libraries()
    state = PartialState(cpu=bool(recipe.training.get("use_cpu")))
    outcome = benchmark(recipe, Path(recipe.training["output_dir"]))
    record = write_report(recipe, outcome, recipe_path, overrides) if state.is_main_process else {}
    state.wait_for_everyone()
    return record


def benchmark(recipe: CLDyBRecipe, folder: Path) -> CLDyBOutcome:
    """All but the report, on every process of the launch."""
    began, ranks = time.perf_counter(), Ranks.of_launch()
    study = load_study(recipe, folder, ranks)
    seed = int(recipe.training.get("seed", 42))
    settings, store = recipe.search.settings(seed), PrefixStore(folder / "cache" / "states")
    names = [name.replace("_", " ") for name in recipe.baselines.names]
    with Evaluator(study.data, study.learners, seed=seed, store=store) as evaluator:
        settings, found, others = find_sequence(evaluator, settings, baselines=names, tell=logger.info)
        document = _document(study, evaluator, settings, found, others)
    alone = _individual(recipe, study, store, seed, ranks) if recipe.individual else {}
    tested, drawn = _tested(recipe, study, store, seed, found, others, alone)
    if ranks.rank == 0:
        _write(recipe, folder, study, document, alone, tested)
    return CLDyBOutcome(
        seed=seed,
        study=study,
        document=document,
        found=found,
        individual={name: entry.document for name, entry in alone.items()},
        tested=tested,
        drawn=drawn,
        processes=ranks.size,
        seconds=time.perf_counter() - began,
    )


@dataclass(frozen=True)
class _Alone:
    """What a search for one learner gave; small enough to be handed between processes."""

    document: dict[str, Any]
    tasks: Tasks


def _individual(
    recipe: CLDyBRecipe, study: CLDyBStudy, store: PrefixStore, seed: int, ranks: Ranks
) -> dict[str, _Alone]:
    """One search per learner, each whole on one process of the launch: they have nothing to wait for."""

    def search(index: int) -> _Alone:
        learner = study.learners[index]
        with Evaluator(study.data, [learner], seed=seed, store=store, ranks=Ranks()) as evaluator:
            logger.info("Search for %s alone", learner.name)
            settings, found, _ = find_sequence(evaluator, recipe.search.settings(seed), baselines=(), tell=logger.info)
            return _Alone(_document(study, evaluator, settings, found, ()), found.tasks)

    found = ranks.share(range(len(study.learners)), search)
    return {learner.name: alone for learner, alone in zip(study.learners, found, strict=True)}


def _document(
    study: CLDyBStudy, evaluator: Evaluator, settings: SearchSettings, found: Built, others: Sequence[Built]
) -> dict[str, Any]:
    document = sequence_document(evaluator, settings, found, others)
    document["contamination"] = {uid: study.known[uid] for task in document["tasks"] for uid in task}
    return document


def _tested(
    recipe: CLDyBRecipe,
    study: CLDyBStudy,
    store: PrefixStore,
    seed: int,
    found: Built,
    others: Sequence[Built],
    alone: Mapping[str, _Alone],
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Replays of the found sequence (`search`) and of that of each learner, and of the random ones."""
    seeds = recipe.replay.seeds
    if not seeds:
        return {}, []
    learners = [*study.learners, *study.held_out]
    began = time.perf_counter()
    sequences = {"search": found.tasks, **{name: entry.tasks for name, entry in alone.items()}}
    tested = replay_all(study.data, learners, sequences, seeds=seeds, search_seed=seed, store=store)
    random = {built.builder: built.tasks for built in others if built.builder.startswith("random ")}
    drawn = replay_all(study.data, learners, random, seeds=seeds[:1], search_seed=seed, store=store)
    logger.info("Trained again with fresh seeds in %.1f s", time.perf_counter() - began)
    return tested, list(drawn.values())


def _write(
    recipe: CLDyBRecipe,
    folder: Path,
    study: CLDyBStudy,
    document: dict[str, Any],
    alone: Mapping[str, _Alone],
    tested: Mapping[str, dict[str, Any]],
) -> None:
    """Sequence files and their replays, as `thurl cldyb search` and `thurl cldyb replay` write them, and the card."""
    sequences = {"search": document, **{name: entry.document for name, entry in alone.items()}}
    for name, one in sequences.items():
        end = "" if name == "search" else f"_{name}"
        write_sequence(folder / f"sequence{end}.json", one)
        if name in tested:
            about = {"sequence": f"sequence{end}.json", "pool_hash": study.data.pool_hash}
            write_sequence(folder / f"replay{end}.json", {**about, "encoder": study.data.encoder, **tested[name]})
    hub = recipe.hub
    card = sequence_card(
        document,
        name=folder.resolve().name,
        tested=tested.get("search"),
        license=hub.license,
        tags=hub.tags,
        datasets=hub.datasets,
    )
    write_atomically(folder / CARD, card)
