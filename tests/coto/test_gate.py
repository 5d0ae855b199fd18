"""The gate: an adapter that is off is its base layer, bit for bit, and nothing else of PEFT notices."""

import copy
import inspect

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import AdaLoraConfig, LoHaConfig, LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora.layer import VARIANT_KWARG_KEYS, LoraLayer, ParamWrapper
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.checkpoint import CheckpointError

from thurl.coto import CoToConfig, apply_coto
from thurl.coto.gate import adapter_layers, is_gated, remove_gates
from thurl.errors import UsageError


def off(controller, *groups):
    """Put a mask of our choice in force: these groups off, the rest on."""
    mask = tuple(index not in groups for index in range(len(controller.groups)))
    controller.mask = lambda step: mask
    controller.end_step()
    controller.begin_step(0)


def everything_off(controller):
    off(controller, *range(len(controller.groups)))


VARIANTS = ["lora", "rslora", "dora", "pissa", "vera", "loha", "lokr", "hira"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_off_is_the_base_model_bit_for_bit(adapted, tokens, variant):
    model = adapted(variant)
    whole = model(tokens).logits
    with model.disable_adapter():
        base = model(tokens).logits
    assert (whole - base).abs().max() > 1e-3, "the adapter must do something"
    controller = apply_coto(model, total_steps=100)
    assert torch.equal(model(tokens).logits, whole)  # no step is open
    everything_off(controller)
    assert torch.equal(model(tokens).logits, base)
    model.eval()
    assert torch.equal(model(tokens).logits, whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_that_are_off_get_no_gradient_and_do_not_move(adapted, tokens, variant):
    model = adapted(variant)
    controller = apply_coto(model, total_steps=100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    # One step with everything on, so that AdamW has momentum that zeros would keep alive.
    off(controller)
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    off(controller, 0, 2)
    for _ in range(3):
        model(tokens, labels=tokens).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_off = ".layers.0." in name or ".layers.2." in name
                assert (parameter.grad is None) == is_off, name
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {n for n, p in model.named_parameters()
                     if p.requires_grad and (".layers.1." in n or ".layers.3." in n)}  # fmt: skip


def test_zeros_instead_of_none_would_drift(adapted, tokens):
    """The control: AdamW moves an adapter with a gradient of zeros."""
    model = adapted()
    controller = apply_coto(model, total_steps=100)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    everything_off(controller)
    before = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all((p - b).abs().max() > 1e-4 for p, b in zip(parameters, before, strict=True))


def test_the_optimizer_of_lora_plus_skips_what_is_off(adapted, tokens):
    model = adapted()
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=4.0)
    off(apply_coto(model, total_steps=100), 0, 2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(2):
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "lora_" in n and (".layers.1." in n or ".layers.3." in n)}


def test_scaling_zero_is_no_bypass_for_dora(adapted, tokens):
    """Why the gate does not touch `scaling`: DoRA's magnitude stays."""
    model = adapted("dora")
    with model.disable_adapter():
        base = model(tokens).logits
    for _, layer in adapter_layers(model, "default"):
        layer.scaling["default"] = 0.0
    assert (model(tokens).logits - base).abs().max() > 1e-2


def test_disable_adapter_keeps_the_mask(adapted, tokens):
    model = adapted()
    controller = apply_coto(model, total_steps=100)
    off(controller, 1, 3)
    masked = model(tokens).logits
    with model.disable_adapter():
        reference = model(tokens).logits
    everything_off(controller)
    assert torch.equal(reference, model(tokens).logits)
    off(controller, 1, 3)
    with model.disable_adapter():
        pass
    assert controller.active == (True, False, True, False)
    assert torch.equal(model(tokens).logits, masked)


@pytest.mark.parametrize("variant", ["lora", "dora", "hira", "loha"])
def test_merge_is_whole_and_a_mask_may_change_before_unmerge(adapted, tokens, variant):
    model = adapted(variant)
    weights = {n: layer.get_base_layer().weight.detach().clone() for n, layer in adapter_layers(model, "default")}
    model.eval()
    whole = model(tokens).logits
    model.train()
    controller = apply_coto(model, total_steps=100)
    off(controller, 0, 1)
    model.merge_adapter()
    torch.testing.assert_close(model(tokens).logits, whole, rtol=1e-4, atol=1e-4)
    off(controller, 2, 3)
    torch.testing.assert_close(model(tokens).logits, whole, rtol=1e-4, atol=1e-4)  # stays merged
    assert all(layer.merged for _, layer in adapter_layers(model, "default"))
    model.unmerge_adapter()
    for name, layer in adapter_layers(model, "default"):
        assert (layer.get_base_layer().weight - weights[name]).abs().max() <= 1e-6, name


def test_a_copy_has_its_own_weights_and_its_own_mask(adapted, tokens):
    model = adapted()
    controller = apply_coto(model, total_steps=100)
    off(controller, 0)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    off(controller)  # the original's mask changes, the copy's does not
    controller.detach()
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.mul_(0.5)
    assert torch.equal(twin.eval()(tokens).logits, fresh.eval()(tokens).logits)
    remove_gates(twin)
    assert torch.equal(twin.train()(tokens).logits, fresh.train()(tokens).logits)


def test_off_and_on_leave_no_trace(adapted, tokens):
    model = adapted()
    keys = set(model.state_dict())
    attributes = [set(layer.__dict__) for _, layer in adapter_layers(model, "default")]
    controller = apply_coto(model, total_steps=100)
    again = apply_coto(model, total_steps=100)
    assert controller.detached and not again.detached
    with pytest.raises(UsageError, match="detached"):
        controller.begin_step(0)
    assert set(model.state_dict()) == keys
    assert all(type(layer._coto_off) is bool for _, layer in adapter_layers(model, "default"))
    again.detach()
    again.detach()
    assert [set(layer.__dict__) for _, layer in adapter_layers(model, "default")] == attributes
    assert "generate" not in model.__dict__ and "_coto_controller" not in model.__dict__
    assert not any(is_gated(module) for module in model.modules())


def test_a_foreign_forward_is_refused_and_nothing_is_left_behind(adapted):
    model = adapted()
    add_hook_to_module(adapter_layers(model, "default")[5][1], ModelHook())
    with pytest.raises(UsageError, match="device_map"):
        apply_coto(model, total_steps=100)
    assert not any(is_gated(module) for module in model.modules())


def test_only_the_named_adapter_is_switched(adapted, tokens, variants):
    model = adapted()
    model.add_adapter("second", variants["lora"]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "second" in name:
                parameter.normal_(std=0.1)
    model.base_model.set_adapter(["second"])
    second = model(tokens).logits
    model.base_model.set_adapter(["default", "second"])
    both = model(tokens).logits
    controller = apply_coto(model, total_steps=100)
    everything_off(controller)
    assert torch.equal(model(tokens).logits, second)
    assert all(layer.active_adapters == ["default", "second"] for _, layer in adapter_layers(model, "default"))
    off(controller)
    assert torch.equal(model(tokens).logits, both)
    # TRL's reference pass with a copied adapter: only the other one is active, whatever the mask.
    everything_off(controller)
    model.set_adapter("second")
    assert torch.equal(model(tokens).logits, second)


def test_arguments_of_peft_do_not_reach_a_base_layer(adapted):
    model = adapted()
    controller = apply_coto(model, total_steps=100)
    everything_off(controller)
    _, layer = adapter_layers(model, "default")[0]
    x = torch.randn(2, 3, 32)
    expected = layer.base_layer(x)
    assert torch.equal(layer(x, adapter_names=["default", "default"], alora_offsets=[1, 1]), expected)
    with pytest.raises(TypeError):
        layer.base_layer(x, alora_offsets=[1, 1])  # the control


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_gradient_of_the_plain_run(adapted, tokens, reentrant):
    def gradients(checkpointing):
        model = adapted()
        controller = apply_coto(model, total_steps=100)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            if reentrant:
                model.enable_input_require_grads()
        off(controller, 0, 2)
        model(tokens, labels=tokens).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    plain, checked = gradients(False), gradients(True)
    assert sum(gradient is None for gradient in plain.values()) == len(plain) // 2
    for name, gradient in plain.items():
        if gradient is None:
            assert checked[name] is None, name
        else:
            assert torch.equal(gradient, checked[name]), name


def test_a_mask_that_changed_in_between_would_give_a_wrong_gradient(adapted, tokens):
    """What `begin_step` guards against, done by force: one mode raises, the other is silently wrong."""

    def lowest_gradient(change, reentrant=True):
        model = adapted()
        controller = apply_coto(model, total_steps=100)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()
        off(controller, 2)
        loss = model(tokens, labels=tokens).loss
        if change:
            off(controller, 3)
        loss.backward()
        return next(p.grad for n, p in model.named_parameters() if ".layers.0." in n and "lora_A" in n)

    assert (lowest_gradient(False) - lowest_gradient(True)).abs().max() > 1e-6
    with pytest.raises(CheckpointError):
        lowest_gradient(True, reentrant=False)


def test_experts_of_one_module_share_a_gate():
    """PEFT nests one wrapper per adapted parameter of a mixture-of-experts module."""

    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Parameter(torch.randn(3, 4, 5))
            self.down = torch.nn.Parameter(torch.randn(3, 5, 4))

        def forward(self, x):
            return torch.einsum("bi,eio,eoj->bj", x, self.up, self.down)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"experts": Experts()}) for _ in range(2)])

        def forward(self, x):
            for layer in self.layers:
                x = x + layer["experts"](x)
            return x

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=[], target_parameters=["experts.up", "experts.down"])
    model = get_peft_model(Model(), config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    x = torch.randn(3, 4)
    with model.disable_adapter():
        base = model(x)
    assert sum(isinstance(module, ParamWrapper) for module in model.modules()) == 4
    controller = apply_coto(model, CoToConfig(group_by="module"), total_steps=100)
    assert list(controller.groups) == ["layers.0.experts", "layers.1.experts"]
    everything_off(controller)
    assert torch.equal(model(x), base)
    off(controller, 0)
    model(x).sum().backward()
    grads = {n: p.grad is None for n, p in model.named_parameters() if p.requires_grad}
    assert all(none == ("layers.0." in name) for name, none in grads.items())


def test_embeddings_are_switched_too_and_saved_modules_are_not(tiny_llama, tokens):
    config = LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_llama(), config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    controller = apply_coto(model, total_steps=100)
    assert list(controller.groups)[0] == "model.embed_tokens" and len(controller.groups) == 5
    everything_off(controller)
    model(tokens, labels=tokens).loss.backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"base_model.model.lm_head.modules_to_save.default.weight"}


def test_adapters_that_cannot_be_switched_are_refused(tiny_llama):
    ada = get_peft_model(tiny_llama(), AdaLoraConfig(total_step=10, tinit=1, tfinal=1, target_modules=["q_proj"]))
    with pytest.raises(UsageError, match="AdaLoRA"):
        apply_coto(ada, total_steps=100)
    dropped = get_peft_model(tiny_llama(), LoHaConfig(target_modules=["q_proj"], module_dropout=0.25))
    with pytest.raises(UsageError, match="module_dropout.*0.25"):
        apply_coto(dropped, total_steps=100)
    with pytest.raises(UsageError, match="no adapter 'other'"):
        apply_coto(dropped, CoToConfig(adapter_name="other"), total_steps=100)
    with pytest.raises(UsageError, match="no adapter"):
        apply_coto(tiny_llama(), total_steps=100)


def test_private_names_of_peft_are_as_we_use_them():
    assert VARIANT_KWARG_KEYS == ["alora_offsets"]
    assert callable(BaseTunerLayer._get_available_adapters)
    assert BaseTunerLayer._active_adapter == "default" and BaseTunerLayer._disable_adapters is False
    for name in ("merged", "disable_adapters", "active_adapters"):
        assert isinstance(inspect.getattr_static(BaseTunerLayer, name), property), name
    assert "module_dropout" in inspect.getsource(LoHaConfig)
    assert list(inspect.signature(LoraLinear.forward).parameters) == ["self", "x", "args", "kwargs"]
    assert "lora_A" in LoraLayer.adapter_layer_names
