from __future__ import annotations

import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from typer.testing import CliRunner

from thurl.cli import app
from thurl.coto.adapters import read_adapter
from thurl.coto.text_loss import TextLoss, read_texts
from thurl.errors import DataError, MissingRequirementError, UsageError


TEXTS = ["no flaw here", "1 2 3 4 5 6 7 8", "strong blur and slight noise", "You are a helpful assistant."]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama, three adapters of it and texts, in one folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from thurl.rl.tiny import build_tiny_tokenizer

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = build_tiny_tokenizer(TEXTS)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=4, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        for seed, (name, options) in enumerate(
            {"a": {}, "b": {}, "wide": {"r": 6}, "dora": {"use_dora": True}}.items()
        ):
            torch.manual_seed(seed + 1)
            base = LlamaForCausalLM.from_pretrained(folder / "base")
            adapter = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options})
            model = get_peft_model(base, adapter)
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if "lora_B" in key:
                        parameter.normal_(std=0.3)
            model.save_pretrained(folder / name)
    lines = [json.dumps({"text": text, "id": i}) for i, text in enumerate(TEXTS)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n\n")
    return folder


def thurl(*arguments, code=0):
    result = CliRunner().invoke(app, ["coto", *(str(argument) for argument in arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def value(llama):
    return ("--model", llama / "base", "--texts", llama / "texts.jsonl", "--device", "cpu")


def loss_of(llama, adapter=None):
    """Plain transformers and PEFT, text by text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(llama / "base")
    model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
    tokenizer, total, count = AutoTokenizer.from_pretrained(llama / "base"), 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            loss = model.eval()(input_ids=ids, labels=ids).loss.item()
        total, count = total + loss * (ids.shape[1] - 1), count + ids.shape[1] - 1
    return total / count


def test_interpolate_writes_an_adapter_and_measures_the_curve(llama, tmp_path):
    out, plot = tmp_path / "out", tmp_path / "plots" / "curve.png"
    options = ("--lam", "0.25", "--space", "delta", "--points", "5", "--plot", plot, "--batch-size", "3", "--json")
    result = thurl("interpolate", llama / "a", llama / "wide", "-o", out, *value(llama), *options)
    document = json.loads(result.stdout)
    assert document["ranks"] == [10] and document["modules"] == 8 and document["space"] == "delta"
    assert document["lambdas"] == [0, 0.25, 0.5, 0.75, 1]
    expected = [loss_of(llama, llama / "a"), loss_of(llama, out), loss_of(llama, llama / "wide")]
    assert [document["losses"][i] for i in (0, 1, 4)] == pytest.approx(expected, rel=1e-5)
    straight = [(1 - lam) * expected[0] + lam * expected[2] for lam in document["lambdas"]]
    rises = [loss - line for loss, line in zip(document["losses"], straight, strict=True)]
    assert document["barrier"] == pytest.approx(max(0, *rises), abs=1e-5)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "coto_tools.json").read_text())["lam"] == 0.25
    table = thurl("interpolate", llama / "a", llama / "b", *value(llama), "--points", "3").stdout
    assert "barrier" in table and len([line for line in table.splitlines() if line.strip()]) == 5


def test_interpolate_refuses_unequal_ranks_in_factor_space(llama, tmp_path):
    result = thurl("interpolate", llama / "a", llama / "wide", "-o", tmp_path / "out", code=2)
    assert "ranks 4 and 6" in result.stderr and "delta space" in result.stderr
    assert not (tmp_path / "out").exists()


def test_merge_with_every_method(llama, tmp_path):
    distances = {}
    for method in ("fusion", "align", "delta", "svd", "ties", "dare_linear", "dare_ties"):
        out = tmp_path / method
        document = json.loads(thurl("merge", llama / "a", llama / "b", "-o", out, "--method", method, "--json").stdout)
        assert document["kind"] == "lora" and document["ranks"] == [8 if method == "delta" else 4]
        assert math.isfinite(loss_of(llama, out))
        distances[method] = document["distance_to_mean"]
    assert distances["delta"] < 1e-3 < distances["svd"] < distances["align"] <= distances["fusion"]
    table = thurl("merge", llama / "a", llama / "b", llama / "wide", "-o", tmp_path / "x", "--method", "svd",
                  "--rank", "2", "--weights", "1,2,1")  # fmt: skip
    assert "svd" in table.stdout and read_adapter(tmp_path / "x").ranks == [2]


def test_merge_says_what_is_wrong(llama, tmp_path):
    out = tmp_path / "out"
    assert "at least two" in thurl("merge", llama / "a", "-o", out, code=2).stderr
    assert "1,2,1" in thurl("merge", llama / "a", llama / "b", "-o", out, "--weights", "1;2", code=2).stderr
    assert "kinds lora and dora" in thurl("merge", llama / "a", llama / "dora", "-o", out, code=2).stderr
    assert "adapter_config.json" in thurl("merge", llama / "a", llama / "base", "-o", out, code=3).stderr
    thurl("merge", llama / "a", llama / "b", "-o", out)
    assert "already holds" in thurl("merge", llama / "a", llama / "b", "-o", out, code=2).stderr
    thurl("merge", llama / "a", llama / "b", "-o", out, "--overwrite")


def test_a_moved_base_is_warned_of(llama, tmp_path):
    import shutil

    shutil.copytree(llama / "b", tmp_path / "b")
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "other"}))
    assert "different base models" in thurl("merge", llama / "a", tmp_path / "b", "-o", tmp_path / "out").stderr


def test_prune_by_layer_type_and_size(llama, tmp_path):
    def pruned(name, *arguments):
        document = json.loads(thurl("prune", llama / "a", "-o", tmp_path / name, *arguments, "--json").stdout)
        return document, sorted(read_adapter(tmp_path / name).modules)

    _, modules = pruned("low", "--keep", "low")
    assert {path.split(".")[2] for path in modules} == {"0", "1"}
    _, modules = pruned("high", "--drop", "high")
    assert {path.split(".")[2] for path in modules} == {"0", "1", "2"}
    _, modules = pruned("v", "--keep", "v_proj")
    assert len(modules) == 4 and all(path.endswith("v_proj") for path in modules)
    document, modules = pruned("half", "--sparsity", "0.5")
    assert document["zeros"] == document["entries"] // 2 and len(modules) == document["modules_before"] == 8
    for name in ("low", "high", "v", "half"):
        assert loss_of(llama, tmp_path / name) != pytest.approx(loss_of(llama, llama / "a"), rel=1e-6)
    assert "modules" in thurl("prune", llama / "dora", "-o", tmp_path / "d", "--keep", "even").stdout
    assert "one of --keep" in thurl("prune", llama / "a", "-o", tmp_path / "x", code=2).stderr
    assert "has q_proj, v_proj" in thurl("prune", llama / "a", "-o", tmp_path / "x", "--keep", "fc", code=2).stderr


def test_shapley_of_layers(llama, tmp_path):
    plot = tmp_path / "bars.svg"
    document = json.loads(thurl("shapley", llama / "a", *value(llama), "--plot", plot, "--json").stdout)
    assert list(document["values"]) == [f"model.layers.{i}" for i in range(4)] and document["method"] == "exact"
    assert document["v_empty"] == pytest.approx(-loss_of(llama), rel=1e-5)
    assert document["v_full"] == pytest.approx(-loss_of(llama, llama / "a"), rel=1e-5)
    assert sum(document["values"].values()) == pytest.approx(document["v_full"] - document["v_empty"], abs=1e-9)
    assert document["gap"] < 1e-9 and document["evaluations"] == 16 and 0 <= document["top_third"] <= 1
    assert "<svg" in plot.read_text()
    sampled = thurl("shapley", llama / "dora", *value(llama), "--by", "type", "--method", "mle").stdout
    assert "q_proj" in sampled and "v_proj" in sampled and "top third -" in sampled
    options = ("--by", "module", "--method", "permutation", "--permutations", "1", "--json")
    one = json.loads(thurl("shapley", llama / "a", *value(llama), *options).stdout)
    assert len(one["values"]) == 8 and set(one["std_errors"].values()) == {None} and one["top_third"] is None


def test_wrong_values_of_options(llama, tmp_path):
    a, b = llama / "a", llama / "b"
    assert "nothing to do" in thurl("interpolate", a, b, code=2).stderr
    assert "go together" in thurl("interpolate", a, b, "--model", llama / "base", code=2).stderr
    assert "end in .png" in thurl("shapley", a, *value(llama), "--plot", "x.gif", code=2).stderr
    assert "draws the loss curve" in thurl("interpolate", a, b, "-o", tmp_path / "x", "--plot", "x.png", code=2).stderr
    missing = ("--model", tmp_path, "--texts", llama / "texts.jsonl")
    assert "config.json" in thurl("shapley", a, *missing, code=3).stderr
    nowhere = ("--model", llama / "base", "--texts", tmp_path / "none.jsonl")
    assert "no such file" in thurl("shapley", a, *nowhere, code=3).stderr
    assert "cannot be used" in thurl("shapley", a, *value(llama)[:4], "--device", "cuda:9", code=3).stderr


def test_texts(tmp_path):
    path = tmp_path / "t.jsonl"
    for content, message in (
        ("", "no texts"),
        ('{"text": 1}', "line 1"),
        ('{"text": "a"}\n{', "line 2: not JSON"),
        ("[]", "line 1"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            read_texts(path)
    # U+2028 ends a line for str.splitlines, not for JSON Lines.
    path.write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    assert read_texts(path) == ["a\u2028b"]


def test_text_loss_does_not_depend_on_batches_and_changes_adapters(llama):
    losses = []
    for batch in (1, 3):
        text_loss = TextLoss(llama / "base", TEXTS, batch_size=batch, device="cpu")
        losses.append([text_loss(read_adapter(llama / name)) for name in ("a", "dora", "wide", "a")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    expected = [loss_of(llama, llama / name) for name in ("a", "dora", "wide", "a")]
    assert losses[0] == pytest.approx(expected, rel=1e-5) and len(set(losses[0])) == 3
    short = TextLoss(llama / "base", TEXTS, max_length=2, device="cpu")
    assert short(read_adapter(llama / "a")) != pytest.approx(losses[0][0], rel=1e-3)


def test_text_loss_says_what_does_not_fit(llama, tmp_path):
    from dataclasses import replace

    with pytest.raises(DataError, match="two tokens"):
        TextLoss(llama / "base", ["1"], device="cpu")
    with pytest.raises(MissingRequirementError, match="config.json"):
        TextLoss(tmp_path, TEXTS)
    with pytest.raises(UsageError, match="int8"):
        TextLoss(llama / "base", TEXTS, dtype="int8")
    text_loss, a = TextLoss(llama / "base", TEXTS, device="cpu"), read_adapter(llama / "a")
    a = replace(a, config={**a.config, "key_of_a_later_version": 1})
    other = replace(a, config={**a.config, "target_modules": ["fc1"]})
    narrow = replace(a, modules={path: replace(f, a=f.a[:, :-1]) for path, f in a.modules.items()})
    fewer = replace(a, config={**a.config, "target_modules": ["q_proj"]})
    for wrong in (other, narrow, fewer):
        with pytest.raises(DataError, match="is this the model the adapter was trained on"):
            text_loss(wrong)
    assert text_loss(a) == pytest.approx(loss_of(llama, llama / "a"), rel=1e-5)
