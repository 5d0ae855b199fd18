"""A tiny method for the tests of `MethodTrainer`; run on two processes by test_method_trainer.py.

usage: method_runs.py OUTPUT_PREFIX KIND...
"""

import json
import os
import sys
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments, set_seed

from thurl.ranking import class_fidelity_loss, pairwise_fidelity_loss
from thurl.training.bilevel import BilevelConfig
from thurl.training.evaluation import EvaluationResults
from thurl.training.gather import gather_with_gradient
from thurl.training.method_output import MethodOutput
from thurl.training.method_trainer import MethodTrainer


class JudgeConfig(PreTrainedConfig):
    model_type = "tiny_judge"

    def __init__(self, dropout=0.0, batch_norm=False, gather=True, **kwargs):
        super().__init__(**kwargs)
        self.dropout, self.batch_norm, self.gather = dropout, batch_norm, gather


@dataclass
class JudgeOutput(MethodOutput):
    scores: torch.Tensor | None = None
    features: torch.Tensor | None = None


class Judge(PreTrainedModel):
    """A score and a kind for six numbers."""

    config_class = JudgeConfig

    def __init__(self, config):
        super().__init__(config)
        self.body = torch.nn.Linear(6, 16)
        self.norm = torch.nn.BatchNorm1d(16) if config.batch_norm else torch.nn.LayerNorm(16)
        self.dropout = torch.nn.Dropout(config.dropout)
        self.score = torch.nn.Linear(16, 1, bias=False)  # a ranking does not determine a shift
        self.kind = torch.nn.Linear(16, 3)
        self.post_init()

    def forward(self, x, quality=None, kind=None):
        features = self.dropout(torch.tanh(self.norm(self.body(x))))
        scores, logits = self.score(features).squeeze(1), self.kind(features)
        if quality is None:
            return JudgeOutput(scores=scores, features=features)
        everything = (scores, logits, quality, kind)
        s, z, q, k = gather_with_gradient(*everything) if self.config.gather else everything
        terms = {"rank": pairwise_fidelity_loss(s, q), "kind": class_fidelity_loss(z, k)}
        present = {"rank": (~q.isnan()).sum() > 1, "kind": (k >= 0).any()}
        return JudgeOutput(terms=terms, present=present, scores=scores, features=features)


def rows(count=24, seed=1, missing=()):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    quality, kind = x @ torch.arange(6.0) - x[:, 0], (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    for index in missing:
        quality[index], kind[index] = float("nan"), -1
    return [{"x": x[i], "quality": quality[i], "kind": kind[i]} for i in range(count)]


def collate(items):
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


BILEVEL = {"tasks": ("rank", "kind"), "primary": ("rank",), "lr": 0.05}
KINDS = {
    "plain": {},
    "weights": {"weights": {"rank": 2.0, "kind": 0.5}},
    "official": {"bilevel": BilevelConfig(**BILEVEL)},
    "delayed": {"bilevel": BilevelConfig(**BILEVEL, delayed=True)},
    "grouped": {"weights": {"rank": 2.0, "kind": 0.5}, "train_groups": [row % 6 for row in range(24)]},
    "every 3": {"bilevel": BilevelConfig(**BILEVEL, every=3, warmup=1)},
}


def count_agreement(model, dataset, predict):
    """An evaluator: are pairs of neighbours in the right order?"""
    predicted = predict(dataset)["scores"]
    true = [float(row["quality"]) for row in dataset]
    right = [(a < b) == (p < q) for a, b, p, q in zip(true, true[1:], predicted, predicted[1:], strict=False)]
    items = [{"row": i, "score": float(score), "true": true[i]} for i, score in enumerate(predicted)]
    return EvaluationResults({"agreement": sum(right) / len(right)}, items, {"rows": len(items)})


def trainer_for(folder, kind="plain", *, config=None, data=None, missing=(), callbacks=(), options=None, **fields):
    set_seed(0)
    model = Judge(JudgeConfig(**(config or {})))
    defaults = {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "logging_steps": 2,
        "learning_rate": 0.05,
        "optim": "adamw_torch",
        "weight_decay": 0.01,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_drop_last": True,
        "remove_unused_columns": False,
        "seed": 1,
    }
    settings = KINDS[kind]
    outer = {"outer_dataset": rows(16, seed=2)} if "bilevel" in settings else {}
    return MethodTrainer(
        model,
        TrainingArguments(str(folder), **{**defaults, **fields}),
        train_dataset=data or rows(missing=missing),
        eval_dataset=rows(11, seed=3),
        data_collator=collate,
        callbacks=[*callbacks],
        **{**settings, **outer, **(options or {})},
    )


def timeless(log):
    return [
        {name: value for name, value in entry.items() if not name.startswith(("timing/", "train_", "eval_runtime"))
         and "per_second" not in name}
        for entry in log
    ]  # fmt: skip


def gathering(rank, world):
    """Gradients, ragged and empty parts, truth values and second derivatives of `gather_with_gradient`."""
    sizes = [3, 1][:world]
    begin = sum(sizes[:rank])
    whole = torch.arange(2.0 * sum(sizes), dtype=torch.float64).reshape(-1, 2) + 1
    mine = whole[begin : begin + sizes[rank]].clone().requires_grad_()
    found, flags = gather_with_gradient(mine, mine[:, 0] > 4)
    weight = torch.tensor(float(rank + 2), dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad((weight * found**3).sum(), mine, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), mine)
    return {
        "gathered": found.tolist(),
        "flags": flags.tolist(),
        "flag_kind": str(flags.dtype),
        "rows": whole[begin : begin + sizes[rank]].tolist(),
        "first": first.tolist(),
        "second": second.tolist(),
        "sizes": sizes,
        "empty": gather_with_gradient(torch.full((0 if rank else 2, 2), 9.0)).tolist(),
    }


def run(output, kind, world):
    """Evaluate, train, evaluate; what the processes must have in common, and the weights."""
    fields = {"missing": (2, 9)} if kind != "plain" else {}
    trainer = trainer_for(output, kind, per_device_train_batch_size=8 // world, **fields)
    trainer.evaluator = count_agreement
    before = trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    record = {
        "log": timeless(trainer.state.log_history),
        "before": before["eval_agreement"],
        "items": list(trainer.evaluation_results["eval"].items),
        "weights": trainer.term_weights,
        "record": trainer.run_record(),
    }
    trainer.evaluator = None
    record["losses"] = trainer.evaluate()["eval_rank"]
    return record, {name: value.clone() for name, value in trainer.model.state_dict().items()}


def main():
    output, *kinds = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    records = {}
    for kind in kinds:
        records[kind], weights = run(f"{output}_{kind}", kind, world)
        save_file(weights, f"{output}_{kind}.{rank}.safetensors")
    records["gathering"] = gathering(rank, world)
    with open(f"{output}.{rank}.json", "w") as file:
        json.dump(records, file)
    torch.distributed.destroy_process_group()  # else gloo may abort at the end


if __name__ == "__main__":
    main()
