"""Packed rows give TRL's log-probabilities and gradients; what must not agree does not."""

import inspect
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import GRPOTrainer

from thurl.rl.shared_prefix import update


def _plain(model, batch, **options):
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    method = inspect.unwrap(GRPOTrainer._get_per_token_logps_and_entropies)
    logps, entropies, _ = method(trainer, model, **batch, compute_entropy=True, **options)
    return logps, entropies


def _differences(left, right):
    return [(a - b).abs().max().item() for a, b in zip(left, right, strict=True)]


def _gradients(model, logps, batch):
    """Of a loss that weighs every token differently, in double precision norms."""
    model.zero_grad()
    weights = torch.linspace(-1, 1, logps.numel()).view_as(logps)
    (logps * weights).sum().backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def _relative(left, right):
    assert set(left) == set(right)
    apart = sum((left[name] - right[name]).pow(2).sum() for name in left).sqrt()
    return (apart / sum(value.pow(2).sum() for value in left.values()).sqrt()).item()


@pytest.mark.parametrize("batch_size", [None, 2, 4, 6], ids=["at_once", "below_k", "cut_groups", "whole_groups"])
def test_log_probs_and_entropies_are_trls(prefix, tiny, batch_size):
    model, batch = tiny
    with torch.no_grad():
        plain, shared = _plain(model, batch), prefix.shared(model, batch, batch_size)
    assert plain[0].abs().max() > 1 and plain[0].count_nonzero() == sum(prefix.LENGTHS)
    assert max(_differences(plain, shared)) < 1e-5


def test_in_double_precision_nothing_is_left_between_them(prefix):
    model, processor = prefix.model()
    batch = prefix.batch(processor)
    model.double().train()
    batch["pixel_values"] = batch["pixel_values"].double()
    plain = _plain(model, batch)[0]
    expected = _gradients(model, plain, batch)
    shared = prefix.shared(model, batch)[0]
    assert (plain - shared).abs().max() < 1e-11
    # The model's norms pass gradients on in float32, one per repeated prompt in the plain layout.
    assert _relative(expected, _gradients(model, shared, batch)) < 1e-6


def test_rows_may_come_in_any_order(prefix, tiny):
    model, batch = tiny
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3)).tolist()
    pixels, grids = update._per_row(batch)
    mixed = {name: batch[name][order] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    mixed |= {"pixel_values": torch.cat([pixels[row] for row in order])}
    mixed |= {"image_grid_thw": torch.cat([grids[row] for row in order])}
    mixed |= {"num_images": [batch["num_images"][row] for row in order], "logits_to_keep": prefix.WIDTH}
    with torch.no_grad():
        assert (
            max(_differences([value[order] for value in _plain(model, batch)], prefix.shared(model, mixed, 5))) < 1e-5
        )


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["stored", "non_reentrant", "reentrant"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_gradients_are_trls(prefix, adapter, checkpointing):
    model, processor = prefix.model()
    batch = prefix.batch(processor)
    if adapter:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide half of the gradients
                torch.nn.init.normal_(parameter, std=0.05)
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    model.train()
    plain = _plain(model, batch)[0]
    expected = _gradients(model, plain, batch)
    shared = prefix.shared(model, batch)[0]
    assert (plain - shared).abs().max() < 1e-5
    found = _gradients(model, shared, batch)
    assert _relative(expected, found) < 1e-4
    assert adapter or any("visual" in name for name in found)


def test_completions_that_are_all_empty_have_no_effect(prefix, tiny):
    model, batch = tiny
    batch = {**batch, "attention_mask": batch["attention_mask"].clone()}
    batch["attention_mask"][:, -prefix.WIDTH :] = 0  # as with `mask_truncated_completions`
    logps, _ = prefix.shared(model, batch)
    assert logps.shape == (12, prefix.WIDTH) and not logps.any()
    assert all(not gradient.any() for gradient in _gradients(model, logps, batch).values())


def test_lower_precision_costs_no_more_than_in_the_plain_layout(prefix, tiny):
    model, batch = tiny
    with torch.no_grad():
        exact = _plain(model, batch)[0]
        with torch.autocast("cpu", torch.bfloat16):
            plain, shared = _plain(model, batch)[0], prefix.shared(model, batch)[0]
    assert (shared - exact).abs().mean() < 1.5 * (plain - exact).abs().mean() + 1e-3


def _wrong(monkeypatch, what):
    """Break one part of the layout."""
    right_positions, right_plan = update.packed_positions, update.packed_attention

    def plan(layout, lengths):
        found = right_plan(layout, lengths)
        if what == "future":
            batches = [replace(batch, mask=torch.ones_like(batch.mask)) for batch in found.batches]
        elif what == "other_prompt":
            batches = [replace(batch, owner=(batch.owner + 1) % len(layout.segment)) for batch in found.batches]
        else:
            mask_from = [batch.mask.clone() for batch in found.batches]
            for mask, batch in zip(mask_from, found.batches, strict=True):
                mask[:, : batch.prefix] = False
            batches = [replace(batch, mask=mask) for batch, mask in zip(found.batches, mask_from, strict=True)]
        return replace(found, batches=tuple(batches))

    if what == "positions":
        monkeypatch.setattr(
            update, "packed_positions", lambda layout, *rest: right_positions(layout, *rest) + (layout.segment > 0)
        )
    else:
        monkeypatch.setattr(update, "packed_attention", plan)


@pytest.mark.parametrize("what", ["positions", "future", "other_prompt", "no_prompt"])
def test_a_wrong_layout_is_seen_by_these_tests(prefix, tiny, monkeypatch, what):
    model, batch = tiny
    _wrong(monkeypatch, what)
    with torch.no_grad():
        plain, shared = _plain(model, batch)[0], prefix.shared(model, batch)[0]
    assert (plain - shared).abs().max() > 0.05
