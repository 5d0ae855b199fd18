"""Check `training:` of a recipe against the fields of the installed trainer configuration, without importing it.

The fields come from `schemas/*.json`, which `python -m thurl.recipe.schemas` writes and a test compares with the
installed versions. Importing `trl` takes ten seconds; reading its field list from JSON takes milliseconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from thurl.messages import closest, nearest, shown
from thurl.recipe.hub import hub_problems
from thurl.recipe.schemas import load_schema


__all__ = [
    "Problem",
    "check_fields",
    "check_options",
    "field_value",
    "grpo_problems",
    "method_problems",
    "process_count",
    "sft_problems",
    "usable_fields",
]

# (path inside the section, message)
Problem = tuple[tuple[str | int, ...], str]

_PYTHON_TYPES: dict[str, Callable[[Any], bool]] = {
    "none": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "dict": lambda value: isinstance(value, dict),
    "list[str]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "list[float]": lambda value: (
        isinstance(value, list) and all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
    ),
}

# Set by another section of the recipe, or unsafe; each maps to what to do about it.
_REFUSED = {
    "model_init_kwargs": "set `model.dtype`, `model.attn_implementation`, `model.revision` instead",
    "reward_weights": "set `reward.accuracy_weight` and `reward.format_weight` instead",
    "auto_find_batch_size": "GRPO needs whole groups in every batch; lower `per_device_train_batch_size` instead",
    "hub_strategy": "a run is pushed once, when it is finished; checkpoints go with `thurl push RUN/checkpoint-N`",
    "hub_always_push": "a run is pushed once, when it is finished",
    "hub_token": "a recipe is no place for a secret; run `hf auth login` or set HF_TOKEN instead",
    "use_transformers_paged": "deprecated upstream; use `use_transformers_continuous_batching`",
    "vllm_importance_sampling_cap": "deprecated upstream; use `vllm_importance_sampling_clip_max`",
    "local_rank": "the launcher sets it",
    "dataset_kwargs": "the section `data` prepares the rows",
    "pad_token": "deprecated upstream; the tokenizer's own is used, or its end token",
    "fsdp": "choose FSDP with `accelerate launch --config_file accelerate_configs/fsdp2.yaml`",
    "fsdp_config": "choose FSDP with `accelerate launch --config_file accelerate_configs/fsdp2.yaml`",
}

_POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_iterations",
    "max_completion_length",
    "generation_batch_size",
    "steps_per_generation",
    "vllm_tensor_parallel_size",
    "vllm_max_model_length",
    "save_total_limit",
)
_ABOVE_ZERO = ("num_train_epochs", "learning_rate", "temperature", "repetition_penalty", "adam_epsilon")
_NOT_NEGATIVE = (
    "beta",
    "epsilon",
    "epsilon_high",
    "weight_decay",
    "warmup_steps",
    "top_k",
    "max_grad_norm",
    "dataloader_num_workers",
)
_PROBABILITY = ("top_p", "min_p", "top_entropy_quantile", "vllm_gpu_memory_utilization", "ref_model_mixup_alpha")


def process_count() -> int:
    """Number of processes of this launch: `WORLD_SIZE` of the launcher, 1 without one."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdigit() and int(text) > 0 else 1


def field_value(values: Mapping[str, Any], name: str, schema: str = "grpo_config") -> Any:
    """Value of a training field: the recipe's, otherwise the installed default."""
    return values[name] if name in values else load_schema(schema)["fields"][name]["default"]


def _readable(kind: str) -> str:
    words = {"none": "null", "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
    words |= {"dict": "a mapping", "list[str]": "a list of texts", "list[float]": "a list of numbers"}
    return words[kind]


def check_fields(values: Mapping[str, Any], schema: str) -> list[Problem]:
    """Problems of single fields: unknown names, wrong types, values outside the allowed ones.

    Args:
        values: the `training` section.
        schema: `"grpo_config"`, `"sft_config"` or `"training_arguments"`.

    Returns:
        one `(path, message)` per problem, empty when every field is valid.
    """
    fields = load_schema(schema)["fields"]
    problems: list[Problem] = []
    for name, value in values.items():
        if name not in fields:
            problems.append(((name,), f"unknown key `{name}`{nearest(name, fields)}"))
        elif name in _REFUSED and value not in (None, False, "", fields[name]["default"]):
            problems.append(((name,), f"`{name}` cannot be set here: {_REFUSED[name]}"))
        elif name == "trust_remote_code" and value:
            problems.append(((name,), "`trust_remote_code: true` would run code from the Hub; thurl never does"))
        else:
            message = _wrong_value(name, value, fields[name])
            if message:
                problems.append(((name,), message))
    return problems


def check_options(values: Mapping[str, Any], fields: Mapping[str, Any]) -> list[Problem]:
    """Problems of single options, as `check_fields` finds them.

    Args:
        fields: what is known of each option: `types`, `default`, `choices`.
    """
    problems: list[Problem] = []
    for name, value in values.items():
        if name not in fields:
            have = f"; it has {', '.join(fields)}" if fields else "; there are none"
            problems.append(((name,), f"unknown option `{name}`{nearest(name, fields) or have}"))
        elif message := _wrong_value(name, value, fields[name]):
            problems.append(((name,), message))
    return problems


def usable_fields(values: Mapping[str, Any], schema: str) -> dict[str, Any]:
    """The fields that are right alone, misspelt ones under the name they were meant to have.

    With them the combinations can be judged although something else is wrong.
    """
    fields = load_schema(schema)["fields"]
    guessed = {closest(name, fields) or name: value for name, value in values.items() if name not in fields}
    meant = guessed | {name: value for name, value in values.items() if name in fields}
    wrong = {path[0] for path, _ in check_fields(meant, schema)}
    return {name: value for name, value in meant.items() if name not in wrong}


def _wrong_value(name: str, value: Any, field: Mapping[str, Any]) -> str | None:
    types, choices = field["types"], field["choices"]
    if not any(_PYTHON_TYPES[kind](value) for kind in types):
        hint = ""
        if "bool" in types and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
            hint = "; write true or false"
        elif name == "resume_from_checkpoint" and isinstance(value, bool):
            hint = "; write `auto`" if value else "; write `null`"
        elif isinstance(value, bool) and "str" in types and not value:
            hint = '; write "no" in quotes'
        return f"`{name}` is {shown(value)}, but must be {' or '.join(map(_readable, types))}{hint}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"`{name}` is {shown(value)}, but must be a finite number"
    if choices and value is not None and value not in choices:
        listed = ", ".join(map(str, choices))
        return f"`{name}` is {shown(value)}, but must be one of {listed}{nearest(value, choices)}"
    if value is None or isinstance(value, bool | str):
        return None
    if name in _POSITIVE and value < 1:
        return f"`{name}` is {value}, but must be at least 1"
    if name in _ABOVE_ZERO and value <= 0:
        return f"`{name}` is {value}, but must be above 0"
    if name in _NOT_NEGATIVE and value < 0:
        return f"`{name}` is {value}, but must not be negative"
    if name in _PROBABILITY and not 0 <= value <= 1:
        return f"`{name}` is {value}, but must lie between 0 and 1"
    return None


def grpo_problems(values: Mapping[str, Any], processes: int | None = None) -> list[Problem]:
    """Combinations of training fields that cannot run. Fields that are wrong alone are taken as their default.

    Args:
        values: the `training` section; fields it does not name have the installed default.
        processes: number of processes, `None` for that of this launch.
    """
    world = processes or process_count()
    given = usable_fields(values, "grpo_config")

    def get(name: str) -> Any:
        return field_value(given, name)

    problems: list[Problem] = []

    def report(name: str, message: str) -> None:
        problems.append(((name,), message))

    group, rows = get("num_generations"), get("per_device_train_batch_size")
    if group is None or group < 2:
        report("num_generations", f"`num_generations` is {group}, but GRPO compares at least 2 completions per prompt")
    elif get("generation_batch_size") is not None and get("steps_per_generation") is not None:
        report("generation_batch_size", "excludes `steps_per_generation`: keep one of them")
    else:
        steps = get("steps_per_generation") or get("gradient_accumulation_steps")
        batch = get("generation_batch_size") or rows * world * steps
        if batch % (rows * world):
            report(
                "generation_batch_size",
                f"`generation_batch_size` is {batch}, but must be a multiple of the {rows} x {world} rows of one step "
                "(`per_device_train_batch_size` x processes)",
            )
        if batch % group:
            report(
                "per_device_train_batch_size",
                f"{batch} rows per generation batch ({rows} per device x {world} process(es) x "
                f"{batch // (rows * world)} step(s)) do not divide into groups of `num_generations` = {group}; take a "
                f"multiple of {group}, for instance `per_device_train_batch_size: {max(1, rows // group) * group}`",
            )
    eval_on = str(get("eval_strategy")) != "no"
    eval_group, eval_rows = get("num_generations_eval") or group, get("per_device_eval_batch_size")
    if eval_on and eval_group and eval_rows * world % eval_group:
        report(
            "per_device_eval_batch_size",
            f"{eval_rows} rows x {world} process(es) do not divide into groups of {eval_group} evaluation completions",
        )
    problems += _trainer_problems(get)
    if get("use_vllm"):
        problems += _vllm_problems(get, world)
    if get("sync_ref_model") and not get("beta"):
        report("sync_ref_model", "there is no reference model to synchronise when `beta` is 0")
    if get("log_completions_hub_repo") and not get("log_completions"):
        report("log_completions_hub_repo", "needs `log_completions: true`")
    if get("remove_unused_columns"):
        report("remove_unused_columns", "must stay false: the reward reads further columns of the data")
    return problems


def sft_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Combinations of fields of supervised fine-tuning that cannot run, or would train something else.

    Args:
        values: the `training` section; fields it does not name have the installed default.
    """
    given = usable_fields(values, "sft_config")

    def get(name: str) -> Any:
        return field_value(given, name, "sft_config")

    problems = _trainer_problems(get)

    def report(name: str, message: str) -> None:
        problems.append(((name,), message))

    if get("max_length") is not None and get("max_length") < 1:
        report("max_length", f"`max_length` is {get('max_length')}, but must be at least 1, or null to cut nothing")
    if get("packing") and get("max_length") is None:
        report("packing", "needs `max_length`, the length of a packed row")
    if str(get("eval_strategy")) != "no":
        report("eval_strategy", "must stay no: answers are evaluated by the section `evaluation` (`every_steps`)")
    return problems


def method_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Combinations of `transformers.TrainingArguments` fields that cannot run.

    Args:
        values: the `training` section; fields it does not name have the installed default.
    """
    given = usable_fields(values, "training_arguments")
    return _trainer_problems(lambda name: field_value(given, name, "training_arguments"))


def _trainer_problems(get: Callable[[str], Any]) -> list[Problem]:
    """Combinations of the fields that every trainer has."""
    problems: list[Problem] = list(hub_problems({name: get(name) for name in ("push_to_hub", "hub_model_id")}))

    def report(name: str, message: str) -> None:
        problems.append(((name,), message))

    if get("bf16") and get("fp16"):
        report("fp16", "`bf16` and `fp16` are both true; keep one (bf16 on Ampere and newer)")
    if get("bf16_full_eval") and get("fp16_full_eval"):
        report("fp16_full_eval", "`bf16_full_eval` and `fp16_full_eval` are both true; keep one")
    if get("use_cpu") and get("fp16"):
        report("fp16", "`fp16` needs a GPU, but `use_cpu` is true; leave both out or use `bf16`")
    if get("max_steps") == 0 or get("max_steps") < -1:
        report("max_steps", f"`max_steps` is {get('max_steps')}, but must be positive, or -1 to train for epochs")
    for name in ("logging", "eval", "save"):
        strategy, every = str(get(f"{name}_strategy")), get(f"{name}_steps")
        if strategy != "steps" or (name == "eval" and not every):
            continue
        if every <= 0 or (every > 1 and every != int(every)):
            report(f"{name}_steps", f"`{name}_steps` is {every}, but must be a whole number, or a share below 1")
    evaluate, save = get("eval_strategy"), get("save_strategy")
    if get("load_best_model_at_end") and save not in ("best", evaluate):
        report(
            "load_best_model_at_end", f"needs `eval_strategy` ({evaluate}) and `save_strategy` ({save}) to be equal"
        )
    if str(get("lr_scheduler_type")) in ("reduce_lr_on_plateau", "greedy") and str(evaluate) == "no":
        report("lr_scheduler_type", f"`{get('lr_scheduler_type')}` follows an evaluation, but `eval_strategy` is no")
    if get("dataloader_prefetch_factor") is not None and not get("dataloader_num_workers"):
        report("dataloader_prefetch_factor", "needs `dataloader_num_workers` of 1 or more")
    resume = get("resume_from_checkpoint")
    if resume is not None and resume != "auto" and not os.path.isdir(resume):
        report(
            "resume_from_checkpoint",
            f"`resume_from_checkpoint` is {shown(resume)}, but must be `auto` (the last whole checkpoint in "
            f"`output_dir`, or a new start) or the folder of a checkpoint{nearest(resume, ['auto'])}",
        )
    if resume is not None and get("save_only_model"):
        report("save_only_model", "leaves out what `resume_from_checkpoint` needs; remove one of them")
    return problems


def _vllm_problems(get: Callable[[str], Any], world: int) -> list[Problem]:
    problems: list[Problem] = []
    parallel = get("vllm_tensor_parallel_size")
    if get("use_transformers_continuous_batching"):
        problems.append((("use_transformers_continuous_batching",), "excludes `use_vllm`: keep one way to generate"))
    if get("vllm_mode") == "colocate":
        if parallel > 1 and world % parallel:
            problems.append(
                (
                    ("vllm_tensor_parallel_size",),
                    f"{world} process(es) do not divide into vLLM groups of {parallel}; start a multiple of "
                    f"{parallel} processes or lower `vllm_tensor_parallel_size`",
                )
            )
        if get("vllm_server_base_url"):
            problems.append(
                (("vllm_server_base_url",), "names a vLLM server (device clash): set `vllm_mode: server` to use it")
            )
    elif parallel > 1:
        problems.append((("vllm_tensor_parallel_size",), "belongs to the server's command line (`vllm_mode: server`)"))
    low, high = get("vllm_importance_sampling_clip_min"), get("vllm_importance_sampling_clip_max")
    if low is not None and high is not None and low >= high:
        problems.append(
            (("vllm_importance_sampling_clip_min",), f"is {low}, but must be below `..._clip_max` ({high})")
        )
    if (
        low is None
        and high is None
        and get("vllm_importance_sampling_correction")
        and str(get("vllm_importance_sampling_mode")).endswith("_truncate")
    ):
        problems.append((("vllm_importance_sampling_clip_max",), "a `*_truncate` mode needs a bound, lower or upper"))
    return problems
