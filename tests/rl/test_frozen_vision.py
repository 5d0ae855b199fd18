from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from thurl.rl.frozen_vision import skip_frozen_towers
from thurl.rl.tiny import build_tiny_qwen2_5_vl
from thurl.training.tensor_memory import TensorMemory


def make(adapter: bool):
    model, _ = build_tiny_qwen2_5_vl(0)
    model.model.visual.requires_grad_(False)
    if adapter:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|down_proj)"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if adapter:
        model.enable_input_require_grads()  # as TRL does
    return model


def inputs(model):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(20, 400, (2, 80), generator=generator)
    ids[:, 4:20] = model.config.image_token_id
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(128, 1176, generator=generator),
        "image_grid_thw": torch.tensor([[1, 8, 8]] * 2),
        "mm_token_type_ids": (ids == model.config.image_token_id).long(),
    }


def update(model):
    """Peak bytes, whether the tower's output wants gradients, gradients by name."""
    seen = []
    tower = next(module for name, module in model.named_modules() if name.endswith("visual"))
    handle = tower.register_forward_hook(lambda module, args, out: seen.append(out.pooler_output))
    batch = inputs(model)
    memory = TensorMemory()
    with memory:
        model(**batch).logits.square().mean().backward()
    handle.remove()
    wants = any(value.requires_grad for value in torch.utils._pytree.tree_leaves(seen))
    return memory.peak, wants, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "LoRA"])
def test_same_gradients_without_running_the_tower_backwards(adapter):
    peak_before, wants_before, before = update(make(adapter))
    model = make(adapter)
    assert skip_frozen_towers(model) == 1
    peak, wants, after = update(model)
    assert wants_before and not wants  # upstream still does it; when this fails, this module can go
    assert peak < peak_before
    assert set(before) == set(after) and not any("visual" in name for name in after)
    for name, gradient in before.items():
        assert torch.equal(gradient, after[name]), name


def test_a_tower_that_is_unfrozen_later_trains():
    model = make(adapter=False)
    skip_frozen_towers(model)
    model.model.visual.requires_grad_(True)
    gradients = update(model)[2]
    assert sum("visual" in name for name in gradients) > 10
    with torch.no_grad():
        assert not model(**inputs(model)).logits.requires_grad


def test_a_model_without_a_tower():
    assert skip_frozen_towers(torch.nn.Linear(2, 2)) == 0


def test_the_trainer_uses_it(tmp_path):
    import sys
    from pathlib import Path

    folder = Path(__file__).parents[2] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        import plan as benchmark
    finally:
        sys.path.remove(str(folder))
    case = benchmark.Case("", {}, lora=True, checkpointing=True)
    trainer = benchmark.trainer_of(case, tmp_path)
    assert not update(trainer.model)[1]
