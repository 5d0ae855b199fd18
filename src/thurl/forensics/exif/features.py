"""Features of pictures: a table that is computed once and kept in a file, bad pictures included.

A detector is fitted, calibrated and evaluated on such tables. They hold the visual tower's raw output; bringing it to
length 1 is the detector's business.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.exif.encoder import ExifEncoder, encoder_fingerprint
from thurl.forensics.reading import Picture, PictureReader, picture_name


__all__ = ["FeatureTable", "FeatureTower", "extract_features", "load_features", "save_features", "visual_tower"]

_KEY = "thurl_exif_features"


@dataclass(frozen=True)
class FeatureTable:
    """Features of N pictures, in the order they were given.

    Attributes:
        features: (N, D) float32, raw; a row of NaN for a picture that could not be used.
        names: paths, or "picture 0" and so on.
        errors: why a picture could not be used, empty where it could.
        encoder: SHA-256 of the encoder's weights.
        transform: settings of the image processor, JSON values.
    """

    features: torch.Tensor
    names: list[str]
    errors: list[str]
    encoder: str
    transform: Mapping[str, Any] = field(default_factory=dict)

    @property
    def usable(self) -> torch.Tensor:
        """(M, D) features without the rows of bad pictures."""
        return self.features[torch.tensor([not error for error in self.errors], dtype=torch.bool)]


class FeatureTower:
    """An encoder and its image processor, giving features of pictures in batches.

    Args:
        model: `ExifEncoder`, or a model that has one as `visual`. Put into evaluation mode.
        processor: makes `pixel_values` of pictures, `thurl.forensics.processing.FaceImageProcessor`.
        batch_size: pictures that go through the encoder together. It does not change features beyond the rounding of
            float32.
        workers: threads that decode pictures while the encoder works; 0 decodes in between.

    Raises:
        UsageError: a model without a visual tower, or a batch size below 1.
    """

    def __init__(self, model: Any, processor: Any, *, batch_size: int = 32, workers: int = 0):
        self._reader = PictureReader(processor, batch_size=batch_size, workers=workers)
        self.encoder = visual_tower(model).eval()
        self.processor, self.batch_size = processor, batch_size
        self.fingerprint = encoder_fingerprint(self.encoder)

    @property
    def transform(self) -> dict[str, Any]:
        """Settings of the image processor, JSON values."""
        return json.loads(json.dumps(self.processor.to_dict()))

    def batches(
        self, pictures: Sequence[Picture], boxes: Sequence[Sequence[float] | None] | None = None
    ) -> Iterator[tuple[list[str], torch.Tensor]]:
        """Go through pictures once, in order.

        Args:
            pictures: paths, encoded bytes, PIL pictures or arrays.
            boxes: a face box in pixels for each picture, None for pictures used whole.

        Yields:
            errors of up to `batch_size` pictures, empty where there is none, and their (B, D) float32 features on the
            CPU, NaN where there is one.

        Raises:
            UsageError: another number of boxes.
        """
        device = self.encoder.conv1.weight.device
        yield from self._reader.encoded(
            pictures,
            boxes,
            lambda pixels: self.encoder(pixels.to(device)).features,
            self.encoder.config.feature_size,
            "the encoder's features",
        )


def visual_tower(model: Any) -> ExifEncoder:
    """The encoder of a model, or the encoder itself.

    Raises:
        UsageError: there is none.
    """
    encoder = model if isinstance(model, ExifEncoder) else getattr(model, "visual", None)
    if not isinstance(encoder, ExifEncoder):
        raise UsageError(f"{type(model).__name__} has no face encoder; give an ExifEncoder or a model trained here")
    return encoder


def extract_features(
    tower: FeatureTower,
    pictures: Sequence[Picture],
    boxes: Sequence[Sequence[float] | None] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> FeatureTable:
    """The table of `pictures`; see `FeatureTower.batches`. `progress` is called with the pictures done so far."""
    errors: list[str] = []
    parts = [torch.empty(0, tower.encoder.config.feature_size)]
    for batch_errors, features in tower.batches(pictures, boxes):
        errors += batch_errors
        parts.append(features)
        if progress is not None:
            progress(len(errors))
    names = [picture_name(picture, place) for place, picture in enumerate(pictures)]
    return FeatureTable(torch.cat(parts), names, errors, tower.fingerprint, tower.transform)


def save_features(table: FeatureTable, path: str | os.PathLike[str]) -> None:
    """Write a table as one safetensors file, in one step."""
    settings = {
        "format": 1,
        "names": [name.encode("utf-8", "backslashreplace").decode() for name in table.names],
        "errors": table.errors,
        "encoder": table.encoder,
        "transform": dict(table.transform),
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file({"features": table.features.contiguous()}, partial, metadata={_KEY: json.dumps(settings)})
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def load_features(path: str | os.PathLike[str]) -> FeatureTable:
    """Read a table and check it.

    Raises:
        MissingRequirementError: no such file.
        DataError: not such a table, or one whose parts do not fit each other.
    """
    if not os.path.isfile(path):
        raise MissingRequirementError(f"{path}: no such feature file; extract features first")
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {})[_KEY])
            features = file.get_tensor("features")
        table = FeatureTable(
            features, list(settings["names"]), list(settings["errors"]), settings["encoder"], settings["transform"]
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a feature table of thurl ({error}); extract the features again") from None
    bad = [bool(error) for error in table.errors]
    if (
        features.dim() != 2
        or features.dtype != torch.float32
        or not len(features) == len(table.names) == len(bad)
        or (~features.isfinite()).any(dim=1).tolist() != bad
    ):
        raise DataError(f"{path}: features {tuple(features.shape)}, {len(table.names)} names and {sum(bad)} errors do "
                        "not fit each other; extract the features again")  # fmt: skip
    return table
