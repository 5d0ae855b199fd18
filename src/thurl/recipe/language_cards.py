"""What the cards of fine-tuned language and vision-language models say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from thurl.recipe.hub import method_card


if TYPE_CHECKING:
    from thurl.training.model_card import MethodCard

__all__ = ["COTO", "VISUALQUALITY_R1", "answers_card", "quality_card", "quality_metrics"]

COTO: Mapping[str, Any] = {
    "paper": "Come Together, But Not Right Now: A Progressive Strategy to Boost Low-Rank Adaptation",
    "paper_id": "2506.05713",
    "tags": ("coto",),
}
VISUALQUALITY_R1: Mapping[str, Any] = {
    "name": "VisualQuality-R1",
    "paper": "VisualQuality-R1: Reasoning-Induced Image Quality Assessment via Reinforcement Learning to Rank",
    "paper_id": "2505.14460",
    "tags": ("image-quality-assessment", "grpo"),
}


def answers_card(recipe: Any) -> MethodCard:
    """The card of a model of text that is judged by its answers."""
    coto = recipe.coto is not None
    return _card(
        recipe,
        name=f"{'CoTo' if coto else 'plain adapter'}, recipe {recipe.method}",
        task="text-generation",
        loading=(
            'from thurl.text.loading import load_language_model\n\nmodel, tokenizer = load_language_model("USER/NAME")'
        ),
        limits=("Answers were counted as right on questions like those of the recipe, and on no others.",),
        **(COTO if coto else {}),
    )


def quality_card(recipe: Any, fields: Mapping[str, Any]) -> MethodCard:
    """The card of a model that rates pictures; `fields`: name and paper of its way of training."""
    return _card(
        recipe,
        task="image-text-to-text",
        loading='from thurl.rl import QualityScorer\n\nscorer = QualityScorer.from_pretrained("USER/NAME")',
        limits=("Scores order pictures; they are opinions learned from opinions.",),
        **fields,
    )


def quality_metrics(evaluated: Mapping[str, Any] | None) -> dict[str, dict[str, float | None]]:
    """Metrics for the card: the means over the test sets, and those of each where there are several.

    Args:
        evaluated: result of `thurl.rl.eval_callback.QualityEvalCallback.evaluate`.
    """
    if evaluated is None:
        return {}
    each = evaluated["datasets"] if len(evaluated["datasets"]) > 1 else {}
    entries = {"test": evaluated["mean"], **each}
    return {name: {metric: entry[metric] for metric in ("srcc", "plcc")} for name, entry in entries.items()}


def _card(recipe: Any, **fields: Any) -> MethodCard:
    adapter = recipe.adapter is not None
    tags = (*fields.pop("tags", ()), *(("lora",) if adapter else ()))
    own = {"relation": "adapter" if adapter else "finetune", "library": "peft" if adapter else "transformers"}
    return method_card(recipe, tags=tags, base_model=recipe.model.name_or_path, **own, **fields)
