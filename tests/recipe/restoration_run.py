"""A scaled-down tiny restoration recipe; run on two processes by test_face_restoration.py.

usage: restoration_run.py OUTPUT_PREFIX FOLDER override...
"""

import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import TrainingArguments

from thurl.recipe.face_restoration_run import build_evaluator, build_trainer, load_study
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe


SMALL = (
    "model.hidden_sizes=[6,8]",
    "model.depths=[1,1]",
    "data.size=24",
    "data.repeats=2",
    "training.max_steps=4",
    "training.learning_rate=1e-2",
    "training.per_device_train_batch_size=4",
    "training.logging_steps=2",
    "training.warmup_steps=0",
    "training.eval_strategy='no'",
    "training.dataloader_drop_last=true",
    "evaluation.size=32",
    "evaluation.repeats=2",
    "evaluation.cleanups=[gaussian]",
    "report.results=null",
    "report.html=null",
    "control.unrelated_targets=false",
)


def recipe(folder, *overrides):
    name = f"training.output_dir={json.dumps(str(folder))}"
    return load_recipe(find_recipe("tiny/face_restoration"), [*SMALL, name, *overrides]).recipe


def trainer_of(folder, *overrides, **fields):
    """A trainer that logs nothing to the console, and the pairs it is tested on."""
    loaded = recipe(folder, *overrides)
    args = TrainingArguments(**{**loaded.training, "disable_tqdm": True, **fields})
    study = load_study(loaded, args.seed)
    return build_trainer(loaded, args, study, build_evaluator(loaded, study)), study


def trained(folder, *overrides, **fields):
    """Log, results on the test pairs, and weights of a run."""
    trainer, study = trainer_of(folder, *overrides, **fields)
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.evaluate(study.test, metric_key_prefix="test")
    record = {
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "epoch": trainer.train_dataset.epoch,
        "metrics": dict(trainer.evaluation_results["test"].metrics),
        "items": list(trainer.evaluation_results["test"].items),
    }
    return record, {name: value.clone() for name, value in trainer.model.state_dict().items()}


def main():
    output, folder, *overrides = sys.argv[1:]
    rank = int(os.environ["RANK"])
    record, weights = trained(folder, *overrides)
    save_file(weights, f"{output}.{rank}.safetensors")
    with open(f"{output}.{rank}.json", "w") as file:
        json.dump(record, file)
    torch.distributed.destroy_process_group()  # else gloo may abort at the end


if __name__ == "__main__":
    main()
