import importlib.util
import json
from pathlib import Path

import pytest
import torch


FILE = Path(__file__).parents[2] / "benchmarks" / "coto_digits.py"


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("coto_digits_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shapley_values_of_games_that_are_known(benchmark):
    worth = [0.5, -1.0, 2.0, 0.0, 3.0, 0.25]
    assert benchmark.shapley(lambda on: sum(worth[i] for i in on)) == pytest.approx(worth)
    # Two that are worth something only together share it.
    assert benchmark.shapley(lambda on: float({1, 4} <= set(on))) == pytest.approx([0, 0.5, 0, 0, 0.5, 0])


def test_the_pictures_are_disjoint_and_turned(benchmark):
    data = benchmark.digits(0)
    assert [len(labels) for _, labels in data.values()] == [900, 300, 597, 597]
    upright, turned = data["upright_held_out"][0], data["held_out"][0]
    assert torch.equal(torch.rot90(upright, 1, dims=(1, 2)), turned) and turned.max() <= 1
    # A patch is 2 x 2 pixels: the embedding sees sums of neighbours.
    model = benchmark.TinyViT()
    seen = []
    model.embed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(turned[:1])
    assert torch.equal(seen[0][0, 1], turned[0, :2, 2:4].flatten())


def test_one_seed_from_end_to_end(benchmark, tmp_path, monkeypatch, capsys):
    whole = benchmark.digits(0)
    small = {name: (pictures[:24], labels[:24]) for name, (pictures, labels) in whole.items()}
    monkeypatch.setattr(benchmark, "digits", lambda seed: small)
    monkeypatch.setitem(benchmark.PRETRAIN, "steps", 3)
    monkeypatch.setattr(benchmark, "GRID", [0.0, 0.5, 1.0])
    out = tmp_path / "digits.json"
    benchmark.main(["--seeds", "7", "--steps", "4", "--out", str(out)])
    (run,) = json.loads(out.read_text())["runs"]
    assert set(run["metric"]) >= {"accuracy", "every_other", "drop_low", "barrier", "shapley_cv", "cpu_seconds"}
    assert all(set(both) == {"lora", "coto"} for both in run["metric"].values())
    assert run["metric"]["barrier"]["lora"] >= 0
    assert "seed 7" in capsys.readouterr().out


def test_leaving_layers_out_is_undone(benchmark):
    torch.manual_seed(0)
    config = benchmark.LoraConfig(r=4, target_modules=benchmark.TARGETS)
    model = benchmark.get_peft_model(benchmark.TinyViT(), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    pictures = benchmark.digits(0)["held_out"][0][:4]
    before = model(pictures)
    with model.disable_adapter():
        base = model(pictures)
    kept = {}
    benchmark.with_layers(model, [], lambda m: kept.update(none=m(pictures)))
    benchmark.with_layers(model, range(6), lambda m: kept.update(all=m(pictures)))
    torch.testing.assert_close(kept["none"], base)
    assert torch.equal(kept["all"], before) and torch.equal(model(pictures), before)
    assert (before - base).abs().max() > 0.1
