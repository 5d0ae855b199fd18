"""Pictures inside data sets of the Hugging Face Hub, or saved by `Dataset.save_to_disk`.

They stay where they are, encoded, in memory-mapped files. What stands for a path is a short reference
(`hub-image:{...}`) that `thurl.data.images.open_image` resolves, in any process.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from thurl.errors import ImageError, MissingRequirementError, UsageError


__all__ = ["HUB_PREFIX", "hub_reference", "hub_table", "is_hub_image", "read_hub_image"]

HUB_PREFIX = "hub-image:"
"""What a reference begins with; a JSON list follows."""


def is_hub_image(source: object) -> bool:
    """Whether `source` names a picture inside a Hub data set rather than a file."""
    return isinstance(source, str) and source.startswith(HUB_PREFIX)


def read_hub_image(reference: str) -> tuple[str, bytes]:
    """Name and encoded bytes of a picture that `hub_reference` gave.

    Raises:
        ImageError: the reference is malformed, or the row holds no picture.
    """
    try:
        key, column, index = json.loads(reference.removeprefix(HUB_PREFIX))
        where = json.loads(key)
        label = f"{where['path']} ({where['split']}) row {index + 1}"
    except (ValueError, TypeError, KeyError) as error:
        raise ImageError(f"{reference[:100]}: not a reference to a picture of a Hub data set: {error}") from None
    try:
        cell = _pictures(key, column)[index][column]
    except (IndexError, KeyError, ValueError) as error:
        raise ImageError(f"{label}: no such row or column: {error}; read the labels again") from None
    if cell is None or (cell.get("bytes") is None and not cell.get("path")):
        raise ImageError(f"{label}: the row holds no picture; remove it from the data set")
    if cell["bytes"] is not None:
        return label, cell["bytes"]
    try:
        return label, Path(cell["path"]).read_bytes()
    except OSError as error:
        raise ImageError(f"{label}: {cell['path']} cannot be read: {error.strerror}") from None


def hub_table(
    path: str, *, split: str = "train", name: str | None = None, revision: str | None = None
) -> tuple[str, Any]:
    """A data set and the key that `hub_reference` takes; arguments as in `thurl.data.formats.hub.read_hub`.

    Raises:
        MissingRequirementError: `datasets` is missing, or the data set cannot be reached.
    """
    key = json.dumps({"path": str(path), "split": split, "name": name, "revision": revision}, sort_keys=True)
    return key, _table(key)


def hub_reference(key: str, column: str, row: int) -> str:
    """What `thurl.data.images.open_image` opens picture `row`, from 0, of `column` by."""
    return HUB_PREFIX + json.dumps([key, column, row])


@functools.lru_cache(maxsize=8)
def _table(key: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingRequirementError("format 'hub' needs datasets; run `pip install datasets`") from None
    where = json.loads(key)
    path, split = where["path"], where["split"]
    folder = Path(path)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            table = datasets.load_from_disk(path)
            if isinstance(table, datasets.DatasetDict):
                if split not in table:
                    raise UsageError(f"{path}: no split {split!r}; it has {', '.join(table)}")
                table = table[split]
            return table
        return datasets.load_dataset(path, name=where["name"], split=split, revision=where["revision"])
    except UsageError:
        raise
    # Anything from a wrong id to a broken connection; the library's own message says which.
    except Exception as error:
        raise MissingRequirementError(
            f"data set {path!r} (split {split!r}) cannot be read: {error}. Check the id, the split and the "
            "connection, or download it first and give its folder."
        ) from error


@functools.lru_cache(maxsize=8)
def _pictures(key: str, column: str) -> Any:
    import datasets

    return _table(key).select_columns([column]).cast_column(column, datasets.Image(decode=False))
