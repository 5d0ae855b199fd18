"""The benchmark of ViT editing: its bars say what they should, MNIST files are read, and a toy run goes through."""

from __future__ import annotations

import copy
import gzip
import importlib
import logging
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

from thurl.editing.digits import Digits, FailureGroup, load_digit_pictures
from thurl.training.results import write_results


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vit_editing.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = spec_from_file_location("vit_editing_benchmark", SCRIPT)
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])  # as when it is started as a script
        spec.loader.exec_module(module)
    return module


def record(benchmark):
    """What the method was measured to do before the bars were written."""
    methods = {
        "fine-tuning": {"sr": 100.0, "gr": 97.1, "lr_sensitive": 77.2},
        "random 5 %": {"sr": 35.0, "gr": 27.1, "lr_sensitive": 94.3},
        "gradient 5 %": {"sr": 100.0, "gr": 94.0, "lr_sensitive": 87.1},
    }
    for density, kept in zip((2, 5, 10, 25, 50), (89.8, 84.7, 81.5, 79.2, 78.0), strict=True):
        methods[f"learned {density} %"] = {"sr": 100.0, "gr": 91.4, "lr_sensitive": kept}
    meta = {"pseudo_kl_edited": 0.1, "pseudo_kl_unedited": 0.6, "bce": 0.26, "bce_first": 0.55}
    checks = {"f_exact": 1.0, "g_top_k": 1.0, "h_refused": 1.0, "i_sequence": 4.0}
    found = {"methods": methods, "meta": meta, "checks": checks}
    return {**found, "margins": benchmark.margins(found)}


def test_the_bars(benchmark):
    good = record(benchmark)
    assert benchmark.failures([good]) == [] and good["margins"].keys() == benchmark.BARS.keys()

    def missed(change):
        bad = copy.deepcopy(good)
        change(bad)
        bad["margins"] = benchmark.margins(bad)
        return [line.partition(":")[0] for line in benchmark.failures([bad])]

    methods = "methods"
    assert missed(lambda run: run[methods]["random 5 %"].update(sr=70.0)) == ["a_success_gain"]
    assert missed(lambda run: run[methods]["learned 5 %"].update(gr=60.0)) == [
        "a_generalisation_gain", "b_generalisation_gain"]  # fmt: skip
    assert missed(lambda run: run[methods]["gradient 5 %"].update(gr=80.0)) == ["c_generalisation"]
    assert missed(lambda run: run[methods]["learned 50 %"].update(lr_sensitive=80.5)) == ["d_knob"]
    assert missed(lambda run: run["meta"].update(pseudo_kl_edited=0.3)) == ["e_search"]
    assert missed(lambda run: run["meta"].update(bce=0.4)) == ["e_learning"]
    # One seed that fails a check is not made good by another.
    bad = copy.deepcopy(good)
    bad["margins"]["f_exact"] = 0.0
    assert [line.partition(":")[0] for line in benchmark.failures([good, bad])] == ["f_exact"]
    # Sequences are judged by their mean.
    five, three = copy.deepcopy(good), copy.deepcopy(good)
    five["margins"]["i_sequence"], three["margins"]["i_sequence"] = 5.0, 3.0
    assert benchmark.failures([five, three]) == []


def test_mnist_files(benchmark, tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6100, 28, 28), dtype=np.uint8)
    labels = generator.integers(0, 10, 6100, dtype=np.uint8)
    for name, header, values in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + values.tobytes(), 1))
    data = benchmark.mnist(tmp_path, 3)
    assert tuple(data.train.shape) == tuple(data.test.shape) == (3000, 1, 16, 16)
    assert -1 <= float(data.train.min()) < float(data.test.max()) <= 1
    assert torch.equal(benchmark.mnist(tmp_path, 3).test_labels, data.test_labels)
    assert not torch.equal(benchmark.mnist(tmp_path, 4).test_labels, data.test_labels)


@pytest.mark.slow
def test_a_toy_run(benchmark, tmp_path):
    logging.getLogger("thurl.editing.edit").setLevel(logging.ERROR)
    data = load_digit_pictures(0)
    small = Digits(data.train, data.train_labels, data.test[:200], data.test_labels[:200])
    study = benchmark.Study(epochs=1, iterations=1, batch=4, edits=1, groups=2, largest=12, steps=2, long_steps=3)
    found = benchmark.run(small, 0, study, attempts=True)
    kinds = {name.partition(",")[0].partition(" ")[0] for name in found["methods"]}
    attempts = {"learned-long", "learned-local", "learned-gradients"}
    assert kinds == {"fine-tuning", "LoRA", "extra", "learned", "random", "gradient", "hybrid", "mean",
                     "learned-conditioned"} | attempts  # fmt: skip
    assert all(0 <= values["sr"] <= 100 and values["steps"] > 0 for values in found["methods"].values())
    assert found["checks"]["f_exact"] == found["checks"]["g_top_k"] == found["checks"]["h_refused"] == 1
    assert found["fronts"].keys() == kinds - {"extra"} and found["attempts"].keys() == attempts
    assert len(found["long"]) == 7 and all(values["steps"] > 2 for values in found["long"].values())
    assert list(found["layers"]) == [
        f"{kind} {first}-{first + 2}" for kind in ("ffn", "attention") for first in range(4)
    ]
    assert sum(one["front"] for one in found["layers"].values()) >= 1
    written = write_results(tmp_path / "x.json", recipe="benchmarks/vit_editing.py", runs=[found])
    assert "methods.gradient 5 %.gr" in written["summary"]


def test_every_shift_has_its_largest_group(benchmark):
    found = [FailureGroup(shift, true, 0, torch.zeros(0)) for shift in ("blur", "shear", "stripes") for true in (1, 2)]
    chosen = benchmark.spread(found, 4)
    assert [(one.shift, one.true) for one in chosen] == [("blur", 1), ("shear", 1), ("stripes", 1), ("blur", 2)]


def test_classifiers_compared(benchmark, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    compare = importlib.import_module("vit_editing_classifiers")
    data = load_digit_pictures(0)
    small = Digits(data.train[:120], data.train_labels[:120], data.test[:200], data.test_labels[:200])
    study = compare.Study(epochs=1, edits=1, groups=1, largest=12, steps=2)
    found = compare.run(small, 0, study, {"plain": {}, "far": {"jitter": 3.0, "spread": 0.1}})
    plain, far = found["classifiers"].values()
    assert plain["fine_sr"] >= 0 and plain.keys() == far.keys() and plain != far
