"""Run by test_vllm.py in a process of its own: real GRPO runs with vLLM in the process, on the CPU.

usage: vllm_runs.py SETTINGS_JSON

SETTINGS_JSON is a list, one entry per run, done one after another with an engine each: `folder` (model), `output`,
`case` (a function below), `pictures`, further arguments of the case. Each run writes what it saw to `result.json` in
`output`.
"""

import gc
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback, set_seed
from trl.generation.vllm_client import VLLMClient

from thurl.data.records import RatedImage
from thurl.errors import ThurlError
from thurl.rl import RankGRPOConfig, RankGRPOTrainer, build_rank_dataset
from thurl.rl.rollouts import RolloutOptions, vision_token_ids


LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def pictures(folder, count):
    """Noise of six sizes between 56 and 140 pixels a side."""
    draw = np.random.default_rng(0)
    records = []
    for index in range(count):
        height, width = 56 + 28 * (index % 2), 56 + 28 * (index % 3)
        file = Path(folder) / f"{index}.png"
        Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)).save(file)
        records.append(RatedImage(str(file), 1 + 4 * index / count))
    return records


def letters(completions, **_):
    """A reward that differs between completions of an untrained model, which never answers in the format."""
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


class Recording(RankGRPOTrainer):
    """Keeps the differences of the log-probabilities and the drawn tokens, and does not stop at large differences."""

    def __init__(self, *args, guard=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.completions = []
        if not guard:
            self._rollouts_checked = 1_000_000

    def _generate_and_score_completions(self, inputs):
        outputs = super()._generate_and_score_completions(inputs)
        mask = outputs["completion_mask"].bool()
        self.completions += [ids[keep].tolist() for ids, keep in zip(outputs["completion_ids"], mask, strict=True)]
        return outputs


def two_pictures(dataset):
    """Every prompt with a second picture, of another size."""

    def add(row, index):
        other = dataset[(index + 1) % len(dataset)]
        pair = [*row["images"], *other["images"]] if "images" in row else [row["image"], other["image"]]
        return {"images": pair}

    paired = dataset.map(add, with_indices=True)
    return paired.remove_columns("image") if "image" in paired.column_names else paired


def trainer_of(settings, **fields):
    lora = settings.get("lora")
    set_seed(0)
    peft_config = None
    if lora:
        from peft import LoraConfig

        peft_config = LoraConfig(
            r=6, lora_alpha=24, target_modules=LORA, exclude_modules=r".*visual.*", task_type="CAUSAL_LM"
        )
    args = RankGRPOConfig(
        settings["output"],
        **{
            "use_cpu": True,
            "bf16": False,
            "learning_rate": settings.get("rate", 5e-3),
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "max_steps": 4,
            "max_completion_length": 12,
            "beta": 0.0,
            "logging_steps": 1,
            "report_to": [],
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "lr_scheduler_type": "constant",
            "seed": 1,
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_max_model_length": 512,
            **settings.get("fields", {}),
            **fields,
        },
    )
    dataset = build_rank_dataset(pictures(settings["pictures"], settings.get("count", 12)))
    if settings.get("pairs"):
        dataset = two_pictures(dataset)
    return Recording(
        AutoModelForImageTextToText.from_pretrained(settings["folder"]),
        reward_funcs=[letters],
        args=args,
        train_dataset=dataset,
        processing_class=AutoProcessor.from_pretrained(settings["folder"]),
        block_size=4,
        peft_config=peft_config,
        rollouts=RolloutOptions(**settings.get("rollouts", {})),
        guard=settings.get("guard", False),
    )


def resident():
    """Megabytes of this process in memory."""
    gc.collect()
    return psutil.Process().memory_info().rss >> 20


def differences(trainer):
    name = "sampling/sampling_logp_difference/mean"
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def train(settings):
    """Differences after each update; with `nosync`, after the first, no weights go to the engine any more."""
    trainer = trainer_of(settings)
    generation = trainer.vllm_generation
    if settings.get("nosync"):
        sync, done = generation.sync_weights, []
        generation.sync_weights = lambda: None if done else done.append(sync())
    if settings.get("uncollapsed"):
        # As TRL does it: every picture's placeholder already repeated.
        generation.generate = type(generation).generate.__get__(generation)
    if settings.get("keep_pictures"):
        # As TRL does it: the cache of encoded pictures outlives the weights.
        generation.llm.llm_engine.reset_encoder_cache = lambda: None
        generation.llm.llm_engine.model_executor.driver_worker.model_runner.reset_encoder_cache = lambda: None
    error = None
    try:
        trainer.train()
    except ThurlError as caught:
        error = str(caught)
    trainer.weight_sync.close()
    record = trainer.weight_sync.record
    decode = trainer._tokenizer.decode
    return {
        "differences": differences(trainer),
        "completions": trainer.completions,
        "texts": [decode(ids, skip_special_tokens=True) for ids in trainer.completions],
        "without_last": [decode(ids[:-1], skip_special_tokens=True) for ids in trainer.completions],
        "forbidden": vision_token_ids(trainer._tokenizer),
        "error": error,
        "bytes": record.bytes,
        "parameters": sum(value.nbytes for value in trainer.model.parameters()),
        "adapter": sum(value.nbytes for name, value in trainer.model.named_parameters() if ".lora_" in name),
        "steps": trainer.state.global_step,
        "images_per_prompt": len(trainer.train_dataset[0].get("images") or [0]),
    }


def forbidden_mass(settings):
    """vLLM's log-probabilities minus the trainer's, and what the forbidden tokens' probability makes of them."""
    trainer = trainer_of(settings)
    outputs = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    trainer.weight_sync.close()
    inputs = {name: outputs[name] for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids")}
    with torch.no_grad():
        logits = trainer.model(
            input_ids=torch.cat([outputs["prompt_ids"], outputs["completion_ids"]], dim=1),
            attention_mask=torch.cat([outputs["prompt_mask"], outputs["completion_mask"]], dim=1),
            **inputs,
        ).logits
    columns = slice(outputs["prompt_ids"].shape[1] - 1, -1)
    mass = logits[:, columns].softmax(-1)[..., vision_token_ids(trainer._tokenizer)].sum(-1)
    seen = outputs["sampling_per_token_logps"] - outputs["old_per_token_logps"]
    keep = outputs["completion_mask"].bool()
    return {"seen": seen[keep].tolist(), "expected": (-torch.log1p(-mass))[keep].tolist()}


def resume(settings):
    """A run of four steps, and its second half again from the checkpoint, with and without synchronisation."""
    whole = trainer_of(settings, save_strategy="steps", save_steps=2)
    whole.train()
    whole.weight_sync.close()
    found = {"whole": whole.completions}
    checkpoint = str(Path(settings["output"]) / "checkpoint-2")
    for name in ("resumed", "unsynchronised"):
        trainer = trainer_of(settings)
        if name == "unsynchronised":
            trainer.vllm_generation.sync_weights = lambda: None
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.weight_sync.close()
        found[name] = trainer.completions
        found[f"{name} differences"] = differences(trainer)[-2:]
    return found


class Server:
    """The stand-in for a vLLM server, with the start weights, as a process that can be killed."""

    def __init__(self, settings, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = settings.setdefault("port", free.getsockname()[1])
        self.log = Path(settings["output"]) / log
        script = str(Path(__file__).with_name("rollout_server.py"))
        # It starts while the trainer is built, which has to wait for it.
        self.process = subprocess.Popen([sys.executable, script, settings["folder"], str(self.port), str(self.log)])

    def kill(self):
        self.process.kill()
        self.process.wait()

    def seen(self):
        return [line for line in self.log.read_text().splitlines() if line != "/health"]


def weights_by_file(folder):
    """vLLM's transfer of weights needs NCCL; TRL's client sends a file instead."""

    def send(self, metadata, named_params):
        path = str(Path(folder) / "weights.safetensors")
        save_file({name: tensor.detach().clone() for name, tensor in named_params}, path)
        self._start_weight_update()
        self._post(f"{self.base_url}/update_weights", json={"update_info": {"path": path}})
        self._finish_weight_update()

    VLLMClient.init_communicator = lambda self, device: None
    VLLMClient.update_named_params = send


class KillServer(TrainerCallback):
    def __init__(self, server, step):
        self.server, self.step = server, step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.server.kill()


def server(settings):
    """A run that loses its server after two steps, and two that continue with a new one."""
    weights_by_file(settings["output"])
    found = {}
    first = Server(settings, "first.log")
    fields = {
        "vllm_mode": "server",
        "vllm_server_base_url": f"http://127.0.0.1:{first.port}",
        "vllm_server_timeout": 120.0,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    trainer = trainer_of(settings, **fields)
    trainer.add_callback(KillServer(first, 2))
    try:
        trainer.train()
    except ThurlError as error:
        found["error"] = str(error)
    found.update(differences=differences(trainer), first=first.seen(), url=fields["vllm_server_base_url"])
    for name in ("resumed", "unsynchronised"):
        again = Server(settings, f"{name}.log")
        trainer = trainer_of(settings, **fields | {"save_strategy": "no"})
        if name == "unsynchronised":
            trainer.vllm_generation.sync_weights = lambda: None
        trainer.train(resume_from_checkpoint=str(Path(settings["output"]) / "checkpoint-2"))
        found[name] = again.seen()
        found[f"{name} differences"] = differences(trainer)[-2:]
        again.kill()
    return found


CASES = {"server": server, "train": train, "forbidden_mass": forbidden_mass, "resume": resume}


if __name__ == "__main__":
    for wanted in json.loads(sys.argv[1]):
        Path(wanted["output"]).mkdir(parents=True, exist_ok=True)
        found = CASES[wanted["case"]](wanted) | {"resident": resident()}
        (Path(wanted["output"]) / "result.json").write_text(json.dumps(found))
