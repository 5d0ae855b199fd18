"""Loading a causal language model and its tokenizer: a folder or the name of a Hub repository, or an adapter;
safetensors only."""

from __future__ import annotations

from typing import Any

from thurl.errors import DataError, MissingRequirementError
from thurl.hub.adapters import adapter_folder, base_of
from thurl.messages import first_line


__all__ = ["load_language_model"]


def load_language_model(
    name_or_path: str,
    *,
    dtype: str = "auto",
    base_model: str | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
) -> tuple[Any, Any]:
    """Model in evaluation mode and tokenizer, padding on the left; one without a padding token takes its end token.

    Args:
        name_or_path: folder, Hub repository, or either with a PEFT adapter (the base model it names is loaded first).
        base_model: base of an adapter, when it names none or it has moved.

    Raises:
        MissingRequirementError: weights or tokenizer cannot be found.
        DataError: parameters without a value in the checkpoint, or no end token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = adapter_folder(name_or_path, revision=revision)
    if adapter is not None:
        from peft import PeftModel

        base = base_of(adapter, base_model)
        model, tokenizer = load_language_model(base, dtype=dtype, attn_implementation=attn_implementation)
        return PeftModel.from_pretrained(model, str(adapter)).eval(), tokenizer
    options: dict[str, Any] = {"revision": revision} if revision else {}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        options.pop("attn_implementation", None)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **options)
    except OSError as error:
        raise MissingRequirementError(
            f"model {name_or_path!r} cannot be loaded ({first_line(error)}). Check the name, or download it on a "
            f"machine with network (`hf download {name_or_path} --local-dir FOLDER`) and pass the folder; weights "
            "must be *.safetensors with config.json and tokenizer files beside them."
        ) from None
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys") or ())
    if absent:
        raise DataError(
            f"{name_or_path}: {len(absent)} parameters have no value of their shape in the checkpoint, for example "
            f"{', '.join(absent[:3])}; they would be random. Save the whole model again."
        )
    if tokenizer.eos_token is None:
        raise DataError(f"{name_or_path}: its tokenizer has no end token, so that an answer would never end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "left"
    return model.eval(), tokenizer
