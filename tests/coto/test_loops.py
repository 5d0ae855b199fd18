"""CoTo in TRL's supervised and preference trainers, in a loop of one's own, and under torch.compile."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._dynamo import config as dynamo
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from thurl.coto import CoToCallback, CoToConfig, apply_coto
from thurl.rl.tiny import build_tiny_qwen2_5_vl, build_tiny_tokenizer


LORA = LoraConfig(r=4, target_modules=r".*language_model.*(q|v|up)_proj")
SETTINGS = {"max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1, "report_to": "none", "use_cpu": True,
            "disable_tqdm": True, "save_strategy": "no", "bf16": False, "learning_rate": 1e-2}  # fmt: skip


def watch(model, controller_of):
    """(adapters on in the layers, reference pass) at each forward pass."""
    seen = []
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def look(*_):
        seen.append((sum(not layer._coto_off for layer in layers), layers[0].disable_adapters, controller_of().active))

    model.get_base_model().register_forward_pre_hook(look)
    return seen, layers


def test_supervised_fine_tuning(tmp_path):
    model, processor = build_tiny_qwen2_5_vl(0)
    texts = [{"prompt": "Rate the quality", "completion": f" from 1 to {n}"} for n in range(8)]
    callback = CoToCallback(CoToConfig(initial_p=0.3, final_p=0.3))
    trainer = SFTTrainer(
        model, args=SFTConfig(str(tmp_path), max_length=32, **SETTINGS), train_dataset=Dataset.from_list(texts),
        processing_class=processor.tokenizer, peft_config=LORA, callbacks=[callback],
    )  # fmt: skip
    seen, layers = watch(trainer.model, lambda: callback.controller)
    trainer.train()
    logged = [entry["coto/active"] for entry in trainer.state.log_history if "coto/active" in entry]
    assert logged == [sum(callback.controller.mask(step)) for step in range(3)]
    assert [sum(active) for *_, active in seen] == logged and min(logged) < len(callback.controller.groups)


def test_preference_optimisation_keeps_its_reference_free_of_masks(tmp_path):
    model, processor = build_tiny_qwen2_5_vl(0)
    rows = [{"prompt": "Rate it", "chosen": f" {n}", "rejected": " no"} for n in range(8)]
    callback = CoToCallback(CoToConfig(initial_p=0.3, final_p=0.3))
    trainer = DPOTrainer(
        model, args=DPOConfig(str(tmp_path), max_length=32, **SETTINGS), train_dataset=Dataset.from_list(rows),
        processing_class=processor.tokenizer, peft_config=LORA, callbacks=[callback],
    )  # fmt: skip
    seen, layers = watch(trainer.model, lambda: callback.controller)
    trainer.train()
    policy = [entry for entry in seen if not entry[1]]
    reference = [entry for entry in seen if entry[1]]
    assert len(policy) == len(reference) == 3
    masks = [callback.controller.mask(step) for step in range(3)]
    assert [active for *_, active in policy] == masks  # the reference pass before it changed nothing
    per_group = len(layers) // len(masks[0])
    assert [on for on, *_ in policy] == [per_group * sum(mask) for mask in masks]


def test_a_loop_of_ones_own(adapted, tokens):
    """As in docs/coto.md: accelerate, two micro-batches per optimizer step."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = adapted()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loader = torch.utils.data.DataLoader(tokens.repeat(6, 1), batch_size=2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    coto = apply_coto(model, CoToConfig(), total_steps=60)
    step, masks, moved = 0, [], []
    coto.begin_step(step)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for batch in loader:
        with accelerator.accumulate(model):
            masks.append(coto.active)
            accelerator.backward(model(batch, labels=batch).loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            coto.end_step()
            now = {n: p.detach().clone() for n, p in model.named_parameters()}
            moved.append(tuple(any(not torch.equal(now[n], before[n]) for n in now if f".layers.{i}." in n)
                               for i in range(4)))  # fmt: skip
            before, step = now, step + 1
            coto.begin_step(step)
    coto.detach()
    assert step == 3 and masks == [coto.mask(t // 2) for t in range(6)]
    assert moved == [coto.mask(t) for t in range(3)] and not all(all(mask) for mask in moved)


def compiled(adapted, tokens, whole=False, inputs_with_gradient=True, idle_prefix=True):
    """Number of graphs over 16 masks, greatest difference of a loss from the uncompiled one, number of masks."""
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    plain = adapted()
    losses = []
    controller = apply_coto(plain, CoToConfig(initial_p=0.5, final_p=0.5), total_steps=100)
    for step in range(16):
        controller.begin_step(step)
        losses.append(plain(tokens, labels=tokens, use_cache=False).loss.item())
        controller.end_step()
    controller.detach()
    model = adapted()
    if inputs_with_gradient:
        model.enable_input_require_grads()
    if whole:
        model.compile(backend=count)
    else:
        for layer in model.get_base_model().model.layers:
            layer.compile(backend=count)
    config = CoToConfig(initial_p=0.5, final_p=0.5)
    controller = apply_coto(model, config, total_steps=100, idle_prefix=idle_prefix)
    different = 0.0
    with dynamo.patch(recompile_limit=16):
        for step in range(16):
            controller.begin_step(step)
            loss = model(tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            different = max(different, abs(loss.item() - losses[step]))
            controller.end_step()
    masks = {controller.mask(step) for step in range(16)}
    controller.detach()
    torch._dynamo.reset()
    return len(graphs), different, len(masks)


@pytest.mark.parametrize(
    ("inputs_with_gradient", "idle_prefix", "bound"), [(True, False, 2), (True, True, 4), (False, True, 4)]
)
def test_blocks_compiled_one_by_one_need_few_graphs(adapted, tokens, inputs_with_gradient, idle_prefix, bound):
    """On and off; twice that where a block's input needs a gradient in some steps only (something below it is on).

    The blocks share their code, hence their graphs.
    """
    graphs, different, masks = compiled(adapted, tokens, False, inputs_with_gradient, idle_prefix)
    assert masks > 8 and different < 1e-5
    assert graphs <= bound


@pytest.mark.slow
def test_a_model_compiled_as_a_whole_needs_a_graph_per_mask(adapted, tokens):
    """The control, and why docs/coto.md says to compile by block."""
    graphs, different, masks = compiled(adapted, tokens, whole=True)
    assert different < 1e-5 and graphs >= masks > 8


def test_the_tiny_tokenizer_has_what_these_tests_write():
    assert build_tiny_tokenizer().unk_token_id not in build_tiny_tokenizer()("Rate the quality from 1 to 5").input_ids
