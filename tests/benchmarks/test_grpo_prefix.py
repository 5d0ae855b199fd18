import importlib.util
import json
from pathlib import Path

import pytest
import torch


FILE = Path(__file__).parents[2] / "benchmarks" / "grpo_prefix.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FILE.parent))  # as when it is run as a program
    spec = importlib.util.spec_from_file_location("grpo_prefix_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_shape_from_end_to_end(benchmark, tmp_path, capsys):
    out = tmp_path / "grpo_prefix.json"
    threads = torch.get_num_threads()
    try:
        assert benchmark.main(["--shapes", "64x32x6", "--pairs", "1", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    (run,) = json.loads(out.read_text())["runs"]
    shown, rest = run["shapes"]["64x32x6"], run["details"]["64x32x6"]
    assert 56 <= rest["prompt"] <= 72 and rest["answer"] == 32 and rest["auto_shares"]
    assert shown["token_ratio"] == pytest.approx(6 * (rest["prompt"] + 32) / (rest["prompt"] - 1 + 6 * 33))
    assert rest["decision_seconds"] > 0 and shown["auto_speedup"] == shown["speedup"]
    assert shown["plain_s"] > 0 and shown["reference_speedup"] > 0
    assert rest["speedup_min"] <= shown["speedup"] <= rest["speedup_max"]
    assert shown["shared_mib"] < 0.7 * shown["plain_mib"], "more than a third less to keep for the backward pass"
    assert "64x32x6" in capsys.readouterr().out
