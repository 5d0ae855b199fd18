"""An edited model as a plain checkpoint, which loads without thurl."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from thurl.editing.delta import Delta, apply_delta
from thurl.training.tensor_files import write_tensors


__all__ = ["export_edited", "save_model"]


def export_edited(model: nn.Module, delta: Delta, folder: Path, force: bool = False) -> None:
    """Save the model with the edit in it; the model at hand stays as it is.

    A model of transformers is saved by its `save_pretrained`. Of any other, `model.safetensors` holds the state
    dictionary; of one that timm made by name, `config.json` is written too, so that
    `timm.create_model("local-dir:<folder>", pretrained=True)` finds it.

    Args:
        folder: made if need be.
        force: see `apply_delta`.

    Raises:
        UsageError: the edit was made for another model.
    """
    whole = copy.deepcopy(model)
    apply_delta(whole, delta, force)
    save_model(whole, folder)


def save_model(model: nn.Module, folder: Path) -> None:
    """Save a model as it is, in the way `export_edited` says."""
    whole: Any = model
    if hasattr(whole, "save_pretrained"):
        whole.save_pretrained(folder)
    elif (getattr(whole, "pretrained_cfg", None) or {}).get("architecture"):
        from timm.models import save_for_hf

        save_for_hf(whole, str(folder), safe_serialization=True)
    else:
        write_tensors(folder / "model.safetensors", whole.state_dict(), {"format": "pt"})
