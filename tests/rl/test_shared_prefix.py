"""Packed rows give TRL's log-probabilities, gradients and training runs; what must not agree does not."""

import inspect
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from trl import GRPOTrainer
from trl.trainer import utils as trl_utils

from thurl.errors import UsageError
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset, shared_prefix
from thurl.rl.shared_prefix import (
    PrefixSharing,
    estimate_speedup,
    gather_segments,
    group_rows,
    pack_rows,
    packed_positions,
    unsupported,
    visible_mask,
)
from thurl.rl.tiny import build_tiny_qwen2_5_vl


K, WIDTH = 3, 6
# Two pictures in the third prompt; the first and the last prompt differ only in their pixels.
SIZES = [[(56, 56)], [(84, 56)], [(56, 84), (56, 56)], [(56, 56)]]
LENGTHS = [6, 2, 1, 3, 0, 5, 4, 4, 2, 0, 1, 6]


def _model(**sizes):
    model, processor = build_tiny_qwen2_5_vl(0, hidden=64, heads=4, kv_heads=2, **sizes)
    trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model, processor


def _batch(processor, sizes=SIZES, lengths=LENGTHS, k=K, width=WIDTH):
    """What `_compute_loss` hands on: prompts of several lengths padded on the left, ragged completions."""
    rng = np.random.default_rng(0)
    texts, images = [], []
    for row_sizes in sizes:
        pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in row_sizes]
        content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": "Rate the quality."}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        texts += [text] * k
        images += [pictures] * k
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    rows = len(texts)
    ids = torch.randint(300, 330, (rows, width), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = ids.masked_fill(mask == 0, processor.tokenizer.pad_token_id)
    return {
        "input_ids": torch.cat([inputs["input_ids"], ids], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], mask], dim=1),
        "logits_to_keep": width,
        "pixel_values": inputs["pixel_values"],
        "image_grid_thw": inputs["image_grid_thw"],
        "num_images": [len(pictures) for pictures in images],
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1),
    }


def _plain(model, batch, **options):
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    method = inspect.unwrap(GRPOTrainer._get_per_token_logps_and_entropies)
    logps, entropies, _ = method(trainer, model, **batch, compute_entropy=True, **options)
    return logps, entropies


def _shared(model, batch, batch_size=None, mode="on"):
    arguments = {name: batch[name] for name in ("input_ids", "attention_mask", "logits_to_keep")}
    multimodal = {name: value for name, value in batch.items() if name not in arguments}
    sharing = PrefixSharing(mode, 0, nullcontext)
    return sharing.log_probs(model, **arguments, batch_size=batch_size, multimodal=multimodal)


@pytest.fixture(scope="module")
def tiny():
    model, processor = _model()
    return model, _batch(processor)


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


# --- layout ----------------------------------------------------------------------------------------------------------


def test_a_row_holds_the_prompt_once_and_a_segment_per_completion():
    # Prompt of 3 tokens in a width of 4, completions of 2 and 0 tokens; then a prompt of 1 with a completion of 1.
    layout = pack_rows([3, 3, 1], [2, 0, 1], [[0, 1], [2]], 4)
    assert layout.source_column.tolist() == [[1, 2, 3, 4, 5, 3], [3, 4, 0, 0, 0, 0]]
    assert layout.source_row.tolist() == [[0, 0, 0, 0, 0, 1], [2, 2, 2, 2, 2, 2]]
    assert layout.segment.tolist() == [[0, 0, 1, 1, 1, 2], [1, 1, -1, -1, -1, -1]]
    assert layout.group.tolist() == [0, 0, 1] and layout.start.tolist() == [2, 5, 0]
    visible = visible_mask(layout.segment)
    assert visible.shape == (2, 1, 6, 6) and visible.any(dim=-1).all()
    assert visible[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    prompt = torch.tensor([[[0, 0, 1, 5], [0, 0, 0, 0]]])  # a picture took positions 1 to 4
    positions = packed_positions(layout, prompt, torch.tensor([6, 1]))
    assert positions.tolist() == [[[0, 1, 5, 6, 7, 5], [0, 1, 0, 0, 0, 0]]]
    values = torch.arange(10.0).view(2, 5) + 1
    found = gather_segments(values, layout, torch.tensor([[1, 1], [0, 0], [1, 0]]))
    assert found.tolist() == [[3, 4], [0, 0], [6, 0]]


def test_a_row_of_one_token_still_has_a_place_to_gather_from():
    layout = pack_rows([1], [0], [[0]], 1)
    assert layout.segment.tolist() == [[1, -1]]
    assert gather_segments(torch.ones(1, 1), layout, torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


def test_rows_are_grouped_by_tokens_grids_and_pixels():
    ids = torch.tensor([[9, 1, 2], [9, 1, 2], [8, 1, 2], [9, 1, 2], [9, 1, 3], [9, 1, 2]])
    mask = torch.tensor([[0, 1, 1]] * 6)
    grid, other = torch.tensor([[1, 2, 4]]), torch.tensor([[1, 4, 2]])
    ones, zeros = torch.ones(8, 2), torch.zeros(8, 2)
    pixels = [ones, zeros, ones, ones, ones, ones]
    assert group_rows(ids, mask, pixels, [grid] * 5 + [other]) == [[0, 2, 3], [1], [4], [5]]
    assert group_rows(ids[:2], mask[:2], [None, ones], [None, grid]) == [[0], [1]]
    assert group_rows(ids, mask, [None] * 6, [None] * 6) == [[0, 1, 2, 3, 5], [4]]


# --- equality with TRL -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [None, 2, 4, 6], ids=["at_once", "below_k", "cut_groups", "whole_groups"])
def test_log_probs_and_entropies_are_trls(tiny, attention, batch_size):
    model, batch = tiny
    model.set_attn_implementation(attention)
    try:
        with torch.no_grad():
            plain, shared = _plain(model, batch), _shared(model, batch, batch_size)
    finally:
        model.set_attn_implementation("sdpa")
    assert plain[0].abs().max() > 1 and plain[0].count_nonzero() == sum(LENGTHS)
    assert max(_differences(plain, shared)) < 1e-5


def test_rows_may_come_in_any_order(tiny):
    model, batch = tiny
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3)).tolist()
    pixels, grids = shared_prefix._per_row(batch)
    mixed = {name: batch[name][order] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    mixed |= {"pixel_values": torch.cat([pixels[row] for row in order])}
    mixed |= {"image_grid_thw": torch.cat([grids[row] for row in order])}
    mixed |= {"num_images": [batch["num_images"][row] for row in order], "logits_to_keep": WIDTH}
    with torch.no_grad():
        assert max(_differences([value[order] for value in _plain(model, batch)], _shared(model, mixed, 5))) < 1e-5


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["stored", "non_reentrant", "reentrant"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_gradients_are_trls(adapter, checkpointing):
    model, processor = _model()
    batch = _batch(processor)
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
    shared = _shared(model, batch)[0]
    assert (plain - shared).abs().max() < 1e-5
    found = _gradients(model, shared, batch)
    assert _relative(expected, found) < 1e-4
    assert adapter or any("visual" in name for name in found)


def test_completions_that_are_all_empty_have_no_effect(tiny):
    model, batch = tiny
    batch = {**batch, "attention_mask": batch["attention_mask"].clone()}
    batch["attention_mask"][:, -WIDTH:] = 0  # as with `mask_truncated_completions`
    logps, _ = _shared(model, batch)
    assert logps.shape == (12, WIDTH) and not logps.any()
    assert all(not gradient.any() for gradient in _gradients(model, logps, batch).values())


def test_lower_precision_costs_no_more_than_in_the_plain_layout(tiny):
    model, batch = tiny
    with torch.no_grad():
        exact = _plain(model, batch)[0]
        with torch.autocast("cpu", torch.bfloat16):
            plain, shared = _plain(model, batch)[0], _shared(model, batch)[0]
    assert (shared - exact).abs().mean() < 1.5 * (plain - exact).abs().mean() + 1e-3


@pytest.mark.parametrize("wrong", ["positions", "mask"])
def test_a_wrong_layout_is_seen_by_these_tests(tiny, monkeypatch, wrong):
    model, batch = tiny
    right_positions = shared_prefix.packed_positions
    if wrong == "positions":
        monkeypatch.setattr(
            shared_prefix,
            "packed_positions",
            lambda layout, *rest: right_positions(layout, *rest) + (layout.segment > 0),
        )
    else:
        monkeypatch.setattr(
            shared_prefix,
            "visible_mask",
            lambda segment: torch.ones(len(segment), 1, *[segment.shape[1]] * 2, dtype=torch.bool).tril(),
        )
    with torch.no_grad():
        plain, shared = _plain(model, batch)[0], _shared(model, batch)[0]
    assert (plain - shared).abs().max() > 0.05


# --- when it is used -------------------------------------------------------------------------------------------------


def _fall_back(model, batch, caplog, **changes):
    sharing = PrefixSharing("auto", 0, nullcontext)
    batch = {**batch, **changes}
    arguments = {name: batch.pop(name) for name in ("input_ids", "attention_mask", "logits_to_keep")}
    aux = batch.pop("compute_aux_loss", False)
    with caplog.at_level(logging.WARNING, logger="thurl"):
        for _ in range(2):
            assert (
                sharing.log_probs(model, **arguments, batch_size=None, multimodal=batch, compute_aux_loss=aux) is None
            )
    with pytest.raises(UsageError, match="`prefix_sharing: on` is not possible"):
        PrefixSharing("on", 0, nullcontext).log_probs(
            model, **arguments, batch_size=None, multimodal=batch, compute_aux_loss=aux
        )
    assert len(caplog.messages) == 1
    return caplog.messages[0]


def test_what_cannot_be_packed_falls_back_with_one_warning(tiny, caplog):
    model, batch = tiny
    nothing = {"pixel_values": None, "image_grid_thw": None, "num_images": None, "mm_token_type_ids": None}
    assert "text alone is not packed" in _fall_back(model, batch, caplog, **nothing)


def test_unknown_inputs_and_the_auxiliary_loss_fall_back(tiny, caplog):
    model, batch = tiny
    assert "image_sizes" in _fall_back(model, batch, caplog, image_sizes=torch.ones(1))
    caplog.clear()
    assert "auxiliary loss" in _fall_back(model, batch, caplog, compute_aux_loss=True)
    caplog.clear()
    markers = batch["mm_token_type_ids"].clone()
    markers[0, -1] = 1
    assert "completions hold pictures" in _fall_back(model, batch, caplog, mm_token_type_ids=markers)


def test_models_that_cannot_be_packed_are_named():
    model, _ = _model(layers=1)
    assert unsupported(model) is None
    model.model.language_model.config.layer_types = ["sliding_attention"]
    assert "sliding_attention" in unsupported(model)
    model.model.language_model.config.layer_types = ["full_attention"]
    model.model.language_model.config._attn_implementation_internal = "flash_attention_2"
    assert "flash_attention_2 takes no mask of pairs" in unsupported(model)
    model.model.language_model.config._attn_implementation_internal = "sdpa"
    model.config.model_type = "qwen9_vl"
    assert "qwen9_vl is not one of qwen2_5_vl" in unsupported(model)
    assert "architecture Linear" in unsupported(torch.nn.Linear(2, 2))


def test_adapters_with_tokens_of_their_own_are_not_packed():
    model, _ = _model(layers=1)
    model.peft_config = {"default": SimpleNamespace(is_prompt_learning=True)}
    assert "tokens of its own" in unsupported(model)


def test_auto_packs_only_where_it_is_less_work(tiny):
    model, batch = tiny
    assert _shared(model, batch, mode="auto") is not None
    single = _batch(_model()[1], [[(56, 56)], [(56, 56)]], [WIDTH] * 2, k=1)
    assert _shared(model, single, mode="auto") is None  # groups of one without padding: nothing to save
    large = SimpleNamespace(hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4)
    plain, packed = [(48, 1024 + 128)], [(8, 1024 + 6 * 129)]
    token_ratio = 48 * 1152 / (8 * 1798)
    assert 0.9 * token_ratio < estimate_speedup(large, plain, packed) <= token_ratio
    narrow = SimpleNamespace(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2)
    assert estimate_speedup(narrow, [(48, 64 + 256)], [(8, 64 + 6 * 257)]) < 1


# --- groups in TRL's buffer ------------------------------------------------------------------------------------------


def test_groups_stay_together_and_the_random_state_is_trls(tiny):
    _, batch = tiny
    output = {
        "prompt_ids": batch["input_ids"][:, :-WIDTH],
        "prompt_mask": batch["attention_mask"][:, :-WIDTH],
        "completion_ids": batch["input_ids"][:, -WIDTH:],
        "row": torch.arange(12),
        "num_items_in_batch": torch.tensor(34),
        "old_per_token_logps": None,
        **{name: batch[name] for name in ("pixel_values", "image_grid_thw", "num_images")},
    }
    torch.manual_seed(5)
    parts = shared_prefix.split_whole_groups(output, 2)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    trl_utils.shuffle_sequence_dict({"row": torch.arange(12)})
    assert torch.equal(state, torch.get_rng_state())
    pixels, grids = shared_prefix._per_row(batch)
    seen = []
    for part in parts:
        rows = part["row"].tolist()
        assert len(rows) == 6 and part["num_items_in_batch"] == 34 and part["old_per_token_logps"] is None
        for first in (0, 3):
            assert rows[first : first + 3] == list(range(rows[first], rows[first] + 3)) and rows[first] % 3 == 0
        torch.testing.assert_close(part["completion_ids"], output["completion_ids"][rows])
        torch.testing.assert_close(part["pixel_values"], torch.cat([pixels[row] for row in rows]))
        torch.testing.assert_close(part["image_grid_thw"], torch.cat([grids[row] for row in rows]))
        assert part["num_images"] == [batch["num_images"][row] for row in rows]
        seen += rows
    assert sorted(seen) == list(range(12)) and seen != sorted(seen)


def test_groups_without_pictures_stay_together():
    ids = torch.arange(4).repeat_interleave(3)[:, None]
    torch.manual_seed(0)
    parts = shared_prefix.split_whole_groups({"prompt_ids": ids, "prompt_mask": torch.ones_like(ids)}, 4)
    assert all(len(set(part["prompt_ids"].flatten().tolist())) == 1 for part in parts)


# --- inside the trainer ----------------------------------------------------------------------------------------------


def _length_reward(completions, **_):
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


def _trainer(tiny_folder, rated_images, path, prefix_sharing, adapter=False, model=None, **fields):
    defaults = {
        "use_cpu": True,
        "bf16": False,
        "optim": "sgd",  # Adam makes steps of rounding where a gradient is zero, as that of a key bias is
        "learning_rate": 0.05,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_steps": 3,
        "max_completion_length": 12,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 1,
    }
    torch.manual_seed(0)
    return RankGRPOTrainer(
        model or AutoModelForImageTextToText.from_pretrained(tiny_folder),
        reward_funcs=[_length_reward],
        args=RankGRPOConfig(str(path), **{**defaults, **fields}),
        train_dataset=build_rank_dataset(rated_images),
        processing_class=AutoProcessor.from_pretrained(tiny_folder),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if adapter else None,
        block_size=4,
        prefix_sharing=prefix_sharing,
    )


def _train(*arguments, **fields):
    trainer = _trainer(*arguments, **fields)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    names = ["loss", "grad_norm", "entropy", *(["kl"] if trainer.beta else [])]
    logged = [{name: entry[name] for name in names} for entry in trainer.state.log_history[:-1]]
    after = {name: value.detach() for name, value in trainer.model.named_parameters()}
    moved = max((after[name] - before[name]).abs().max().item() for name in after)
    return trainer, logged, after, moved


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"adapter": True},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
        {"num_iterations": 2, "max_steps": 4},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "max_steps": 2},
        {"gradient_checkpointing": False, "beta": 0.0},
    ],
    ids=["full", "lora", "accumulation", "two_iterations", "below_k", "no_reference"],
)
def test_a_run_is_the_plain_run(tiny_folder, rated_images, tmp_path, fields):
    _, expected, weights, moved = _train(tiny_folder, rated_images, tmp_path, "off", **fields)
    trainer, logged, found, _ = _train(tiny_folder, rated_images, tmp_path, "on", **fields)
    assert trainer._sharing.packed_calls >= len(logged)
    assert len(logged) == len(expected) >= 2 and any(entry["grad_norm"] > 0.01 for entry in logged)
    # TRL logs means over the tokens of each micro-batch, and with several of them other rows meet in one.
    loose = {"kl", "entropy"} if "gradient_accumulation_steps" in fields else set()
    for ours, theirs in zip(logged, expected, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=0.05 if name in loose else 1e-4, abs=1e-5), name
    apart = max((found[name] - weights[name]).abs().max().item() for name in weights)
    assert apart < 1e-3 * moved and apart < 1e-5
    if "kl" in logged[0]:
        assert logged[0]["kl"] == pytest.approx(0, abs=1e-6), "the reference is packed as the policy is"


def test_off_is_trls_own_and_other_words_are_refused(tiny_folder, rated_images, tmp_path):
    assert _trainer(tiny_folder, rated_images, tmp_path, "off")._sharing is None
    with pytest.raises(UsageError, match="it is 'auto', 'on' or 'off'"):
        _trainer(tiny_folder, rated_images, tmp_path, "always")


def test_a_model_that_cannot_be_packed_leaves_the_trainer_as_it_is(tiny_folder, rated_images, tmp_path, caplog):
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    options = {"model": model, "beta": 0.0}
    with caplog.at_level(logging.WARNING, logger="thurl"):
        assert _trainer(tiny_folder, rated_images, tmp_path, "auto", **options)._sharing is None
    said = [record.getMessage() for record in caplog.records if record.name == "thurl.rl.shared_prefix"]
    assert len(said) == 1 and "flash_attention_2 takes no mask of pairs" in said[0]
    with pytest.raises(UsageError, match="`prefix_sharing: on` is not possible: the attention implementation"):
        _trainer(tiny_folder, rated_images, tmp_path, "on", **options)


def test_evaluation_steps_are_packed_too(tiny_folder, rated_images, tmp_path):
    trainer = _trainer(tiny_folder, rated_images, tmp_path, "auto", max_steps=1)
    trainer.train()
    calls = trainer._sharing.packed_calls
    trainer.evaluate(build_rank_dataset(rated_images[:4]))
    assert trainer._sharing.packed_calls > calls > 0


def test_trl_still_has_what_is_overridden_and_called():
    """Fails when an installed TRL or transformers moves what `thurl.rl.shared_prefix` builds on."""
    parameters = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert parameters == [
        *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
        *("compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask"),
        *("spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
    ]
    assert list(inspect.signature(GRPOTrainer._prepare_inputs).parameters) == ["self", "generation_batch"]
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    for line in (
        'mode = "train" if self.model.training else "eval"',
        "generate_every = self.args.steps_per_generation * self.num_iterations",
        "if self._step % generate_every == 0 or self._buffered_inputs is None:",
        "generation_batch = self._generate_and_score_completions(generation_batch)",
        "generation_batch = split_pixel_values_by_grid(generation_batch)",
        "generation_batch = shuffle_sequence_dict(generation_batch)",
        "generation_batches = split_tensor_dict(generation_batch, self.args.steps_per_generation)",
        "self._buffered_inputs = [unsplit_pixel_values_by_grid(batch) for batch in generation_batches]",
        "inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]",
    ):
        assert line in source, line
    assert "permutation = torch.randperm(batch_size)" in inspect.getsource(trl_utils.shuffle_sequence_dict)
    call = inspect.getsource(GRPOTrainer._get_per_token_logps_and_entropies)
    assert "outputs = model(**model_inputs, labels=labels, fused_lm_head=True)" in call
    assert "labels = labels[:, 1:]" in inspect.getsource(trl_utils.add_fused_lm_head)
    assert "compute_aux_loss=self.aux_loss_enabled" in inspect.getsource(GRPOTrainer._compute_loss)
    rope = list(inspect.signature(Qwen2_5_VLModel.get_rope_index).parameters)
    assert rope[:4] == ["self", "input_ids", "mm_token_type_ids", "image_grid_thw"] and "attention_mask" in rope
