"""What `thurl plan` predicts against what real runs take: bytes of tensors, and seconds after one calibration.

    python benchmarks/plan.py

Memory: the highest sum of living tensors (`thurl.training.tensor_memory`) of an update (`compute_loss`, backward,
AdamW) for full training, a frozen vision tower, LoRA, recomputed layers and bfloat16, and of the whole tiny recipe.
Time: one update of the first shape gives the share of the processor's peak that is reached (`calibrated`); updates of
the other shapes are predicted from it. It is processor time, since others may use the machine. All on a CPU, where
positions outside the answer are scored as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hand_updates import SOME_LAYERS, make_batch, make_trainer
from peft import LoraConfig

from thurl.recipe.plan import make_plan
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe
from thurl.recipe.visualquality_r1_run import run as run_recipe
from thurl.rl import RankGRPOTrainer
from thurl.rl.plan.memory import RunShape, resident_memory, update_memory
from thurl.rl.plan.shape import ModelShape
from thurl.rl.plan.time import Device, calibrated, step_seconds
from thurl.training.results import write_results
from thurl.training.tensor_memory import TensorMemory


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 8
SHAPES = [(64, 32, 6, 2), (64, 96, 6, 1), (256, 32, 6, 1)]  # P, C, K, pictures
TIMED = [(64, 32, 6, 4), (64, 128, 6, 4), (256, 32, 6, 4), (256, 128, 6, 2), (1024, 64, 6, 1)]


@dataclass(frozen=True)
class Case:
    """One way to train."""

    name: str
    sizes: dict[str, int]
    freeze: bool = False
    lora: bool = False
    checkpointing: bool = False
    bf16: bool = False
    shared: bool = False


CASES = [
    Case("tiny", {}),
    Case("tiny, frozen vision", {}, freeze=True),
    Case("tiny, LoRA", {}, lora=True),
    Case("layers", SOME_LAYERS),
    Case("layers, frozen vision", SOME_LAYERS, freeze=True),
    Case("layers, recomputed", SOME_LAYERS, checkpointing=True),
    Case("layers, shared prompt", SOME_LAYERS, shared=True),
    Case("layers, shared prompt, recomputed", SOME_LAYERS, shared=True, checkpointing=True),
    Case("layers, LoRA", SOME_LAYERS, lora=True),
    Case("layers, LoRA, recomputed", SOME_LAYERS, lora=True, checkpointing=True),
    Case("layers, bfloat16", SOME_LAYERS, bf16=True),
    Case("layers, bfloat16, recomputed", SOME_LAYERS, bf16=True, checkpointing=True),
    Case("layers, bfloat16, LoRA", SOME_LAYERS, bf16=True, lora=True),
    Case("layers, bfloat16, LoRA, recomputed", SOME_LAYERS, bf16=True, lora=True, checkpointing=True),
]


def trainer_of(case: Case, folder: Path) -> RankGRPOTrainer:
    """A trainer of the case; bfloat16 weights below an adapter, float32 weights and autocast without one."""
    adapter = LoraConfig(
        r=RANK,
        target_modules=list(PROJECTIONS),
        exclude_modules=r".*(^|\.)visual(\.|$).*",
        task_type="CAUSAL_LM",
    )
    return make_trainer(
        folder,
        case.sizes,
        dtype=torch.bfloat16 if case.bf16 and case.lora else torch.float32,
        freeze_vision=case.freeze,
        bf16=case.bf16,
        checkpointing=case.checkpointing,
        peft_config=adapter if case.lora else None,
        prefix_sharing="on" if case.shared else "off",
    )


def optimizer_of(trainer: RankGRPOTrainer) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=0.0)


def measured_update(case: Case, shape: tuple[int, int, int, int], folder: Path) -> dict[str, Any]:
    """Highest bytes of living tensors in a second update, and the sizes that were run."""
    trainer = trainer_of(case, folder)
    batch = make_batch(trainer, shape, 0)
    optimizer = optimizer_of(trainer)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    memory = TensorMemory()
    memory.hold([*trainer.model.parameters(), *trainer.model.buffers(), *(parameter.grad for parameter in trained)])
    states = [value for state in optimizer.state.values() for value in state.values()]
    memory.hold(value for value in [*states, *batch.values()] if isinstance(value, torch.Tensor))
    with memory:
        trainer.compute_loss(trainer.model, batch).backward()
        optimizer.step()
    return {
        "bytes": memory.peak,
        "model": ModelShape.from_config(trainer.model.config.to_dict()),
        "prompt": batch["prompt_ids"].shape[1],
        "patches": batch["pixel_values"].shape[0] // len(batch["prompt_ids"]),
    }


def shape_of_run(case: Case, shape: tuple[int, int, int, int], measured: dict[str, Any]) -> RunShape:
    model = measured["model"]
    return RunShape(
        dtype=2 if case.bf16 and case.lora else 4,
        compute=2 if case.bf16 else 4,
        train_vision=not case.freeze,
        adapter=model.adapter_parameters(RANK, PROJECTIONS) if case.lora else 0,
        rank=RANK if case.lora else 0,
        images=shape[3],
        completions=shape[2],
        prompt=measured["prompt"],
        answer=shape[1],
        patches=measured["patches"],
        shared=case.shared,
        checkpointing=case.checkpointing,
        on_gpu=False,
    )


def planned_case(case: Case, shape: tuple[int, int, int, int], measured: dict[str, Any], leave_out: str = "") -> float:
    """Predicted bytes of what `measured_update` measured."""
    run = shape_of_run(case, shape, measured)
    parts = {**resident_memory(measured["model"], run), **update_memory(measured["model"], run)}
    return sum(size for name, size in parts.items() if name != leave_out)


def whole_recipe(folder: Path) -> dict[str, float]:
    """Highest bytes of two steps of the tiny recipe, generation and reference included, beside its plan."""
    overrides = [
        f"training.output_dir={folder}",
        *("training.max_steps=2", "warm_start=null", "evaluation=null", "control.shuffle_mos=false"),
        *("report.results=null", "report.html=null"),
    ]
    path = find_recipe("tiny/visualquality_r1")
    recipe = load_recipe(path, overrides).recipe
    with TensorMemory() as memory:
        run_recipe(recipe, recipe_path=str(path), overrides=overrides)
    return {"measured": memory.peak, "planned": make_plan(recipe, gpus=1, memory=4.0).peak}


def seconds_of_updates(trainer: RankGRPOTrainer, repeats: int) -> list[dict[str, Any]]:
    """Median seconds of the timed shapes, in turn, and what the first one predicts for the others."""
    case = Case("layers", SOME_LAYERS)
    model, optimizer = ModelShape.from_config(trainer.model.config.to_dict()), optimizer_of(trainer)
    batches = [make_batch(trainer, shape, 0) for shape in TIMED]
    times: list[list[float]] = [[] for _ in TIMED]
    for _ in range(repeats + 1):
        for batch, taken in zip(batches, times, strict=True):
            started = time.process_time()
            optimizer.zero_grad()
            trainer.compute_loss(trainer.model, batch).backward()
            optimizer.step()
            taken.append(time.process_time() - started)
    runs = []
    for shape, batch in zip(TIMED, batches, strict=True):
        rows = len(batch["prompt_ids"])
        sizes = {
            "model": model,
            "prompt": batch["prompt_ids"].shape[1],
            "patches": batch["pixel_values"].shape[0] // rows,
        }
        runs.append(shape_of_run(case, shape, sizes))
    medians = [statistics.median(taken[1:]) for taken in times]
    device = calibrated(Device("cpu", 4.0, 1e11, 2e10, 1e10), model, runs[0], medians[0])
    records = []
    for shape, run, median in zip(TIMED, runs, medians, strict=True):
        planned = step_seconds(model, run, device)["update"]
        name = "x".join(map(str, shape))
        records.append({"shape": name, "measured": median, "planned": planned, "ratio": planned / median})
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed updates per shape, after one that is not counted"
    )
    parser.add_argument("--out", type=Path, default=Path("results/plan.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    memory: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES):
            for shape in SHAPES:
                measured = measured_update(case, shape, Path(folder) / f"{number}-{shape[0]}-{shape[1]}")
                planned = planned_case(case, shape, measured)
                name = f"{case.name}, {'x'.join(map(str, shape))}"
                memory[name] = entry(measured["bytes"], planned)
                sys.stdout.write(f"{name:60} {planned / 1e6:8.1f} of {measured['bytes'] / 1e6:8.1f} MB\n")
                sys.stdout.flush()
        whole = whole_recipe(Path(folder) / "recipe")
        memory["tiny recipe, whole steps"] = entry(whole["measured"], whole["planned"])
        sys.stdout.write(f"whole recipe: {whole['planned'] / 1e6:.1f} of {whole['measured'] / 1e6:.1f} MB\n")
        seconds = seconds_of_updates(trainer_of(Case("layers", SOME_LAYERS), Path(folder) / "timed"), options.repeats)
    for record in seconds:
        sys.stdout.write(f"{record['shape']:20} {record['planned']:.3f} of {record['measured']:.3f} s\n")
    write_results(
        options.out,
        recipe="benchmarks/plan.py",
        overrides={"threads": 1, "repeats": options.repeats},
        runs=[{"seed": 0, "memory": memory, "seconds": {record.pop("shape"): record for record in seconds}}],
        model=SOME_LAYERS,
    )
    return 0


def entry(measured: float, planned: float) -> dict[str, float]:
    return {"measured_mb": measured / 1e6, "planned_mb": planned / 1e6, "ratio": planned / measured}


if __name__ == "__main__":
    sys.exit(main())
