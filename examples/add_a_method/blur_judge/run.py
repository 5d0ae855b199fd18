"""The model, its data and the run. The mathematics is `thurl.ranking`; the trainer does the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments, set_seed

from blur_judge.recipe import BlurJudgeRecipe
from thurl.metrics import srcc
from thurl.ranking import pairwise_fidelity_loss
from thurl.training.evaluation import EvaluationResults
from thurl.training.gather import gather_with_gradient
from thurl.training.method_output import MethodOutput
from thurl.training.method_trainer import MethodTrainer
from thurl.training.results import write_results


class BlurJudgeConfig(PreTrainedConfig):
    model_type = "blur_judge"

    def __init__(self, channels: int = 8, **kwargs: Any):
        super().__init__(**kwargs)
        self.channels = channels


@dataclass
class BlurJudgeOutput(MethodOutput):
    scores: torch.Tensor | None = None  # (N,): a row per picture, which is what the evaluator sees


class BlurJudge(PreTrainedModel):
    """Pictures (N, 1, H, W) to scores (N,), higher is sharper."""

    config_class = BlurJudgeConfig

    def __init__(self, config: BlurJudgeConfig):
        super().__init__(config)
        self.filters = torch.nn.Conv2d(1, config.channels, 3)
        self.score = torch.nn.Linear(config.channels, 1, bias=False)  # a ranking does not determine a shift
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, quality: torch.Tensor | None = None) -> BlurJudgeOutput:
        scores = self.score(self.filters(pixel_values).abs().mean((2, 3))).squeeze(1)
        if quality is None:
            return BlurJudgeOutput(scores=scores)
        s, q = gather_with_gradient(scores, quality)  # pairs across all processes
        return BlurJudgeOutput(terms={"rank": pairwise_fidelity_loss(s, q)}, scores=scores)


def draw(count: int, widest: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Pictures (1, 16, 16) of noise and their quality, minus the number of blurs."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for index in range(count):
        picture = torch.randn(1, 16, 16, generator=generator)
        for _ in range(index % widest):
            picture = torch.nn.functional.avg_pool2d(picture, 3, stride=1, padding=1)
        rows.append({"pixel_values": picture, "quality": torch.tensor(-float(index % widest))})
    return rows


def evaluate(model: BlurJudge, dataset: Any, predict: Any) -> EvaluationResults:
    scores, true = predict(dataset)["scores"], [float(row["quality"]) for row in dataset]
    items = [{"row": i, "score": float(s), "true": t} for i, (s, t) in enumerate(zip(scores, true, strict=True))]
    return EvaluationResults({"srcc": srcc(scores, true)}, items, {"rows": len(items)})


def run(recipe: BlurJudgeRecipe, *, recipe_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train, evaluate, write the model and a results file; called on every process."""
    args = TrainingArguments(**{"remove_unused_columns": False, "dataloader_drop_last": True, **recipe.training})
    set_seed(args.seed)
    trainer = MethodTrainer(
        BlurJudge(BlurJudgeConfig(channels=recipe.channels)),
        args,
        train_dataset=draw(recipe.data.count, recipe.data.widest, seed=args.seed),
        eval_dataset=draw(recipe.data.count, recipe.data.widest, seed=args.seed + 1),
        evaluator=evaluate,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.evaluate()
    trainer.save_model()
    record = trainer.run_record()
    if trainer.is_world_process_zero():
        target = Path(args.output_dir) / "results.json"
        write_results(target, recipe=recipe_path, runs=[record], overrides=list(overrides))
    return record
