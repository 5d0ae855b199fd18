"""The adapter section: PEFT's configuration for each kind, and adapters where the recipe wants them."""

import math
from typing import get_args

import pytest
import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ValidationError

from thurl.recipe.adapters import AdapterKind, AdapterSection, peft_config


KINDS = get_args(AdapterKind)


def adapted(model):
    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


@pytest.fixture
def qwen():
    from thurl.rl.tiny import build_tiny_qwen2_5_vl

    return build_tiny_qwen2_5_vl(0)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_adapts_the_language_model_only_until_asked(qwen, kind):
    targets = ["q_proj", "down_proj", "qkv"]  # `qkv` is in the vision tower, `down_proj` in both
    language = 2 * 2
    model = get_peft_model(qwen, peft_config(AdapterSection(kind=kind, r=4, target_modules=targets)))
    assert len(adapted(model)) == language and not any("visual" in name for name in adapted(model))
    whole = model.unload()
    both = AdapterSection(kind=kind, r=4, target_modules=targets, exclude_vision=False)
    model = get_peft_model(whole, peft_config(both))
    assert len(adapted(model)) == language + 2 * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_pattern_means_whole_paths_for_each_kind(qwen, kind):
    section = AdapterSection(kind=kind, r=4, target_modules=r".*layers\.1\..*(q|v)_proj|.*visual.*qkv")
    names = adapted(get_peft_model(qwen, peft_config(section)))
    assert [name.rpartition("language_model.")[2] for name in names] == [
        "layers.1.self_attn.q_proj",
        "layers.1.self_attn.v_proj",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_no_output(qwen, kind):
    """Of the language model alone; PiSSA computes the same in another order."""
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        before = qwen(input_ids=ids).logits
        model = get_peft_model(qwen, peft_config(AdapterSection(kind=kind, r=4))).eval()
        assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-5)
        with model.disable_adapter():
            same = torch.allclose(model(input_ids=ids).logits, before, atol=1e-5)
    assert same == (kind != "pissa")  # whose base weights are the start without the adapter's part


def test_the_kinds_are_what_they_are_called(qwen):
    section = {kind: AdapterSection(kind=kind, r=4, target_modules=["q_proj"]) for kind in KINDS}
    config = {kind: peft_config(section[kind]) for kind in KINDS}
    assert {kind: value.peft_type.value for kind, value in config.items()} == {
        **dict.fromkeys(["lora", "rslora", "dora", "pissa"], "LORA"),
        **{kind: kind.upper() for kind in ("hira", "vera", "loha", "lokr")},
    }
    assert config["dora"].use_dora and not config["lora"].use_dora
    assert config["pissa"].init_lora_weights == "pissa" and config["lora"].init_lora_weights is True
    model = get_peft_model(qwen, config["rslora"])
    layer = model.get_submodule(adapted(model)[0])
    assert layer.scaling["default"] == pytest.approx(32 / math.sqrt(4))


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, "lora_dropout") for kind in ("lora", "rslora", "dora", "pissa")]
    + [("hira", "hira_dropout"), ("vera", "vera_dropout")],
)
def test_dropout_and_scaling_arrive(kind, field):
    scaled = {} if kind in ("hira", "vera") else {"alpha": 6}
    config = peft_config(AdapterSection(kind=kind, r=3, dropout=0.25, **scaled))
    assert getattr(config, field) == 0.25 and config.r == 3
    assert getattr(config, "lora_alpha", 6) == 6
    assert peft_config(AdapterSection(kind="loha", alpha=6)).alpha == 6
    assert peft_config(AdapterSection(kind="lokr")).alpha == 32


def test_without_a_vision_tower_nothing_is_excluded():
    assert peft_config(AdapterSection(), vision=False).exclude_modules is None
    assert peft_config(AdapterSection()).exclude_modules is not None
    targets = peft_config(AdapterSection(kind="vera", target_modules=["q_proj"]), vision=False).target_modules
    assert targets == {"q_proj"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "adalora"}, "kind"),
        ({"target_modules": []}, "name at least one module"),
        ({"target_modules": ""}, "name at least one module"),
        ({"target_modules": "(q_proj"}, "no regular expression of module paths"),
        ({"kind": "hira", "alpha": 8}, "`hira` has no scaling"),
        ({"kind": "vera", "alpha": 8}, "`vera` has no scaling"),
        ({"kind": "loha", "dropout": 0.1}, "no dropout of its input"),
        ({"kind": "lokr", "dropout": 0.1}, "no dropout of its input"),
        ({"kind": "vera", "target_modules": "all-linear"}, "cannot leave the vision tower out"),
    ],
)
def test_what_peft_does_not_know_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        AdapterSection(**values)


def test_a_section_with_its_defaults_written_out_is_valid():
    for kind in KINDS:
        section = AdapterSection(kind=kind)
        assert AdapterSection(**section.model_dump(mode="json")) == section
