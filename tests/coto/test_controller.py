"""Steps, holds, resuming state and towers."""

import json
import logging
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from thurl.coto import CoToConfig, apply_coto
from thurl.coto.masks import draw_mask
from thurl.coto.schedule import activation_probability
from thurl.errors import UsageError
from thurl.rl.tiny import build_tiny_qwen2_5_vl


def flags(controller):
    return tuple(not layers[0]._coto_off for layers in controller._layers)


def test_the_mask_is_in_force_while_a_step_is_open_only(adapted):
    controller = apply_coto(adapted(), CoToConfig(initial_p=0.2), total_steps=100)
    everything = (True,) * 4
    assert controller.active == flags(controller) == everything and controller.open_step is None
    masks = []
    for step in range(20):
        controller.begin_step(step)
        assert controller.active == flags(controller) == controller.mask(step) and controller.open_step == step
        masks.append(controller.active)
        controller.end_step()
        assert controller.active == flags(controller) == everything
    assert len(set(masks)) > 5
    expected = [draw_mask(activation_probability(t, 100, initial_p=0.2), 4, step=t)[0] for t in range(20)]
    assert masks == expected


def test_layers_rise_from_their_own_initial_p(adapted):
    initial = {r"layers\.0\.": 0.0, r"layers\.3\.": 0.8, "": 0.4}
    controller = apply_coto(adapted(), CoToConfig(initial_p=initial), total_steps=400)
    assert controller.group_p(0) == (0.0, 0.4, 0.4, 0.8) and controller.p(0) == pytest.approx(0.4)
    assert controller.group_p(150) == pytest.approx((0.5, 0.7, 0.7, 0.9))
    assert controller.group_p(300) == (1.0,) * 4 and controller.p(300) == 1.0
    masks = np.array([controller.mask(step) for step in range(300)])
    assert masks.sum(axis=1).min() >= 1
    share, expected = masks.mean(axis=0), np.mean([controller.group_p(step) for step in range(300)], axis=0)
    assert np.abs(share - expected).max() < 0.1 and share[0] < share[1] < share[3]
    state = json.loads(json.dumps(controller.state_dict()))
    controller.load_state_dict(state)
    with pytest.raises(UsageError, match="`initial_p`"):
        apply_coto(adapted(), CoToConfig(initial_p=0.4), total_steps=400).load_state_dict(state)
    with pytest.raises(UsageError, match="no expression for model.layers.0"):
        apply_coto(adapted(), CoToConfig(initial_p={r"layers\.3": 0.8}))


def test_a_mask_may_not_change_while_a_step_is_open(adapted):
    controller = apply_coto(adapted(), total_steps=100)
    controller.begin_step(3)
    controller.begin_step(3)  # the same step: nothing changes
    with pytest.raises(UsageError, match="Optimizer step 3 is open.*end_step"):
        controller.begin_step(4)
    assert controller.active == controller.mask(3)
    controller.end_step()
    controller.begin_step(4)


def test_all_active_is_reentrant_and_gives_the_mask_back(adapted, tokens):
    model = adapted()
    whole = model(tokens).logits
    controller = apply_coto(model, total_steps=1000)
    controller.begin_step(0)
    masked = model(tokens).logits
    assert not torch.equal(masked, whole)
    with controller.all_active():
        with controller.all_active():
            assert torch.equal(model(tokens).logits, whole)
        assert torch.equal(model(tokens).logits, whole) and all(controller.active)
    assert torch.equal(model(tokens).logits, masked)
    with pytest.raises(ZeroDivisionError), controller.all_active():
        raise ZeroDivisionError
    assert controller.active == controller.mask(0)
    with controller.all_active():
        controller.end_step()
        controller.begin_step(1)
        assert all(flags(controller))
    assert flags(controller) == controller.mask(1)


def test_generation_in_training_mode_sees_all_adapters(adapted, tokens):
    """TRL's rollouts do not leave training mode."""
    model = adapted()
    whole = model.generate(tokens, max_new_tokens=6, do_sample=False)
    controller = apply_coto(model, total_steps=1000)
    controller.mask = lambda step: (False, False, False, True)
    controller.begin_step(0)
    assert model.training and torch.equal(model.generate(tokens, max_new_tokens=6, do_sample=False), whole)
    masked = type(model).generate(model, tokens, max_new_tokens=6, do_sample=False)
    assert not torch.equal(masked, whole), "the mask must matter, or this test shows nothing"


def test_hold_keeps_mask_and_probability(adapted):
    model = adapted()
    plain = apply_coto(model, CoToConfig(seed=5), total_steps=100)
    expected = [(plain.mask(t - t % 4), plain.p(t - t % 4)) for t in range(40)]
    held = apply_coto(model, CoToConfig(seed=5, hold=4), total_steps=100)
    assert [(held.mask(t), held.p(t)) for t in range(40)] == expected


def test_global_random_states_are_left_alone(adapted):
    controller = apply_coto(adapted(), total_steps=200)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for step in range(100):
        controller.begin_step(step)
        controller.end_step()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and np.array_equal(np.random.get_state()[1], before[2])


def test_state_is_checked_on_resume(adapted, caplog):
    model = adapted()
    state = json.loads(json.dumps(apply_coto(model, CoToConfig(seed=1), total_steps=100).state_dict()))
    apply_coto(model, CoToConfig(seed=1), total_steps=100).load_state_dict(state)
    unknown = apply_coto(model, CoToConfig(seed=1))
    with pytest.raises(UsageError, match="total_steps"):
        unknown.begin_step(0)
    unknown.load_state_dict(state)
    assert unknown.total_steps == 100
    with pytest.raises(UsageError, match="`seed` 2; it was 1"):
        apply_coto(model, CoToConfig(seed=2), total_steps=100).load_state_dict(state)
    with pytest.raises(UsageError, match="3 instead of 4"):
        apply_coto(adapted(layers=3), CoToConfig(seed=1), total_steps=100).load_state_dict(state)
    reordered = {**state, "groups": dict(reversed(state["groups"].items()))}
    with pytest.raises(UsageError, match="order"):
        apply_coto(model, CoToConfig(seed=1), total_steps=100).load_state_dict(reordered)
    with caplog.at_level(logging.WARNING, logger="thurl"):
        apply_coto(model, CoToConfig(seed=1), total_steps=200).load_state_dict(state)
    assert "had 100 optimizer steps and now has 200" in caplog.text


def test_warnings_for_short_runs_and_trained_biases(tiny_llama, caplog):
    def messages(steps, **settings):
        caplog.clear()
        model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], **settings))
        with caplog.at_level(logging.WARNING, logger="thurl"):
            apply_coto(model, total_steps=steps)
        return caplog.text

    assert "under-trained" in messages(49) and not messages(50)
    assert "`bias` is 'all'" in messages(50, bias="all")


def test_include_leaves_the_rest_on(adapted, tokens):
    model = adapted()
    controller = apply_coto(model, CoToConfig(include=[r"layers\.[01]\."], exclude=["up_proj"]), total_steps=1000)
    assert list(controller.groups) == ["model.layers.0", "model.layers.1"]
    controller.mask = lambda step: (False, False)
    controller.begin_step(0)
    model(tokens, labels=tokens).loss.backward()
    none = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert none and all((".0." in n or ".1." in n) and "up_proj" not in n for n in none)
    with pytest.raises(UsageError, match="leave none"):
        apply_coto(model, CoToConfig(include=["nowhere"]), total_steps=1000)


def test_adapters_of_transformers_and_wrappers_are_found(tiny_llama, variants):
    model = tiny_llama()
    model.add_adapter(variants["lora"]())
    groups = apply_coto(model, total_steps=100).groups
    assert list(groups) == [f"model.layers.{i}" for i in range(4)]
    wrapped = torch.nn.DataParallel(get_peft_model(tiny_llama(), variants["lora"]()))
    assert apply_coto(wrapped, total_steps=100).groups == groups


# --- a vision-language model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vlm():
    model, processor = build_tiny_qwen2_5_vl(0)
    targets = r".*(language_model.*(q_proj|v_proj)|visual\.blocks.*(qkv|down_proj)|visual\.merger\.mlp\.0)"
    model = get_peft_model(model, LoraConfig(r=4, target_modules=targets)).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model, processor


def test_two_towers_with_different_numbers_of_blocks(vlm):
    model, _ = vlm
    config = model.config
    controller = apply_coto(model, CoToConfig(min_active_per_tower=True), total_steps=1000)
    counts = {name: controller.towers.count(name) for name in set(controller.towers)}
    assert counts == {
        "vision": config.vision_config.depth, "language": config.text_config.num_hidden_layers, None: 1,
    }  # fmt: skip
    assert sum(len(paths) for paths in controller.groups.values()) == 2 * (counts["vision"] + counts["language"]) + 1
    for step in range(200):
        mask = controller.mask(step)
        for tower in ("vision", "language"):
            assert any(on for on, name in zip(mask, controller.towers, strict=True) if name == tower)


def test_a_vision_tower_that_is_off_needs_no_backward_pass(vlm):
    """Backward stops at the lowest adapter that is on: the pictures' features need no gradient."""
    model, processor = vlm
    image = np.full((56, 56, 3), 90, np.uint8)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Rate it."}]}], tokenize=False
    )
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    with model.disable_adapter():
        base = model(**inputs).logits
    controller = apply_coto(model, total_steps=1000)
    visual = model.get_base_model().model.visual
    seen = []
    hook = visual.register_forward_hook(
        lambda module, arguments, output: seen.append(
            any(value.requires_grad for value in output.values() if torch.is_tensor(value))
            if hasattr(output, "values")
            else output.requires_grad
        )
    )
    for vision_on in (False, True):
        model.zero_grad()
        mask = tuple(name == "language" or (vision_on and name == "vision") for name in controller.towers)
        controller.mask = lambda step, mask=mask: mask
        controller.begin_step(0)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        controller.end_step()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                on = "language_model" in name or (vision_on and "visual.blocks" in name)
                assert (parameter.grad is not None) == on, name
    assert seen == [False, True]
    controller.mask = lambda step: (False,) * len(controller.groups)
    controller.begin_step(0)
    assert torch.equal(model(**inputs).logits, base)
    controller.detach()
    hook.remove()
