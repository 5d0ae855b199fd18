"""What a search is compared with: other ways to build a sequence, at the same number of trainings.

Most of the difficulty may come from the candidates and not from the search among them. So a report always shows these
beside a search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from thurl.continual.candidates import Candidates
from thurl.continual.evaluator import Evaluator, Tasks
from thurl.continual.mdp import SearchSettings, joint_reward
from thurl.continual.sampling import keyed_generator
from thurl.continual.search import Built, built, random_sequence


__all__ = ["BASELINES", "best_of_candidates", "best_of_random", "build_baselines", "myopic", "proxy_hardest",
           "random_sequences"]  # fmt: skip


def random_sequences(evaluator: Evaluator, settings: SearchSettings, count: int = 8) -> list[Built]:
    """Sequences of uniformly drawn classes: what a fixed benchmark is. Each is said to take its share of the time."""
    began, found = time.perf_counter(), []
    sequences = _random(evaluator, settings, count, "random")
    evaluator.evaluate(sequences)
    for number, tasks in enumerate(sequences):
        with evaluator.counted() as cost:
            found.append(built(f"random {number + 1}", evaluator, settings, tasks, cost, began))
    share = (time.perf_counter() - began) / count
    return [replace(item, wall=share) for item in found]


def best_of_random(evaluator: Evaluator, settings: SearchSettings, budget: int) -> Built:
    """The best of as many random sequences as `budget` trainings allow, rounded up."""
    count = math.ceil(budget / (settings.tasks * len(evaluator.learners)))
    return _best_of("best of random", evaluator, settings, lambda: _random(evaluator, settings, count, "best"))


def best_of_candidates(evaluator: Evaluator, settings: SearchSettings, budget: int) -> Built:
    """The best of sequences that follow the children of the tree at random, until `budget` trainings are spent."""
    candidates = Candidates(evaluator, settings)

    def sequences() -> list[Tasks]:
        found: list[Tasks] = []
        known: set[Tasks] = set()
        learners = len(evaluator.learners)
        # Paths repeat when there are few; a hundred in a row without a new training is all there is.
        idle = 0
        while (left := budget - len(known) * learners) > 0 and idle < 100:
            # So many are tried in any case, however few of their beginnings are known: they train side by side.
            sure = min(math.ceil(left / (settings.tasks * learners)), 100 - idle)
            generators = [
                keyed_generator(settings.seed, "candidate sequence", len(found) + number) for number in range(sure)
            ]
            block: list[Tasks] = [()] * sure
            for _ in range(settings.tasks):
                for number, generator in enumerate(generators):
                    children = candidates.clustered(block[number])
                    block[number] = (*block[number], children[generator.integers(len(children))])
                evaluator.evaluate(block)
            for tasks in block:
                beginnings = {tasks[:length] for length in range(1, len(tasks) + 1)}
                idle = idle + 1 if beginnings <= known else 0
                known |= beginnings
            found += block
        return found

    return _best_of("best of candidates", evaluator, settings, sequences)


def myopic(evaluator: Evaluator, settings: SearchSettings, budget: int | None = None) -> Built:
    """At each task the candidate with the highest reward at once.

    Args:
        budget: trainings to spread over the tasks, on candidates before clustering; None: the children of the tree.
    """
    candidates, began = Candidates(evaluator, settings), time.perf_counter()
    tasks: Tasks = ()
    with evaluator.counted() as cost:
        for step in range(settings.tasks):
            if budget is None:
                found = candidates.clustered(tasks)
            else:
                left = (budget - cost.trainings) // ((settings.tasks - step) * len(evaluator.learners))
                found = candidates.sampled(tasks)[: max(1, left)]
            sequences = [(*tasks, task) for task in found]
            evaluator.evaluate(sequences)
            learners = range(len(evaluator.learners))
            rewards = [
                joint_reward([evaluator.accuracies(sequence, m) for m in learners], settings.reward)
                for sequence in sequences
            ]
            tasks = sequences[int(np.argmax(rewards))]
        name = "myopic" if budget is None else "myopic, equal budget"
        return built(name, evaluator, settings, tasks, cost, began)


def proxy_hardest(evaluator: Evaluator, settings: SearchSettings) -> Built:
    """At each task the sampled candidate that SimpleCIL finds hardest; no search."""
    candidates, began = Candidates(evaluator, settings), time.perf_counter()
    tasks: Tasks = ()
    with evaluator.counted() as cost:
        for _ in range(settings.tasks):
            tasks = (*tasks, candidates.hardest(tasks))
            evaluator.evaluate([tasks])
        return built("proxy hardest", evaluator, settings, tasks, cost, began)


BASELINES: dict[str, Callable[[Evaluator, SearchSettings, int], list[Built]]] = {
    "random": lambda evaluator, settings, budget: random_sequences(evaluator, settings),
    "best of random": lambda evaluator, settings, budget: [best_of_random(evaluator, settings, budget)],
    "best of candidates": lambda evaluator, settings, budget: [best_of_candidates(evaluator, settings, budget)],
    "myopic": lambda evaluator, settings, budget: [myopic(evaluator, settings, budget)],
    "proxy hardest": lambda evaluator, settings, budget: [proxy_hardest(evaluator, settings)],
}
"""Name to builder; the last argument is the number of trainings the search took."""


def build_baselines(
    evaluator: Evaluator, settings: SearchSettings, budget: int, names: Sequence[str] = tuple(BASELINES)
) -> list[Built]:
    """Those of `BASELINES`, one after the other."""
    return [found for name in names for found in BASELINES[name](evaluator, settings, budget)]


def _random(evaluator: Evaluator, settings: SearchSettings, count: int, purpose: str) -> list[Tasks]:
    candidates = Candidates(evaluator, settings)
    return [random_sequence(candidates, keyed_generator(settings.seed, purpose, number)) for number in range(count)]


def _best_of(name: str, evaluator: Evaluator, settings: SearchSettings, sequences: Callable[[], list[Tasks]]) -> Built:
    began = time.perf_counter()
    with evaluator.counted() as cost:
        found = sequences()
        evaluator.evaluate(found)
        tried = [built(name, evaluator, settings, tasks, cost, began) for tasks in found]
    return max(tried, key=lambda item: item.objective)
