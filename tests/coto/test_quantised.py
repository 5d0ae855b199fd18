"""Adapters on quantised base layers: off is the quantised layer, bit for bit, without a gradient.

bitsandbytes (8 and 4 bits), torchao and quanto compute on a CPU and are run where they are installed. The layers that
PEFT has for other quantisers need a GPU or packages that do not install here; their own `forward` is run around a
layer that is not quantised, since the gate relies on nothing but what it does with its base layer.
"""

import ast
import importlib
import importlib.util
import inspect

import pytest
import torch
from peft import HiraConfig, LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers import BitsAndBytesConfig, LlamaForCausalLM, QuantoConfig, TorchAoConfig

from thurl.coto import apply_coto
from thurl.coto.gate import install_gate
from thurl.coto.layout import adapter_parameters


def torchao_config():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


QUANTISERS = {
    "bitsandbytes 8 bits": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes 4 bits": (
        "bitsandbytes", lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    ),
    "torchao": ("torchao", torchao_config),
    "quanto": ("optimum.quanto", lambda: QuantoConfig(weights="int8")),
}  # fmt: skip
ADAPTERS = {
    "LoRA": lambda: LoraConfig(r=4, target_modules=["q_proj", "up_proj"]),
    "DoRA": lambda: LoraConfig(r=4, target_modules=["q_proj", "up_proj"], use_dora=True),
    "HiRA": lambda: HiraConfig(r=4, target_modules=["q_proj", "up_proj"]),
}


def installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("adapter", ["LoRA", "DoRA", "HiRA"])
@pytest.mark.parametrize("name", QUANTISERS)
def test_off_is_the_quantised_layer(tiny_llama, tokens, tmp_path, name, adapter):
    package, config = QUANTISERS[name]
    if not installed(package):
        pytest.skip(f"{package} is not installed (extra `quantised`)")
    if (name, adapter) == ("bitsandbytes 8 bits", "DoRA"):
        pytest.skip("fails on a CPU without CoTo, too: PEFT 0.21.2 loses the scale of 8-bit weights")
    if adapter != "LoRA" and package != "bitsandbytes":
        pytest.skip(f"PEFT 0.21 has {adapter} for bitsandbytes only")
    tiny_llama().save_pretrained(tmp_path)
    quantised = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config(), dtype=torch.float32)
    assert (quantised(tokens).logits - tiny_llama()(tokens).logits).abs().max() > 1e-5, "it must be quantised"
    torch.manual_seed(0)
    model = get_peft_model(quantised, ADAPTERS[adapter]()).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    whole = model(tokens).logits
    with model.disable_adapter():
        base = model(tokens).logits
    assert (whole - base).abs().max() > 1e-3, "the adapter must do something"
    coto = apply_coto(model, total_steps=100)
    coto.mask = lambda step: (True, False, True, False)
    coto.begin_step(0)
    model(tokens, labels=tokens).loss.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert (parameter.grad is None) == (".layers.1." in key or ".layers.3." in key), key
    coto.end_step()
    coto.mask = lambda step: (False,) * 4
    coto.begin_step(0)
    assert torch.equal(model(tokens).logits, base)
    coto.detach()
    assert torch.equal(model(tokens).logits, whole)


# module of peft.tuners.lora to its class and to the names it takes from the quantiser's package
OTHERS = {
    "aqlm": ("AqlmLoraLinear", ()),
    "awq": ("AwqLoraLinear", ()),
    "eetq": ("EetqLoraLinear", ()),
    "gptq": ("GPTQLoraLinear", ()),
    "hqq": ("HqqLoraLinear", ("HQQLinear",)),
}


def layer_class(module, name, stand_ins):
    """The class as PEFT wrote it, also where PEFT defines it only if the quantiser is installed."""
    module = importlib.import_module(f"peft.tuners.lora.{module}")
    tree = ast.parse(inspect.getsource(module))
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    scope = {**vars(module), **dict.fromkeys(stand_ins, torch.nn.Linear)}
    exec(compile(ast.Module([found], []), module.__file__, "exec"), scope)
    return scope[name]


@pytest.mark.parametrize("module", OTHERS)
def test_the_layers_of_other_quantisers_do_the_same_with_their_base(module):
    torch.manual_seed(0)
    kind = layer_class(module, *OTHERS[module])
    assert issubclass(kind, LoraLayer)
    base = torch.nn.Linear(6, 5).requires_grad_(False)
    config = LoraConfig(r=2, lora_alpha=4)
    if "config" in inspect.signature(kind.__init__).parameters:
        layer = kind(base, "default", config=config, r=2, lora_alpha=4)
    else:
        layer = kind(base, "default", r=2, lora_alpha=4)
    layer.train()
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(3, 6)
    assert layer.base_layer is base and (layer(x) - base(x)).abs().max() > 1e-2
    install_gate(layer, "default")
    layer._coto_off = True
    assert torch.equal(layer(x), base(x)) and not layer(x).requires_grad
    layer._coto_off = False
    layer(x).sum().backward()
    assert len(adapter_parameters(layer, "default")) == 2
    assert all(parameter.grad is not None for parameter in adapter_parameters(layer, "default"))
