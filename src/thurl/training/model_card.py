"""Model card of a trained method: README.md with the metadata the Hub reads, written from what the run knows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


__all__ = ["MethodCard", "model_card", "training_settings"]


@dataclass(frozen=True)
class MethodCard:
    """What a person should know about a trained model beyond its numbers.

    Args:
        name: of the method.
        paper: title of the paper, with `paper_id`.
        paper_id: on arXiv.
        license: of the weights, an identifier of the Hub such as `apache-2.0`; None: not said.
        tags: of the Hub, beside `thurl`.
        datasets: on the Hub, that were trained on.
        base_model: name on the Hub of the model it started from.
        limits: what the numbers do not show; one paragraph each.
    """

    name: str = "thurl method"
    paper: str = ""
    paper_id: str = ""
    license: str | None = None
    tags: Sequence[str] = ()
    datasets: Sequence[str] = ()
    base_model: str | None = None
    limits: Sequence[str] = ()


def model_card(
    card: MethodCard,
    *,
    model_name: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    weights: Mapping[str, float],
    versions: Mapping[str, str | None],
) -> str:
    """The text of the card.

    Args:
        card: what the method says of itself.
        model_name: of the trained model.
        settings: of the run, as name to JSON value.
        metrics: of the last evaluation, by name; NaN is shown as undefined. Empty: the card says so.
        weights: of the loss terms at the end; may be empty.
        versions: of packages (`thurl.training.results.environment`).
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="thurl",
        license=card.license,
        tags=sorted({"thurl", *card.tags}),
        datasets=list(card.datasets) or None,
        base_model=card.base_model,
    )
    parts = [f"---\n{data.to_yaml()}\n---\n", f"# {_line(model_name)}\n", f"Trained with thurl: {_line(card.name)}.\n"]
    if card.paper:
        where = f" ([{card.paper_id}](https://arxiv.org/abs/{card.paper_id}))" if card.paper_id else ""
        parts.append(f"Paper: {_line(card.paper)}{where}.\n")
    parts.append("## Results\n")
    if metrics:
        parts.append(_table("metric", "value", {name: _number(value) for name, value in metrics.items()}))
    else:
        parts.append("This run was not evaluated.\n")
    if weights:
        parts.append("## Weights of the loss terms\n")
        parts.append(_table("term", "weight", {name: _number(value) for name, value in weights.items()}))
    parts.append("## Training\n")
    parts.append(_table("setting", "value", {name: f"`{value}`" for name, value in settings.items()}))
    if card.limits:
        parts.append("## Limits\n")
        parts += [f"{text}\n" for text in card.limits]
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    parts.append(f"Versions: {known}.\n")
    return "\n".join(parts)


def training_settings(args: Any, steps: int, bilevel: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader of the card wants to know of `transformers.TrainingArguments`, and the bi-level settings."""
    names = ["learning_rate", "lr_scheduler_type", "optim", "weight_decay", "per_device_train_batch_size"]
    names += ["gradient_accumulation_steps", "world_size", "seed", "bf16", "fp16"]
    settings: dict[str, Any] = {"steps": steps, **{name: getattr(args, name) for name in names}}
    return {**settings, **{f"bilevel.{name}": value for name, value in bilevel.items()}}


def _table(left: str, right: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {_line(name)} | {_line(value)} |" for name, value in rows.items()]
    return "\n".join([f"| {left} | {right} |", "|---|---:|", *lines]) + "\n"


def _line(text: Any) -> str:
    """One line that cannot leave its table cell or begin a heading of its own."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "undefined"
