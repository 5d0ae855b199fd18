"""The digits experiment: its data, its shortcuts, its store and its choices; and, slowly, the pass bar itself."""

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear

from thurl.coto import CoToConfig, apply_coto
from thurl.coto.adapters import Adapter, Factors
from thurl.coto.interpolate import interpolate


FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in [name for name in sys.modules if name == "coto" or name.startswith("coto_digits")]:
        del sys.modules[name]


def part(name):
    return import_module(f"coto_digits.{name}")


# --- data ------------------------------------------------------------------------------------------------------------


def keys(data):
    return {tuple(picture.flatten().tolist()) for picture in data[0]}


def test_no_digit_is_in_two_parts_and_validation_is_the_same_for_all_seeds():
    network = part("network")
    first, second = network.digits(11), network.digits(6)
    assert [len(labels) for _, labels in first.values()] == [900, 300, 300, 297]
    assert sum(len(keys(data)) for data in first.values()) == len(set().union(*map(keys, first.values()))) == 1797
    assert torch.equal(first["validation"][0], second["validation"][0])
    assert not keys(second["validation"]) & keys(first["test"]) and keys(first["test"]) != keys(second["test"])
    turned, labels = network.of_task(first["test"], "rotated")
    assert torch.equal(torch.rot90(turned, 3, dims=(1, 2)), first["test"][0]) and labels is first["test"][1]
    assert torch.equal(network.of_task(first["test"], "inverted")[0], 1 - first["test"][0])


def test_a_patch_is_four_neighbours():
    network = part("network")
    picture = network.digits(0)["test"][0][:1]
    model, seen = network.TinyViT(), []
    model.embed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(picture)
    assert torch.equal(seen[0][0, 1], picture[0, :2, 2:4].flatten())


# --- training --------------------------------------------------------------------------------------------------------


def adapted(seed=0):
    """The network with a random, non-zero adapter."""
    torch.manual_seed(seed)
    network = part("network")
    model = get_peft_model(network.TinyViT(), LoraConfig(r=4, lora_alpha=8, target_modules=list(network.TARGETS)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return model


def test_the_summed_layer_is_the_layer_of_peft_and_obeys_the_gate():
    training = part("training")
    pictures = part("network").digits(0)["test"][0][:8]
    plain, summed = adapted().train(), adapted().train()
    for module in summed.modules():
        if type(module) is LoraLinear:
            module.__class__ = training.SummedLinear
    for mask in ((True,) * 6, (False, True, False, True, True, False)):
        outputs, gradients = [], []
        for model in (plain, summed):
            coto = apply_coto(model, CoToConfig(), total_steps=100)
            coto.mask = lambda step, mask=mask: mask
            coto.begin_step(0)
            output = model(pictures)
            model.zero_grad()
            output.square().mean().backward()
            coto.detach()
            outputs.append(output)
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
        assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 12 * sum(mask)
        for name in gradients[0]:
            torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-3, atol=1e-5)


def test_a_finished_run_is_not_made_again_and_an_unfinished_one_is(tmp_path, monkeypatch):
    training = part("training")
    monkeypatch.setitem(training.PRETRAIN, "steps", 2)
    made = []
    store = training.Store(tmp_path, say=made.append)
    setting = training.Setting(method="coto", steps=20, shots=40)
    first, record = store.adapter(setting, 3)
    assert made == ["base-3", "adapters/coto_20_lr0.005_shots40/rotated-3-0"] and record["cpu_seconds"] > 0
    assert record["setting"]["shots"] == 40
    again, same = training.Store(tmp_path, read_only=True).adapter(setting, 3)
    assert same == record and len(made) == 2
    paths = list(first.modules)
    assert len(paths) == 36 and all(torch.equal(first.modules[p].b, again.modules[p].b) for p in paths)
    with pytest.raises(training.Unfinished, match="rotated-4-0"):
        training.Store(tmp_path, read_only=True).adapter(setting, 4)
    # Stopped after the adapter was saved, before its record: trained again, with the same outcome.
    (tmp_path / f"{made[1]}.json").unlink()
    third, _ = store.adapter(setting, 3)
    assert len(made) == 3 and all(torch.equal(first.modules[p].b, third.modules[p].b) for p in paths)
    other, _ = store.adapter(replace(setting, layers="high late"), 3)
    assert made[-1] == "adapters/coto_20_lr0.005_shots40_layershigh-late/rotated-3-0"
    assert not torch.equal(other.modules[paths[0]].b, third.modules[paths[0]].b)


# --- measuring -------------------------------------------------------------------------------------------------------


def as_adapter(model):
    """What `save_pretrained` and `read_adapter` give."""
    config = {**model.peft_config["default"].to_dict(), "peft_type": "LORA"}
    modules = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            path = name.removeprefix("base_model.model.")
            modules[path] = Factors(
                a=module.lora_A["default"].weight.detach().clone(),
                b=module.lora_B["default"].weight.detach().clone(),
                scaling=module.scaling["default"],
                keys={"a": f"{name}.lora_A.weight", "b": f"{name}.lora_B.weight"},
            )
    return Adapter("lora", config, modules)


def test_the_bench_computes_with_the_adapter_it_is_given():
    measures, network = part("measures"), part("network")
    data = network.digits(0)["test"]
    data = data[0][:40], data[1][:40]
    one, two = adapted(0), adapted(1)
    base = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value.clone()
        for name, value in one.state_dict().items()
        if ".lora_" not in name
    }
    bench, first, second = measures.Bench(base), as_adapter(one), as_adapter(two)
    assert bench(first, data)["loss"] == pytest.approx(measures.value(one.eval(), data)["loss"], abs=1e-5)
    middle = interpolate(first, second, 0.5, "delta")  # rank 8, other config
    changed = dict(base)
    for path in first.modules:
        delta = (first.modules[path].delta() + second.modules[path].delta()) / 2
        changed[f"{path}.weight"] = base[f"{path}.weight"] + delta
    expected = measures.value(part("training").load(changed), data)
    assert bench(middle, data)["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    dropped = measures.prune_layers(first, "low", keep=False)
    for path in first.modules:
        kept = int(path.split(".")[1]) >= 2
        changed[f"{path}.weight"] = base[f"{path}.weight"] + kept * first.modules[path].delta()
    expected = measures.value(part("training").load(changed), data)
    assert bench(dropped, data)["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    assert bench(first, data)["loss"] != pytest.approx(expected["loss"], abs=1e-2)


# --- choices ---------------------------------------------------------------------------------------------------------


def test_the_bar_is_that_of_the_experiment():
    questions = part("questions")
    lora = {"every other": 0.5, "drop low": 0.3, "accuracy": 0.85, "factor barrier": 1.0, "shapley cv": 1.0}
    good = {"every other": 0.61, "drop low": 0.41, "accuracy": 0.8, "factor barrier": 0.84, "shapley cv": 0.74}
    assert questions.failures(lora, good) == []
    for name, value in (("every other", 0.59), ("drop low", 0.39), ("accuracy", 0.78), ("factor barrier", 0.86),
                        ("shapley cv", 0.76)):  # fmt: skip
        assert questions.failures(lora, {**good, name: value}) == [name]
    assert questions.failures(lora, lora) == ["every other", "drop low", "factor barrier", "shapley cv"]


@pytest.mark.parametrize(
    ("best", "expected"),
    [(5e-3, [2e-3, 5e-3, 1e-2]), (2e-2, [2e-3, 5e-3, 1e-2, 2e-2, 5e-2]), (1e-3, [1e-3, 2e-3, 5e-3, 1e-2]),
     (5e-2, [2e-3, 5e-3, 1e-2, 2e-2, 5e-2])],
)  # fmt: skip
def test_the_sweep_goes_on_as_long_as_the_best_is_at_its_edge(monkeypatch, best, expected):
    questions = part("questions")
    asked = []

    def validated(store, setting, seed, task):
        asked.append(seed)
        return {"accuracy": 1 - abs(setting.lr - best) + 0.1 * (seed == 7), "loss": 0.0}

    monkeypatch.setattr(questions, "validated", validated)
    found = questions.swept(None, questions.Setting(), [6, 7])
    assert list(found) == expected and questions.best_rate(found) == best
    assert set(asked) == {6, 7} and len(asked) == 2 * len(expected)


def test_what_is_chosen_for_the_fresh_seeds_trains_like_lora():
    questions = part("questions")
    names = [name for name in questions.VARIANTS if questions.comparable(name)]
    assert "coto, p0 30 %" in names and "coto, low layers late" in names and "coto" in names
    assert not [name for name in names if "lora" in name or "rank" in name or "digits" in name or "steps" in name]


def test_every_variant_is_a_setting_of_its_own():
    questions = part("questions")
    settings = []
    for options in questions.VARIANTS.values():
        options = {name: value for name, value in options.items() if name != "stretch"}
        settings.append(questions.Setting(**options))
        assert (settings[-1].coto(0) is None) == (options["method"] == "lora")
    assert len({setting.name for setting in settings}) == len(settings) - 1  # more steps only


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_end_to_end_and_on_from_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    network, training, questions, measures = (part(n) for n in ("network", "training", "questions", "measures"))
    whole = network.digits(0)
    small = {name: (pictures[:20], labels[:20]) for name, (pictures, labels) in whole.items()}
    for module in (network, training, questions):
        monkeypatch.setattr(module, "digits", lambda seed: small)
    monkeypatch.setitem(training.PRETRAIN, "steps", 3)
    monkeypatch.setattr(network, "LAYERS", 3)
    monkeypatch.setattr(measures, "MERGES", {"fusion": {"method": "fusion"}})
    names = ["coto", "lora", questions.LONGER]
    monkeypatch.setattr(questions, "VARIANTS", {k: questions.VARIANTS[k] for k in names})
    benchmark = import_module("coto")
    arguments = ["--seeds", "31", "--explore-seeds", "32", "--steps", "16", "--work", str(tmp_path / "work")]
    arguments += ["--out", str(tmp_path / "results")]
    code = benchmark.main([*arguments, "--only", "bar", "sweep"])
    (run,) = json.loads((tmp_path / "results" / "coto.json").read_text())["runs"]
    assert code == bool(run["failures"])
    # A method whose swept rate is that of the bar has its pairs already.
    assert set(run) - {"pairs swept 16"} == {"seed", "bar", "failures", "misses"}
    assert all(set(both) == {"lora", "coto"} for both in run["bar"].values()) and set(questions.BAR) <= set(run["bar"])
    assert 0 <= run["bar"]["accuracy"]["coto"] <= 1 and run["bar"]["factor barrier"]["lora"] >= 0
    trained = []
    real = training.tuned
    monkeypatch.setattr(training, "tuned", lambda *args: trained.append(args[2]) or real(*args))
    benchmark.main([*arguments, "--only", "swept", "matched", "explore", "rates", "again", "pairs", "time"])
    (run,) = json.loads((tmp_path / "results" / "coto.json").read_text())["runs"]
    assert set(run) == {"seed", "failures", "misses", "bar", "swept 16", "pairs swept 16"}
    assert set(run["swept 16"]["two tasks, fusion"]) == {"lora", "coto", "coto longer", "coto chosen"}
    assert {"accuracy", "two tasks, own adapter", "two tasks, ensemble", "two tasks, fusion"} <= set(run["swept 16"])
    explored = json.loads((tmp_path / "results" / "coto_explored.json").read_text())
    (record,) = explored["runs"]
    assert explored["adapters_trained"] > 10
    for rows in (record["tried 16"], record["tried 5"]):
        assert set(rows) == set(names)
        assert all({"accuracy", "at half the rate", "at twice the rate"} <= set(row) for row in rows.values())
    assert len(explored["cpu_seconds"]) == 3 and len(record["sweep"]["inverted, coto, 16 steps"]) >= 3
    count = len(trained)
    assert count > 10 and all(setting.steps in (5, 8, 16, 24) for setting in trained)
    benchmark.main([*arguments, "--only", "sweep", "swept", "explore", "rates", "again", "pairs"])
    assert len(trained) == count
    assert "adapters/" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_pass_bar_on_one_of_the_reported_seeds(tmp_path):
    """Layers that can be left out, an even share, a lower barrier: 800 steps, no learning rate chosen for it."""
    questions, training = part("questions"), part("training")
    torch.set_num_threads(1)
    record = questions.bar_record(training.Store(tmp_path), seed=11)
    assert record["failures"] == [], record["bar"]
    assert record["bar"]["accuracy"]["lora"] > 0.7
