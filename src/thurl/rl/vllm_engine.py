"""vLLM inside the training process (TRL 1.16, `vllm_mode: colocate`): how the engine is built and gets new weights.

Private names of TRL that are used here, each guarded by `tests/rl/test_vllm_engine.py`: the name `LLM` in
`trl.generation.vllm_generation` (TRL passes the engine a fixed list of arguments), and `sync_weights`,
`_iter_named_params`, `llm`, `generate` of its `VLLMGeneration`.

After each sync the engine forgets what it computed with the old weights: TRL clears the cache of prompts; the cache of
encoded pictures is cleared here. Where the vision tower is trained, a picture that comes again would otherwise be seen
with the old tower.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from thurl.errors import UsageError
from thurl.rl import vllm_adapter, vllm_cpu
from thurl.rl.rollouts import RolloutOptions


__all__ = ["EnginePlan", "SyncRecord", "WeightSync", "built_with", "plan_engine"]


@dataclass(frozen=True)
class EnginePlan:
    """What has to be known before the engine is built.

    Args:
        arguments: of `vllm.LLM`, besides those TRL passes.
        adapter: PEFT configuration of an adapter that is synchronised by itself, None for merged weights.
        cpu: vLLM runs on the CPU.
    """

    arguments: dict[str, Any]
    adapter: Any
    cpu: bool


def plan_engine(options: RolloutOptions, args: Any, model: Any, peft_config: Any = None) -> EnginePlan:
    """Decide how the engine is built; sets the environment that vLLM needs on a CPU.

    Args:
        options, args: as given to the trainer; `args.vllm_mode` is `"colocate"`.
        model: the model or, as TRL allows, its path.
        peft_config: of an adapter that the trainer will add.

    Raises:
        UsageError: `adapter_sync: adapter` where vLLM cannot apply the adapter by itself, or without an adapter.
        MissingRequirementError: on a CPU without the package vllm-cpu.
    """
    arguments: dict[str, Any] = {}
    dtype: str = options.engine_dtype
    if dtype == "auto":
        dtype = _trainer_dtype(args, model)
    if dtype != "auto":
        arguments["dtype"] = dtype
    if args.use_cpu:
        vllm_cpu.prepare()
        arguments.update(vllm_cpu.ENGINE_ARGUMENTS)
    adapter = _own_sync(options.adapter_sync, args, model, peft_config)
    if adapter is not None:
        arguments.update(vllm_adapter.adapter_engine_arguments(adapter))
    return EnginePlan(arguments, adapter, bool(args.use_cpu))


def _trainer_dtype(args: Any, model: Any) -> str:
    """What the trainer's forward computes in. vLLM by itself turns a float32 checkpoint into bfloat16."""
    if args.bf16:
        return "bfloat16"
    if args.fp16:
        return "float16"
    return "auto" if isinstance(model, str) else str(model.dtype).removeprefix("torch.")


def _own_sync(wish: Literal["auto", "merged", "adapter"], args: Any, model: Any, peft_config: Any) -> Any:
    if peft_config is None:
        peft_config = getattr(model, "peft_config", {}).get(getattr(model, "active_adapter", None))
    if peft_config is None:
        if wish == "adapter":
            raise UsageError("`adapter_sync: adapter` needs a LoRA adapter; every weight of this model is trained.")
        return None
    if wish != "adapter":
        return None  # `auto`, too: over sync and generation the faster one where it was measured (docs/rollouts.md)
    if isinstance(model, str):
        reason: str | None = "the model is given by its path, so its modules are not known yet"
    else:
        reason = vllm_adapter.unsupported(peft_config, args, model)
    if reason is not None:
        raise UsageError(f"`adapter_sync: adapter` is not possible: {reason}. Use `merged`.")
    return peft_config


@contextmanager
def built_with(arguments: dict[str, Any]) -> Iterator[None]:
    """While this is open, an engine that TRL builds gets these arguments, too."""
    from trl.generation import vllm_generation

    engine = getattr(vllm_generation, "LLM", None)
    if engine is None:  # without vLLM; TRL says so
        yield
        return
    vllm_generation.LLM = partial(engine, **arguments)
    try:
        yield
    finally:
        vllm_generation.LLM = engine


@dataclass(frozen=True)
class SyncRecord:
    """One synchronisation: bytes of the tensors handed over, and seconds until the engine was ready again."""

    bytes: int
    seconds: float


class WeightSync:
    """Takes the place of `sync_weights` of TRL's `VLLMGeneration`.

    Args:
        generation: TRL's object, its engine built as `plan` says.
        plan: see `plan_engine`.
    """

    def __init__(self, generation: Any, plan: EnginePlan) -> None:
        self._generation = generation
        self._plan = plan
        self._bytes = 0
        self.record: SyncRecord | None = None
        """Of the last synchronisation."""
        self._trl_sync = generation.sync_weights
        self._parameters = generation._iter_named_params
        generation.sync_weights = self
        generation._iter_named_params = self._counted
        if plan.adapter is not None:
            generation.llm.generate = partial(generation.llm.generate, lora_request=vllm_adapter.lora_request())

    def __call__(self) -> None:
        self._bytes = 0
        began = time.perf_counter()
        llm = self._generation.llm
        if self._plan.adapter is not None:
            tensors = vllm_adapter.adapter_tensors(self._generation.model, self._generation._dist.gather_params)
            self._bytes = sum(tensor.nbytes for tensor in tensors.values())
            vllm_adapter.load_adapter(llm, self._plan.adapter, tensors)
            llm.reset_prefix_cache()
        elif self._plan.cpu:
            # Copies: a tensor may be read when all have come, and TRL takes a merged adapter out again before that.
            vllm_cpu.load_weights(llm, ((name, tensor.clone()) for name, tensor in self._counted()))
            llm.reset_prefix_cache()
        else:
            self._trl_sync()
        llm.llm_engine.reset_encoder_cache()
        self.record = SyncRecord(self._bytes, time.perf_counter() - began)

    def close(self) -> None:
        """Shut the engine down and give its memory back; the trainer can generate no more."""
        llm, self._generation.llm = self._generation.llm, None
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        if not self._plan.cpu:
            torch.cuda.empty_cache()

    def _counted(self) -> Iterator[tuple[str, Any]]:
        for name, tensor in self._parameters():
            self._bytes += tensor.nbytes
            yield name, tensor
