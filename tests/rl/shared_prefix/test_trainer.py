"""A training run with shared prompts is the plain run."""

import inspect
import logging

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from trl import GRPOTrainer
from trl.trainer import utils as trl_utils

from thurl.errors import UsageError
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.rl.shared_prefix import split_whole_groups, update
from thurl.rl.shared_prefix.attention import ATTENTION


def test_groups_stay_together_and_the_random_state_is_trls(prefix, tiny):
    _, batch = tiny
    output = {
        "prompt_ids": batch["input_ids"][:, : -prefix.WIDTH],
        "prompt_mask": batch["attention_mask"][:, : -prefix.WIDTH],
        "completion_ids": batch["input_ids"][:, -prefix.WIDTH :],
        "row": torch.arange(12),
        "num_items_in_batch": torch.tensor(34),
        "old_per_token_logps": None,
        **{name: batch[name] for name in ("pixel_values", "image_grid_thw", "num_images")},
    }
    torch.manual_seed(5)
    parts = split_whole_groups(output, 2)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    trl_utils.shuffle_sequence_dict({"row": torch.arange(12)})
    assert torch.equal(state, torch.get_rng_state())
    pixels, grids = update._per_row(batch)
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
    parts = split_whole_groups({"prompt_ids": ids, "prompt_mask": torch.ones_like(ids)}, 4)
    assert all(len(set(part["prompt_ids"].flatten().tolist())) == 1 for part in parts)


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
    for model in [trainer.model] if trainer.ref_model is None else [trainer.model, trainer.ref_model]:
        assert update._backbone(model).language_model.config._attn_implementation == ATTENTION
        assert update._backbone(model).visual.config._attn_implementation == "sdpa"


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
    said = [record.getMessage() for record in caplog.records if record.name == "thurl.rl.shared_prefix.update"]
    assert len(said) == 1 and "flash_attention_2 knows no packed rows" in said[0]
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
