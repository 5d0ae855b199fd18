import importlib.util
import json
from pathlib import Path

import pytest
import torch

from thurl.rl.timed_rollouts import TimedRollouts


FILE = Path(__file__).parents[2] / "benchmarks" / "grpo.py"


@pytest.mark.slow
def test_one_shape_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(FILE.parent))  # as when it is run as a program
    spec = importlib.util.spec_from_file_location("grpo_benchmark", FILE)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    out, threads = tmp_path / "grpo.json", torch.get_num_threads()
    arguments = ["--shapes", "64x6x4", "--rounds", "1", "--steps", "1", "--out", str(out)]
    logged = []
    run = benchmark.run
    monkeypatch.setattr(benchmark, "run", lambda *given: logged.append(run(*given)) or logged[-1])
    try:
        assert benchmark.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    (run_record,) = json.loads(out.read_text())["runs"]
    record = run_record["64x6x4"]
    assert 56 <= record["prompt"] <= 72 and record["answer"] == 6 and record["completions"] == 4
    assert set(record["steps"]) == set(record["phases"]) == set(benchmark.TRAINERS)
    for name, entry in record["steps"].items():
        assert 0 < entry["s_min"] <= entry["s_per_step"] <= entry["s_max"] and entry["cpu_s_per_step"] > 0
        assert entry["faster"] == pytest.approx(record["steps"]["trl"]["s_per_step"] / entry["s_per_step"])
        assert entry["new_tokens_per_s"] == pytest.approx(2 * 4 * 6 / entry["s_per_step"])
        phases = record["phases"][name]
        assert set(phases) <= {*TimedRollouts.phases, "other", "step"}
        assert {"data", "rollout", "reward", "reference_logps", "update"} <= set(phases)
        assert sum(value for phase, value in phases.items() if phase != "step") == pytest.approx(phases["step"])
    # The comparison is one of the same computation, and it is no empty one.
    assert all(difference == 0 for difference in record["parity"]["thurl"].values())
    assert all(difference < 1e-3 for difference in record["parity"]["thurl_shared"].values())
    for done in logged:
        assert min(done["logged"]["grad_norm"]) > 1e-4 and min(done["logged"]["reward_std"]) > 0.01
        assert done["logged"]["completions/mean_length"] == [6.0] * len(done["logged"]["loss"])
    assert sum(line.startswith("64x6x4") for line in capsys.readouterr().out.splitlines()) == 5
