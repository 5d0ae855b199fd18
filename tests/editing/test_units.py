"""Units: the neurons of a network, in the order of a mask's rows."""

from __future__ import annotations

import peft
import pytest
import torch
from timm.layers import SwiGLU
from torch import nn

from thurl.editing.classifier import as_classifier
from thurl.editing.units import Unit, default_layers, resolve_attention_outputs, resolve_ffn
from thurl.errors import UsageError
from thurl.vit import block_mlp, transformer_blocks

from .editing_models import MODELS, golden_model, pictures, small_model, small_timm


@pytest.mark.parametrize("name", MODELS)
def test_without_a_neuron_the_hidden_layer_misses_it_and_nothing_else(name):
    model = small_model(name)
    first, last = resolve_ffn(model, [1])
    assert (first.label, last.label) == ("layer1.fc1", "layer1.fc2")
    assert (first.axis, last.axis, first.size) == (0, 1, last.size)
    assert first.groups == (2 if "swiglu" in name else 1)
    network = block_mlp(transformer_blocks(model)[1])[1]
    inputs = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    neuron = torch.tensor([5])
    with torch.no_grad():
        columns = model.get_parameter(last.parameter)
        kept = columns.clone()
        columns[:, last.indices(neuron)] = 0
        without_column = network(inputs)
        columns.copy_(kept)
        rows = model.get_parameter(first.parameter)
        rows[first.indices(neuron)] = 0
        model.get_submodule(first.parameter.removesuffix(".weight")).bias[first.indices(neuron)] = 0
        without_rows = network(inputs)
    torch.testing.assert_close(without_rows, without_column, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_columns_of_the_attention_output_read_the_heads(name):
    model = small_model(name)
    units = resolve_attention_outputs(model, [0, 3])
    assert [unit.label for unit in units] == ["layer0.attn_out", "layer3.attn_out"]
    assert {(unit.axis, unit.size, unit.groups) for unit in units} == {(1, 16, 1)}
    seen = []
    module = model.get_submodule(units[1].parameter.removesuffix(".weight"))
    with torch.no_grad():
        handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        model(pictures(1))
        handle.remove()
    assert seen[0][0].shape[-1] == 16


def test_rows_of_a_mask_are_in_the_order_of_the_release():
    units = resolve_ffn(golden_model("timm"), [9, 7, 8])
    labels = ["layer7.fc1", "layer7.fc2", "layer8.fc1", "layer8.fc2", "layer9.fc1", "layer9.fc2"]
    assert [unit.label for unit in units] == labels
    assert units[0].parameter == "blocks.7.mlp.fc1.weight"
    assert [unit.label for unit in resolve_ffn(golden_model("transformers"), [7, 8, 9])] == labels


@pytest.mark.parametrize(
    ("depth", "layers"), [(12, [7, 8, 9]), (24, [16, 17, 18]), (6, [2, 3, 4]), (4, [1, 2, 3]), (2, [0, 1]), (1, [0])]
)
def test_default_layers_end_at_three_quarters_of_the_depth(depth, layers):
    assert default_layers(small_timm(depth=depth)) == layers


def test_a_neuron_of_a_gated_network_has_two_rows():
    unit = Unit(0, "fc1", "w", 0, 10, 2)
    assert unit.indices(torch.tensor([3, 7])).tolist() == [3, 7, 13, 17]


@pytest.mark.parametrize(
    ("layers", "message"),
    [([4], "4; VisionTransformer has the layers 0 to 3"), ([-1], "-1;"), ([], "none;"), ([1, 1], "each layer once")],
)
def test_layers_that_are_not_there(layers, message):
    with pytest.raises(UsageError, match=message):
        resolve_ffn(small_timm(), layers)


def test_other_networks_are_named():
    with pytest.raises(UsageError, match="fc1_g Linear, fc1_x Linear"):
        resolve_ffn(small_timm(mlp_layer=SwiGLU), [0])
    adapted = peft.get_peft_model(small_timm(), peft.LoraConfig(r=2, target_modules=["fc1", "attn.proj"]))
    with pytest.raises(UsageError, match="merge adapters"):
        resolve_ffn(adapted, [0])
    with pytest.raises(UsageError, match="merge adapters"):
        resolve_attention_outputs(adapted, [0])
    with pytest.raises(UsageError, match="no vision transformer"):
        resolve_ffn(nn.Linear(2, 2), [0])


def test_units_of_another_model_or_size_are_refused():
    model = small_timm()
    classifier = as_classifier(model)
    wrong = {
        "no linear layer with 9 rows": [Unit(0, "fc1", "blocks.0.mlp.fc1.weight", 0, 9)],
        "has no blocks.7": [Unit(7, "fc1", "blocks.7.mlp.fc1.weight", 0, 24)],
        "none; a mask": [],
        "layer0.fc1 24, layer0.attn_out 16": resolve_ffn(model, [0])[:1] + resolve_attention_outputs(model, [0]),
        "each once": resolve_ffn(model, [0])[:1] * 2,
    }
    for message, units in wrong.items():
        with pytest.raises(UsageError, match=message):
            classifier.with_units(units)
    attention = classifier.with_units(resolve_attention_outputs(model, [1, 2]))
    assert attention.mask_shape == (2, 16) and classifier.mask_shape == (6, 24)
    assert attention.model is classifier.model and attention.first_layer == 1
