"""Files of the pristine model behind `niqe_fitted` and `brisque_fitted`: fit to a folder, write, read, convert."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thurl.data.images import ImageError
from thurl.errors import DataError, MissingRequirementError
from thurl.iqa.face_restoration.naturalness import (
    BLOCK,
    FEATURES,
    PristineModel,
    brisque_features,
    fit_pristine,
    niqe_features,
)
from thurl.iqa.face_restoration.pictures import read_picture


__all__ = ["convert_niqe", "fit_files", "load_pristine", "pristine_digest", "save_pristine"]

_ARRAYS = {"niqe_mean": (FEATURES,), "niqe_cov": (FEATURES, FEATURES)}
_MORE = {"brisque_mean": (FEATURES,), "brisque_cov": (FEATURES, FEATURES)}


def fit_files(
    paths: Sequence[str | os.PathLike[str]], progress: Callable[[], None] = lambda: None
) -> tuple[PristineModel, list[str]]:
    """Fit a pristine model to picture files, one at a time.

    Args:
        paths: undistorted photographs; larger than the patches by far, and like those that will be judged.
        progress: called after each file.

    Returns:
        the model, and a message for each file that was left out.

    Raises:
        DataError: too few usable pictures.
    """
    patches, sharpness, whole, problems = [], [], [], []
    for path in paths:
        try:
            picture = read_picture(path).pixels
            if min(picture.shape[:2]) < BLOCK:
                raise ImageError(f"{path}: {picture.shape[1]}x{picture.shape[0]} pixels; {BLOCK} or more are needed")
        except ImageError as error:
            problems.append(str(error))
        else:
            pixels = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].to(torch.float64) / 255.0
            rows, sharp = niqe_features(pixels)
            patches.append(rows[0].numpy())
            sharpness.append(sharp[0].numpy())
            whole.append(brisque_features(pixels)[0].numpy())
        progress()
    return fit_pristine(patches, sharpness, np.array(whole).reshape(-1, FEATURES)), problems


def save_pristine(path: str | os.PathLike[str], model: PristineModel) -> None:
    """Write a `.npz` file; folders are made."""
    arrays: dict[str, Any] = {name: getattr(model, name) for name in (*_ARRAYS, *_MORE)}
    arrays = {name: value for name, value in arrays.items() if value is not None}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        np.savez(file, **arrays, pictures=np.int64(model.pictures), patches=np.int64(model.patches))


def load_pristine(path: str | os.PathLike[str]) -> PristineModel:
    """Read a file of `save_pristine`.

    Raises:
        MissingRequirementError: no such file.
        DataError: another kind of file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise MissingRequirementError(f"{path}: no such pristine model; fit one with `thurl faces fit-niqe`") from None
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a pristine model: {error}") from None
    wanted = _ARRAYS | {name: shape for name, shape in _MORE.items() if name in arrays}
    problems = [
        f"`{name}` must be finite numbers of shape {shape}"
        for name, shape in wanted.items()
        if name not in arrays
        or arrays[name].shape != shape
        or arrays[name].dtype.kind != "f"
        or not np.isfinite(arrays[name]).all()
    ]
    if problems:
        raise DataError(f"{path}: not a pristine model: {'; '.join(problems)}")
    return PristineModel(
        arrays["niqe_mean"],
        arrays["niqe_cov"],
        arrays.get("brisque_mean"),
        arrays.get("brisque_cov"),
        int(arrays.get("pictures", 0)),
        int(arrays.get("patches", 0)),
    )


def pristine_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def convert_niqe(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> PristineModel:
    """Turn the authors' `modelparameters.mat` (`mu_prisparam`, `cov_prisparam`) into a pristine model without BRISQUE.

    Raises:
        MissingRequirementError: no such file.
        DataError: another kind of file.
    """
    from scipy.io import loadmat

    if not os.path.isfile(path):
        raise MissingRequirementError(f"{path}: no such file; it comes with NIQE's release")
    try:
        content = loadmat(path, variable_names=("mu_prisparam", "cov_prisparam"))
        mean = np.asarray(content["mu_prisparam"], dtype=np.float64).reshape(-1)
        cov = np.asarray(content["cov_prisparam"], dtype=np.float64)
    except Exception as error:  # scipy's reader raises many kinds on broken files
        raise DataError(
            f"{path}: not the file modelparameters.mat of NIQE ({type(error).__name__}: {error})"
        ) from None
    if mean.shape != (FEATURES,) or cov.shape != (FEATURES, FEATURES):
        raise DataError(f"{path}: mean {mean.shape} and covariance {cov.shape}; NIQE has ({FEATURES},) and its square")
    model = PristineModel(mean, cov, None, None, 0, 0)
    save_pristine(output, model)
    return model
