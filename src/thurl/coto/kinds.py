"""Which adapters of PEFT the tools are defined for.

- `lora` (also rsLoRA): the layer computes with `W + scaling * B @ A`.
- `dora`: `m / ||W + scaling * B @ A|| * (W + scaling * B @ A)`, norm per row, with a stored magnitude `m` (out,).
- `hira`: `W * (1 + B @ A)`, element-wise product, no scaling.

Everything else is refused by name, because its update is not such a product, or not relative to the same base weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thurl.errors import UsageError


__all__ = ["kind_of"]

_NO_PRODUCT = "its update is not a product of two stored factors"
_TYPES = {
    "ADALORA": "its update is B diag(E) A with a rank that differs between modules and training steps",
    "LOHA": "its update is an element-wise product of two low-rank matrices",
    "LOKR": "its update is a Kronecker product",
    "VERA": "its factors are random and shared, only scaling vectors are stored",
    "IA3": "it rescales activations and has no factors",
    "XLORA": "it mixes several adapters by a gate that depends on the input",
}
_FIELDS = {
    "target_parameters": "the factors of its parameters hold one block per expert",
    "layer_replication": "its layers are copies that exist only with this adapter",
    "lora_bias": "lora_B has a bias of its own, which is no part of B A",
    "use_qalora": "lora_A acts on sums of input groups, so its shape is not that of the layer",
    "use_bdlora": "its factors are block-diagonal",
    "alora_invocation_tokens": "the update is on only behind certain tokens (aLoRA)",
    "arrow_config": "it routes between adapters by the input",
    "kasa_config": "its update is B diag A on base weights that it has truncated (KaSA)",
    "monteclora_config": "its factors are drawn at random",
}
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def kind_of(config: Mapping[str, Any], source: str) -> str:
    """`lora`, `dora` or `hira`.

    Args:
        config: contents of `adapter_config.json`.
        source: for messages.

    Raises:
        UsageError: another kind; the message names it and says why.
    """
    peft_type = str(config.get("peft_type"))
    if peft_type == "HIRA":
        return "hira"
    if peft_type != "LORA":
        raise UsageError(
            f"{source}: a {peft_type} adapter; {_TYPES.get(peft_type, _NO_PRODUCT)}. LoRA, rsLoRA, DoRA and HiRA work"
        )
    problems = [f"{source}: {name} is set; {why}" for name, why in _FIELDS.items() if config.get(name)]
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_CHANGED_BASE):
        problems.append(
            f"{source}: init_lora_weights={start!r} changes the base weights, and the adapter is relative to these; "
            "save it as a plain LoRA adapter first (`path_initial_model_for_weight_conversion` of `save_pretrained`)"
        )
    if problems:
        raise UsageError(problems)
    return "dora" if config.get("use_dora") else "lora"
