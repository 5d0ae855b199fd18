"""CoTo in a `transformers.Trainer` on two processes; run by test_distributed.py.

Argument: output prefix. Writes, per process, masks, weights and which errors came. `train` is also what the test runs
itself, on one process and twice the rows.
"""

import json
import os
import sys

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from thurl.coto import CoToCallback, CoToConfig, apply_coto
from thurl.errors import ThurlError


def build():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class Spy(TrainerCallback):
    def __init__(self, callback):
        self.callback, self.masks, self.none = callback, [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.masks.append(list(self.callback.controller.active))
        groups = range(len(self.masks[-1]))
        self.none.append(
            [all(p.grad is None for n, p in model.named_parameters() if f".layers.{i}." in n) for i in groups]
        )


def trainer_for(folder, rows, config, **changes):
    data = torch.randint(3, 64, (32, 10), generator=torch.Generator().manual_seed(1)).tolist()
    callback = CoToCallback(config)
    spy = Spy(callback)
    arguments = TrainingArguments(
        folder, max_steps=6, per_device_train_batch_size=rows, optim="sgd", learning_rate=0.5, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, max_grad_norm=0.0, **changes,
    )  # fmt: skip
    dataset = Dataset.from_dict({"input_ids": data, "labels": data})
    return Trainer(build(), arguments, train_dataset=dataset, callbacks=[callback, spy]), spy


def refused(action):
    try:
        action()
    except ThurlError as error:
        return str(error)
    return ""


def train(folder, rows):
    """Masks, which groups had no gradient at all, and the final weights."""
    trainer, spy = trainer_for(folder, rows, CoToConfig(seed=3))
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return spy.masks, spy.none, {n: p.detach().clone() for n, p in model.named_parameters()}


def main():
    output, rank = sys.argv[1], int(os.environ["RANK"])
    masks, none, weights = train(output, 2)
    save_file(weights, f"{output}.{rank}.safetensors")
    only_q = CoToConfig(include=["q_proj"] if rank else None)
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    blind, _ = trainer_for(output, 2, CoToConfig(seed=3), ddp_find_unused_parameters=False)
    checked, _ = trainer_for(output, 2, CoToConfig(seed=3), **checkpointing)
    record = {
        "masks": masks,
        "none": none,
        "other_seed": refused(lambda: apply_coto(build(), CoToConfig(seed=rank), total_steps=100)),
        "other_layers": refused(lambda: apply_coto(build(), only_q, total_steps=100)),
        "same": refused(lambda: apply_coto(build(), CoToConfig(), total_steps=100)),
        "find_unused": refused(blind.train),
        "checkpointing": refused(checked.train),
    }
    with open(f"{output}.{rank}.json", "w") as file:
        json.dump(record, file)
    torch.distributed.destroy_process_group()  # else gloo may abort at the end


if __name__ == "__main__":
    main()
