"""Greedy tasks against golden sequences, aliases, keyed generators, clusters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from thurl.continual.clustering import cluster_labels, pick_members, task_embeddings
from thurl.continual.sampling import (
    free_classes,
    greedy_task,
    greedy_tasks,
    keyed_generator,
    mean_similarity,
    random_task,
)
from thurl.errors import UsageError


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cldyb_greedy_sampling.json").read_text())
SIMILARITY = mean_similarity([np.array(matrix) for matrix in GOLDEN["prototypes"]])


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=[f"from {case['start']}" for case in GOLDEN["cases"]])
def test_golden(case):
    assert list(greedy_task(SIMILARITY, case["start"], case["free"], GOLDEN["K"])) == case["task"]


def test_equal_similarities_go_to_the_first_free_class():
    flat = np.ones((5, 5))
    assert greedy_task(flat, 3, [4, 3, 0, 2], 3) == (3, 4, 0)


def test_aliases_never_meet_in_a_task():
    groups = [0, 0, 1, 1, 2]
    similarity = np.full((5, 5), -1.0)
    similarity[:2, :2] = similarity[2:4, 2:4] = 1.0  # an alias is always the most similar class
    assert greedy_task(similarity, 0, range(5), 3, groups) == (0, 2, 4)
    assert greedy_task(similarity, 0, range(5), 4, groups) is None
    for seed in range(20):
        task = random_task(range(5), 3, np.random.default_rng(seed), groups)
        assert sorted(groups[index] for index in task) == [0, 1, 2]
    assert random_task(range(5), 4, np.random.default_rng(0), groups) is None
    assert random_task([], 1, np.random.default_rng(0)) is None
    assert free_classes(groups, [(0,), (4,)]) == [2, 3]


def test_candidates_depend_on_their_key_alone():
    def candidates(*key):
        return greedy_tasks(SIMILARITY, range(12), 3, 6, keyed_generator(*key))

    first = candidates(1, [[0, 1]])
    candidates(2, [[5, 6]])
    assert candidates(1, [[0, 1]]) == first
    assert any(candidates(seed, [[0, 1]]) != first for seed in range(2, 6))
    assert len({frozenset(task) for task in first}) == len(first)


def test_the_starts_are_uniform_and_without_replacement():
    identity = np.eye(12)
    drawn = [task[0] for seed in range(300) for task in greedy_tasks(identity, range(12), 1, 4, keyed_generator(seed))]
    counts = np.bincount(drawn, minlength=12)
    assert counts.sum() == 1200 and (abs(counts - 100) < 45).all()


def test_clusters_gather_what_is_alike():
    prototypes = [np.repeat(np.eye(3), 4, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(12, 3))]
    tasks = [(0, 1), (4, 5), (2, 3), (8, 9), (6, 7), (10, 11)]
    labels = cluster_labels(task_embeddings(tasks, prototypes), 3)
    assert labels.tolist() == [0, 1, 0, 2, 1, 2]
    hardness = np.array([0.1, 0.5, 0.2, 0.3, 0.5, 0.1])
    assert pick_members(labels, np.random.default_rng(0), hardness) == [2, 1, 3]
    drawn = {tuple(pick_members(labels, np.random.default_rng(seed))) for seed in range(60)}
    assert drawn == {(a, b, c) for a in (0, 2) for b in (1, 4) for c in (3, 5)}
    assert cluster_labels(task_embeddings(tasks[:2], prototypes), 3).tolist() == [0, 1]
    same = task_embeddings([(0, 1)] * 5, prototypes)
    assert cluster_labels(same, 3).tolist() == [0] * 5


def test_responses_are_scaled_and_separate_equal_prototypes():
    prototypes = [np.ones((4, 2))]
    tasks = [(0, 1), (2, 3), (1, 2), (0, 3)]
    responses = np.array([[0.9, 5.0], [0.1, 5.0], [0.9, 5.0], [0.1, 5.0]])
    embedded = task_embeddings(tasks, prototypes, responses)
    np.testing.assert_allclose(embedded[:, 2].std(), 1.0)
    np.testing.assert_allclose(embedded[:, 3], 0.0)
    assert cluster_labels(embedded, 2).tolist() == [0, 1, 0, 1]


def test_bad_options():
    with pytest.raises(UsageError, match="clusters"):
        cluster_labels(np.zeros((2, 2)), 0)
    with pytest.raises(UsageError, match="prototypes"):
        mean_similarity([])
