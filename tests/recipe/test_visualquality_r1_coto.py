"""CoTo inside VisualQuality-R1: masks beside prefix sharing, frozen and adapted vision towers, and vLLM's numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from thurl.coto import CoToConfig
from thurl.data.records import RatedImage
from thurl.errors import ThurlError
from thurl.recipe.adapters import AdapterSection, peft_config
from thurl.recipe.coto import CoToSection
from thurl.recipe.validate import load_recipe, resolved
from thurl.recipe.visualquality_r1_coto import CoToRankGRPOTrainer, rank_trainer
from thurl.recipe.visualquality_r1_plan import planned_run
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.rl.tiny import build_tiny_qwen2_5_vl


ROOT = Path(__file__).parents[2]
ONE_ON = {"initial_p": 0.0, "final_p": 0.0, "schedule": "constant"}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    found = []
    for index in range(8):
        file = path / f"{index}.png"
        Image.fromarray(draw.integers(0, 256, (56, 56, 3), np.uint8)).save(file)
        found.append(RatedImage(str(file), 1 + index / 3, dataset="five"))
    return found


def reward(completions, **_):
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


def trainer_of(folder, records, coto=None, adapter=None, prefix_sharing="off", **fields):
    """A trainer as the recipe's run makes it; its adapter is random, not zero."""
    model, processor = build_tiny_qwen2_5_vl(0, layers=3)
    arguments = {
        "use_cpu": True, "bf16": False, "learning_rate": 1e-3, "per_device_train_batch_size": 16,
        "num_generations": 4, "max_steps": 2, "max_completion_length": 6, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "gradient_checkpointing": False, "disable_tqdm": True, "seed": 1, **fields,
    }  # fmt: skip
    trainer = rank_trainer(CoToSection(**ONE_ON | (coto or {})))(
        model, reward_funcs=[reward], args=RankGRPOConfig(str(folder), **arguments), processing_class=processor,
        train_dataset=build_rank_dataset(records), block_size=4, prefix_sharing=prefix_sharing,
        peft_config=peft_config(AdapterSection(**{"r": 4, **(adapter or {})})),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return trainer


def captured(trainer, name):
    """Keeps arguments and result of each call of one of the trainer's methods."""
    kept, original = [], getattr(trainer, name)

    def call(*args, **kwargs):
        result = original(*args, **kwargs)
        kept.append((args, kwargs, result))
        return result

    setattr(trainer, name, call)
    return kept


def test_the_section_chooses_the_trainer():
    assert rank_trainer(None) is RankGRPOTrainer
    made = rank_trainer(CoToSection(seed=4))
    assert made.func is CoToRankGRPOTrainer
    assert made.keywords == {"coto": CoToConfig(seed=4), "coto_old_logprobs": "masked_old"}
    assert rank_trainer(CoToSection(old_logprobs="detach")).keywords["coto_old_logprobs"] == "detach"


def test_a_recipe_with_coto_is_planned_with_all_adapters_on():
    """What needs most is the last part of the run, which is the same without CoTo."""

    def planned(*overrides):
        loaded = load_recipe(ROOT / "recipes" / "coto_vlm_grpo.yaml", overrides, processes=1)
        return planned_run(loaded.recipe, gpus=1)

    with_coto, without = planned(), planned("coto=null")
    assert with_coto.run == without.run
    (said,) = set(with_coto.assumptions) - set(without.assumptions)
    assert "all adapters on" in said
    assert "`adapter.kind: dora` counts as a LoRA of its rank" in planned("adapter.kind=dora").assumptions


def test_the_recipe_differs_from_lora_where_it_says():
    base, other = (
        resolved(load_recipe(ROOT / "recipes" / f"{name}.yaml").recipe)
        for name in ("visualquality_r1_lora", "coto_vlm_grpo")
    )
    assert {section for section in base if base[section] != other[section]} == {"coto", "training", "hub", "report"}
    changed = {key for key in other["training"] if other["training"][key] != base["training"].get(key)}
    assert changed == {
        "output_dir", "learning_rate", "vllm_importance_sampling_mode", "ddp_find_unused_parameters"
    }  # fmt: skip


def test_packed_rows_see_the_mask_that_plain_rows_see(tmp_path, records):
    """The update, with pictures: the same log-probabilities under one mask; without the mask they are others."""
    trainer = trainer_of(tmp_path, records, prefix_sharing="on", max_steps=1, beta=0.0)
    losses = []
    original = trainer._get_per_token_logps_and_entropies

    def score(*args, **kwargs):
        result = original(*args, **kwargs)
        if torch.is_grad_enabled():
            sharing, trainer._sharing = trainer._sharing, None
            try:
                with torch.no_grad():
                    plain = RankGRPOTrainer._get_per_token_logps_and_entropies(trainer, *args, **kwargs)
                    with trainer.coto_callback.controller.all_active():
                        whole = RankGRPOTrainer._get_per_token_logps_and_entropies(trainer, *args, **kwargs)
            finally:
                trainer._sharing = sharing
            losses.append((result[0].detach(), plain[0], whole[0], sharing.packed_calls))
        return result

    trainer._get_per_token_logps_and_entropies = score
    trainer.train()
    ((shared, plain, whole, packed),) = losses
    assert packed > 0
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-5)
    assert (shared - whole).abs().max() > 1e-2


@pytest.mark.parametrize("sharing", ["off", "on"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, records, sharing):
    """Stopped between two optimizer steps that use the same completions, which share a mask."""
    fields = {
        **{"num_iterations": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "seed": 3},
        "lr_scheduler_type": "constant",
    }
    coto = {"initial_p": 0.3, "final_p": 1.0, "schedule": "linear"}
    whole = trainer_of(tmp_path, records, coto, prefix_sharing=sharing, **fields)
    masks = captured(whole.coto_callback, "on_step_begin")
    whole.train()
    assert len(masks) == 6 and whole.coto_callback.config.hold == 2
    again = trainer_of(tmp_path, records, coto, prefix_sharing=sharing, **fields)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    logs = [
        [entry["coto/active"] for entry in trainer.state.log_history if "coto/active" in entry]
        for trainer in (whole, again)
    ]
    assert logs[0] == logs[1] and len(set(logs[0])) > 1
    for (name, a), (_, b) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_towers_and_their_groups(tmp_path, records):
    trainer = trainer_of(tmp_path, records, {"min_active_per_tower": True}, {"exclude_vision": False}, max_steps=1)
    steps = captured(trainer, "_compute_loss")
    trainer.train()
    controller = trainer.coto_callback.controller
    towers = dict(zip(controller.groups, controller.towers, strict=True))
    assert {tower: list(towers.values()).count(tower) for tower in set(towers.values())} == {
        "vision": 2,
        "language": 3,
    }
    assert steps and trainer.state.log_history[0]["coto/active"] == 2  # one in each
    language = trainer_of(tmp_path, records, max_steps=1)
    language.train()
    assert list(language.coto_callback.controller.towers) == ["language"] * 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_with_vision_adapters_alone_trains_them(tmp_path, records, checkpointing):
    """Skipping towers that nothing trains, and checkpointing, do not cut the way back to the one active block."""
    coto = {"initial_p": 1.0, "final_p": 1.0, "include": ["visual", "layers"]}
    trainer = trainer_of(
        tmp_path, records, coto, {"exclude_vision": False}, max_steps=1, gradient_checkpointing=checkpointing
    )
    gradients = {}

    def begin(*args, **kwargs):
        controller = trainer.coto_callback.controller
        controller.mask = lambda step: tuple("visual.blocks.0" in group for group in controller.groups)

    trainer.coto_callback.on_epoch_begin = begin
    original = trainer.training_step

    def step(*args, **kwargs):
        loss = original(*args, **kwargs)
        gradients.update({name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad})
        return loss

    trainer.training_step = step
    trainer.train()
    on = {name for name, gradient in gradients.items() if gradient is not None}
    assert on == {name for name in gradients if "visual.blocks.0." in name}
    assert any(gradients[name].abs().max() > 0 for name in on)


def test_a_frozen_tower_keeps_no_graph_under_masks(tmp_path, records):
    trainer = trainer_of(tmp_path, records, max_steps=1, gradient_checkpointing=True)
    wants = []
    tower = next(module for name, module in trainer.model.named_modules() if name.endswith("visual"))
    tower.register_forward_hook(lambda module, args, out: wants.append(out.pooler_output))
    trainer.train()
    assert wants
    assert not any(value.requires_grad for value in torch.utils._pytree.tree_leaves(wants))


def test_vllm_is_compared_with_the_whole_policy(tmp_path, records):
    """vLLM has every adapter: its numbers must be those of the whole policy, not of the masked one."""
    trainer = trainer_of(tmp_path, records, max_steps=1, num_iterations=2)
    seen = {}
    original = trainer._generate_and_score_completions

    def generate(inputs):
        outputs = original(inputs)
        outputs = dict(outputs)
        whole = trainer.whole_policy_logps(outputs)
        mask = outputs["completion_mask"].bool()
        masked = (outputs["old_per_token_logps"] - whole).abs()[mask].mean().item()
        outputs["sampling_per_token_logps"] = whole.clone()
        outputs["sampling_per_token_logps"][0, 0] = float("nan")
        outputs["sampling_per_token_logps"][:, 1:] -= 0.25 * mask[:, 1:]
        expected = 0.25 * mask[:, 1:].sum() / (mask.sum() - 1)
        seen.update(masked=masked, found=trainer._rollout_difference(outputs), expected=expected.item())
        outputs.pop("sampling_per_token_logps")
        seen["without"] = trainer._rollout_difference(outputs)
        return outputs

    trainer._generate_and_score_completions = generate
    trainer.train()
    assert seen["masked"] > 0.05  # TRL's own number would stop the run
    assert seen["found"] == pytest.approx(seen["expected"], abs=1e-5)
    assert seen["without"] is None


def test_the_guard_still_stops_wrong_rollouts(tmp_path, records, monkeypatch):
    trainer = trainer_of(tmp_path, records, max_steps=1)
    monkeypatch.setattr(CoToRankGRPOTrainer, "_rollout_difference", lambda self, outputs: 0.2)
    with pytest.raises(ThurlError, match="disagree"):
        trainer.train()
