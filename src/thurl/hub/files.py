"""Which files of a run are pushed: what is needed to load the result and its card, nothing else.

Not pushed: checkpoints and optimizer states, logs, reports and prepared data (which may show pictures that are not
ours to publish), and every file with a name that is not listed here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from thurl.errors import DataError, UsageError


__all__ = ["CARD", "RunFiles", "run_files"]

CARD = "README.md"
_MODEL = (
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "thurl_*.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
)
_DISTILLED = ("data.ddr", "data/*.parquet")
_SEQUENCES = ("sequence*.json", "replay*.json", "transfer.json")


@dataclass(frozen=True)
class RunFiles:
    """What a folder gives to the Hub.

    Attributes:
        repo_type: "model" or "dataset".
        files: path in the repository to the file, without the card.
        adapter: a PEFT adapter, which needs its base model.
    """

    repo_type: str
    files: dict[str, Path]
    adapter: bool = False


def run_files(folder: Path) -> RunFiles:
    """Look through the folder of a finished run, a checkpoint, or a saved model, adapter, data set or sequence.

    Raises:
        UsageError: there is nothing to push.
        DataError: weights that an index names are not there.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give the `training.output_dir` of a run, or a folder of a model")
    if (folder / "data.ddr").is_file():
        return RunFiles("dataset", _matching(folder, _DISTILLED))
    if (folder / "sequence.json").is_file():
        return RunFiles("dataset", _matching(folder, _SEQUENCES))
    weights = sorted(folder.glob("*.safetensors"))
    whole, adapter = (folder / "config.json").is_file(), (folder / "adapter_config.json").is_file()
    if not weights or not (whole or adapter):
        checkpoints = sorted(folder.glob("checkpoint-*/*.safetensors"), key=lambda path: path.stat().st_mtime)
        hint = (
            f"; the run is not finished, its last checkpoint can be pushed: {checkpoints[-1].parent}"
            if checkpoints
            else "; a run that is finished leaves one"
        )
        raise UsageError(
            f"{folder}: no model (config.json or adapter_config.json with *.safetensors), no data set (data.ddr) and "
            f"no sequence (sequence.json){hint}"
        )
    _check_shards(folder)
    return RunFiles("model", _matching(folder, _MODEL), adapter=adapter and not whole)


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    found = {path.relative_to(folder).as_posix(): path for pattern in patterns for path in folder.glob(pattern)}
    return {name: path for name, path in sorted(found.items()) if path.is_file()}


def _check_shards(folder: Path) -> None:
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{index}: not readable ({error!r}); save the model again") from None
        if lacking := sorted(name for name in named if not (folder / str(name)).is_file()):
            names = ", ".join(map(str, lacking))
            raise DataError(f"{folder}: {names} of {index.name} is missing; save the model again")
