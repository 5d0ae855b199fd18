"""CLDyB on a vision transformer: the pool is what it says it is, and a small run goes through everything."""

from __future__ import annotations

import gzip
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

from thurl.training.results import read_results


FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = {"tasks": 2, "classes_per_task": 2, "starts": 3, "clusters": 2, "simulations": 2, "depth": 1}


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = spec_from_file_location("cldyb_vit_benchmark", FOLDER / "cldyb_vit.py")
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cldyb_vit_benchmark", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SIZES", (3, 2, 2))
    monkeypatch.setattr(module, "SEEN", 4)
    monkeypatch.setattr(module, "EPOCHS", 6)
    return module


@pytest.fixture
def data(tmp_path):
    """Files as those of MNIST: a bar whose place says which digit it is, with noise."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 60)
    images = generator.integers(0, 60, (len(labels), 28, 28), dtype=np.uint8)
    for row, label in enumerate(labels):
        images[row, 2 * label + 2 : 2 * label + 5] = 250
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return tmp_path


def test_the_pool(benchmark, data):
    pool, encoder, trained = benchmark.digits(data, seed=5)
    assert len(pool.classes) == 70 and len(set(pool.groups)) == 70  # a turned 3 may meet a 3
    assert [len(pool.rows([7], split)) for split in ("train", "val", "test")] == [3, 2, 2]
    assert pool.inputs.shape[1:] == (1, 28, 28) and pool.inputs.min() >= -1 and pool.inputs.max() <= 1
    by_domain = {
        name: pool.inputs[pool.labels == pool.number(f"{name}/4")]
        for name in ("orig", "inverted", "rot90", "permuted")
    }
    bar = by_domain["orig"].mean(dim=(0, 1))
    assert bar[10:13].mean() > 0.9 > 0 > bar[14:].mean()
    assert by_domain["inverted"].mean(dim=(0, 1))[10:13].mean() < -0.9
    assert by_domain["rot90"].mean(dim=(0, 1))[:, 10:13].mean() > 0.9
    # Patches move as they are: a row of pixels of the bar in each of four patches.
    patches = by_domain["permuted"].unfold(2, 7, 7).unfold(3, 7, 7).reshape(-1, 16, 49).mean(dim=0)
    assert int((patches.mean(dim=1) > -0.5).sum()) == 4
    # No picture serves in two domains.
    turned = torch.rot90(by_domain["rot90"], -1, (2, 3)).flatten(1)
    assert torch.cdist(turned, by_domain["orig"].flatten(1)).min() > 1
    assert encoder(pool.inputs[:2]).pooler_output.shape == (2, 48)
    assert trained["fit"] > 0.3
    again = benchmark.digits(data, seed=5)[0]
    assert again.identity == pool.identity and benchmark.digits(data, seed=6)[0].identity != pool.identity


def test_a_small_run(benchmark, data, monkeypatch):
    for name in ("SEARCH", "CACHED"):
        monkeypatch.setattr(benchmark, name, replace(getattr(benchmark, name), **SMALL))
    monkeypatch.setattr(benchmark, "RANDOM", 1)
    monkeypatch.setattr(benchmark, "SEARCHED", ("simplecil", "er:epochs=1"))
    monkeypatch.setattr(benchmark, "HELD_OUT", ("lda", "lora:epochs=1,rank=2"))
    monkeypatch.setattr(benchmark, "BOUND", "joint:epochs=1")
    run = benchmark.run(data, 3, report_seeds=1)
    builders = {"search", "random", "best_of_random", "myopic", "proxy_hardest"}
    assert set(run["builders"]) == builders
    assert all(0 <= values[name] <= 1 for values in run["builders"].values() for name in ("aa", "held_out_aa", "ala"))
    names = ["simplecil", "er", "lda", "lora"]
    assert list(run["found"]) == list(run["drawn"]) == names and list(run["aa"]) == [*names, "joint"]
    assert all(set(run["aa"][name]) == builders for name in names) and set(run["aa"]["joint"]) == {"search", "random"}
    mean = np.mean([run["aa"][name]["search"] for name in names[:2]])
    assert run["builders"]["search"]["aa"] == pytest.approx(mean)
    chosen = [uid for task in run["tasks"] for uid in task]
    counted = {domain: entry["chosen_classes"] for domain, entry in run["contamination"].items()}
    assert counted["all"] == counted["chosen"] == len(set(chosen)) == 4
    assert counted["orig"] == sum(uid.startswith("orig/") for uid in chosen)
    cost = run["search_cost"]
    assert cost["trainings"] <= cost["most_trainings"] and 0 < cost["cpu_per_training"]
    assert run["caching"]["again"]["cpu"] < run["caching"]["kept"]["cpu"] < run["caching"]["nothing_kept"]["cpu"]
    assert run["margins"]["p1"] == pytest.approx(run["builders"]["random"]["aa"] - run["builders"]["search"]["aa"])


def test_the_learners_of_the_benchmark_exist(benchmark):
    from transformers import ViTConfig, ViTModel

    encoder = ViTModel(ViTConfig(image_size=28, patch_size=7, num_channels=1, hidden_size=12, num_hidden_layers=1,
                                 num_attention_heads=2, intermediate_size=24))  # fmt: skip
    texts = (*benchmark.SEARCHED, *benchmark.HELD_OUT, benchmark.BOUND)
    made = benchmark.learners_of([benchmark.parse_learner(text) for text in texts], encoder)
    assert len({learner.name for learner in made}) == len(made) == 12


def test_seeds_of_several_commands_stay_in_the_file(benchmark, tmp_path, monkeypatch, capsys):
    def fake(folder, seed, report_seeds):
        margins = {"p1": 0.2 if seed == 2 else 0.12, "p2": 0.2, "p3": 0.2, "p4_myopic": 0.0}
        return {"seed": seed, "margins": margins, "report_seeds": report_seeds}

    monkeypatch.setattr(benchmark, "run", fake)
    out = tmp_path / "found.json"
    assert benchmark.main([str(tmp_path), "--seeds", "2", "--out", str(out)]) == 0
    # 0.12 on one seed is enough, but not on average: 0.147 over the seeds 1, 2 and 3.
    assert benchmark.main([str(tmp_path), "--seeds", "3", "1", "--out", str(out), "--report-seeds", "1"]) == 1
    found = read_results(out)
    assert [(run["seed"], run["report_seeds"]) for run in found["runs"]] == [(1, 1), (2, 2), (3, 1)]
    assert len(found["failures"]) == 1 and found["failures"][0].startswith("p1: 0.147 is below 0.15")
    assert "p1: 0.147" in capsys.readouterr().out


def test_transfer(benchmark, data, monkeypatch):
    spec = spec_from_file_location("cldyb_vit_transfer_benchmark", FOLDER / "cldyb_vit_transfer.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "digits", benchmark.digits)
    monkeypatch.setattr(module, "INDIVIDUAL", replace(module.INDIVIDUAL, **SMALL))
    monkeypatch.setattr(module, "SEARCHED", ("simplecil", "er:epochs=1"))
    run = module.run(data, 3)
    matrix = run["transfer"]
    assert list(matrix) == list(matrix["er"]) == list(run["trainings"]) == ["simplecil", "er"]
    lowest = {name: min(row[name] for row in matrix.values()) for name in matrix}
    assert run["margins"]["p6"] == -max(matrix[name][name] - lowest[name] for name in matrix) <= 0
