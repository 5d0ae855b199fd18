import importlib.util
import json
from pathlib import Path

import torch


FILE = Path(__file__).parents[2] / "benchmarks" / "rank_reward.py"


def test_a_small_batch_from_end_to_end(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("rank_reward_benchmark", FILE)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    out, threads = tmp_path / "rank_reward.json", torch.get_num_threads()
    arguments = ["--images", "8", "--completions", "3", "--repetitions", "5", "--out", str(out)]
    try:
        assert benchmark.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    (run,) = json.loads(out.read_text())["runs"]
    calls = {f"{what}_{sets}" for what in ("reward", "call") for sets in ("one_set", "four_sets")}
    assert set(run) == {"seed", "format", *calls}
    for group in calls:
        assert set(run[group]) == set(benchmark.OPTIONS)
        for name, entry in run[group].items():
            assert 0 < entry["ms_min"] <= entry["ms"] <= entry["ms_max"] and entry["cpu_ms"] > 0, (group, name)
    assert len(capsys.readouterr().out.splitlines()) == 18
