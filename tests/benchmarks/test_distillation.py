"""The benchmark of distilled sets: its bars hold and fail where they should, its rows are those of the tables."""

import copy
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "distillation.py"
    spec = spec_from_file_location("distillation_benchmark", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(bits, joint, warm_up, jpeg, pixels=0.2):
    def scored(value):
        return {"mean": value, "std": 0.0, "each": {"0": value}}

    return {
        "bits_per_class": bits,
        "accuracy": scored(joint),
        "sets": {
            "joint": {"bits_per_class": bits, "test": scored(joint)},
            "warm_up": {"bits_per_class": bits - 10, "test": scored(warm_up)},
        },
        "baselines": {} if jpeg is None else {"jpeg": {"bits_per_class": bits - 5, "accuracy": scored(jpeg)}},
        "dm_one_per_class": scored(pixels),
        "psnr": {"warm_up": 26.0, "jpeg": 25.0},
    }


def runs_of():
    large = entry(6000, 0.40, 0.34, 0.36)
    small = entry(2900, 0.33, 0.30, 0.30)
    return [
        {"seed": seed, "data": "photographs", "sizes": {"3000": copy.deepcopy(small), "6144": copy.deepcopy(large)}}
        for seed in (1, 2)
    ]


def test_bars_hold_where_they_should(benchmark):
    assert benchmark.verdicts(runs_of()) == {"photographs": {"1": True, "2": True, "3": True, "4": True}}


@pytest.mark.parametrize(
    ("bar", "change"),
    [
        ("1", lambda sizes: sizes["6144"]["dm_one_per_class"].update(mean=0.33)),
        ("1", lambda sizes: sizes["6144"]["baselines"]["jpeg"]["accuracy"].update(mean=0.38)),
        ("1", lambda sizes: sizes["6144"]["sets"]["joint"].update(bits_per_class=6145)),
        ("2", lambda sizes: sizes["3000"]["baselines"]["jpeg"]["accuracy"].update(mean=0.31)),
        ("3", lambda sizes: sizes["6144"]["sets"]["warm_up"]["test"].update(mean=0.36)),
        ("4", lambda sizes: sizes["6144"]["psnr"].update(warm_up=24.9)),
    ],
)
def test_a_bar_that_is_missed_is_missed(benchmark, bar, change):
    runs = runs_of()
    for run in runs:
        change(run["sizes"])
    assert benchmark.verdicts(runs)["photographs"][bar] is False


def test_the_bar_of_digits(benchmark):
    def runs(bits, score):
        return [{"seed": 1, "data": "scikit", "sizes": {"1600": entry(bits, 0.9, score, None)}}]

    assert benchmark.verdicts(runs(1600, 0.941)) == {"scikit": {"B": True}}
    assert benchmark.verdicts(runs(1600, 0.939)) == {"scikit": {"B": False}}
    assert benchmark.verdicts(runs(1611, 0.95)) == {"scikit": {"B": False}}


def test_rows_of_the_tables_and_points_of_the_curve(benchmark, tmp_path):
    runs = runs_of()
    benchmark.save(tmp_path / "out.json", runs, [], "drawn")
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["summary"]["photographs.6,144 bits: warm up.accuracy"]["mean"] == pytest.approx(0.34)
    assert document["summary"]["psnr.photographs.jpeg"]["mean"] == 25.0
    assert document["summary"]["margin.photographs.3: warm-up"]["mean"] == pytest.approx(0.01)
    assert document["summary"]["margin.photographs.4: PSNR, dB"]["mean"] == pytest.approx(1.0)
    assert document["bars"]["photographs"]["3"] is True and document["note"] == "drawn"
    curve = {(point["size"], point["set"]): point for point in document["curve"]}
    assert curve[3000, "joint"]["accuracy"] == pytest.approx(0.33) and curve[3000, "joint"]["seeds"] == 2
    assert curve[6144, "jpeg"]["bits_per_class"] == 5995
