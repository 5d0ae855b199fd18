"""Model card of a trained method: README.md with the metadata the Hub reads, written from what the run knows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thurl.hub.card_text import citation, front_matter, number, one_line, table
from thurl.hub.files import CARD
from thurl.hub.names import hub_name
from thurl.training.results import environment, write_atomically


__all__ = ["MethodCard", "model_card", "training_settings", "write_model_card"]

Metrics = Mapping[str, Mapping[str, float | None]]
"""Name of an evaluation to its metrics."""


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
        base_model: name on the Hub of the model it started from; folders are left out.
        relation: of the two, as the Hub has it: `adapter`, `finetune`; None: not said.
        task: of the Hub, such as `image-classification`; "other" where it has no name for it.
        library: of the Hub, that loads the model.
        loading: lines of Python that load it; "USER/NAME" stands for the repository.
        limits: what the numbers do not show; one paragraph each.
    """

    name: str = "thurl method"
    paper: str = ""
    paper_id: str = ""
    license: str | None = None
    tags: Sequence[str] = ()
    datasets: Sequence[str] = ()
    base_model: str | None = None
    relation: str | None = None
    task: str = "other"
    library: str = "thurl"
    loading: str = ""
    limits: Sequence[str] = ()


def model_card(
    card: MethodCard,
    *,
    model_name: str,
    settings: Mapping[str, Any],
    metrics: Metrics,
    weights: Mapping[str, float],
    versions: Mapping[str, str | None],
) -> str:
    """The text of the card.

    Args:
        card: what the method says of itself.
        model_name: of the trained model.
        settings: of the run, as name to JSON value.
        metrics: by the evaluation they come from; NaN is shown as undefined and is not in the metadata. Empty: the
            card says so.
        weights: of the loss terms at the end; may be empty.
        versions: of packages (`thurl.training.results.environment`).
    """
    from huggingface_hub import ModelCardData

    base = hub_name(card.base_model)
    results = _results(card, metrics)
    relation: dict[str, Any] = {"base_model_relation": card.relation} if base and card.relation else {}
    data = ModelCardData(
        library_name=card.library,
        license=card.license,
        tags=sorted({"thurl", *card.tags}),
        datasets=list(card.datasets) or None,
        base_model=base,
        pipeline_tag=None if card.task == "other" else card.task,
        model_name=one_line(model_name) if results else None,
        eval_results=results or None,
        **relation,
    )
    trained = f"Trained with thurl: {one_line(card.name)}.\n"
    parts = [front_matter(data), f"# {one_line(model_name)}\n", trained]
    if card.paper:
        where = f" ([{card.paper_id}](https://arxiv.org/abs/{card.paper_id}))" if card.paper_id else ""
        parts.append(f"Paper: {one_line(card.paper)}{where}.\n")
    if card.loading:
        parts.append(f"## Loading\n\n```python\n{card.loading.strip()}\n```\n")
    parts.append("## Results\n")
    rows = [
        (f"{group} {name}", number(math.nan if value is None else value))
        for group, values in metrics.items()
        for name, value in values.items()
    ]
    parts.append(table(("metric", "value"), rows) if rows else "This run was not evaluated.\n")
    if weights:
        parts.append("## Weights of the loss terms\n")
        parts.append(table(("term", "weight"), [(name, number(value)) for name, value in weights.items()]))
    parts.append("## Training\n")
    said = ", ".join(card.datasets) if card.datasets else "see the recipe; none of it is named on the Hub"
    parts.append(f"Data: {one_line(said)}. Licence of the weights: {card.license or 'not said'}.\n")
    parts.append(table(("setting", "value"), [(name, f"`{value}`") for name, value in settings.items()]))
    if card.limits:
        parts.append("## Limits\n")
        parts += [f"{text}\n" for text in card.limits]
    if card.paper and card.paper_id:
        parts.append(citation(card.paper, card.paper_id))
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    parts.append(f"Versions: {known}.\n")
    return "\n".join(parts)


def write_model_card(
    trainer: Any,
    card: MethodCard,
    metrics: Metrics,
    *,
    model_name: str | None = None,
    weights: Mapping[str, float] | None = None,
    bilevel: Mapping[str, Any] | None = None,
) -> None:
    """Write README.md into the output folder of a `transformers.Trainer`; the first process does, call it on all.

    Args:
        model_name: the name of the folder when None.
        metrics, weights: see `model_card`.
        bilevel: settings of the bi-level step.
    """
    if not trainer.is_world_process_zero():
        return
    text = model_card(
        card,
        model_name=model_name or Path(str(trainer.args.output_dir)).name,
        settings=training_settings(trainer.args, trainer.state.global_step, bilevel or {}),
        metrics=metrics,
        weights=weights or {},
        versions=environment()["versions"],
    )
    write_atomically(Path(str(trainer.args.output_dir)) / CARD, text)


def _results(card: MethodCard, metrics: Metrics) -> list[Any]:
    """Entries of `model-index`. The data of a recipe has no name on the Hub, so evaluations stand for it."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=card.task,
            dataset_type=one_line(group),
            dataset_name=f"{one_line(group)}, data of the recipe",
            metric_type=one_line(name),
            metric_value=float(value),
            metric_name=one_line(name),
        )
        for group, values in metrics.items()
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    ]


def training_settings(args: Any, steps: int, bilevel: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader of the card wants to know of `transformers.TrainingArguments`, and the bi-level settings."""
    names = ["learning_rate", "lr_scheduler_type", "optim", "weight_decay", "per_device_train_batch_size"]
    names += ["gradient_accumulation_steps", "world_size", "seed", "bf16", "fp16"]
    settings: dict[str, Any] = {"steps": steps, **{name: _plain(getattr(args, name)) for name in names}}
    return {**settings, **{f"bilevel.{name}": value for name, value in bilevel.items()}}


def _plain(value: Any) -> Any:
    """The word of an enumeration."""
    return getattr(value, "value", value)
