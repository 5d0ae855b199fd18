"""Run by test_visualquality_r1_coto_vllm.py in a process of its own: GRPO with CoTo at p = 0.1 and vLLM, on the CPU.

usage: coto_vllm_runs.py WAY OUTPUT

WAY is `merged` or `adapter`. At each sync the weights of the engine are read, by what its layers do to the identity
matrix: vLLM has repacked the tensors. OUTPUT gets, per sync, the largest distance from base plus all updates of the
adapter and from base plus those that are on in this step, and what the trainer saw.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from thurl.data.records import RatedImage
from thurl.recipe.adapters import AdapterSection, peft_config
from thurl.recipe.coto import CoToSection
from thurl.recipe.visualquality_r1_coto import rank_trainer
from thurl.rl import RankGRPOConfig, build_rank_dataset
from thurl.rl.rollouts import RolloutOptions, vision_token_ids
from thurl.rl.tiny import build_tiny_qwen2_5_vl


P = 0.1
# A projection of the engine holds several of the trainer's, one below the other.
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def start(folder):
    """A model that gives no probability to vision tokens, which vLLM and the trainer forbid in different places."""
    model, processor = build_tiny_qwen2_5_vl(0, layers=3)
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[:, 0] = 1
        merger = model.model.visual.merger.mlp[-1]
        merger.weight[0], merger.bias[0] = 0, 1
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        ids = vision_token_ids(processor.tokenizer)
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[ids] = 0
        model.lm_head.weight[ids, 0] = -40
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def pictures(folder):
    draw = np.random.default_rng(0)
    records = []
    for index in range(12):
        file = Path(folder) / f"{index}.png"
        Image.fromarray(draw.integers(0, 256, (56, 56, 3), np.uint8)).save(file)
        records.append(RatedImage(str(file), 1 + index / 3))
    return records


def letters(completions, **_):
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


def trainer_of(way, folder):
    set_seed(0)
    trainer = rank_trainer(CoToSection(initial_p=P, final_p=P, schedule="constant"))(
        AutoModelForImageTextToText.from_pretrained(folder),
        reward_funcs=[letters],
        args=RankGRPOConfig(
            str(Path(folder) / "out"),
            **{"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True},
            **{"per_device_train_batch_size": 16, "num_generations": 4, "max_steps": 3, "max_completion_length": 12},
            **{"learning_rate": 1e-2, "lr_scheduler_type": "constant", "beta": 0.0, "logging_steps": 1, "seed": 1},
            **{"gradient_checkpointing": False, "use_vllm": True, "vllm_mode": "colocate"},
            **{"vllm_max_model_length": 512},
        ),
        train_dataset=build_rank_dataset(pictures(folder)),
        processing_class=AutoProcessor.from_pretrained(folder),
        block_size=4,
        peft_config=peft_config(AdapterSection(r=6, alpha=24)),
        rollouts=RolloutOptions(adapter_sync=way),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in trainer.model.named_parameters():
            if ".lora_B." in name:
                value.copy_(0.05 * torch.randn(value.shape, generator=generator))
    return trainer


def adapted(trainer):
    """Path within the language model -> layer of PEFT."""
    return {
        "layers." + name.rpartition(".layers.")[2]: module
        for name, module in trainer.model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def engine_weights(trainer):
    """Path in the engine -> (out, in) of what it multiplies by, its adapter included."""
    runner = trainer.vllm_generation.llm.llm_engine.model_executor.driver_worker.model_runner
    found = {}
    for name, module in runner.get_model().named_modules():
        _, layers, rest = name.partition("language_model.model.layers.")
        if not layers or rest.count(".") != 2 or not rest.endswith("_proj"):
            continue
        inside = getattr(module, "base_layer", module)
        eye = torch.eye(inside.input_size)

        def run(x, inside=inside):
            out = inside(x)
            return out[0] if isinstance(out, tuple) else out

        weight = (run(eye) - run(torch.zeros(1, inside.input_size))).T
        if inside is not module:
            parts = zip(module.lora_a_stacked, module.lora_b_stacked, strict=True)
            weight = weight + torch.cat([b[0, 0] @ a[0, 0] for a, b in parts])
        found["layers." + rest] = weight
    return found


def distances(trainer, start_weights):
    """Largest |engine - expected|, for all adapters and for those that are on, and |all - base|."""
    layers = adapted(trainer)
    active = set()
    controller = trainer.coto_callback.controller
    mask = controller.mask(controller.open_step)
    for on, paths in zip(mask, controller.groups.values(), strict=True):
        active |= {"layers." + path.rpartition(".layers.")[2] for path in paths if on}
    gaps = {"all": 0.0, "active": 0.0, "base": 0.0}
    compared = 0
    for path, weight in engine_weights(trainer).items():
        head, _, name = path.rpartition(".")
        names = [f"{head}.{part}" for part in FUSED.get(name, [name])]
        base = [start_weights[part] for part in names]
        delta = [layers[part].get_delta_weight("default") for part in names]
        some = [change if part in active else 0 * change for part, change in zip(names, delta, strict=True)]
        for kind, changes in (("all", delta), ("active", some), ("base", [0 * change for change in delta])):
            expected = torch.cat([b + c for b, c in zip(base, changes, strict=True)])
            gaps[kind] = max(gaps[kind], (weight - expected).abs().max().item())
        compared += len(names)
    return {**gaps, "compared": compared, "adapted": len(layers), "mask": mask}


def run(way, folder):
    start(folder)
    trainer = trainer_of(way, folder)
    start_weights = {path: layer.base_layer.weight.detach().clone() for path, layer in adapted(trainer).items()}
    seen = {"syncs": [], "whole": [], "gates": []}
    sync = trainer.vllm_generation.sync_weights

    def synchronised():
        sync()
        seen["syncs"].append(distances(trainer, start_weights))

    trainer.vllm_generation.sync_weights = synchronised
    compared = trainer._rollout_difference

    def difference(outputs):
        seen["whole"].append(compared(outputs))
        return seen["whole"][-1]

    trainer._rollout_difference = difference
    loss = trainer._compute_loss

    def compute_loss(*args, **kwargs):
        seen["gates"].append([layer._coto_off for layer in adapted(trainer).values()])
        return loss(*args, **kwargs)

    trainer._compute_loss = compute_loss
    trainer.train()
    trainer.weight_sync.close()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        **seen,
        "masked": [entry["sampling/sampling_logp_difference/mean"] for entry in logs],
        "ratio": [entry["coto/abs_log_ratio"] for entry in logs],
        # The trainer's own base weights after merging and taking out again.
        "base_moved": max(
            (layer.base_layer.weight - start_weights[path]).abs().max().item()
            for path, layer in adapted(trainer).items()
        ),
        "bytes": trainer.weight_sync.record.bytes,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = run(sys.argv[1], place)
    Path(sys.argv[2]).write_text(json.dumps(found))
