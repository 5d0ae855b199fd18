"""Run by test_equivalence.py: GRPO with the same completions in different configurations, and what came out of each.

usage: equivalent_run.py FOLDER CELLS_JSON      results, one file per process, into FOLDER
       equivalent_run.py --record               writes tests/golden/grpo_equivalence.json

Sampling depends on the random state of each process and on where a row lies in a batch, so no two layouts draw the
same answers. What is said is therefore a table here: a function of picture, place in the group and optimizer step.
All else is the real thing: sampler, processor, gathers, rewards, advantages, reference model, loss, backward,
clipping, AdamW, schedule. AdamW's epsilon is 1e-5, since at 1e-8 a weight whose gradient is zero but for rounding
moves by a whole step.

CELLS_JSON is a list of settings: `name`, `processes`, `fields` of the configuration, `lora`, `prefix_sharing`,
`deepspeed` (file), `mistake` (one of MISTAKES, for the controls).
"""

import json
import os
import random
import sys
import tempfile
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from forked_worlds import run_world
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from thurl.data.records import RatedImage
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.rl.tiny import build_tiny_qwen2_5_vl
from thurl.training.deepspeed_cpu import prepare_deepspeed_on_cpu
from thurl.training.sharded import whole_parameters


GOLDEN = Path(__file__).parents[1] / "golden" / "grpo_equivalence.json"
K, IMAGES, ROWS, STEPS = 4, 12, 12, 6
"""With 12 rows in a step of groups of 4, two processes cut the middle group in half."""
MISTAKES = ("accumulation_not_divided", "gradients_not_averaged")


def said(picture, place, step):
    """The completion in `place` of the group of `picture` in optimizer step `step`."""
    rng = random.Random(f"{picture.getpixel((0, 0))[0]}/{place}/{step}")
    if rng.random() < 0.15:
        return "no idea"
    return f"<think>{'x' * rng.randrange(4)}</think><answer>{rng.uniform(1, 5):.2f}</answer>"


def table_rollout(prompts, trainer):
    ids, _, _ = trainer._tokenize_prompts(prompts)
    start = trainer.accelerator.process_index * len(prompts)
    texts = [
        said(prompt[-1]["content"][0]["image"], (start + row) % K, trainer.state.global_step)
        for row, prompt in enumerate(prompts)
    ]
    completions = [trainer._tokenizer(text + trainer._tokenizer.eos_token)["input_ids"] for text in texts]
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": [[0.0] * len(c) for c in completions]}


class Recording(RankGRPOTrainer):
    mistake = None

    def _calculate_rewards(self, *args, **kwargs):
        rewards = super()._calculate_rewards(*args, **kwargs)
        self.rewards.append(rewards.tolist())  # gathered: of all processes
        return rewards

    def _compute_loss(self, *args, **kwargs):
        loss = super()._compute_loss(*args, **kwargs)
        if self.mistake == "accumulation_not_divided":
            loss = loss * self.current_gradient_accumulation_steps
        return loss

    def training_step(self, model, *args, **kwargs):
        alone = self.mistake == "gradients_not_averaged"
        with model.no_sync() if alone else nullcontext():
            return super().training_step(model, *args, **kwargs)


def moves(before, after):
    """How far each tensor went, and how far along a fixed direction; norms of the weights would hide the training."""
    result = {}
    for name, value in after.items():
        move = value.double() - before[name].double()
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        direction = torch.from_numpy(rng.standard_normal(tuple(move.shape)))
        result[name] = [move.norm().item(), (move * direction).sum().item() / direction.norm().item()]
    return result


def weights(model):
    """The trained weights on every process, whole, under names that do not depend on wrappers."""
    with whole_parameters(model):
        return {
            name: parameter.detach().float().cpu().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }


def run(settings):
    folder = Path(settings["folder"])
    output = folder / settings["name"]
    records = [
        RatedImage(str(folder / f"{index}.png"), float(index), dataset="a" if index < IMAGES // 2 else "b")
        for index in range(IMAGES)
    ]
    prepare_deepspeed_on_cpu(settings.get("deepspeed"), use_cpu=True, timeout=60)
    args = RankGRPOConfig(
        str(output),
        **{
            "use_cpu": True,
            "bf16": False,
            "ddp_timeout": 60,
            "deepspeed": settings.get("deepspeed"),
            "seed": 3,
            "learning_rate": 0.01 if settings.get("lora") else 0.001,
            "adam_epsilon": 1e-5,
            "weight_decay": 0.01,
            "max_grad_norm": 0.5,
            "beta": 0.1,
            "per_device_train_batch_size": ROWS // settings["processes"],
            "num_generations": K,
            "num_iterations": 2,
            "max_completion_length": 24,
            "max_steps": STEPS,
            "logging_steps": 1,
            "report_to": [],
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            **settings.get("fields", {}),
        },
    )
    set_seed(3)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    peft_config = None
    if settings.get("lora"):
        from peft import LoraConfig

        peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = Recording(
        model,
        args=args,
        train_dataset=build_rank_dataset(records),
        processing_class=AutoProcessor.from_pretrained(folder),
        peft_config=peft_config,
        rollout_func=table_rollout,
        block_size=3,
        prefix_sharing=settings.get("prefix_sharing", "off"),
    )
    if trainer.accelerator.num_processes != settings["processes"]:
        raise SystemExit(f"{trainer.accelerator.num_processes} processes instead of {settings['processes']}")
    trainer.rewards, trainer.mistake = [], settings.get("mistake")
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "kind": str(trainer.accelerator.distributed_type),
        "packed_calls": trainer._sharing.packed_calls if trainer._sharing else 0,
        "rewards": trainer.rewards,
        **{name: [entry.get(name, 0.0) for entry in log] for name in ("loss", "grad_norm", "kl", "learning_rate")},
        "moves": moves(before, after),
    }
    output.with_name(f"{output.name}.{trainer.accelerator.process_index}.json").write_text(json.dumps(result))
    return 0


def prepare(folder):
    """The model and the pictures of every cell."""
    model, processor = build_tiny_qwen2_5_vl(0, hidden=32, heads=1, vision_hidden=32, vision_heads=1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for index in range(IMAGES):
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 256, (56 + 28 * (index % 2), 56, 3), dtype=np.uint8)
        pixels[0, 0, 0] = index
        Image.fromarray(pixels).save(Path(folder) / f"{index}.png")


def record():
    """Plain runs of one process, without anything that the suite is about."""
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        for name, lora in (("full", False), ("lora", True)):
            if run_world(run, {"name": name, "processes": 1, "lora": lora, "folder": folder}) != [0]:
                raise SystemExit(f"the run {name} failed")
            golden[name] = rounded(json.loads(Path(folder, f"{name}.0.json").read_text()))
    lines = [
        f' "{name}": {{\n' + ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in run.items()) + "\n }"
        for name, run in golden.items()
    ]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return {name: rounded(item) for name, item in value.items()} if isinstance(value, dict) else value


def main():
    if sys.argv[1:] == ["--record"]:
        return record()
    folder, cells = Path(sys.argv[1]), json.loads(sys.argv[2])
    if any(cell.get("deepspeed") for cell in cells):
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed  # noqa: F401 - once, not in every process
    prepare(folder)
    for cell in cells:
        codes = run_world(run, {**cell, "folder": str(folder)}, processes=cell["processes"])
        (folder / f"{cell['name']}.codes.json").write_text(json.dumps(codes))
    return None


if __name__ == "__main__":
    main()
