"""Feature statistics of a reference set in one `.npz` file, without pickles.

A file holds `mean` (D,), `cov` (D, D), `count`, `extractor` (name of the network) and `source`; a file of one's own
reference pictures also holds the `features` (N, D), which the kernel distance needs.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thurl.errors import DataError, MissingRequirementError


__all__ = ["FeatureStatistics", "convert_statistics", "load_statistics", "save_statistics"]


@dataclass(frozen=True)
class FeatureStatistics:
    """Moments of the features of a reference set.

    Attributes:
        mean: (D,) float64.
        cov: (D, D) float64.
        count: number of pictures behind them, 0 where that is not known.
        extractor: name of the network; distances between different networks mean nothing.
        source: where the numbers are from.
        features: (N, D) float32, None when only the moments are there.
    """

    mean: NDArray[np.float64]
    cov: NDArray[np.float64]
    count: int
    extractor: str
    source: str
    features: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        size = self.mean.shape[0] if self.mean.ndim == 1 else -1
        if self.cov.shape != (size, size):
            raise DataError(
                f"{self.source}: mean {self.mean.shape}, covariance {self.cov.shape}: (D,), (D, D) are needed"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.cov).all()):
            raise DataError(f"{self.source}: mean or covariance holds values that are not finite")
        if self.features is not None and (self.features.ndim != 2 or self.features.shape[1] != size):
            raise DataError(f"{self.source}: features {self.features.shape}: (N, {size}) is needed")


def save_statistics(path: str | os.PathLike[str], statistics: FeatureStatistics) -> None:
    """Write a `.npz` file; folders are made."""
    arrays: dict[str, Any] = {
        "mean": statistics.mean,
        "cov": statistics.cov,
        "count": np.int64(statistics.count),
        "extractor": np.str_(statistics.extractor),
        "source": np.str_(statistics.source),
    }
    if statistics.features is not None:
        arrays["features"] = statistics.features.astype(np.float32)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:  # np.savez would add an ending to the name
        np.savez_compressed(file, **arrays)


def load_statistics(path: str | os.PathLike[str]) -> FeatureStatistics:
    """Read a file of `save_statistics`.

    Raises:
        MissingRequirementError: no such file.
        DataError: another kind of file, or numbers that do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise MissingRequirementError(f"{path}: no such file of feature statistics") from None
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a file of feature statistics: {error}") from None
    if lacking := [name for name in ("mean", "cov", "count", "extractor") if name not in arrays]:
        raise DataError(f"{path}: {', '.join(lacking)} missing; write it with `thurl faces convert-statistics`")
    features = arrays.get("features")
    return FeatureStatistics(
        np.asarray(arrays["mean"], dtype=np.float64),
        np.asarray(arrays["cov"], dtype=np.float64),
        int(arrays["count"]),
        str(arrays["extractor"]),
        os.fspath(path),
        None if features is None else np.asarray(features, dtype=np.float32),
    )


def convert_statistics(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    extractor: str = "fid_inception",
    count: int = 70000,
) -> FeatureStatistics:
    """Turn `inception_FFHQ_512.pth` (a mapping with numpy arrays `mean` and `cov`) into a `.npz` file.

    Args:
        path: the released file.
        output: file to write.
        extractor: network behind the features.
        count: number of pictures behind them; FFHQ has 70,000.

    Raises:
        DataError, MissingRequirementError: the file cannot be used.
    """
    from thurl.training.released_files import read_checkpoint

    content = read_checkpoint(path)
    if not isinstance(content, Mapping) or not {"mean", "cov"} <= set(content):
        raise DataError(f"{path}: a mapping with `mean` and `cov` is needed; this is not inception_FFHQ_512.pth")
    arrays = []
    for name in ("mean", "cov"):
        value = np.asarray(content[name])
        if value.dtype.kind not in "fiu":
            raise DataError(f"{path}: `{name}` holds {value.dtype}, numbers are needed")
        arrays.append(value.astype(np.float64))
    statistics = FeatureStatistics(arrays[0], arrays[1], count, extractor, os.path.basename(os.fspath(path)))
    save_statistics(output, statistics)
    return statistics
