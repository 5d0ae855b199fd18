"""Files of a vision model: from a folder of this machine or from the Hub, safetensors alone, no code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from thurl.errors import DataError, MissingRequirementError
from thurl.hub.fetch import snapshot
from thurl.hub.names import is_hub_name
from thurl.messages import first_line
from thurl.training.tensor_files import UNFIT


__all__ = ["check_weights", "from_pretrained", "model_folder", "quiet", "read_config"]

TIMM_PREFIX = "timm:"
_FILES = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
]


def model_folder(text: str) -> Path:
    """The folder, or that of the files which the Hub gives for `timm:NAME` or `owner/name`.

    Raises:
        MissingRequirementError: no such folder, and the Hub does not give it.
        UsageError: timm has no such model.
    """
    if Path(text).is_dir():
        return Path(text)
    name = text
    if text.startswith(TIMM_PREFIX):
        from thurl.vision_models.timm_models import hub_name

        name = hub_name(text.removeprefix(TIMM_PREFIX))
    elif not is_hub_name(text):
        raise MissingRequirementError(
            f"{text}: no model there; give the folder of one, {TIMM_PREFIX}NAME, or an owner/name of the Hub"
        )
    return snapshot(name, _FILES)


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json holds.

    Raises:
        MissingRequirementError: there is none.
        DataError: it holds something else than settings.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MissingRequirementError(
            f"{folder}: no model: {error}; save one with `save_pretrained`, or timm's `save_for_hf`"
        ) from error
    if not isinstance(config, dict):
        raise DataError(f"{folder}: config.json holds a {type(config).__name__}, not the settings of a model")
    return config


def check_weights(folder: Path, *, index: bool = True) -> None:
    """Nothing where there are safetensors: one file, or with `index` also several and their index.

    Raises:
        MissingRequirementError: there are none, or pickles alone.
    """
    wanted = ("model.safetensors", *(["model.safetensors.index.json"] if index else []))
    if any((folder / name).is_file() for name in wanted):
        return
    pickled = [file.name for ending in ("bin", "pt", "pth") for file in sorted(folder.glob(f"*.{ending}"))]
    if pickled:
        raise MissingRequirementError(
            f"{folder}: no model.safetensors, only {pickled[0]}, a pickle, which can run code and is not read; save "
            "the model as safetensors"
        )
    raise MissingRequirementError(f"{folder}: no model.safetensors; save the model again")


def from_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """A transformers model from this machine, in float32 and evaluation mode.

    Raises:
        DataError: broken weights, or parameters without a value.
    """
    try:
        with quiet():
            model, info = kind.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except (OSError, *UNFIT) as error:
        raise DataError(f"{folder}: weights that do not fit the model: {first_line(error)}; save it again") from error
    if absent := sorted(info["missing_keys"]):
        raise DataError(
            f"{folder}: {len(absent)} parameters have no value, for example {', '.join(absent[:3])}; they would be "
            "random. Save the whole model again"
        )
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' table of weights that are left out on purpose, such as a text tower."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
