"""CoTo in GRPO: rollouts, reference and evaluation see all adapters; three kinds of old log-probabilities."""

import inspect
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from trl import GRPOConfig, GRPOTrainer

from thurl.coto import CoToCallback, CoToConfig, CoToGRPOMixin
from thurl.coto.schedule import generation_period
from thurl.data.records import RatedImage
from thurl.errors import UsageError
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.rl.tiny import build_tiny_qwen2_5_vl


class CoToRankGRPOTrainer(CoToGRPOMixin, RankGRPOTrainer):
    pass


# All but one adapter off, in every step: the masked policy is far from the whole one.
CONFIG = CoToConfig(initial_p=0.0, final_p=0.0, schedule="constant")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    found = []
    for index in range(12):
        file = path / f"{index}.png"
        Image.fromarray(np.full((56, 56, 3), 20 * index, np.uint8)).save(file)
        found.append(RatedImage(str(file), 1 + index / 3, dataset="five"))
    return found


LORA = LoraConfig(r=4, target_modules=r".*(language_model|visual\.blocks).*(up|v)_proj")


def randomise(model):
    """Makes every update non-zero, the same on each call."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def reward(completions, **_):
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


def trainer_for(folder, records, mode=None, config=CONFIG, eval_dataset=None, given_adapter=False, **fields):
    """With a given adapter TRL's reference is a copy of it, named "ref"; with its own, the model without adapter."""
    model, processor = build_tiny_qwen2_5_vl(0)
    if given_adapter:
        model = randomise(get_peft_model(model, LORA))
    arguments = {
        "use_cpu": True, "bf16": False, "learning_rate": 1e-3, "per_device_train_batch_size": 16,
        "num_generations": 4, "max_steps": 2, "max_completion_length": 6, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "gradient_checkpointing": False, "disable_tqdm": True, "seed": 1, **fields,
    }  # fmt: skip
    options = {"coto": config, "coto_old_logprobs": mode} if mode else {"callbacks": [CoToCallback(config)]}
    trainer = (CoToRankGRPOTrainer if mode else RankGRPOTrainer)(
        model, reward_funcs=[reward], args=RankGRPOConfig(str(folder), **arguments), eval_dataset=eval_dataset,
        train_dataset=build_rank_dataset(records), processing_class=processor, block_size=4,
        peft_config=None if given_adapter else LORA, **options,
    )  # fmt: skip
    if not given_adapter:
        randomise(trainer.model)
    return trainer


def callback_of(trainer):
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, CoToCallback)]
    return callback


def spied(trainer):
    """What each pass over completions computed, beside what the whole policy and the base model compute for it."""
    kept = []
    original = type(trainer)._get_per_token_logps_and_entropies

    def score(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        result = original(trainer, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        peft = trainer.accelerator.unwrap_model(trainer.model)
        layer = next(module for module in peft.modules() if isinstance(module, BaseTunerLayer))
        reference = layer.disable_adapters or layer.active_adapters == ["ref"]
        pictures = {k: kwargs.get(k) for k in ("pixel_values", "image_grid_thw", "mm_token_type_ids", "num_images")}
        plain = partial(
            GRPOTrainer._get_per_token_logps_and_entropies, trainer, peft, input_ids, attention_mask, logits_to_keep,
            **pictures,
        )  # fmt: skip
        with torch.no_grad():
            with callback_of(trainer).controller.all_active():
                whole = plain()[0]
            with callback_of(trainer).controller.all_active(), peft.disable_adapter():
                base = plain()[0]
        pass_ = "reference" if reference else "loss" if torch.is_grad_enabled() else "old"
        kept.append({"pass": pass_, "logps": result[0].detach(), "whole": whole, "base": base})
        return result

    trainer._get_per_token_logps_and_entropies = score
    return kept


def first(kept, pass_):
    return next(entry for entry in kept if entry["pass"] == pass_)


def far(a, b):
    return (a - b).abs().max() > 1e-2


@pytest.mark.parametrize("given_adapter", [False, True], ids=["own", "given"])
@pytest.mark.parametrize("mode", ["masked_old", "full_old", "detach"])
def test_what_each_pass_sees(tmp_path, records, mode, given_adapter):
    trainer = trainer_for(tmp_path, records, mode, given_adapter=given_adapter, max_steps=1, num_iterations=2)
    kept = spied(trainer)
    trainer.train()
    old, reference, loss = first(kept, "old"), first(kept, "reference"), first(kept, "loss")
    assert far(loss["whole"], loss["base"])
    assert far(loss["logps"], loss["whole"]) and far(loss["logps"], loss["base"]), "the update is the masked policy's"
    expected = reference["whole" if given_adapter else "base"]
    torch.testing.assert_close(reference["logps"], expected, rtol=0, atol=1e-5)
    if mode == "masked_old":
        assert far(old["logps"], old["whole"])
    else:
        torch.testing.assert_close(old["logps"], old["whole"], rtol=0, atol=1e-5)
    ratio = trainer.state.log_history[0]["coto/abs_log_ratio"]
    assert (ratio > 1e-2) if mode == "full_old" else (ratio == pytest.approx(0, abs=1e-5))


@pytest.mark.parametrize("mode", ["masked_old", "full_old", None], ids=str)
def test_rollouts_come_from_the_whole_policy(tmp_path, records, mode):
    """In training mode and inside a step, also with the plain callback."""
    trainer = trainer_for(tmp_path, records, mode, max_steps=1)
    seen = {True: [], False: []}
    generating = []
    original = trainer._generate_single_turn

    def generate(*args, **kwargs):
        generating.append(True)
        try:
            return original(*args, **kwargs)
        finally:
            generating.pop()

    trainer._generate_single_turn = generate
    model = trainer.accelerator.unwrap_model(trainer.model)
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def look(module, *_):
        on = sum(not layer._coto_off for layer in layers)
        seen[bool(generating)].append((on, module.training, callback_of(trainer).controller.open_step))

    model.get_base_model().register_forward_pre_hook(look)
    trainer.train()
    assert len(seen[True]) > 1 and set(seen[True]) == {(len(layers), True, 0)}
    assert seen[False][-1][0] < len(layers)


def test_full_old_without_trls_own_old_log_probabilities(tmp_path, records):
    """Where TRL would take the ratio as 1, "full_old" computes what it needs itself."""
    plain = trainer_for(tmp_path, records, "masked_old", max_steps=1)
    plain.train()
    assert plain.state.log_history[0]["coto/abs_log_ratio"] == 0
    full = trainer_for(tmp_path, records, "full_old", max_steps=1)
    full.train()
    assert full.state.log_history[0]["coto/abs_log_ratio"] > 1e-2


def test_all_modes_are_ordinary_grpo_at_p_one(tmp_path, records):
    def trained(mode):
        config = CoToConfig(stage1_ratio=0.0)
        trainer = trainer_for(tmp_path, records, mode, config)
        trainer.train()
        return [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]

    masked, full, detach = trained("masked_old"), trained("full_old"), trained("detach")
    for a, b, c in zip(masked, full, detach, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        torch.testing.assert_close(a, c, rtol=0, atol=0)


def test_evaluation_sees_all_adapters(tmp_path, records):
    trainer = trainer_for(
        tmp_path, records, "masked_old", max_steps=1, per_device_eval_batch_size=4, eval_strategy="steps",
        eval_steps=1, eval_dataset=build_rank_dataset(records[:4]),
    )  # fmt: skip
    kept = spied(trainer)
    trainer.train()
    assert kept[-1]["pass"] == "old"  # without gradients, with adapters: evaluation
    torch.testing.assert_close(kept[-1]["logps"], kept[-1]["whole"], rtol=0, atol=1e-5)
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert log["coto/active"] == 1 and trainer.callback_handler.callbacks[0] is trainer.coto_callback


def test_hold_follows_the_generation_cycle(tmp_path, records):
    assert [generation_period(*numbers) for numbers in ((4, 1, 4), (4, 2, 4), (8, 1, 4), (2, 1, 4), (3, 1, 2))] == [
        1, 2, 2, 1, None,
    ]  # fmt: skip
    cycle = {"num_iterations": 2, "gradient_accumulation_steps": 1, "steps_per_generation": 1}
    assert trainer_for(tmp_path, records, "masked_old", **cycle).coto_callback.config.hold == 2
    assert trainer_for(tmp_path, records, "full_old", **cycle).coto_callback.config.hold == 1
    with pytest.raises(UsageError, match="`hold` is 3.*multiple of 2"):
        trainer_for(tmp_path, records, "masked_old", CoToConfig(hold=3), **cycle)
    with pytest.raises(UsageError, match="coto_old_logprobs"):
        trainer_for(tmp_path, records, "old")


def test_overridden_methods_of_trl_have_their_signatures():
    signatures = {
        "_generate": ["self", "prompts"],
        "_generate_and_score_completions": ["self", "inputs"],
        "_compute_loss": ["self", "model", "inputs"],
    }
    for name, parameters in signatures.items():
        assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters
    score = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert score[:6] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"]
    loss = inspect.getsource(GRPOTrainer._compute_loss)
    assert 'inputs.get("old_per_token_logps")' in loss and "per_token_logps.detach() if old_per_token_logps" in loss
    # Rollouts do not leave training mode, which is why `generate` is wrapped.
    assert ".eval()" not in inspect.getsource(GRPOTrainer._generate_single_turn)
    assert {"steps_per_generation", "num_iterations"} <= set(inspect.signature(GRPOConfig).parameters)
