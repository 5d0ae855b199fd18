"""The value interface of the command line: mean loss of a causal language model on texts of a JSON Lines file.

One object per line with a string `text`; other keys are ignored. The loss is the mean cross-entropy (nats) per
predicted token over all texts, so it does not depend on how texts are batched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thurl.coto.adapters import Adapter
from thurl.errors import DataError, MissingRequirementError, UsageError


__all__ = ["TextLoss", "read_texts"]


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """Texts of a JSON Lines file, in order.

    Raises:
        MissingRequirementError: no such file.
        DataError: a line that is no object with a non-empty string `text`, or no line at all.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingRequirementError(f'{path}: no such file; give JSON Lines with objects like {{"text": "..."}}')
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save it again as UTF-8") from None
    texts = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise DataError(f'{path}, line {number}: an object with a non-empty string "text" is needed')
        texts.append(text)
    if not texts:
        raise DataError(f"{path}: no texts in it")
    return texts


class TextLoss:
    """A base model that takes adapters and measures their loss on fixed texts.

    Args:
        model: folder of a causal language model with its tokenizer. No code of the folder is run.
        texts: what to predict; texts of one token are skipped, there is nothing to predict in them.
        batch_size: texts per forward pass.
        max_length: tokens per text; the rest is cut off.
        device: torch device; default the first GPU, else the CPU.
        dtype: of the weights, a torch name or `auto`.

    Raises:
        MissingRequirementError: no such folder.
        DataError: no text has two tokens.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        texts: Sequence[str],
        *,
        batch_size: int = 8,
        max_length: int = 512,
        device: str | None = None,
        dtype: str = "auto",
    ):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not (Path(model) / "config.json").is_file():
            raise MissingRequirementError(
                f"{model}: no model folder (config.json is missing); give the base model's folder"
            )
        if dtype not in ("auto", "float64", "float32", "bfloat16", "float16"):
            raise UsageError(f"dtype={dtype!r}: choose auto, float64, float32, bfloat16 or float16")
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = AutoTokenizer.from_pretrained(model)
        encoded = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
        encoded = sorted((ids for ids in encoded if len(ids) > 1), key=len)
        if not encoded:
            raise DataError(f"none of the {len(texts)} texts has two tokens, so there is nothing to predict")
        self._batches = [encoded[i : i + batch_size] for i in range(0, len(encoded), batch_size)]
        self._base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(self._device).eval()
        self._model: Any = None

    def load(self, adapter: Adapter) -> Any:
        """The base model with `adapter` and no other; returns the `PeftModel`, in evaluation mode."""
        from dataclasses import fields

        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model, set_peft_model_state_dict

        kind = PEFT_TYPE_TO_CONFIG_MAPPING[adapter.config["peft_type"]]
        # A config of another version may hold keys this one does not know; PEFT's own loader drops them, too.
        known = {field.name for field in fields(kind) if field.init}
        settings = {name: value for name, value in adapter.config.items() if name in known}
        config = kind(**{**settings, "inference_mode": True})
        if self._model is not None:
            self._base = self._model.unload()
            self._model = None
        try:
            model = self._model = get_peft_model(self._base, config)
            strange = set_peft_model_state_dict(model, adapter.state_dict()).unexpected_keys
            problem = f"{len(strange)} tensors fit no module ({strange[0]}, ...)" if strange else None
        except (ValueError, RuntimeError) as error:  # no such module, other shapes
            problem = str(error).splitlines()[0]
        if problem is not None:
            raise DataError(f"{adapter.source}: {problem}; is this the model the adapter was trained on?")
        return model.to(self._device).eval()

    def loss(self, model: Any) -> float:
        """Mean loss per predicted token (nats) of a model that shares the tokenizer."""
        import torch

        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self._batches:
                width = max(len(ids) for ids in batch)
                ids = torch.tensor([row + [0] * (width - len(row)) for row in batch], device=self._device)
                mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=self._device)
                logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
                targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
                total += torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
                ).item()
                count += int((targets != -100).sum())
        return total / count

    def __call__(self, adapter: Adapter) -> float:
        """Loss with `adapter`."""
        return self.loss(self.load(adapter))
