"""Features of a frozen encoder, computed once per picture and kept in one file per encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from thurl.continual.encoding import pooled
from thurl.errors import DataError, UsageError
from thurl.training.fingerprint import fingerprint
from thurl.training.tensor_files import read_tensors, write_tensors


__all__ = ["encode", "features_key", "read_features"]


def encode(
    encoder: nn.Module,
    digests: Sequence[str],
    inputs: Callable[[Sequence[int]], torch.Tensor],
    *,
    folder: Path | None = None,
    preprocessing: str = "",
    batch_size: int = 64,
    device: torch.device | str | None = None,
    advance: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Features of all pictures, float32 [N, D], in evaluation mode and without gradients.

    Args:
        encoder: gives features [B, D], see `thurl.continual.encoding.pooled`.
        digests: SHA-256 of each picture.
        inputs: the encoder's inputs [B, ...] for picture numbers; asked only for pictures without kept features.
        folder: features are read from and kept in `folder`/<fingerprint>.safetensors.
        preprocessing: a name for what `inputs` does, where one encoder is used with several; each has its own file.
        batch_size: pictures at a time.
        device: to compute on; that of the encoder when None, to which it also returns. The result is on the CPU.
        advance: told the number of pictures done.

    Raises:
        DataError: a feature is NaN or infinite.
    """
    encoder_hash = features_key(encoder, preprocessing)
    path = None if folder is None else folder / f"{encoder_hash}.safetensors"
    kept = read_features(path, encoder_hash) if path is not None and path.exists() else {}
    lacking = list({digest: row for row, digest in reversed(list(enumerate(digests))) if digest not in kept}.values())
    lacking.sort()
    training, own = encoder.training, next((p.device for p in encoder.parameters()), torch.device("cpu"))
    place = own if device is None else torch.device(device)
    encoder.eval().to(place)
    try:
        with torch.no_grad():
            for first in range(0, len(lacking), batch_size):
                rows = lacking[first : first + batch_size]
                found = pooled(encoder, inputs(rows).to(place)).float().cpu()
                if not bool(found.isfinite().all()):
                    raise DataError(f"the encoder gives features that are NaN or infinite for pictures {rows[:3]} ...")
                kept.update(zip([digests[row] for row in rows], found, strict=True))
                if advance is not None:
                    advance(first + len(rows))
    finally:
        encoder.train(training).to(own)
    if path is not None and lacking:
        names = sorted(kept)
        write_tensors(
            path,
            {"features": torch.stack([kept[name] for name in names])},
            {"encoder": encoder_hash, "pictures": json.dumps(names)},
        )
    return torch.stack([kept[digest] for digest in digests])


def features_key(encoder: nn.Module, preprocessing: str = "") -> str:
    """Name of the file of an encoder's features: its fingerprint, with the preprocessing where it has a name."""
    own = fingerprint(encoder)
    return hashlib.sha256(f"{own}\0{preprocessing}".encode()).hexdigest() if preprocessing else own


def read_features(path: Path, encoder: str | None = None) -> dict[str, torch.Tensor]:
    """Features [D] by SHA-256 of the picture.

    Args:
        encoder: fingerprint the file must have been made with; None takes any.

    Raises:
        DataError: not such a file.
        UsageError: made with another encoder.
    """
    tensors, metadata = read_tensors(path)
    try:
        names = json.loads(metadata["pictures"])
        features = tensors["features"]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: not a file of features: {error} is missing; delete it, it is made again") from None
    if len(names) != len(features):
        raise DataError(f"{path}: {len(names)} pictures, {len(features)} features; delete it, it is made again")
    if encoder is not None and metadata.get("encoder") != encoder:
        raise UsageError(f"{path}: made with encoder {metadata.get('encoder')}, not {encoder}; give another folder")
    return dict(zip(names, features, strict=True))
