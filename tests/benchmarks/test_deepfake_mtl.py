"""The benchmark of the DeepFake method: faces, bars; one short training of each kind."""

import importlib.util
from pathlib import Path

import pytest
import torch


FILE = Path(__file__).parents[2] / "benchmarks" / "deepfake_mtl.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("deepfake_mtl_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(**changes):
    values = {"joint": {"binary": 0.95, "regions": 0.95, "illegal": 0.0},
              "sigmoids": {"binary": 0.9, "regions": 0.9, "illegal": 0.0}}  # fmt: skip
    for name, value in changes.items():
        kind, _, metric = name.partition("_")
        if kind in values:
            values[kind][metric] = value
    toy = {"weight_local": 1.2, "weight_global": changes.get("weight_global", 0.8), "loss_learned": 0.1,
           "loss_equal": changes.get("loss_equal", 0.2)}  # fmt: skip
    return {"seed": 1, "answers": values, "toy": {"learned weights": toy}, "held_out": {"nose": {"gain": 0.1}}}


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, set()),
        ({"weight_global": 1.15}, {"weights"}),
        ({"loss_equal": 0.05}, {"weights"}),
        ({"joint_binary": 0.5}, {"binary"}),
        ({"joint_regions": 0.5}, {"regions", "graph"}),
        ({"joint_regions": 0.89}, {"graph"}),
        ({"joint_regions": 0.89, "sigmoids_illegal": 0.02}, set()),
        ({"joint_illegal": 0.01}, {"graph"}),
    ],
)
def test_bars(benchmark, changes, missed):
    assert {name for name, met in benchmark.verdicts([record(**changes)] * 2).items() if not met} == missed


def test_a_seed_in_short(benchmark, monkeypatch):
    for name, value in {"STEPS": 2, "HELD_OUT_STEPS": 2, "TOY_STEPS": 3, "TRAIN": (4, 1), "TEST": (3, 1)}.items():
        monkeypatch.setattr(benchmark, name, value)
    found = benchmark.one_seed(1)
    assert found["answers"]["joint"]["illegal"] == 0 and set(found["held_out"]["nose"]) >= {"all_tasks", "gain"}
    assert found["toy"]["learned weights"]["weight_local"] > found["toy"]["learned weights"]["weight_global"]


def test_forgeries_differ_and_labels_are_legal(benchmark):
    pictures, labels = benchmark.faces(0, 0, 2, 1)
    assert pictures.shape == (2, 4, 3, 48, 48) and not torch.equal(pictures[0, 0], pictures[0, 1])
    for row in labels.flatten(0, 1).tolist():
        benchmark.GRAPH.check(row)
