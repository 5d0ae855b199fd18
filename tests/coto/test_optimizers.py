"""Zeros that an optimizer must not see: given by `touch`, hidden by `skip_off`, kept apart by `split_by_group`."""

import math

import pytest
import torch

from thurl.coto import CoToConfig, apply_coto
from thurl.coto.layout import adapter_parameters, find_groups
from thurl.coto.optimizers import GROUP_KEY, base_optimizer, skip_off, split_by_group, touch
from thurl.errors import UsageError


def test_touch_gives_zeros_and_changes_nothing_else():
    x = torch.randn(3, 2, requires_grad=True)
    parameters = [torch.randn(4, requires_grad=True), torch.full((2, 2), math.inf, requires_grad=True)]
    y = touch(x * 2, parameters)
    assert torch.equal(y, x * 2)
    y.square().sum().backward()
    assert torch.equal(x.grad, 8 * x) and all(torch.equal(p.grad, torch.zeros_like(p)) for p in parameters)
    still = torch.randn(3)
    assert touch(still, parameters) is still  # nothing would come down to it
    # The control: what a product with zero would do to a weight that is not finite.
    weight = parameters[1].detach().requires_grad_()
    (x.sum() + (0 * weight).sum()).backward()
    assert (x.sum() + (0 * weight).sum()).isnan()


def run(adapted, tokens, apply=apply_coto, guard=True, accumulate=1, **options):
    """Weights after eight AdamW steps with clipping, what had a gradient, and the norms."""
    model = adapted().double()  # AdamW makes much of the rounding of small gradients, which differs by processor
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    coto = apply(model, CoToConfig(initial_p=0.3), total_steps=1000, **options)
    if guard:
        coto.guard(optimizer)
    missing, norms = [], []
    for step in range(8):
        coto.begin_step(step)
        for _ in range(accumulate):
            model(tokens, labels=tokens).loss.backward()
        missing.append(sum(p.grad is None for p in parameters))
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 0.1).item())
        optimizer.step()
        optimizer.zero_grad()
        coto.end_step()
    coto.detach()
    return {n: p.detach() for n, p in model.named_parameters()}, missing, norms


@pytest.mark.parametrize("accumulate", [1, 3])
def test_touched_adapters_train_as_if_they_had_no_gradient(adapted, tokens, accumulate):
    plain, missing, norms = run(adapted, tokens, guard=False, accumulate=accumulate)
    touched, none_missing, same_norms = run(adapted, tokens, touch=True, accumulate=accumulate)
    assert any(missing) and not any(none_missing)  # every parameter has a gradient for DDP to wait for
    assert norms == pytest.approx(same_norms, rel=1e-6)
    for name, value in plain.items():
        torch.testing.assert_close(touched[name], value, rtol=1e-6, atol=1e-8)
    drifted, _, _ = run(adapted, tokens, touch=True, guard=False, accumulate=accumulate)
    assert max((drifted[n] - plain[n]).abs().max().item() for n in plain) > 1e-3  # the control


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_touching_leaves_the_backward_pass_as_short(adapted, tokens, reentrant):
    gradients = []
    for touching in (True, False):
        model = adapted()
        if reentrant is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        coto = apply_coto(model, CoToConfig(), total_steps=1000, touch=touching)
        coto.mask = lambda step: (False, False, True, False)
        coto.begin_step(0)
        below = []

        def look(module, arguments, output, below=below):
            if output.requires_grad:
                output.register_hook(lambda _: below.append(1))

        model.get_base_model().model.layers[0].register_forward_hook(look)
        model(tokens, labels=tokens).loss.backward()
        assert not below
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    touched, plain = gradients
    for name, gradient in plain.items():
        assert torch.equal(touched[name], torch.zeros_like(touched[name]) if gradient is None else gradient), name


def test_an_empty_step_cannot_touch(adapted):
    with pytest.raises(UsageError, match="allow_empty"):
        apply_coto(adapted(), CoToConfig(min_active="allow_empty"), total_steps=100, touch=True)


def test_groups_are_split_and_keep_their_settings(adapted):
    model = adapted()
    members = {
        key: [p for _, layer in layers for p in adapter_parameters(layer, "default")]
        for key, layers in find_groups(model, CoToConfig(exclude=["up_proj"])).items()
    }
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and "lora_A" in n]
    others = [p for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 0.5}], lr=0.1)
    split_by_group(optimizer, members)
    assert [group.get(GROUP_KEY) for group in optimizer.param_groups].count(None) == 2  # up_proj is not switched
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in decayed + others} and len(held) == len(decayed + others)
    for group in optimizer.param_groups:
        is_decayed = any(group["params"][0] is p for p in decayed)
        assert (group["weight_decay"], group["lr"]) == ((0.1, 0.1) if is_decayed else (0.01, 0.5))
        key = group.get(GROUP_KEY)
        allowed = members[key] if key else [p for p in held if not any(p is q for m in members.values() for q in m)]
        assert all(any(p is q for q in allowed) for p in group["params"])
    held[0].grad = torch.zeros_like(held[0])
    optimizer.step()
    with pytest.raises(UsageError, match="has made a step"):
        split_by_group(optimizer, members)


def test_a_hidden_gradient_comes_back_and_the_hooks_go():
    one, two = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([{"params": [one], GROUP_KEY: "a"}, {"params": [two]}], lr=0.1, weight_decay=0.1)
    undo = skip_off(optimizer, lambda: {"a"}, list)
    one.grad, two.grad = torch.zeros(2), torch.zeros(2)
    buffer = one.grad
    optimizer.step()
    assert torch.equal(one, torch.ones(2)) and not torch.equal(two, torch.ones(2)) and one not in optimizer.state
    assert one.grad is buffer  # DeepSpeed with offloading writes into it
    undo()
    optimizer.step()
    assert not torch.equal(one, torch.ones(2))


def test_wrappers_are_looked_through():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    inner = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    assert base_optimizer(Wrapper(Wrapper(inner))) is inner and base_optimizer(None) is None
