from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from thurl.coto.adapters import layer_of, natural, read_adapter, write_adapter
from thurl.errors import DataError, MissingRequirementError, UsageError


def test_golden_output_of_an_adapter_read_and_written_again(golden, tmp_path):
    write_adapter(golden.adapters()[0], tmp_path / "again")
    for folder in (golden.folders[0], tmp_path / "again"):
        torch.testing.assert_close(golden.output(folder), golden.tensors["out.0"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"hira": True}])
def test_delta_is_what_peft_computes(towers, options):
    adapter = towers.make("a", 1, **options)
    assert adapter.kind == ("dora" if "use_dora" in options else "hira" if "hira" in options else "lora")
    model = towers.load(towers.folder / "a")
    for path, factors in adapter.modules.items():
        layer = model.base_model.model.get_submodule(path)
        torch.testing.assert_close(factors.delta(), layer.get_delta_weight("default"), rtol=1e-12, atol=1e-12)


def test_patterns_of_rank_and_alpha_are_those_of_peft(towers):
    adapter = towers.make(
        "a", 1, use_rslora=True, rank_pattern={"visual.layers.1.up": 5}, alpha_pattern={"^model.layers.0.down": 9}
    )
    model = towers.load(towers.folder / "a")
    for path, factors in adapter.modules.items():
        layer = model.base_model.model.get_submodule(path)
        assert factors.rank == layer.r["default"] and factors.scaling == layer.scaling["default"]
    assert adapter.ranks == [3, 5]
    assert len({factors.scaling for factors in adapter.modules.values()}) == 3


def test_embeddings_and_convolutions_survive_a_round_trip(tmp_path):
    network = torch.nn.Sequential(torch.nn.Embedding(11, 4), torch.nn.Conv1d(7, 6, 3), torch.nn.Conv1d(6, 5, 1))
    model = get_peft_model(network, LoraConfig(r=2, target_modules=["0", "1", "2"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    adapter = read_adapter(tmp_path / "a")
    assert {path: factors.shape for path, factors in adapter.modules.items()} == {
        "0": (4, 11),
        "1": (6, 21),
        "2": (5, 6),
    }
    write_adapter(adapter, tmp_path / "b")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_trained_heads_are_kept(towers):
    adapter = towers.make("a", 1, target_modules=["up", "down"], modules_to_save=["merger"])
    assert sorted(adapter.extra) == ["base_model.model.merger.bias", "base_model.model.merger.weight"]
    write_adapter(adapter, towers.folder / "b")
    x = torch.ones(2, 6, dtype=torch.float64)
    assert torch.equal(towers.logits(towers.folder / "a", x), towers.logits(towers.folder / "b", x))


def test_layers_and_their_order():
    assert layer_of("model.layers.12.mlp.experts.3.up_proj") == ("model.layers", 12)
    assert layer_of("merger") is None
    assert sorted(["l.10.b", "l.2.b", "l.2.a"], key=natural) == ["l.2.a", "l.2.b", "l.10.b"]


REFUSED = {
    "ADALORA": ({"peft_type": "ADALORA"}, "ADALORA.*rank"),
    "LOKR": ({"peft_type": "LOKR"}, "LOKR.*Kronecker"),
    "SHIRA": ({"peft_type": "SHIRA"}, "SHIRA.*not a product"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens.*certain tokens"),
    "experts": ({"target_parameters": ["w"]}, "target_parameters.*expert"),
    "bias": ({"lora_bias": True}, "lora_bias.*bias of its own"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*path_initial_model"),
    "kasa": ({"kasa_config": {"beta": 1}}, "kasa_config.*truncated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_defined_is_refused_by_name_with_the_reason(towers, case):
    change, message = REFUSED[case]
    towers.make("a", 1)
    path = towers.folder / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UsageError, match=message):
        read_adapter(towers.folder / "a")


def test_broken_folders(towers, tmp_path):
    with pytest.raises(MissingRequirementError, match="adapter_config.json"):
        read_adapter(tmp_path / "nowhere")
    adapter = towers.make("a", 1)
    folder = towers.folder / "a"
    weights = folder / "adapter_model.safetensors"
    good = load_file(weights)
    name = next(key for key in good if "lora_A" in key)

    def broken(match, tensors, error=DataError):
        save_file(tensors, weights)
        with pytest.raises(error, match=match):
            read_adapter(folder)

    broken("not finite", {**good, name: good[name] * float("nan")})
    broken("rank 3", {**good, name: good[name][:2].contiguous()})
    broken("a where a, b belong|b where a, b belong", {key: value for key, value in good.items() if key != name})
    broken("lora_E", {**good, name.replace("lora_A.weight", "lora_E"): good[name].clone()})
    broken("no low-rank factors", {"x": torch.ones(1)})
    weights.write_bytes(b"\x00" * 20)
    with pytest.raises(DataError, match="safetensors"):
        read_adapter(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(MissingRequirementError, match="pickle"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("[1]")
    with pytest.raises(DataError, match="list"):
        read_adapter(folder)
    write_adapter(adapter, folder, overwrite=True)
    assert read_adapter(folder).modules.keys() == adapter.modules.keys()


def test_an_adapter_is_not_overwritten_unasked_nor_written_empty(towers):
    adapter = towers.make("a", 1)
    with pytest.raises(UsageError, match="already holds"):
        write_adapter(adapter, towers.folder / "a")
    with pytest.raises(UsageError, match="no adapted module"):
        write_adapter(replace(adapter, modules={}), towers.folder / "b")
    write_adapter(adapter, towers.folder / "b", note={"tool": "test"})
    assert json.loads((towers.folder / "b" / "coto_tools.json").read_text()) == {"tool": "test"}
    assert isinstance(towers.load(towers.folder / "b"), PeftModel)
