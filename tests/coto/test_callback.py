"""CoTo inside `transformers.Trainer`: resume, evaluation, saving, logs, and what is refused."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.training_args import ParallelMode

from thurl.coto import CoToCallback, CoToConfig, apply_coto
from thurl.coto.callback import SIDE_FILE
from thurl.coto.layout import adapter_parameters, find_groups
from thurl.coto.optimizers import split_by_group
from thurl.errors import UsageError
from thurl.training.checkpoints import checkpoint_problems
from thurl.training.exact_resume import ExactResumeTrainer
from thurl.version import __version__


@pytest.fixture(scope="module")
def dataset():
    rows = np.random.default_rng(0).integers(3, 64, (32, 10)).tolist()
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


class Spy(TrainerCallback):
    """Masks and gradients of each optimizer step, as they were when the optimizer ran."""

    def __init__(self, callback, stop_after=None):
        self.callback, self.stop_after = callback, stop_after
        self.masks, self.trained, self.micro = {}, {}, []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.masks[state.global_step] = self.callback.controller.active
        self.trained[state.global_step] = tuple(
            any(p.grad is not None for n, p in model.named_parameters() if f".layers.{layer}." in n)
            for layer in range(len(self.callback.controller.groups))
        )

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.stop_after:
            control.should_training_stop = True


def trainer_for(model, folder, dataset, config=None, cls=Trainer, stop_after=None, eval_dataset=None, **arguments):
    callback = CoToCallback(config or CoToConfig())
    spy = Spy(callback, stop_after)
    arguments = {
        "max_steps": 12, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3, **arguments,
    }  # fmt: skip
    trainer = cls(
        model, TrainingArguments(str(folder), **arguments), train_dataset=dataset, eval_dataset=eval_dataset,
        callbacks=[callback, spy],
    )  # fmt: skip
    return trainer, callback, spy


@pytest.fixture(scope="module")
def uninterrupted(adapted, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    model = adapted()
    trainer, callback, spy = trainer_for(model, folder, dataset, cls=ExactResumeTrainer)
    trainer.train()
    return spy, model, trainer, callback


def test_every_step_trains_the_mask_of_its_number(uninterrupted, adapted):
    spy, model, trainer, callback = uninterrupted
    controller = apply_coto(adapted(), CoToConfig(), total_steps=12)
    assert spy.masks == {step: controller.mask(step) for step in range(12)}
    assert spy.trained == spy.masks
    assert not all(spy.masks[0]) and all(spy.masks[11])
    assert callback.controller.detached


def test_logs_hold_probability_and_active_groups(uninterrupted):
    spy, _, trainer, callback = uninterrupted
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 12
    for step, entry in enumerate(logged):
        assert entry["coto/p"] == pytest.approx(callback.controller.p(step))
        assert entry["coto/active"] == sum(spy.masks[step])
        assert entry["coto/active_frac"] == sum(spy.masks[step]) / 4


@pytest.mark.parametrize("stop", [1, 5, 10])
def test_a_resumed_run_is_the_uninterrupted_one(adapted, dataset, tmp_path, uninterrupted, stop):
    whole, whole_model, _, _ = uninterrupted
    first, _, before = trainer_for(
        adapted(), tmp_path, dataset, cls=ExactResumeTrainer, stop_after=stop, save_strategy="steps", save_steps=stop
    )
    first.train()
    checkpoint = get_last_checkpoint(str(tmp_path))
    assert checkpoint.endswith(f"checkpoint-{stop}") and sorted(before.masks) == list(range(stop))
    assert json.loads(open(f"{checkpoint}/{SIDE_FILE}").read())["total_steps"] == 12
    assert not checkpoint_problems(checkpoint)  # the side file does not make a sealed checkpoint look damaged
    model = adapted(seed=0)
    second, _, after = trainer_for(model, tmp_path, dataset, cls=ExactResumeTrainer)
    second.train(resume_from_checkpoint=checkpoint)
    assert {**before.masks, **after.masks} == whole.masks and sorted(after.masks) == list(range(stop, 12))
    for (name, ours), theirs in zip(model.named_parameters(), whole_model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_resume_works_with_the_plain_trainer_and_restored_callbacks(adapted, dataset, tmp_path, uninterrupted):
    first, _, _ = trainer_for(adapted(), tmp_path, dataset, stop_after=4, save_strategy="steps", save_steps=4)
    first.train()
    second, _, spy = trainer_for(adapted(), tmp_path, dataset, restore_callback_states_from_checkpoint=True)
    second.remove_callback(spy)  # it looks at the callback that transformers replaces by one made from its state
    second.train(resume_from_checkpoint=get_last_checkpoint(str(tmp_path)))
    (restored,) = [c for c in second.callback_handler.callbacks if isinstance(c, CoToCallback)]
    assert restored.config == CoToConfig() and restored.total_steps == 12
    logged = {e["step"]: e["coto/active"] for e in second.state.log_history if "coto/active" in e}
    assert logged == {step + 1: sum(mask) for step, mask in uninterrupted[0].masks.items()}


def test_resume_with_other_settings_or_layers_is_refused(adapted, dataset, tmp_path):
    first, _, _ = trainer_for(adapted(), tmp_path, dataset, stop_after=2, save_strategy="steps", save_steps=2)
    first.train()
    checkpoint = get_last_checkpoint(str(tmp_path))
    model = adapted()
    second, _, _ = trainer_for(model, tmp_path, dataset, CoToConfig(initial_p=0.5))
    with pytest.raises(UsageError, match="initial_p.*0.5; it was 0.1"):
        second.train(resume_from_checkpoint=checkpoint)
    assert "_coto_controller" not in model.__dict__
    third, _, _ = trainer_for(adapted(), tmp_path, dataset, CoToConfig(exclude=["up_proj"]))
    with pytest.raises(UsageError, match="exclude"):
        third.train(resume_from_checkpoint=checkpoint)


def test_accumulated_micro_batches_share_the_mask(adapted, dataset, tmp_path):
    model = adapted()
    trainer, callback, spy = trainer_for(model, tmp_path, dataset, max_steps=4, gradient_accumulation_steps=3)
    seen = []
    model.register_forward_pre_hook(
        lambda *_: seen.append((callback.controller.open_step, callback.controller.active))
    )
    trainer.train()
    assert [step for step, _ in seen] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert all(mask == spy.masks[step] for step, mask in seen) and len({mask for _, mask in seen}) > 1


def test_evaluation_and_prediction_see_all_adapters(adapted, dataset, tmp_path):
    """With p = 0.1 throughout: the metrics during training are those of the whole adapter."""
    config = CoToConfig(initial_p=0.1, final_p=0.1)
    model = adapted()
    trainer, callback, spy = trainer_for(
        model, tmp_path, dataset, config, max_steps=3, eval_strategy="steps", eval_steps=1,
        eval_dataset=dataset.select(range(8)), save_strategy="steps", save_steps=1,
    )  # fmt: skip
    trainer.train()
    assert not any(all(mask) for mask in spy.masks.values())
    during = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(during) == 3
    for step, loss in enumerate(during, start=1):
        plain = PeftModel.from_pretrained(adapted().unload(), tmp_path / f"checkpoint-{step}")
        other = Trainer(plain, trainer.args, eval_dataset=dataset.select(range(8)))
        assert other.evaluate()["eval_loss"] == pytest.approx(loss, abs=1e-7)
        plain.base_model.disable_adapter_layers()
        assert abs(other.evaluate()["eval_loss"] - loss) > 1e-3  # the control
    # Between and inside steps, prediction is evaluation.
    controller = apply_coto(model, config, total_steps=100)
    controller.begin_step(0)
    masked = trainer.predict(dataset.select(range(4))).predictions
    controller.detach()
    np.testing.assert_array_equal(masked, trainer.predict(dataset.select(range(4))).predictions)


@pytest.mark.parametrize("variant", ["lora", "dora", "hira", "vera", "lokr"])
def test_saved_adapters_are_plain_ones(adapted, tiny_llama, dataset, tokens, tmp_path, variant):
    model = adapted(variant)
    trainer, _, _ = trainer_for(model, tmp_path, dataset, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path))
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not any("coto" in key for key in settings)
    side = json.loads((tmp_path / SIDE_FILE).read_text())
    assert side["config"] == CoToConfig().to_dict() and side["thurl_version"] == __version__
    assert list(side["groups"]) == [f"model.layers.{i}" for i in range(4)]
    plain = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert torch.equal(plain.eval()(tokens).logits, model.eval()(tokens).logits)
    with plain.disable_adapter():
        assert not torch.equal(plain(tokens).logits, model(tokens).logits)


def test_trackers_see_the_numbers_of_a_registered_callback(adapted, dataset, tmp_path):
    class Tracker(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append("coto/p" in logs)

    for registered in (True, False):
        tracker, callback = Tracker(), CoToCallback()
        arguments = TrainingArguments(
            str(tmp_path), max_steps=1, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True
        )
        callbacks = [tracker] if registered else [tracker, callback]  # as those of `report_to`
        trainer = Trainer(adapted(), arguments, train_dataset=dataset, callbacks=callbacks)
        if registered:
            callback.register(trainer)
        trainer.train()
        assert tracker.seen[0] is registered
        assert "coto/p" in trainer.state.log_history[0]


def test_training_twice_with_one_callback(adapted, dataset, tmp_path):
    model = adapted()
    trainer, callback, spy = trainer_for(model, tmp_path, dataset, max_steps=2)
    trainer.train()
    first = dict(spy.masks)
    trainer.train()
    assert spy.masks == first and callback.controller.detached


def test_a_step_without_gradients_cannot_be_asked_of_a_trainer(adapted, tiny_llama, dataset, tmp_path):
    config = CoToConfig(min_active="allow_empty")
    model = adapted()
    trainer, _, _ = trainer_for(model, tmp_path, dataset, config)
    with pytest.raises(UsageError, match="allow_empty"):
        trainer.train()
    assert "_coto_controller" not in model.__dict__
    # With something else to train it is fine.
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    trainer, _, spy = trainer_for(get_peft_model(tiny_llama(), lora), tmp_path, dataset, config, max_steps=6)
    trainer.train()
    assert any(not any(mask) for mask in spy.masks.values())


def test_an_optimizer_that_needs_every_gradient_is_refused(adapted, dataset, tokens, tmp_path):
    model = adapted()
    optimizer = create_lorafa_optimizer(model, r=4, lora_alpha=8, lr=1e-2)
    trainer, _, _ = trainer_for(model, tmp_path, dataset)
    trainer.optimizer = optimizer
    with pytest.raises(UsageError, match="LoRA-FA"):
        trainer.train()
    # What would happen; when PEFT mends it the rule can go.
    coto = apply_coto(model, CoToConfig(initial_p=0.0, final_p=0.0), total_steps=100)
    coto.begin_step(0)
    model(tokens, labels=tokens).loss.backward()
    with pytest.raises(TypeError, match="NoneType"):
        optimizer.step()


def arguments(**changes):
    """What the callback reads of `TrainingArguments` in a run of two processes."""
    return SimpleNamespace(**{
        "parallel_mode": ParallelMode.DISTRIBUTED, "world_size": 2, "deepspeed": None, "fsdp": None,
        "gradient_checkpointing": False, "gradient_checkpointing_kwargs": None, "ddp_find_unused_parameters": None,
        "ddp_static_graph": None, **changes,
    })  # fmt: skip


def test_the_callback_reads_arguments_that_exist(tmp_path):
    real = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    assert all(hasattr(real, name) for name in vars(arguments()))


@pytest.mark.parametrize(
    ("peft", "changes", "message"),
    [
        (True, {}, None),
        (True, {"off": "touch", "ddp_find_unused_parameters": False}, None),
        (True, {"off": "touch"}, "ddp_find_unused_parameters: false"),
        (
            True,
            {
                "off": "touch",
                "ddp_find_unused_parameters": False,
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
            },
            None,
        ),
        (False, {}, None),
        (True, {"ddp_find_unused_parameters": False}, "ddp_find_unused_parameters: true"),
        (False, {"gradient_checkpointing": True}, "ddp_find_unused_parameters: true"),
        (False, {"gradient_checkpointing": True, "ddp_find_unused_parameters": True}, None),
        (True, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}, "twice"),
        (True, {"ddp_static_graph": True}, "ddp_static_graph"),
        (True, {"ddp_find_unused_parameters": False, "world_size": 1}, None),
    ],
)
def test_what_fails_in_the_second_step_of_ddp_is_refused_before_the_first(adapted, tiny_llama, variants, peft, changes,
                                                                          message):  # fmt: skip
    changes = dict(changes)
    if peft:
        model = adapted()
    else:
        model = tiny_llama()
        model.add_adapter(variants["lora"]())
    callback = CoToCallback(ddp_off=changes.pop("off", "find"))
    state = SimpleNamespace(max_steps=100, global_step=0, stateful_callbacks={})
    if message is None:
        callback.on_train_begin(arguments(**changes), state, None, model=model)
    else:
        with pytest.raises(UsageError, match=message):
            callback.on_train_begin(arguments(**changes), state, None, model=model)
        assert "_coto_controller" not in model.__dict__


def test_deepspeed_skips_what_is_off_or_says_that_it_drifts(adapted, caplog):
    """That it does is in test_distributed_off.py."""
    state = SimpleNamespace(max_steps=100, global_step=0, stateful_callbacks={})
    settings = arguments(deepspeed="zero2.json")
    with caplog.at_level(logging.WARNING, logger="thurl"):
        CoToCallback(deepspeed_off="drift").on_train_begin(settings, state, None, model=adapted())
        assert "zeros, not None" in caplog.text
        caplog.clear()
        model = adapted()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        with pytest.raises(UsageError, match=r"register\(trainer\)"):
            CoToCallback().on_train_begin(settings, state, None, model=model, optimizer=optimizer)
        split_by_group(optimizer, parameters_of(model))
        CoToCallback().on_train_begin(settings, state, None, model=model, optimizer=optimizer)
        assert not caplog.text
    with pytest.raises(UsageError, match="'drifft'.*skip, drift"):
        CoToCallback(deepspeed_off="drifft")


def parameters_of(model):
    return {
        key: [p for _, layer in layers for p in adapter_parameters(layer, "default")]
        for key, layers in find_groups(model, CoToConfig()).items()
    }
