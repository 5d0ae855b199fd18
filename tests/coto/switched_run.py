"""Run by test_distributed_off.py: CoTo where a framework wants a gradient of every adapter, in the real trainer.

usage: switched_run.py FOLDER CELLS_JSON      what came out of each cell, one file per process, into FOLDER

CELLS_JSON is a list of settings: `name`, `processes`, `fields` of `TrainingArguments`, `callback` (arguments),
`deepspeed` (file), `stale` (leave ZeRO-3's old gradients, for a control), `resume` (name of the cell to go on from)
and `from` (the step of its checkpoint).
"""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from thurl.coto import CoToCallback, CoToConfig
from thurl.training.deepspeed_cpu import prepare_deepspeed_on_cpu


sys.path.insert(0, str(Path(__file__).parents[1] / "rl"))
from forked_worlds import run_world  # noqa: E402


STEPS, LAYERS = 8, 4


def build():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def whole(model):
    """Trained weights, whole, on every process."""
    parameters = {name.removeprefix("module."): p for name, p in model.named_parameters() if p.requires_grad}
    if any(hasattr(p, "ds_id") for p in parameters.values()):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            return {name: p.detach().clone() for name, p in parameters.items()}
    return {name: p.detach().clone() for name, p in parameters.items()}


class Spy(TrainerCallback):
    """The mask of each step, and the adapted blocks that it moved."""

    def __init__(self):
        self.masks, self.moved = [], []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.before = whole(model)
        self.masks.append([bool(on) for on in model_of(model)._coto_controller.active])

    def on_step_end(self, args, state, control, model=None, **kwargs):
        now = whole(model)
        moved = {name for name in now if not torch.equal(now[name], self.before[name])}
        self.moved.append([any(f".layers.{i}." in name for name in moved) for i in range(LAYERS)])


def model_of(model):
    return model.module if hasattr(model, "module") else model


def run(settings):
    folder, name = Path(settings["folder"]), settings["name"]
    deepspeed = settings.get("deepspeed")
    prepare_deepspeed_on_cpu(deepspeed, use_cpu=True, timeout=60)
    data = torch.randint(3, 64, (64, 10), generator=torch.Generator().manual_seed(1)).tolist()
    fields = {
        "max_steps": STEPS, "per_device_train_batch_size": 4 // settings["processes"], "learning_rate": 0.02,
        "weight_decay": 0.1, "adam_epsilon": 1e-5, "max_grad_norm": 0.5, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "ddp_timeout": 60, "deepspeed": deepspeed,
        **settings.get("fields", {}),
    }  # fmt: skip
    callback = CoToCallback(CoToConfig(seed=3, initial_p=0.3), **settings.get("callback", {}))
    spy = Spy()
    trainer = Trainer(
        build(), TrainingArguments(str(folder / settings.get("resume", name)), **fields),
        train_dataset=Dataset.from_dict({"input_ids": data, "labels": data}),
        callbacks=[spy],
    )  # fmt: skip
    callback.register(trainer)
    if settings.get("stale"):
        begin = callback.on_step_begin

        def leave(*args, **kwargs):
            callback._stale = None
            return begin(*args, **kwargs)

        callback.on_step_begin = leave
    rank = trainer.accelerator.process_index
    checkpoint = folder / settings.get("resume", "") / f"checkpoint-{settings.get('from')}"
    trainer.train(resume_from_checkpoint=str(checkpoint) if "resume" in settings else None)
    save_file(whole(trainer.model_wrapped), folder / f"{name}.{rank}.safetensors")
    trainer.save_model(str(folder / f"{name}.saved"))
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    record = {
        "kind": str(trainer.accelerator.distributed_type), "masks": spy.masks, "moved": spy.moved,
        "loss": [entry["loss"] for entry in log], "grad_norm": [entry["grad_norm"] for entry in log],
    }  # fmt: skip
    (folder / f"{name}.{rank}.json").write_text(json.dumps(record))
    return 0


def main():
    folder, cells = Path(sys.argv[1]), json.loads(sys.argv[2])
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401 - once, not in every process

    for cell in cells:
        codes = run_world(run, {**cell, "folder": str(folder)}, processes=cell["processes"])
        (folder / f"{cell['name']}.codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
