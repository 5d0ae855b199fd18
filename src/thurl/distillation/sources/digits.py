"""The 8 x 8 digits inside scikit-learn: real pictures without a download."""

from __future__ import annotations

import numpy as np
import torch

from thurl.distillation.pictures import PictureSet, split_pictures
from thurl.distillation.sources.common import two_parts
from thurl.errors import MissingRequirementError


__all__ = ["load_digits"]


def load_digits(train_per_class: int = 120, test_per_class: int = 54, seed: int = 0) -> tuple[PictureSet, PictureSet]:
    """Grey 8 x 8 pictures of the digits 0 to 9; 16 levels, scaled so that 16 is 255.

    Args:
        train_per_class, test_per_class: of each class, drawn with `seed`; the smallest class has 174.

    Raises:
        MissingRequirementError: scikit-learn is not installed.
        DataError: more than there are.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingRequirementError("scikit-learn, which holds the digits: pip install thurl[vision]") from None
    found = datasets.load_digits()
    images = torch.from_numpy(np.rint(found.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(found.target.astype(np.int64))
    classes = tuple(str(digit) for digit in range(10))
    whole, _ = two_parts((images, labels), (images, labels), classes)
    train, test = split_pictures(whole, train_per_class, test_per_class, torch.Generator().manual_seed(seed))
    return two_parts((train.images, train.labels), (test.images, test.labels), classes)
