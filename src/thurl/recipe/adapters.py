"""The `adapter` section: which adapter of PEFT is trained, and the configuration PEFT gets.

Eight kinds, one key: LoRA and its variants rsLoRA, DoRA and PiSSA (`peft.LoraConfig`), HiRA, VeRA, LoHa and LoKr.
Field names and what a kind lacks: PEFT 0.21 (tests/recipe/test_adapters.py compares them with the installed one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from thurl.recipe.fields import Problem
from thurl.recipe.sections import Section


if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["AdapterKind", "AdapterSection", "adapter_problems", "peft_config"]

AdapterKind = Literal["lora", "rslora", "dora", "pissa", "hira", "vera", "loha", "lokr"]

_VISION = r".*(^|\.)visual(\.|$).*"
"""Paths of Qwen2.5-VL's vision tower and of the merger behind it."""
_ALL_LINEAR = "all-linear"
_ALPHA = 32.0


class AdapterSection(Section):
    """A low-rank adapter. Without this section every unfrozen weight is trained.

    `target_modules` are names that module paths end with, one regular expression of whole paths, or `all-linear`.
    """

    kind: AdapterKind = "lora"
    r: int = Field(16, ge=1)
    alpha: float | None = Field(None, gt=0)
    """Scaling is alpha / r, with `rslora` alpha / sqrt(r); 32 when left out. HiRA and VeRA have none."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the adapter's input. LoHa and LoKr have none."""
    target_modules: str | Annotated[tuple[str, ...], Field(strict=False)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    exclude_vision: bool = True
    """No adapter in a vision tower. Nothing to say about a language model."""

    def problems(self) -> list[Problem]:
        found: list[Problem] = []
        if not self.target_modules or any(not name for name in self.targets()):
            found.append((("target_modules",), "is empty: name at least one module"))
        elif isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                found.append((("target_modules",), f"is no regular expression of module paths: {error}"))
        if self.kind in ("hira", "vera") and self.alpha is not None:
            found.append((("alpha",), f"`{self.kind}` has no scaling; remove it"))
        if self.kind in ("loha", "lokr") and self.dropout:
            found.append((("dropout",), f"PEFT's `{self.kind}` has no dropout of its input; set it to 0"))
        if self.kind == "vera" and self.exclude_vision and self.target_modules == _ALL_LINEAR:
            found.append(
                (
                    ("target_modules",),
                    "PEFT's `vera` cannot leave the vision tower out of `all-linear`; list the modules, or set "
                    "`exclude_vision: false`",
                )
            )
        return found

    def targets(self) -> tuple[str, ...]:
        """`target_modules` as a tuple, also of the one pattern."""
        return (self.target_modules,) if isinstance(self.target_modules, str) else self.target_modules


def adapter_problems(sections: Mapping[str, Any]) -> list[Problem]:
    """Adapters against `model.freeze`: frozen parts have none, and something must be left to train.

    Args:
        sections: of the recipe, by name; those that are wrong alone are missing.
    """
    adapter, model = sections.get("adapter"), sections.get("model")
    if adapter is None or model is None:
        return []
    where = ("adapter", "exclude_vision")
    if "language" in model.freeze and adapter.exclude_vision:
        return [(where, "with `model.freeze: [language]` this leaves nothing to train")]
    if "vision" in model.freeze and not adapter.exclude_vision:
        return [(where, "is false, but `model.freeze: [vision]` says that the tower is not trained; change one")]
    return []


def peft_config(section: AdapterSection, *, vision: bool = True) -> PeftConfig:
    """What PEFT's `get_peft_model` and TRL's trainers take.

    Args:
        section: the recipe's.
        vision: whether the model has a vision tower; PEFT warns of an exclusion that excludes nothing.
    """
    import peft

    exclude = vision and section.exclude_vision
    alpha = _ALPHA if section.alpha is None else section.alpha
    targets = section.target_modules
    common = {
        "task_type": "CAUSAL_LM",
        "r": section.r,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "exclude_modules": _VISION if exclude else None,
    }
    if section.kind == "hira":
        return peft.HiraConfig(**common, hira_dropout=section.dropout)
    if section.kind in ("loha", "lokr"):
        kind = peft.LoHaConfig if section.kind == "loha" else peft.LoKrConfig
        return kind(**common, alpha=alpha)
    if section.kind == "vera":
        del common["exclude_modules"]  # VeRA knows none: the pattern of the targets leaves the tower out
        if exclude:
            common["target_modules"] = f"(?!{_VISION})(?:{_pattern(section)})"
        return peft.VeraConfig(**common, vera_dropout=section.dropout)
    variant = {
        "lora": {},
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True},
        "pissa": {"init_lora_weights": "pissa"},
    }[section.kind]
    return peft.LoraConfig(**common, lora_alpha=alpha, lora_dropout=section.dropout, **variant)


def _pattern(section: AdapterSection) -> str:
    """The targets as one regular expression of whole paths, which is how PEFT reads a text."""
    if isinstance(section.target_modules, str):
        return section.target_modules
    return r"(?:.*\.)?(?:" + "|".join(map(re.escape, section.target_modules)) + ")"
