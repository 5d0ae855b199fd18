"""Adapters of PEFT: where one lies, and the base model it names."""

from __future__ import annotations

import json
from pathlib import Path

from thurl.errors import DataError, MissingRequirementError
from thurl.hub.fetch import snapshot
from thurl.hub.names import is_hub_name


__all__ = ["adapter_folder", "base_of", "is_adapter_folder"]

_CONFIG = "adapter_config.json"
_FILES = (
    _CONFIG,
    "adapter_model.safetensors",
    "*token*",
    "*.jinja",
    "*processor_config.json",
    "vocab.*",
    "merges.txt",
    "thurl_*.json",
)


def is_adapter_folder(folder: Path) -> bool:
    """Whether `folder` holds a PEFT adapter and no whole model."""
    return (folder / _CONFIG).is_file() and not (folder / "config.json").is_file()


def adapter_folder(name_or_path: str, *, revision: str | None = None) -> Path | None:
    """The folder of an adapter, of this machine or fetched from the Hub; None where `name_or_path` is something else.

    Raises:
        MissingRequirementError: an adapter whose files the Hub does not give.
    """
    if not is_hub_name(name_or_path):
        folder = Path(name_or_path).expanduser()
        return folder if is_adapter_folder(folder) else None
    from huggingface_hub import hf_hub_download

    def there(file: str) -> bool:
        try:
            hf_hub_download(name_or_path, file, revision=revision)
        # No such file or repository, no network, or no right: loading a whole model says which.
        except Exception:
            return False
        return True

    if not there(_CONFIG) or there("config.json"):
        return None
    return snapshot(name_or_path, _FILES, revision=revision)


def base_of(folder: Path, base_model: str | None = None) -> str:
    """Name or folder of an adapter's base model; `base_model` wins over what the adapter says.

    Raises:
        MissingRequirementError: weights that are not there.
        DataError: a configuration that cannot be read, or names no base.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise MissingRequirementError(f"adapter folder {folder} has no adapter_model.safetensors: save it again")
    try:
        base = base_model or json.loads((folder / _CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / _CONFIG} is not readable ({error}): save the adapter again") from None
    if not base:
        raise DataError(f"{folder / _CONFIG} names no base model: pass `base_model`")
    return str(base)
