"""A LoRA adapter handed to vLLM after each update instead of the whole merged model; nothing goes through files.

TRL 1.16 merges the adapter into the weights, copies every tensor of the model into the engine and unmerges, after each
update (under ZeRO-3 with the whole model gathered on every device). Here the engine keeps the start weights and gets
the adapter's few tensors; every request then names the adapter. vLLM 0.31 loads adapters from folders only, so the
worker's manager, which lies in this process, is given the tensors directly (`LoRAModel.from_lora_tensors`).
"""

from __future__ import annotations

from typing import Any

from thurl.errors import ThurlError


__all__ = [
    "ADAPTER_ID",
    "RANKS",
    "adapter_engine_arguments",
    "adapter_tensors",
    "load_adapter",
    "lora_request",
    "unsupported",
]

ADAPTER_ID = 1
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.31 can reserve room for (`vllm.config.lora.MaxLoRARanks`)."""

_NAME = "thurl"


def unsupported(config: Any, args: Any, model: Any) -> str | None:
    """Why vLLM cannot apply this adapter by itself, None where it can.

    Args:
        config: a configuration of PEFT.
        args: `trl.GRPOConfig`.
        model: the model to adapt, with or without the adapter.
    """
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return f"vLLM applies LoRA adapters only, this one is {config.peft_type}"
    if args.vllm_mode != "colocate":
        return "a server gets the merged weights"
    if args.vllm_enable_sleep_mode:
        return "with `vllm_enable_sleep_mode` the engine forgets its start weights"
    if args.fsdp:
        return "FSDP shards the adapter, too"
    for name in (
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "use_dora",
        "lora_bias",
        "trainable_token_indices",
    ):
        if getattr(config, name, None):
            return f"vLLM does not know `{name}` of the adapter"
    if getattr(config, "bias", "none") != "none":
        return f"vLLM does not know `bias: {config.bias}` of the adapter"
    if config.r > max(RANKS):
        return f"vLLM takes ranks up to {max(RANKS)}, the adapter has {config.r}"
    if _adapts_vision(config, model):
        return "it adapts the vision tower, which vLLM calls experimental"
    return None


def _adapts_vision(config: Any, model: Any) -> bool:
    from peft.tuners.tuners_utils import check_target_module_exists

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = [name for name, _ in base.named_modules() if "visual." in name and ".lora_" not in name]
    return any(check_target_module_exists(config, name) for name in names)


def adapter_engine_arguments(config: Any) -> dict[str, Any]:
    """Arguments of `vllm.LLM` that make room for one adapter of this rank."""
    rank = min(rank for rank in RANKS if rank >= config.r)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}


def adapter_tensors(model: Any, gather: Any) -> dict[str, Any]:
    """Tensors of the active adapter under PEFT's checkpoint names, whole on every process.

    Args:
        model: a `PeftModel`.
        gather: takes parameters, gives a context in which they are whole (ZeRO-3).
    """
    from peft import get_peft_model_state_dict

    parameters = {name: value for name, value in model.named_parameters() if model.prefix in name}
    with gather(list(parameters.values())):
        whole = {name: value.detach().clone() for name, value in parameters.items()}
    return get_peft_model_state_dict(model, state_dict=whole, adapter_name=model.active_adapter)


def load_adapter(llm: Any, config: Any, tensors: dict[str, Any]) -> None:
    """Replace the engine's adapter by `tensors`.

    Raises:
        ThurlError: a tensor for a module that this engine cannot adapt, which vLLM would ignore in silence.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager = llm.llm_engine.model_executor.driver_worker.model_runner.lora_manager
    adapters = manager._adapter_manager
    names = getattr(adapters.model, "hf_to_vllm_mapper", None)
    lora = LoRAModel.from_lora_tensors(
        ADAPTER_ID,
        tensors,
        PEFTHelper.from_dict(config.to_dict()),
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        model_vocab_size=manager.vocab_size,
        weights_mapper=None if names is None else names.get_rename_mapper(),
        skip_prefixes=getattr(adapters.model, "lora_skip_prefixes", None),
    )
    packed = {part for whole, parts in adapters.packed_modules.items() for part in parts}
    strangers = sorted(name for name in lora.loras if name not in adapters.modules and name not in packed)
    if strangers:
        raise ThurlError(
            f"vLLM cannot apply the adapter of {', '.join(strangers[:5])}; use `adapter_sync: merged`, which puts the "
            "adapter into the weights."
        )
    lora.is_3d_lora_weight = False
    adapters.remove_adapter(ADAPTER_ID)
    adapters.add_adapter(lora)
    adapters.activate_adapter(ADAPTER_ID)


def lora_request() -> Any:
    """What a request says to be answered with the adapter."""
    from vllm.lora.request import LoRARequest

    # The path is never opened: the manager already holds an adapter of this number.
    return LoRARequest(lora_name=_NAME, lora_int_id=ADAPTER_ID, lora_path="in memory")
