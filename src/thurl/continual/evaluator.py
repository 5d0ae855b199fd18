"""Trains learners on sequences of tasks and reads their accuracies, once each, in one process or several.

A job is one learner on one sequence; it trains on from the state after the sequence without its last task. Jobs depend
on nothing but their key, each runs on one thread, and results are looked up by key: any number of processes, started
here (`workers`) or by `accelerate launch`, gives the same numbers in the same places.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from thurl.continual.class_data import ClassData
from thurl.continual.learner import Learner, LearnerError, State, learn_task, start, task_accuracies
from thurl.continual.prefix_store import Outcome, PrefixStore, prefix_key
from thurl.continual.ranks import Ranks
from thurl.errors import UsageError
from thurl.training.threads import one_thread


__all__ = ["Cost", "Evaluator", "Tasks"]

Tasks = tuple[tuple[int, ...], ...]
"""A sequence: numbers of the classes of each task."""


@dataclass
class Cost:
    """What a search needed.

    Args:
        trainings: distinct jobs asked for, as if nothing had been kept from elsewhere.
        seconds: their training and judging took, when they were done.
        trained: jobs that were done now; the rest was there.
    """

    trainings: int = 0
    seconds: float = 0.0
    trained: int = 0


class Evaluator:
    """Learners on one pool.

    Args:
        data: samples.
        learners: at least one, with different names.
        seed: a job at position t uses seed 1000 * seed + t.
        split: the accuracies are of; a search must not see "test".
        store: kept outcomes; in memory when None.
        workers: processes; 1 trains in this one.
        ranks: processes that run the same search and divide the jobs; those of the launch when None. Their store needs
            a folder that all of them see; without one, the first makes one on its machine.

    Raises:
        UsageError: no learner, two of one name, a wrong number of workers, or a folder that a process does not see.
    """

    def __init__(
        self,
        data: ClassData,
        learners: Sequence[Learner],
        *,
        seed: int,
        split: str = "val",
        store: PrefixStore | None = None,
        workers: int = 1,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = Ranks.of_launch() if ranks is None else ranks
        names = [learner.name for learner in learners]
        problems = []
        if not names or len(set(names)) != len(names):
            problems.append(f"learners are {names}; there must be one at least, and each needs a name of its own")
        if workers < 1:
            problems.append(f"workers is {workers}; it must be 1 or more")
        if workers > 1 and self.ranks.size > 1:
            problems.append(
                f"workers is {workers}, but this launch has {self.ranks.size} processes already; leave it out"
            )
        if seed < 0:
            problems.append(f"seed is {seed}; it must be 0 or more")
        if problems:
            raise UsageError(problems)
        self.data = data
        self.learners = tuple(learners)
        self.seed = seed
        self.split = split
        self.workers = workers
        self._place: tempfile.TemporaryDirectory[str] | None = None
        several = workers > 1 or self.ranks.size > 1
        if several and (store is None or store.folder is None):
            # Processes hand their results over in files.
            if self.ranks.rank == 0:
                self._place = tempfile.TemporaryDirectory(prefix="thurl-cldyb-")
            place = self.ranks.agree(lambda: self._place and self._place.name)
            store = PrefixStore(Path(str(place)))
        if store is not None and store.folder is not None:
            self.ranks.check_shared(store.folder)
        self.store = PrefixStore() if store is None else store
        self._pool: ProcessPoolExecutor | None = None
        self._known: dict[tuple[int, Tasks], tuple[tuple[float, ...], float]] = {}
        self._pace = [1.0] * len(self.learners)
        self._counters: list[tuple[Cost, set[tuple[int, Tasks]]]] = []

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and delete what was handed over between them."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        if self._place is not None:
            self._place.cleanup()
            self._place = None

    def evaluate(self, sequences: Iterable[Tasks], learners: Iterable[int] | None = None) -> None:
        """Train every learner (or those of these numbers) on all beginnings of the sequences that are not known yet.

        Raises:
            LearnerError: of the first job that failed, in the order of sequences and learners.
        """
        chosen = range(len(self.learners)) if learners is None else list(learners)
        wanted: dict[int, dict[Tasks, None]] = {}
        for tasks in sequences:
            for length in range(1, len(tasks) + 1):
                wanted.setdefault(length, {})[tasks[:length]] = None
        # By length: every job finds the state it trains on from.
        for length in sorted(wanted):
            jobs = [(index, tasks) for tasks in wanted[length] for index in chosen]
            self._run([job for job in jobs if job not in self._known])
            for job in jobs:
                self._count(job)

    def accuracies(self, tasks: Tasks, learner: int) -> list[tuple[float, ...]]:
        """Rows of the accuracy matrix of one learner on a sequence; trained where it is not known."""
        self.evaluate([tasks], [learner])
        return [self._known[learner, tasks[:length]][0] for length in range(1, len(tasks) + 1)]

    def state(self, tasks: Tasks, learner: int) -> State:
        """The learner after a sequence; the empty sequence is its start."""
        return _outcome(self._context, learner, tasks)[0].state

    @contextmanager
    def counted(self) -> Iterator[Cost]:
        """Counts the jobs asked for inside."""
        entry: tuple[Cost, set[tuple[int, Tasks]]] = (Cost(), set())
        self._counters.append(entry)
        try:
            yield entry[0]
        finally:
            # By identity: two counters may hold equal numbers.
            self._counters = [other for other in self._counters if other is not entry]

    @property
    def processes(self) -> int:
        """How many train at the same time at most."""
        return max(self.workers, self.ranks.size)

    @property
    def _context(self) -> _Context:
        return _Context(self.data, self.learners, self.seed, self.split, self.store)

    def _count(self, job: tuple[int, Tasks]) -> None:
        for cost, seen in self._counters:
            if job not in seen:
                seen.add(job)
                cost.trainings += 1
                cost.seconds += self._known[job][1]

    def _run(self, jobs: Sequence[tuple[int, Tasks]]) -> None:
        for job, (accuracies, seconds, trained) in zip(jobs, self._results(jobs), strict=True):
            self._known[job] = (accuracies, seconds)
            self._pace[job[0]] = seconds
            for cost, _ in self._counters:
                cost.trained += trained

    def _results(self, jobs: Sequence[tuple[int, Tasks]]) -> Iterator[tuple[tuple[float, ...], float, int]]:
        if self.ranks.size > 1:
            expected = [self._pace[index] for index, _ in jobs]
            yield from self.ranks.share(jobs, lambda job: _do(self._context, *job), expected)
            return
        if self.workers == 1 or not jobs:
            for index, tasks in jobs:
                yield _do(self._context, index, tasks)
            return
        if self._pool is None:
            # Spawned, since a fork of a process with threads may hang. torch hands tensors over by moving them into
            # memory that all processes share, and a learner trains its module in place: this process keeps its own.
            learners = copy.deepcopy(self.learners)
            self._pool = ProcessPoolExecutor(
                self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_open_worker,
                initargs=(self.data, learners, self.seed, self.split, self.store.folder),
            )
        try:
            yield from self._pool.map(_work, jobs)
        except BrokenProcessPool as error:
            raise LearnerError(
                f"a process that trained one of {len(jobs)} learners died, most likely for lack of memory; use fewer "
                "workers. What was trained is kept: the same command goes on."
            ) from error


@dataclass(frozen=True)
class _Context:
    data: ClassData
    learners: Sequence[Learner]
    seed: int
    split: str
    store: PrefixStore


def _do(context: _Context, index: int, tasks: Tasks) -> tuple[tuple[float, ...], float, int]:
    outcome, trained = _outcome(context, index, tasks)
    return outcome.accuracies, outcome.seconds, trained


def _outcome(context: _Context, index: int, tasks: Tasks) -> tuple[Outcome, int]:
    """The outcome, and how many tasks had to be learned for it."""
    learner, data, store, seed = context.learners[index], context.data, context.store, 1000 * context.seed
    if not tasks:
        return Outcome(start(learner, data, seed), (), 0.0), 0
    key = prefix_key(learner, data, tasks, seed=seed, split=context.split)
    found = store.get(key)
    if found is not None:
        return found, 0
    before, trained = _outcome(context, index, tasks[:-1])
    began = time.perf_counter()
    with one_thread():
        learned = learn_task(learner, before.state, data.task(tasks[-1]), seed + len(tasks) - 1)
        state = _laid_out(learned, before.state)
        accuracies = task_accuracies(learner, state, data, tasks, context.split)
    outcome = Outcome(state, tuple(accuracies), time.perf_counter() - began)
    parent = prefix_key(learner, data, tasks[:-1], seed=seed, split=context.split) if len(tasks) > 1 else None
    store.put(key, outcome, parent)
    return outcome, trained + 1


def _laid_out(state: State, before: State) -> State:
    """As a file gives it back: products of matrices depend on how they lie in memory."""
    return {
        name: value if value is before.get(name) else value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


_worker: dict[str, Any] = {}


def _open_worker(data: ClassData, learners: Sequence[Learner], seed: int, split: str, folder: Path | None) -> None:
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave() -> None:
        # A killed parent cannot end its workers, and they would wait for work for ever.
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
    # A copy: those that came are in the memory of all workers, and each trains its own.
    _worker["context"] = _Context(data, copy.deepcopy(learners), seed, split, PrefixStore(folder))


def _work(job: tuple[int, Tasks]) -> tuple[tuple[float, ...], float, int]:
    return _do(_worker["context"], *job)
