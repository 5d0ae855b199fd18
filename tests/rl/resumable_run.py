"""Run by test_resume.py on one or more processes: short GRPO runs that are killed and resumed.

usage: resumable_run.py MODEL_FOLDER SETTINGS_JSON

The model generates for itself, so that the rollouts depend on the weights and on the random states. SETTINGS_JSON is
a list with one entry per run; the exit codes of all runs (by process; -9: killed) go to `codes.json` beside the first
output. Settings of a run: `output`, `attempt`, `processes`, `resume` (argument of `train`), `kill_at`,
`kill_while_writing`, `term_at`, `full_disk_at` (steps), `kill_rank` (all when absent), `truncate` (folder and
pattern of a file to damage first), `fields` of the configuration, `lora`, `prefix_sharing`, `deepspeed` (file).
"""

import functools
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path

from forked_worlds import run_world
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback, set_seed

from thurl.data.records import RatedImage
from thurl.errors import ThurlError
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.training import exact_resume
from thurl.training.deepspeed_cpu import prepare_deepspeed_on_cpu
from thurl.training.sharded import whole_parameters


IMAGES = 8


def letters(completions, **_):
    """A reward that differs between completions of an untrained model, which never answers in the format."""
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Mishaps(TrainerCallback):
    """Kills, signals and full disks at chosen steps."""

    def __init__(self, settings):
        self.settings = settings

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.settings.get("term_at") and state.is_world_process_zero:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        if step == self.settings.get("full_disk_at"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        if step == self.settings.get("kill_while_writing"):
            exact_resume.write_manifest = lambda *a, **k: die()

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.settings.get("kill_at"):
            if self.settings.get("kill_rank") in (None, args.process_index):
                die()


class Recording(RankGRPOTrainer):
    """Writes down rewards and losses as they come, so that a killed run leaves what it saw."""

    def note(self, kind, value):
        path = f"{self.notes}.{self.accelerator.process_index}.jsonl"
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([self.state.global_step, kind, value]) + "\n")

    def _calculate_rewards(self, *args, **kwargs):
        rewards = super()._calculate_rewards(*args, **kwargs)
        self.note("rewards", rewards.tolist())
        return rewards

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.note("loss", loss.item())
        return loss


def run(folder, settings) -> int:
    output = Path(settings["output"])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("thurl").setLevel(logging.INFO)
    records = [
        RatedImage(str(folder / f"{index}.png"), float(index), dataset="a" if index < IMAGES // 2 else "b")
        for index in range(IMAGES)
    ]
    prepare_deepspeed_on_cpu(settings.get("deepspeed"), use_cpu=True, timeout=60)
    args = RankGRPOConfig(
        str(output),
        **{
            "use_cpu": True,
            "deepspeed": settings.get("deepspeed"),
            "bf16": False,
            "seed": 3,
            "learning_rate": 0.01,
            "per_device_train_batch_size": 8 // settings.get("processes", 1),
            "num_generations": 4,
            "steps_per_generation": 2,
            "num_iterations": 2,
            "max_completion_length": 6,
            "max_steps": 11,  # of 8 per epoch; completions are used for 4 steps
            "logging_steps": 2,
            "logging_first_step": True,
            "report_to": [],
            "save_strategy": "steps",
            "save_steps": 1,
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

        peft_config = LoraConfig(r=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    try:
        trainer = Recording(
            model,
            reward_funcs=[letters],
            args=args,
            train_dataset=build_rank_dataset(records),
            processing_class=AutoProcessor.from_pretrained(folder),
            peft_config=peft_config,
            block_size=4,
            prefix_sharing=settings.get("prefix_sharing", "off"),
        )
        trainer.add_callback(Mishaps(settings))
        trainer.notes = f"{output}.notes-{settings.get('attempt', 0)}"
        trainer.train(resume_from_checkpoint=settings.get("resume"))
    except ThurlError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    rank = trainer.accelerator.process_index
    Path(f"{output}.{rank}.packed").write_text(str(trainer._sharing.packed_calls if trainer._sharing else 0))
    model = trainer.accelerator.unwrap_model(trainer.model)
    with whole_parameters(model):
        weights = {key: value.cpu().clone().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, f"{output}.{rank}.safetensors")
    Path(f"{output}.{rank}.json").write_text(json.dumps(trainer.state.log_history))
    return 0


def main() -> None:
    folder, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
    if any(settings.get("deepspeed") for settings in runs):
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed  # noqa: F401 - once, not in every process
    codes = []
    for settings in runs:
        if "truncate" in settings:
            place, pattern = settings["truncate"]
            (file,) = Path(place).glob(pattern)
            file.write_bytes(file.read_bytes()[:-100])
        processes = settings.get("processes", 1)
        codes.append(run_world(functools.partial(run, folder), settings, processes=processes))
    Path(runs[0]["output"]).with_name("codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
