"""Run by test_distributed.py on one or more processes: GRPO steps on scripted completions, written to a file.

usage: distributed_ranking.py OUTPUT WORLD_SIZE ROWS_PER_DEVICE BLOCK_SIZE MODEL_FOLDER [PREFIX_SHARING]
"""

import json
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from thurl.data.records import RatedImage
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset


K, IMAGES = 4, 16


def scripted_rollout(prompts, trainer):
    """What is said depends on the picture and the place in its group only, not on the process or a random state."""
    ids, _, _ = trainer._tokenize_prompts(prompts)
    start = trainer.accelerator.process_index * len(prompts)
    completions = []
    for row, prompt in enumerate(prompts):
        picture = prompt[-1]["content"][0]["image"]
        rng = random.Random(picture.getpixel((0, 0))[0] * 1000 + (start + row) % K)
        text = f"<think>x</think><answer>{rng.uniform(0.8, 5):.2f}</answer>"
        if rng.random() < 0.15:
            text = "no idea"
        completions.append(trainer._tokenizer(text + trainer._tokenizer.eos_token)["input_ids"])
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": [[0.0] * len(c) for c in completions]}


class Recording(RankGRPOTrainer):
    def _generate_and_score_completions(self, inputs):
        outputs = super()._generate_and_score_completions(inputs)
        self.advantages.append(outputs["advantages"].tolist())  # of this process
        return outputs

    def _calculate_rewards(self, *args, **kwargs):
        rewards = super()._calculate_rewards(*args, **kwargs)
        self.rewards.append(rewards.tolist())  # already gathered
        return rewards


def main() -> None:
    output, folder = Path(sys.argv[1]), Path(sys.argv[5])
    world_size, rows, block_size = map(int, sys.argv[2:5])
    records = [
        RatedImage(str(folder / f"{index}.png"), float(index), dataset="a" if index < 8 else "b")
        for index in range(IMAGES)
    ]
    args = RankGRPOConfig(
        str(output.with_suffix("")),
        use_cpu=True,
        bf16=False,
        seed=3,
        optim="sgd",  # Adam would blow rounding up to the size of a step where a gradient is nearly zero
        learning_rate=0.1,
        per_device_train_batch_size=rows,
        num_generations=K,
        max_completion_length=16,
        max_steps=2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = Recording(
        AutoModelForImageTextToText.from_pretrained(folder),
        args=args,
        train_dataset=build_rank_dataset(records),
        processing_class=AutoProcessor.from_pretrained(folder),
        rollout_func=scripted_rollout,
        block_size=block_size,
        prefix_sharing=sys.argv[6] if len(sys.argv) > 6 else "off",
    )
    if trainer.accelerator.num_processes != world_size:
        raise SystemExit(f"{trainer.accelerator.num_processes} processes instead of {world_size}")
    trainer.advantages, trainer.rewards = [], []
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    name = f"{output}.{trainer.accelerator.process_index}"
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    state = {
        "moved": [name for name, value in weights.items() if not value.equal(before[name])],
        "rewards": trainer.rewards,
        "advantages": trainer.advantages,
        "packed_calls": trainer._sharing.packed_calls if trainer._sharing else 0,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "timing": trainer.timing,
        "logged_timing": [entry["timing/step"] for entry in trainer.state.log_history if "loss" in entry],
    }
    Path(f"{name}.json").write_text(json.dumps(state))
    save_file({key: value.contiguous() for key, value in weights.items()}, f"{name}.safetensors")
    if world_size > 1:
        torch.distributed.destroy_process_group()  # else gloo may abort at the end


if __name__ == "__main__":
    main()
