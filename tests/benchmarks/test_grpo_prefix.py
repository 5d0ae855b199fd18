import importlib.util
import json
from pathlib import Path

import pytest
import torch


FILE = Path(__file__).parents[2] / "benchmarks" / "grpo_prefix.py"


def test_one_shape_from_end_to_end(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("grpo_prefix_benchmark", FILE)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    out = tmp_path / "grpo_prefix.json"
    threads = torch.get_num_threads()
    try:
        assert benchmark.main(["--shapes", "64x32x6", "--pairs", "1", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    (run,) = json.loads(out.read_text())["runs"]
    record = run["64x32x6"]
    assert 56 <= record["prompt"] <= 72 and record["answer"] == 32 and record["auto_shares"]
    assert record["token_ratio"] == pytest.approx(6 * (record["prompt"] + 32) / (record["prompt"] - 1 + 6 * 33))
    assert 0 < record["auto_seconds"] < 0.1 and record["auto_ratio"] == record["update"]["ratio"]
    for what in ("update", "reference"):
        assert record[what]["plain_seconds"] > 0 and record[what]["ratio_min"] <= record[what]["ratio"]
    assert "64x32x6" in capsys.readouterr().out
