"""A found sequence as a file: a benchmark that anyone can read, train on and check, without code of the search.

JSON with the classes of every task by name, the hash of the pool they come from, the learners and settings of the
search, its log, its cost and the baselines. A pool with another hash is another benchmark and is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thurl.continual.class_data import ClassData
from thurl.continual.evaluator import Evaluator, Tasks
from thurl.continual.mdp import SearchSettings
from thurl.continual.metrics import DEFINITIONS, continual_metrics
from thurl.continual.search import Built
from thurl.errors import DataError, UsageError
from thurl.hub.fetch import hub_file
from thurl.training.results import environment, plain, write_atomically


__all__ = [
    "FORMAT",
    "benchmark_tasks",
    "builder_record",
    "contamination",
    "read_sequence",
    "sequence_document",
    "write_sequence",
]

FORMAT = 2
"""Version of the layout; a reader refuses a newer one. In 1, `contamination` held the `knn` of each class alone."""

_KEYS = {
    "pool_hash": str,
    "tasks": list,
    "seed": int,
    "mode": str,
    "learners": list,
    "search": dict,
    "found": dict,
    "baselines": list,
}


_RECORD = ("tasks", "rewards", "accuracies", "metrics", "trainings", "training_seconds", "wall_seconds")


def sequence_document(
    evaluator: Evaluator, settings: SearchSettings, found: Built, baselines: Sequence[Built] = ()
) -> dict[str, Any]:
    """What a sequence file holds."""
    data = evaluator.data
    return {
        "format": FORMAT,
        "pool_hash": data.pool_hash,
        "classes": len(data.classes),
        "tasks": _names(data, found.tasks),
        "seed": settings.seed,
        "learner_seed": evaluator.seed,
        "split": evaluator.split,
        "mode": "individual" if len(evaluator.learners) == 1 else "joint",
        "encoder": data.encoder,
        "learners": [learner.config() for learner in evaluator.learners],
        "search": asdict(settings),
        "definitions": DEFINITIONS,
        "found": {**builder_record(data, found), "steps": found.steps},
        "baselines": [builder_record(data, built) for built in baselines],
        "versions": environment()["versions"],
    }


def builder_record(data: ClassData, built: Built) -> dict[str, Any]:
    """One builder's sequence with its accuracies on the split of the search, and what it cost."""
    return {
        "builder": built.builder,
        "tasks": _names(data, built.tasks),
        "rewards": list(built.rewards),
        "accuracies": {name: [list(row) for row in rows] for name, rows in built.accuracies.items()},
        "metrics": {name: continual_metrics(rows) for name, rows in built.accuracies.items()},
        "trainings": built.cost.trainings,
        "training_seconds": built.cost.seconds,
        "wall_seconds": built.wall,
    }


def write_sequence(path: str | os.PathLike[str], document: dict[str, Any]) -> None:
    """Write in one step."""
    write_atomically(path, json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_sequence(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a sequence file; `owner/name` takes `sequence.json` of a data set on the Hub.

    Raises:
        DataError: not such a file; all problems together.
        MissingRequirementError: the Hub does not give it.
    """
    path = hub_file(path, "sequence.json", repo_type="dataset")
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a sequence file: {error}; `thurl cldyb search` writes one") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: a sequence file holds one JSON object, this is a {type(document).__name__}")
    layout = document.get("format")
    if not isinstance(layout, int) or not 1 <= layout <= FORMAT:
        raise DataError(f"{path}: format {layout!r} is not one this version reads (1 to {FORMAT}); update thurl")
    problems = [
        f"`{key}` must be a {kind.__name__}, found {type(document.get(key)).__name__}"
        for key, kind in _KEYS.items()
        if not isinstance(document.get(key), kind)
    ]
    if not problems:
        problems = _task_problems(document["tasks"])
        for record in (document["found"], *document["baselines"]):
            lacking = [key for key in _RECORD if not isinstance(record, dict) or key not in record]
            problems += [f"a builder's record lacks `{key}`" for key in lacking]
    if problems:
        raise DataError("\n".join(f"{path}: {problem}" for problem in problems))
    return document


def benchmark_tasks(document: dict[str, Any], data: ClassData) -> Tasks:
    """The tasks of a sequence file as numbers of the classes of a pool.

    Raises:
        DataError: the pool is not the one of the file.
    """
    if document["pool_hash"] != data.pool_hash:
        raise DataError(
            f"the sequence was found in a pool with hash {document['pool_hash'][:16]}, this one has "
            f"{data.pool_hash[:16]}: samples, splits, aliases or prompts differ. Restore the pool, or search in it"
        )
    try:
        return tuple(tuple(data.number(uid) for uid in task) for task in document["tasks"])
    except UsageError as error:
        raise DataError(f"the sequence file was changed: {error}") from None


def contamination(document: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """How well the frozen encoder knows the classes of a sequence file: class to `knn` and, with CLIP, `zero_shot`,
    see `thurl.continual.contamination.class_contamination`. Empty where it was not measured.
    """
    found = document.get("contamination") or {}
    return {uid: dict(value) if isinstance(value, dict) else {"knn": value} for uid, value in found.items()}


def _task_problems(tasks: Sequence[Any]) -> list[str]:
    if not tasks or not all(isinstance(task, list) and task for task in tasks):
        return ["`tasks` must hold at least one task, and each at least one class"]
    names = [name for task in tasks for name in task]
    if not all(isinstance(name, str) for name in names):
        return ["the classes of `tasks` must be texts, dataset/class"]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"class {name} is in several tasks; each is learned once" for name in twice]


def _names(data: ClassData, tasks: Tasks) -> list[list[str]]:
    return [[data.classes[index] for index in task] for task in tasks]
