"""The benchmark of the bi-level step: what it compares does the same work, and it writes what the page shows."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch


FILE = Path(__file__).parents[2] / "benchmarks" / "bilevel.py"


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("bilevel_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_all_procedures_learn_the_same_weights_and_train_the_same_network(benchmark, double):
    learned, networks = {}, {}
    for name in ("official_order", "delayed", "reference", "reference_full"):
        work = benchmark.Workload("resnet18", 32, 4, seed=1)
        work.optimizer.param_groups[0]["lr"] = 1e-3  # at 1e-5 Adam's eps would swallow the reference's gradient
        steps = benchmark.kinds_of_steps(work)
        steps[name]()
        ours = work.learned["ours"][name == "delayed"].weights
        learned[name] = work.learned["reference"].detach() if name.startswith("reference") else ours
        networks[name] = [parameter.detach().clone() for parameter in work.parameters]
    assert all(float((weights - 1).abs().max()) > 1e-4 for weights in learned.values())
    torch.testing.assert_close(learned["delayed"], learned["official_order"], rtol=1e-9, atol=0)
    torch.testing.assert_close(learned["reference_full"], learned["reference"], rtol=1e-9, atol=0)
    # The same direction; the reference multiplies its gradient by the learning rate.
    assert torch.equal((learned["reference"] - 1).sign(), (learned["official_order"] - 1).sign())
    for a, b in zip(networks["reference"], networks["official_order"], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-4)  # AdamW's first step is 1e-3 along the sign


def test_the_file_it_writes(benchmark, tmp_path, capsys):
    out = tmp_path / "bilevel.json"
    benchmark.main(["--network", "resnet18", "--side", "32", "--batch", "4", "--rounds", "1", "--out", str(out)])
    (run,) = json.loads(out.read_text())["runs"]
    kinds = {"official_order", "delayed", "reference", "reference_full"}
    assert set(run["ratio"]) == set(run["median_ratio"]) == kinds and set(run["cpu_seconds_least"]) == {
        "plain",
        *kinds,
    }
    assert run["ratio"]["delayed"] == run["cpu_seconds_least"]["delayed"] / run["cpu_seconds_least"]["plain"]
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_cost_of_single_passes_adds_up(benchmark, tmp_path):
    out = tmp_path / "bilevel.json"
    arguments = ["--network", "resnet18", "--side", "32", "--batch", "4", "--rounds", "1", "--out", str(out)]
    benchmark.main([*arguments, "--seeds", "0", "1"])
    runs = json.loads(out.read_text())["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    for run in runs:
        one = run["cpu_seconds_of_passes"]
        plain = one["forward"] + one["backward"] + one["optimizer"]
        passes = 2 * one["forward"] + 2 * one["forward_no_graph"] + 2 * one["backward"] + one["optimizer"]
        assert run["ratio_of_passes"]["delayed"] == pytest.approx(passes / plain)
        assert run["ratio_of_passes"]["official_order"] == pytest.approx((passes + one["backward"]) / plain)
        assert all(run["system_seconds"][name] <= run["cpu_seconds_least"][name] for name in run["system_seconds"])
