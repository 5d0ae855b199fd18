"""Supervised fine-tuning on rated pictures with CoTo: what is refused, what the loss sees, and a whole short run."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from thurl.coto import CoToCallback
from thurl.errors import UsageError
from thurl.recipe.coto_vlm_run import answer_trainer, run, training_arguments
from thurl.recipe.validate import load_recipe
from thurl.recipe.visualquality_r1 import prompt_preset
from thurl.recipe.visualquality_r1_data import load_study
from thurl.rl.tiny import build_tiny_qwen2_5_vl

from .run_reports import check_run_report


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "tiny" / "coto_vlm.yaml"
SHORT = (
    "model.tiny.hidden=32 model.tiny.heads=1 model.tiny.vision_hidden=32 model.tiny.vision_heads=1 warm_start=null "
    "data.train.0.repeats=2 data.validation.0.repeats=1 evaluation.sources.0.repeats=1 evaluation.every_steps=2 "
    "training.max_steps=2 training.logging_steps=1 training.warmup_steps=0 training.per_device_train_batch_size=4"
).split()


def loaded(folder, *overrides):
    return load_recipe(RECIPE, [*SHORT, f"training.output_dir={folder}", *overrides]).recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.prompt.think=true", "has no thoughts to learn"),
        ("evaluation.mode=think", "learns to answer at once"),
        ("training.max_length=1024", "would take image tokens away; set it to null"),
        ("training.packing=true", "training.packing: is not possible with pictures"),
        ("training.padding_free=true", "training.padding_free: is not possible with pictures"),
        ("training.eval_strategy=epoch", "training.eval_strategy"),
        ("training.beta=0.1", "unknown key `beta`"),
        ("model.prefix_sharing=on", "is for GRPO"),
        ("data.validation=[]", "add `data.validation`"),
        ("adapter=null", "needs the section `adapter`"),
        ("coto.old_logprobs=detach", "is for GRPO"),
        ("model.freeze=[language]", "leaves nothing to train"),
        ("training.ddp_find_unused_parameters=false", "training.ddp_find_unused_parameters: is false"),
    ],
)
def test_impossible_recipes(tmp_path, override, message):
    with pytest.raises(UsageError) as error:
        loaded(tmp_path, override)
    assert message in "\n".join(error.value.problems)


def test_the_default_length_would_cut_pictures(tmp_path):
    text = RECIPE.read_text().replace("  max_length: null\n", "")
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UsageError, match="max_length: is 1024"):
        load_recipe(tmp_path / "recipe.yaml")


def trainer_of(folder, *overrides):
    recipe = loaded(folder, *overrides)
    study = load_study(recipe, folder)
    model, processor = build_tiny_qwen2_5_vl(0, hidden=32, heads=1, vision_hidden=32, vision_heads=1)
    args = training_arguments(recipe)
    return answer_trainer(recipe, args, study, model, processor, prompt_preset(recipe)), study


def test_the_loss_is_that_of_the_answer(tmp_path):
    trainer, study = trainer_of(tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    decode = trainer.processing_class.tokenizer.decode
    answers = {f"<answer>{record.mos:.2f}</answer>" for record in study.train}
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learnt = decode(labels[labels != -100], skip_special_tokens=True).strip()
        assert learnt in answers
        whole = decode(ids)
        assert "Rate the quality" in whole and whole.index("Rate the quality") < whole.index(learnt)
    assert len(batch["image_grid_thw"]) == 4
    assert isinstance(trainer.callback_handler.callbacks[0], CoToCallback)  # before the trackers


@pytest.mark.parametrize("vision", [False, True])
def test_towers_are_groups_only_where_they_are_adapted(tmp_path, vision):
    excluded = "false" if vision else "true"
    trainer, _ = trainer_of(tmp_path, f"adapter.exclude_vision={excluded}", "training.max_steps=1")
    wants = []
    tower = next(module for name, module in trainer.model.named_modules() if name.endswith("visual"))
    tower.register_forward_hook(lambda module, args, out: wants.append(out.pooler_output))
    trainer.train()
    callback = trainer.callback_handler.callbacks[0]
    assert any("visual" in group for group in callback.groups) == vision
    assert wants
    if not vision:
        assert not any(value.requires_grad for value in torch.utils._pytree.tree_leaves(wants))


def test_a_whole_run_with_its_control(tmp_path):
    overrides = [f"report.results={tmp_path / 'results.json'}", f"report.html={tmp_path / 'report.html'}"]
    recipe = loaded(tmp_path, *overrides)
    assert PartialState().num_processes == 1
    record = run(recipe, recipe_path=str(RECIPE), overrides=overrides)
    assert {"srcc_before", "srcc_after", "srcc_control", "parse_rate_after"} <= set(record)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["step"] for entry in results["validation"]] == [0, 2]
    check_run_report(tmp_path / "results.json", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Supervised fine-tuning on rated pictures" in page and "GRPO" not in page
    assert "CoTo with p from 0.1 to 1 over 75% of the steps" in page and "lora adapter of rank 8" in page
    side = json.loads((tmp_path / "coto_config.json").read_text())
    assert side["config"]["initial_p"] == 0.1 and side["total_steps"] == 2
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (tmp_path / "control" / "adapter_model.safetensors").is_file()


def test_without_the_section_it_is_the_baseline(tmp_path):
    trainer, _ = trainer_of(tmp_path, "coto=null")
    assert not any(isinstance(callback, CoToCallback) for callback in trainer.callback_handler.callbacks)
    trainer.train()
    assert not (tmp_path / "coto_config.json").exists()
