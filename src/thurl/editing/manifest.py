"""An editing benchmark as a file: which pictures, of which groups, for which base model; JSON, with a hash of each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from thurl.continual.pool_sources import read_picture
from thurl.editing.classifier import Classifier
from thurl.editing.evaluate import EditGroup
from thurl.editing.groups import FailureGroup, Labelled, Predicted, Read
from thurl.errors import DataError, UsageError
from thurl.training.results import plain, write_atomically


__all__ = ["FORMAT", "Manifest", "load_benchmark", "load_groups", "load_pictures", "read_manifest", "write_manifest"]

FORMAT = 1
"""Version of the layout; a reader refuses a newer one."""


@dataclass(frozen=True)
class Manifest:
    """What a file holds.

    Args:
        base: fingerprint of the base model the failures are of.
        groups: failures.
        locality: pictures whose prediction should stay.
        settings: how it was made, as JSON values.
    """

    base: str
    groups: tuple[FailureGroup, ...]
    locality: tuple[Predicted, ...]
    settings: Mapping[str, Any]


def write_manifest(path: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write a `.json` file in one step; the same benchmark gives the same bytes."""
    document = {
        "format": FORMAT,
        "base": manifest.base,
        "settings": dict(manifest.settings),
        "groups": [
            {
                "group": group.name,
                "true": group.true,
                "pred": group.predicted,
                "tag": group.tag,
                "files": [one.picture.file for one in group.pictures],
                "sha256": [one.sha256 for one in group.pictures],
                "margin": [one.margin for one in group.pictures],
            }
            for group in manifest.groups
        ],
        "locality": [
            {"file": one.picture.file, "true": one.picture.true, "tag": one.picture.tag, "pred": one.predicted,
             "sha256": one.sha256, "margin": one.margin}
            for one in manifest.locality
        ],
    }  # fmt: skip
    write_atomically(path, json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read and check a file of `write_manifest`.

    Raises:
        DataError: no such file, another layout, or lists that do not fit together.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        layout = document["format"]
        if layout != FORMAT:
            raise DataError(f"{path}: format {layout!r} is not one this version reads ({FORMAT}); update thurl")
        groups = tuple(_group(entry) for entry in document["groups"])
        locality = tuple(
            _predicted(entry, entry["file"], entry["sha256"], entry["margin"]) for entry in document["locality"]
        )
        return Manifest(str(document["base"]), groups, locality, dict(document["settings"]))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the manifest of an editing benchmark") from None
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: not the manifest of an editing benchmark: {error!r}; build it again") from error


def load_benchmark(
    manifest: Manifest, classifier: Classifier, root: str | os.PathLike[str], read: Read
) -> tuple[list[EditGroup], torch.Tensor]:
    """Failures and pictures to keep of a classifier, on its device.

    Args:
        manifest: made for this classifier.
        root, read: as `load_groups`.

    Raises:
        UsageError: it is the manifest of another base model.
        DataError: as `load_groups`.
    """
    if manifest.base != classifier.fingerprint():
        raise UsageError(
            f"the manifest has the failures of a model with the fingerprint {manifest.base[:12]}, this one has "
            f"{classifier.fingerprint()[:12]}; make one for this model"
        )
    device = next(classifier.model.parameters()).device
    groups = [
        replace(group, pixel_values=group.pixel_values.to(device)) for group in load_groups(manifest, root, read)
    ]
    return groups, load_pictures(manifest.locality, root, read).to(device)


def load_groups(manifest: Manifest, root: str | os.PathLike[str], read: Read) -> list[EditGroup]:
    """The failures as the classifier reads them; `Evaluator` checks that they still are wrong.

    Args:
        root: folder the paths are relative to.
        read: preprocessing of the classifier.

    Raises:
        DataError: a picture that is missing, cannot be read or is another one than in the manifest.
    """
    return [EditGroup(group.name, group.true, load_pictures(group.pictures, root, read)) for group in manifest.groups]


def load_pictures(pictures: Sequence[Predicted], root: str | os.PathLike[str], read: Read) -> torch.Tensor:
    """Pictures [N, channels, H, W], each checked against its hash.

    Raises:
        DataError: as `load_groups`, or none.
    """
    if not pictures:
        raise DataError("the manifest names no such pictures; build it again with more of them")
    inputs = []
    for one in pictures:
        image = read_picture(one.picture.file, Path(root), one.sha256)
        assert isinstance(image, Image.Image)  # a manifest names files, no rows of arrays
        inputs.append(read(image))
    return torch.stack(inputs)


def _group(entry: Mapping[str, Any]) -> FailureGroup:
    columns = zip(entry["files"], entry["sha256"], entry["margin"], strict=True)
    pictures = tuple(_predicted(entry, *column) for column in columns)
    return FailureGroup(int(entry["true"]), int(entry["pred"]), str(entry["tag"]), pictures)


def _predicted(entry: Mapping[str, Any], file: str, digest: str, margin: float) -> Predicted:
    if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts or ":" in file:
        raise ValueError(f"{file!r} is no path below the folder of the pictures")
    picture = Labelled(file, int(entry["true"]), str(entry["tag"]))
    return Predicted(picture, str(digest), int(entry["pred"]), float(margin))
