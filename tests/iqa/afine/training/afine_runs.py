"""A tiny A-FINE stage for the tests, also run by the launcher: afine_runs.py OUTPUT TRIPLETS IMAGES STAGE WORLD."""

import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import TrainingArguments, set_seed

from thurl.iqa.afine.config import AFineConfig
from thurl.iqa.afine.evaluation import AFineEvaluator, TestSet
from thurl.iqa.afine.stages import AFineStageModel
from thurl.iqa.afine.trainer import AFineTrainer
from thurl.iqa.afine.triplet_pictures import TripletPictures
from thurl.iqa.afine.triplets import read_triplets


def tiny_model(seed=0):
    set_seed(seed)
    vision = {"hidden_size": 16, "intermediate_size": 32, "image_size": 32, "patch_size": 16}
    return AFineStageModel(AFineConfig.tiny(projection_size=4, vision_config=vision))


def trainer_for(folder, triplets, stage, *, model=None, augment=True, callbacks=(), schedule=None, **fields):
    model = tiny_model() if model is None else model
    model.begin_stage(stage)
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 0.01,
        "adam_beta2": 0.99,
        "weight_decay": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_drop_last": True,
        "seed": 3,
    }
    evaluator = AFineEvaluator([TestSet("some", triplets[:20])], "afine" if stage == "adapter" else stage)
    return AFineTrainer(
        model,
        TrainingArguments(str(folder), **{**defaults, **fields}),
        train_dataset=TripletPictures(triplets, augment=augment, seed=3),
        eval_dataset=evaluator.dataset,
        evaluator=evaluator,
        callbacks=[*callbacks],
        schedule=schedule,
    )


def main(output, file, images, stage, world):
    triplets = read_triplets(file, images=images)
    trainer = trainer_for(f"{output}.run", triplets, stage, per_device_train_batch_size=8 // int(world))
    trainer.train()
    metrics = trainer.evaluate()
    if int(os.environ.get("RANK", "0")) == 0:
        save_file({name: value.contiguous() for name, value in trainer.model.state_dict().items()}, output)
        with open(f"{output}.json", "w") as handle:
            log = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            json.dump({"loss": log, "accuracy": metrics["eval_accuracy"]}, handle)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
