import inspect
import json

import pandas
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from thurl.errors import ThurlError, UsageError
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, RankReward, build_rank_dataset
from thurl.rl.trainer import check_image_markers, check_rollout, freeze_parameters

from ..training.tracker_places import trackers_in


def _args(folder, **fields):
    defaults = {
        "use_cpu": True,
        "bf16": False,
        "learning_rate": 5e-2,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_steps": 2,
        "max_completion_length": 12,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 1,
    }
    return RankGRPOConfig(str(folder), **{**defaults, **fields})


def _random_length_reward(completions, **_):
    """Something that differs between completions of an untrained model, which never answers in the format."""
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


def _trainer(tiny_folder, rated_images, tmp_path, *, model=None, processor=None, rewards=None, args=None, **kwargs):
    return RankGRPOTrainer(
        model if model is not None else AutoModelForImageTextToText.from_pretrained(tiny_folder),
        reward_funcs=rewards,
        args=args or _args(tmp_path),
        train_dataset=build_rank_dataset(rated_images),
        processing_class=processor or AutoProcessor.from_pretrained(tiny_folder),
        **{"block_size": 4, **kwargs},
    )


def _weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_completions_name_picture_score_and_failure_in_file_and_trackers(
    tiny_folder, rated_images, tmp_path, monkeypatch
):
    """Trackers that are installed take part; the table on the disk is there without any."""
    trackers = trackers_in(tmp_path, monkeypatch)
    rewards = [_random_length_reward, RankReward(4)]
    fields = {"max_steps": 1, "log_completions": True, "num_completions_to_print": 1, "report_to": trackers}
    trainer = _trainer(tiny_folder, rated_images, tmp_path, rewards=rewards, args=_args(tmp_path, **fields))
    trainer.train()
    table = sorted((tmp_path / "completions").glob("*.jsonl"))[0]
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert len(rows) == len(pandas.read_parquet(table.with_suffix(".parquet"))) == trainer.args.generation_batch_size
    names = {f"{record.dataset}/{record.image}" for record in rated_images}
    for row in rows:  # an untrained model does not answer in the format
        assert row["image_id"] in names and isinstance(row["completion"], str) and row["advantage"] is not None
        assert row["score"] is None and row["failed"] is True
        assert row["rewards"]["thurstone_fidelity"] == 0.0
    assert any("reward" in json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    if "tensorboard" in trackers:
        assert list((tmp_path / "events").glob("events.*"))
    if "trackio" in trackers:
        assert list((tmp_path / "trackio").rglob("*.db"))
    if "wandb" in trackers:
        import wandb

        shown = dict(wandb.run.summary)
        wandb.finish()
        assert {"train/reward", "completions"} <= set(shown)


def test_every_parameter_moves(tiny_folder, rated_images, tmp_path):
    trainer = _trainer(tiny_folder, rated_images, tmp_path, rewards=[_random_length_reward, RankReward(4)])
    before = _weights(trainer.model)
    trainer.train()
    still = [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])]
    assert not still
    logged = trainer.state.log_history[0]
    assert {"rank/parse_rate", "rank/no_partner", "rewards/thurstone_fidelity/mean", "kl"} <= set(logged)


def test_frozen_vision_tower_stays(tiny_folder, rated_images, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    frozen = freeze_parameters(model, ["vision"])
    assert frozen == sum(p.numel() for name, p in model.named_parameters() if ".visual." in name) > 0
    trainer = _trainer(tiny_folder, rated_images, tmp_path, model=model, rewards=[_random_length_reward])
    before = _weights(trainer.model)
    trainer.train()
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]) == (".visual." in name), name


def test_freeze_refuses_unknown_parts(tiny_folder):
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    with pytest.raises(UsageError, match="'audio'"):
        freeze_parameters(model, ["audio"])
    with pytest.raises(UsageError, match="no such parameters"):
        freeze_parameters(torch.nn.Linear(2, 2), ["vision"])


def test_batches_are_blocks_of_one_dataset(tiny_folder, rated_images, tmp_path):
    args = _args(
        tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2, num_train_epochs=3, max_steps=-1
    )
    trainer = _trainer(tiny_folder, rated_images, tmp_path, args=args)
    loader = trainer.get_train_dataloader()
    seen = []
    for rows in loader:
        assert len(rows) == 16 and len({row["dataset"] for row in rows}) == 1
        ids = [row["image_id"] for row in rows]
        assert ids == [identity for identity in dict.fromkeys(ids) for _ in range(4)]
        seen.append(tuple(dict.fromkeys(ids)))
    # each generation batch comes once per accumulated micro-batch, and the length is exact
    assert len(seen) == len(loader) == 12 and seen[0] == seen[1]
    assert len({identity for batch in seen for identity in batch}) == 24


def test_right_padding_is_corrected_and_misaligned_markers_are_refused(tiny_folder, rated_images, tmp_path):
    processor = AutoProcessor.from_pretrained(tiny_folder)
    processor.tokenizer.padding_side = "right"
    trainer = _trainer(tiny_folder, rated_images, tmp_path, processor=processor)
    assert processor.tokenizer.padding_side == "left"
    processor.tokenizer.padding_side = "right"  # as a processor set by hand after the trainer was built
    # The datasets hold pictures of two sizes, so a batch has prompts of two lengths.
    with pytest.raises(ThurlError, match="did not pad on the left"):
        trainer.train()


def test_markers_check_accepts_what_agrees():
    ids = torch.tensor([[0, 7, 7, 3], [7, 7, 7, 3]])
    markers = torch.cat([(ids == 7).long(), torch.zeros(2, 5, dtype=torch.long)], dim=1)
    check_image_markers({"prompt_ids": ids, "mm_token_type_ids": markers}, 7)
    check_image_markers({"prompt_ids": ids}, 7)
    markers[0, 0] = 1
    with pytest.raises(ThurlError, match=r"rows \[0\]"):
        check_image_markers({"prompt_ids": ids, "mm_token_type_ids": markers}, 7)


@pytest.mark.parametrize(("difference", "fine"), [(0.002, True), (0.54, False), (float("nan"), False)])
def test_rollouts_of_another_model_are_refused(difference, fine):
    if fine:
        check_rollout(difference)
    else:
        with pytest.raises(ThurlError, match="another prompt or other weights"):
            check_rollout(difference)


def test_defaults_are_the_papers():
    ours, theirs = RankGRPOConfig("x", use_cpu=True, bf16=False), GRPOConfig("x", use_cpu=True, bf16=False)
    expected = {
        "num_generations": 6,
        "per_device_train_batch_size": 48,
        "max_completion_length": 256,
        "beta": 0.04,
        "loss_type": "grpo",
        "use_bias_correction_kl": False,
        "num_train_epochs": 10,
        "learning_rate": 1e-6,
        "epsilon": 0.2,
        "temperature": 1.0,
        "scale_rewards": "group",
        "log_multimodal": False,
    }
    assert {name: getattr(ours, name) for name in expected} == expected
    assert str(ours.lr_scheduler_type) in ("linear", "SchedulerType.LINEAR")
    # When TRL adopts one of these, the override can go.
    for name in ("num_generations", "max_completion_length", "beta", "loss_type", "use_bias_correction_kl"):
        assert getattr(theirs, name) != expected[name], name


def test_overridden_private_methods_still_have_their_signatures():
    """Fails when an installed TRL moves what `RankGRPOTrainer` and the distributed test build on."""
    signatures = {
        "_get_train_sampler": ["self", "dataset"],
        "_generate_and_score_completions": ["self", "inputs"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_tokenize_prompts": ["self", "prompts"],
    }
    for name, parameters in signatures.items():
        assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters
    assert "_image_pad_token_id" in inspect.getsource(GRPOTrainer.__init__)
    # What a checkpoint holds of a generation cycle.
    inputs = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self._step % generate_every == 0 or self._buffered_inputs is None" in inputs
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in inputs
    assert "self._step += 1" in inspect.getsource(GRPOTrainer.training_step)
    assert "self._metrics[mode].clear()" in inspect.getsource(GRPOTrainer.log)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"per_device_train_batch_size": 12}, {}, "no whole number of blocks of 4"),
        ({}, {"block_size": 16}, "no whole number of blocks of 16"),
        # What many processes do to a small data set: 24 pictures are 6 blocks.
        ({"per_device_train_batch_size": 112}, {}, "6 blocks of 4 images do not fill .* of 7 blocks.*fewer processes"),
        ({"per_device_train_batch_size": 64}, {"block_size": 16}, "smaller than a block of 16"),
        ({}, {"sampler_weights": {"five": 1.0}}, "no entry for"),
    ],
)
def test_impossible_batches_are_refused_before_the_model_loads(rated_images, tmp_path, fields, options, message):
    with pytest.raises(UsageError, match=message):
        RankGRPOTrainer(
            "no-such-model",
            args=_args(tmp_path, **fields),
            train_dataset=build_rank_dataset(rated_images),
            **{"block_size": 4, **options},
        )


def test_missing_pieces(tmp_path, rated_images):
    with pytest.raises(UsageError, match="`args` is missing"):
        RankGRPOTrainer("m", train_dataset=build_rank_dataset(rated_images))
    with pytest.raises(UsageError, match="map-style dataset"):
        RankGRPOTrainer("m", args=_args(tmp_path))


def test_a_dataset_without_the_dataset_column_is_one_dataset(tiny_folder, rated_images, tmp_path):
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "?"}]] * 8, "mos": [1.0] * 8})
    trainer = RankGRPOTrainer(
        AutoModelForImageTextToText.from_pretrained(tiny_folder),
        args=_args(tmp_path),
        train_dataset=dataset,
        processing_class=AutoProcessor.from_pretrained(tiny_folder),
        block_size=4,
    )
    assert len(trainer.get_train_dataloader()) == 2


def test_rank_reward_in_a_plain_grpo_trainer(tiny_folder, rated_images, tmp_path):
    fields = {"learning_rate": 1e-3, "loss_type": "grpo", "beta": 0.0}
    arguments = _args(tmp_path, **fields).to_dict()
    keep = {name: arguments[name] for name in inspect.signature(GRPOConfig).parameters if name in arguments}
    keep.pop("generation_batch_size")
    trainer = GRPOTrainer(
        str(tiny_folder),
        reward_funcs=[RankReward()],
        args=GRPOConfig(**keep),
        train_dataset=build_rank_dataset(rated_images),
        processing_class=AutoProcessor.from_pretrained(tiny_folder),
    )
    trainer.train()
    assert trainer.state.log_history[0]["rewards/thurstone_fidelity/mean"] == 0.0  # nothing parses yet
