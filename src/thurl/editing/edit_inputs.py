"""Pictures and labels of an edit from files, with everything that is wrong with them in one error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from thurl.data.image_files import find_images
from thurl.data.images import open_image
from thurl.editing.classifier_files import LoadedClassifier
from thurl.errors import DataError, UsageError
from thurl.vision_models.preprocessing import PicturePreprocessing


__all__ = ["folder_batches", "read_failures", "read_pictures"]


def read_failures(
    loaded: LoadedClassifier, images: Sequence[Path], labels: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Failing pictures and their right classes.

    Args:
        images: picture files.
        labels: names or numbers of classes; one for all pictures, or one for each.

    Returns:
        float32 [B, channels, H, W] as the model reads them, and int64 [B].

    Raises:
        UsageError: labels the model does not have or another number of them; with what is wrong with the pictures.
        DataError: pictures that cannot be read.
    """
    problems, numbers = [], []
    if len(labels) not in (1, len(images)):
        problems.append(f"{len(labels)} labels for {len(images)} pictures; give one for all, or one for each")
    for label in labels:
        try:
            numbers.append(loaded.label_of(label))
        except UsageError as error:
            problems += error.problems
    found, unread = _read(images, loaded.preprocessing)
    if problems:
        raise UsageError([*problems, *unread])
    if unread:
        raise DataError("\n".join(unread))
    classes = numbers * len(images) if len(numbers) == 1 else numbers
    return loaded.preprocessing.scaled(torch.stack(found)), torch.tensor(classes)


def folder_batches(
    folder: Path, preprocess: PicturePreprocessing, batch_size: int, device: str
) -> tuple[list[Path], list[torch.Tensor]]:
    """All pictures of a folder and its subfolders, in the order of their names, and as batches.

    Raises:
        DataError: no folder, no pictures in it, or some that cannot be read (the first 20 and the count).
    """
    files = find_images([folder], recursive=True)
    pictures = read_pictures(files, preprocess)
    stacked = torch.stack(pictures).split(batch_size)
    return files, [preprocess.scaled(batch).to(device) for batch in stacked]


def read_pictures(files: Sequence[Path], preprocess: PicturePreprocessing) -> list[torch.Tensor]:
    """Pictures after the first step of the preprocessing, uint8.

    Raises:
        DataError: some cannot be read (the first 20 and the count).
    """
    found, unread = _read(files, preprocess)
    if unread:
        more = f"\nand {len(unread) - 20} more" if len(unread) > 20 else ""
        raise DataError("\n".join(unread[:20]) + more)
    return found


def _read(files: Sequence[Path], preprocess: PicturePreprocessing) -> tuple[list[torch.Tensor], list[str]]:
    found, problems = [], []
    for file in files:
        try:
            found.append(preprocess(open_image(file)))
        except DataError as error:
            problems.append(str(error))
    return found, problems
