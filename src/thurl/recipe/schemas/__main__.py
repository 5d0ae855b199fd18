"""Write `grpo_config.json`, `sft_config.json` and `training_arguments.json` from the installed trl and transformers,
and `learners.json` from `thurl.continual.learners`.

Run `python -m thurl.recipe.schemas` after raising either version or changing a learner; `--check` only compares and
exits 1 on a difference.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import inspect
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any


__all__ = ["build_schema", "main"]

# Fields annotated as plain `str` whose allowed values TRL checks (or fails on) only once training has begun.
# The test of this module looks each value up in the installed source.
_GRPO_CHOICES: dict[str, list[Any]] = {
    "importance_sampling_level": ["token", "sequence"],
    "loss_type": ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"],
    "multi_objective_aggregation": ["sum_then_normalize", "normalize_then_sum"],
    "scale_rewards": ["group", "batch", "none", True, False],
    "vllm_importance_sampling_mode": ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"],
    "vllm_mode": ["colocate", "server"],
    "vllm_model_impl": ["vllm", "transformers"],
}
# `scale_rewards` is annotated `str` but documents booleans as well.
_GRPO_TYPES = {"scale_rewards": ["str", "bool"]}


def _kinds(annotation: Any) -> list[str]:
    """Names of the value types a recipe may use for an annotation, in the order of the annotation."""
    if annotation is None or annotation is type(None):
        return ["none"]
    if annotation is Any:
        return ["none", "bool", "int", "float", "str", "dict"]
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return list(dict.fromkeys(kind for part in typing.get_args(annotation) for kind in _kinds(part)))
    if origin is typing.Literal:
        return list(dict.fromkeys(type(value).__name__ for value in typing.get_args(annotation)))
    if origin is list:
        inner = _kinds(typing.get_args(annotation)[0])[0]
        return [f"list[{'float' if inner in ('int', 'float') else 'str'}]"]
    if origin is dict or annotation is dict:
        return ["dict"]
    if isinstance(annotation, type):
        if issubclass(annotation, enum.Enum):
            return ["str"]
        if annotation in (bool, int, float, str):
            return [annotation.__name__]
    return ["dict"]  # a configuration object, written as a mapping


def _enum_of(annotation: Any) -> list[Any] | None:
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, enum.Enum):
            return [member.value for member in part]
    return None


def _field(cls: type, field: dataclasses.Field[Any], annotation: Any) -> dict[str, Any]:
    default = field.default
    if default is dataclasses.MISSING:
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
    if isinstance(default, enum.Enum):
        default = default.value
    choices = field.metadata.get("choices") or _enum_of(annotation)
    kinds = _kinds(annotation)
    if cls.__name__ == "GRPOConfig":
        choices = _GRPO_CHOICES.get(field.name, choices)
        kinds = _GRPO_TYPES.get(field.name, kinds)
    if default is None and "none" not in kinds:
        kinds = [*kinds, "none"]
    if any(kind.startswith("list") for kind in kinds):
        choices = None
    text = " ".join(str(field.metadata.get("help", "")).split())
    return {"types": kinds, "default": default, "choices": list(choices) if choices else None, "help": text}


def build_schema(name: str) -> dict[str, Any]:
    """Field list of one installed configuration class (imports trl or transformers: several seconds), or the learners'
    options."""
    if name == "learners":
        return _learners()
    if name == "grpo_config":
        from trl import GRPOConfig as cls

        packages = ("trl", "transformers")
    elif name == "sft_config":
        from trl import SFTConfig as cls

        packages = ("trl", "transformers")
    else:
        from transformers import TrainingArguments as cls

        packages = ("transformers",)
    hints = typing.get_type_hints(cls)
    fields = {field.name: _field(cls, field, hints[field.name]) for field in dataclasses.fields(cls) if field.init}
    return {
        "source": f"{cls.__module__.split('.')[0]}.{cls.__name__}",
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "fields": dict(sorted(fields.items())),
    }


def _learners() -> dict[str, Any]:
    from thurl.continual.learners import LEARNERS, learner_options

    def option(parameter: inspect.Parameter) -> dict[str, Any]:
        return {"types": _kinds(parameter.annotation), "default": parameter.default, "choices": None}

    fields = {
        name: {"options": {key: option(parameter) for key, parameter in sorted(learner_options(name).items())}}
        for name in sorted(LEARNERS)
    }
    return {"source": "thurl.continual.learners.LEARNERS", "versions": {}, "fields": fields}


def main(arguments: list[str] | None = None) -> int:
    """Write or, with `--check`, compare the schema files; returns the exit code."""
    from thurl.recipe.schemas import SCHEMAS, load_schema

    check = "--check" in (sys.argv[1:] if arguments is None else arguments)
    different = []
    for name in SCHEMAS:
        schema = json.loads(json.dumps(build_schema(name)))
        if check:
            if schema["fields"] != load_schema(name)["fields"]:
                different.append(name)
            continue
        path = Path(__file__).with_name(f"{name}.json")
        path.write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        sys.stdout.write(f"{path.name}: {len(schema['fields'])} fields\n")
    if different:
        sys.stderr.write(f"differs from the installed version: {', '.join(different)}\n")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
