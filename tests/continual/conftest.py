"""A pool of blobs small enough for exact learners, and where the golden files are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from thurl.continual.class_data import ClassData
from thurl.continual.learner import learn_task, start


TASKS = ((0, 3), (5, 1), (6, 2))
"""Of the classes of `blobs`."""


@pytest.fixture(scope="session")
def golden():
    return Path(__file__).resolve().parents[1] / "golden"


def blobs(classes=8, dimension=6, spread=0.9, seed=0, per_split=(8, 5, 6), **more):
    """Normal clouds around random centres: features and inputs are the same numbers."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, dimension))
    labels, splits, rows = [], [], []
    for label in range(classes):
        for split, count in zip(("train", "val", "test"), per_split, strict=True):
            labels += [label] * count
            splits += [split] * count
            rows.append(centres[label] + spread * generator.normal(size=(count, dimension)))
    features = torch.from_numpy(np.concatenate(rows)).float()
    names = [f"blobs/{index:02d}" for index in range(classes)]
    more = {"features": features, "inputs": features, "encoder": "identity", "pool_hash": f"blobs-{seed}", **more}
    return ClassData(names, torch.tensor(labels), splits, **more)


@pytest.fixture
def data():
    return blobs()


def learned(learner, data, tasks=TASKS, seed=3):
    """State after a sequence; the task at position t with seed + t."""
    state = start(learner, data, seed)
    for position, task in enumerate(tasks):
        state = learn_task(learner, state, data.task(task), seed + position)
    return state
