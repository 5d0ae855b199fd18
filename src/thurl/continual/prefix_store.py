"""What training on a sequence of tasks gave, so that nothing is trained twice: in memory, and in files that outlive a
kill.

One file per learner and sequence. It holds the tensors that differ from the state before the last task; the others are
read from the file of that state. Files appear whole or not at all, under a name that is a hash of everything the
result depends on, so that searches, baselines, replays and several processes may share a folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from thurl.continual.class_data import ClassData
from thurl.continual.learner import Learner, State
from thurl.errors import DataError
from thurl.training.tensor_files import read_tensors, write_tensors


__all__ = ["Outcome", "PrefixStore", "prefix_key"]

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the files; another one is another key."""


@dataclass(frozen=True)
class Outcome:
    """After learning a sequence of tasks.

    Args:
        state: of the learner.
        accuracies: on the held-out part of each task of the sequence.
        seconds: the last task took to learn and to be judged.
    """

    state: State
    accuracies: tuple[float, ...]
    seconds: float


def prefix_key(learner: Learner, data: ClassData, tasks: Sequence[Sequence[int]], *, seed: int, split: str) -> str:
    """Name of an outcome, SHA-256 of learner, samples, classes in their order, seed, split and torch's version."""
    key = {
        "format": FORMAT,
        "learner": learner.config(),
        "data": data.identity,
        "tasks": [[data.classes[index] for index in task] for task in tasks],
        "seed": seed,
        "split": split,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


class PrefixStore:
    """Outcomes by key.

    Args:
        folder: of the files; None keeps outcomes in memory alone.
        memory: bytes of states kept in memory; the least recently used go first. With 0 and no folder nothing is kept.
    """

    def __init__(self, folder: Path | None = None, memory: int = 2**30) -> None:
        self.folder = folder
        self.memory = memory
        self._kept: OrderedDict[str, Outcome] = OrderedDict()
        self._bytes = 0

    def __contains__(self, key: str) -> bool:
        return key in self._kept or (self.folder is not None and self._path(key).exists())

    def get(self, key: str) -> Outcome | None:
        """The outcome, None where there is none. A broken file is removed with a warning: its result is made again."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if self.folder is None or not self._path(key).exists():
            return None
        outcome = self._read(key)
        if outcome is not None:
            self._keep(key, outcome)
        return outcome

    def put(self, key: str, outcome: Outcome, parent: str | None) -> None:
        """Keep an outcome; `parent` is the key of the state it was trained on from, which must be there."""
        self._keep(key, outcome)
        if self.folder is None:
            return
        before = self.get(parent) if parent is not None else None
        old: State = {} if before is None else before.state
        own = {name: value for name, value in outcome.state.items() if not _equal(old.get(name), value)}
        write_tensors(
            self._path(key),
            own,
            {
                "parent": parent or "",
                "inherited": json.dumps(sorted(set(outcome.state) - set(own))),
                "accuracies": json.dumps(outcome.accuracies),
                "seconds": json.dumps(outcome.seconds),
            },
        )

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Outcome | None:
        try:
            tensors, metadata = read_tensors(self._path(key))
            inherited = json.loads(metadata["inherited"])
            accuracies, seconds = json.loads(metadata["accuracies"]), json.loads(metadata["seconds"])
        except (DataError, KeyError, ValueError) as error:
            logger.warning("%s is broken and made again: %s", self._path(key), error)
            self._path(key).unlink(missing_ok=True)
            return None
        if inherited:
            before = self.get(metadata["parent"])
            if before is None or not set(inherited) <= set(before.state):
                return None  # the file it builds on was deleted
            tensors.update({name: before.state[name] for name in inherited})
        return Outcome(tensors, tuple(accuracies), seconds)

    def _keep(self, key: str, outcome: Outcome) -> None:
        if key in self._kept:
            self._bytes -= _size(self._kept.pop(key))
        self._kept[key] = outcome
        self._bytes += _size(outcome)
        while self._kept and self._bytes > self.memory:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def _size(outcome: Outcome) -> int:
    return 1024 + sum(value.numel() * value.element_size() for value in outcome.state.values())


def _equal(old: torch.Tensor | None, new: torch.Tensor) -> bool:
    return old is not None and old.dtype == new.dtype and torch.equal(old, new)
