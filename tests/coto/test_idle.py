"""The idle prefix: below the lowest active adapter nothing is differentiated, and no gradient of a weight changes."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from thurl.coto import CoToConfig, apply_coto
from thurl.coto.gate import remove_gates
from thurl.coto.idle import _has_input_hook
from thurl.rl.tiny import build_tiny_qwen2_5_vl


MODES = ["none", "hook", "plain", "reentrant"]


def prepare(model, mode):
    """What a trainer does for gradient checkpointing; "hook": the embeddings' hook alone."""
    if mode == "hook":
        model.enable_input_require_grads()
    elif mode != "none":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": mode == "reentrant"})
        model.enable_input_require_grads()
    return model


def with_mask(model, mask, **options):
    controller = apply_coto(model, CoToConfig(), total_steps=1000, **options)
    controller.mask = lambda step: mask
    controller.begin_step(0)
    return controller


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys() and any(gradient is not None for gradient in ours.values())
    for name, gradient in theirs.items():
        assert (ours[name] is None) == (gradient is None), name
        assert gradient is None or torch.equal(ours[name], gradient), name


def spied(model):
    """Forward passes (a recomputation may stop before its end), and outputs with a gradient, by block."""
    passes, differentiated = {}, set()
    for number, block in enumerate(model.get_base_model().model.layers):

        def count(module, arguments, number=number):
            passes[number] = passes.get(number, 0) + 1

        def look(module, arguments, output, number=number):
            if output.requires_grad:
                output.register_hook(lambda _: differentiated.add(number))

        block.register_forward_pre_hook(count)
        block.register_forward_hook(look)
    return passes, differentiated


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", [(False, False, True, False), (False, True, False, True), (True, False, False, False),
                                  (True, True, True, True), (False, False, False, True)])  # fmt: skip
def test_gradients_are_bit_for_bit_those_without_it(adapted, tokens, mode, mask):
    runs = []
    for idle in (True, False):
        model = prepare(adapted(), mode)
        with_mask(model, mask, idle_prefix=idle)
        for _ in range(2):  # accumulated
            model(tokens, labels=tokens).loss.backward()
        runs.append(gradients(model))
    assert_same(*runs)
    assert [any(f".layers.{i}." in n and g is not None for n, g in runs[0].items()) for i in range(4)] == list(mask)


@pytest.mark.parametrize("mode", ["hook", "plain", "reentrant"])
def test_nothing_below_the_lowest_active_adapter_is_differentiated_or_recomputed(adapted, tokens, mode):
    found = {}
    for idle in (True, False):
        model = prepare(adapted(), mode)
        with_mask(model, (False, False, True, False), idle_prefix=idle)
        passes, differentiated = spied(model)
        model(tokens, labels=tokens).loss.backward()
        found[idle] = passes, differentiated
    again = 1 if mode == "hook" else 2
    # With reentrant checkpointing the block below is what the mark is on; its own inside is not differentiated.
    assert found[True] == ({0: 1, 1: 1, 2: again, 3: again}, {2, 3} | ({1} if mode == "reentrant" else set()))
    assert found[False] == ({0: again, 1: again, 2: again, 3: again}, {0, 1, 2, 3})


def test_reentrant_checkpointing_needs_the_mark(adapted, tokens):
    """The control: with the embeddings' hook inert and nothing in its place, active adapters get no gradient."""
    model = prepare(adapted(), "reentrant")
    controller = with_mask(model, (False, False, True, False))
    (mark,) = [hook for block in model.get_base_model().model.layers for hook in block._forward_hooks.values()]
    for block in model.get_base_model().model.layers:
        block._forward_hooks.clear()
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(tokens, labels=tokens).loss.backward()
    assert mark.__name__ == "_mark" and controller.open_step == 0


@pytest.mark.parametrize("mode", ["plain", "reentrant"])
def test_between_steps_and_under_all_active_everything_is_as_it_was(adapted, tokens, mode):
    model = prepare(adapted(), mode)
    functions = [block._gradient_checkpointing_func for block in model.get_base_model().model.layers]
    embeddings = model.get_input_embeddings()

    def untouched():
        blocks = model.get_base_model().model.layers
        return [b._gradient_checkpointing_func for b in blocks] == functions and not any(
            block._forward_hooks for block in blocks
        )

    controller = with_mask(model, (False, False, True, False))
    assert not untouched() and not embeddings(tokens).requires_grad
    with controller.all_active():
        assert untouched() and embeddings(tokens).requires_grad == (mode == "reentrant")
        model(tokens, labels=tokens).loss.backward()
    inside = gradients(model)
    assert not untouched()
    controller.end_step()
    assert untouched() and embeddings(tokens).requires_grad
    model.zero_grad()
    model(tokens, labels=tokens).loss.backward()
    assert_same(inside, gradients(model))
    hooks = len(embeddings._forward_hooks)
    controller.detach()
    assert len(embeddings._forward_hooks) == hooks - 1 and "_coto_strip" not in embeddings.__dict__


@pytest.mark.parametrize("mode", ["hook", "plain", "reentrant"])
@pytest.mark.parametrize("what", ["embed_tokens", "norm", "embed_adapter"])
def test_what_is_trained_below_keeps_its_gradient(tiny_llama, tokens, mode, what):
    runs = []
    for idle in (True, False):
        if what == "embed_adapter":
            config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
        else:
            name = {"embed_tokens": "embed_tokens", "norm": "layers.0.input_layernorm"}[what]
            config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[name])
        torch.manual_seed(0)
        model = get_peft_model(tiny_llama(), config).train()
        prepare(model, mode)
        controller = apply_coto(model, CoToConfig(), total_steps=1000, idle_prefix=idle)
        # Only the third block, and the adapter of the embeddings if there is one.
        mask = tuple("embed" in key or key.endswith(".2") for key in controller.groups)
        controller.mask = lambda step, mask=mask: mask
        controller.begin_step(0)
        model(tokens, labels=tokens).loss.backward()
        runs.append(gradients(model))
    assert_same(*runs)
    below = [n for n, g in runs[0].items() if g is not None and ("embed" in n or "layernorm" in n)]
    assert below


@pytest.fixture(scope="module")
def vlm_inputs():
    _, processor = build_tiny_qwen2_5_vl(0)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Rate it."}]}], tokenize=False
    )
    return processor(text=[text], images=[np.full((56, 56, 3), 90, np.uint8)], return_tensors="pt")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["upper language", "vision and language", "upper vision", "merger", "all"])
def test_a_vision_tower_below_the_language_model(vlm_inputs, mode, which):
    targets = r".*(language_model.*(q_proj|v_proj)|visual\.blocks.*(qkv|down_proj)|visual\.merger\.mlp\.0)"
    runs = []
    for idle in (True, False):
        torch.manual_seed(0)
        model = get_peft_model(build_tiny_qwen2_5_vl(0)[0], LoraConfig(r=4, target_modules=targets)).train()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        prepare(model, mode)
        controller = apply_coto(model, CoToConfig(), total_steps=1000, idle_prefix=idle)
        keys = list(controller.groups)
        first = {tower: [t == tower for t in controller.towers].index(True) for tower in ("vision", "language", None)}
        mask = {
            "upper language": [t == "language" and i > first[t] for i, t in enumerate(controller.towers)],
            "vision and language": [i in (first["vision"], len(keys) - 1) for i in range(len(keys))],
            "upper vision": [t == "vision" and i > first[t] for i, t in enumerate(controller.towers)],
            "merger": [t is None for t in controller.towers],
            "all": [True] * len(keys),
        }[which]
        controller.mask = lambda step, mask=tuple(mask): mask
        controller.begin_step(0)
        loss = model(**vlm_inputs, labels=vlm_inputs["input_ids"]).loss
        assert any(mask)
        loss.backward()
        runs.append((loss.item(), gradients(model)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])


def test_a_copy_made_inside_a_step_can_be_freed_of_it(adapted, tokens):
    model = prepare(adapted(), "reentrant")
    with_mask(model, (False, False, True, False))
    twin = copy.deepcopy(model)
    remove_gates(twin)
    fresh = prepare(adapted(), "reentrant")
    for each in (twin, fresh):
        each(tokens, labels=tokens).loss.backward()
    assert_same(gradients(twin), gradients(fresh))


def test_private_names_of_transformers_and_peft_are_as_we_use_them(tiny_llama):
    """If these go, steps are still right but save less."""
    model = tiny_llama()
    model.enable_input_require_grads()
    assert [m for m in model.modules() if _has_input_hook(m)] == [model.get_input_embeddings()]
    PreTrainedModel.disable_input_require_grads(model)
    assert not any(_has_input_hook(module) for module in model.modules())

    bare = torch.nn.Module()
    bare.embed = torch.nn.Embedding(4, 4)
    bare.get_input_embeddings = lambda: bare.embed
    PeftModel._prepare_model_for_gradient_checkpointing(None, bare)
    assert _has_input_hook(bare.embed)
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1)
    model = LlamaForCausalLM(config)
    assert all(isinstance(block, GradientCheckpointingLayer) for block in model.model.layers)
    for reentrant in (True, False):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        for block in model.model.layers:
            assert block.gradient_checkpointing is True
            assert block._gradient_checkpointing_func.keywords == {"use_reentrant": reentrant}
