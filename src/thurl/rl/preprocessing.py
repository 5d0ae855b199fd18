"""Each picture of a generation batch is opened once and preprocessed once, however many completions it gets.

Plain TRL 1.16 repeats the row of a picture for each of its K completions and runs the processor over all copies,
twice: for generation and for the update. The data loader moreover reads the whole generation batch again for every
micro-batch that uses it. Here

- `FetchedOnce` keeps the rows of the last batch, so that a repeated index is read, and its picture decoded, once;
- `PreprocessedOnce` lets the image processor see the distinct pictures of a call and repeats the result. Copies are
  recognised by identity, never by content: TRL keeps it, its deep copy of the prompts included.

What the model gets is bit by bit what TRL makes of all copies. Only pictures are shared: the K prompts are tokenised
as they were, and generation with transformers sends all K copies through the vision tower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import BatchFeature


__all__ = ["FetchedOnce", "PreprocessedOnce", "repeat_pictures"]

LAYOUT = ("pixel_values", "image_grid_thw")
"""What processors of the Qwen-VL family return: patches of all pictures (patches, features), grids (pictures, 3)."""


class FetchedOnce(Dataset):
    """Rows of a map-style dataset; indices of the previous batch, or repeated in this one, are not read again.

    Holds one batch of rows. Rows of one index share their values (pictures), not their dicts and lists. With loader
    workers each worker keeps a batch of its own.

    Args:
        dataset: anything with `len` and `[index]`; `__getitems__` is used where there is one.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._rows: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        rows = {index: self._rows[index] for index in indices if index in self._rows}
        self._rows = rows  # before others are read: at no time two batches in memory
        missing = [index for index in dict.fromkeys(indices) if index not in rows]
        if missing and hasattr(self.dataset, "__getitems__"):
            rows.update(zip(missing, self.dataset.__getitems__(missing), strict=True))
        else:
            rows.update((index, self.dataset[index]) for index in missing)
        return [_own_containers(rows[index]) for index in indices]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.dataset,)  # a worker starts without the pictures


def _own_containers(value: Any) -> Any:
    """A copy down to the values: whoever changes a row must not change its repetitions."""
    if type(value) is dict:
        return {key: _own_containers(item) for key, item in value.items()}
    if type(value) is list:
        return [_own_containers(item) for item in value]
    return value


class PreprocessedOnce:
    """Lets a processor's image processor work on distinct pictures only, inside `with once.batch():`.

    Two calls with the same pictures and settings, such as TRL's for generation and for the update, are one. Everything
    is forgotten at the end of the block, and outside of it the image processor is untouched.

    Args:
        processing_class: a processor with an `image_processor` of the Qwen-VL family (`LAYOUT`). With others, and with
            tokenizers, `batch` does nothing: `active` says whether it does.
    """

    def __init__(self, processing_class: Any) -> None:
        self._processor: Any = getattr(processing_class, "image_processor", None)
        self.active = tuple(getattr(self._processor, "model_input_names", ())) == LAYOUT

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Share pictures until the end of the block."""
        if not self.active:
            yield
            return
        # `BaseImageProcessor.__call__` calls `self.preprocess`, so an instance attribute catches every way in.
        self._processor.preprocess = _Shared(self._processor.preprocess)
        try:
            yield
        finally:
            del self._processor.preprocess


class _Shared:
    """`preprocess` of an image processor that has seen some pictures already."""

    def __init__(self, preprocess: Callable[..., BatchFeature]) -> None:
        self._preprocess = preprocess
        # Pictures by id, in the order of the result. They are kept, since the id of an object that is gone may be
        # given to another one.
        self._known: list[tuple[dict[int, Image.Image], dict[str, Any], BatchFeature]] = []

    def __call__(self, images: Any, *args: Any, **settings: Any) -> BatchFeature:
        pictures = list(_flat(images))
        if (
            args
            or settings.get("return_tensors") not in (None, "pt")
            or not all(isinstance(picture, Image.Image) for picture in pictures)
        ):
            return self._preprocess(images, *args, **settings)
        distinct, result = self._result(pictures, {**settings, "return_tensors": "pt"})
        place = {identity: position for position, identity in enumerate(distinct)}
        return type(result)(repeat_pictures(result, [place[id(picture)] for picture in pictures]))

    def _result(
        self, pictures: Sequence[Image.Image], settings: dict[str, Any]
    ) -> tuple[dict[int, Image.Image], BatchFeature]:
        distinct = {id(picture): picture for picture in pictures}
        for known, used, result in self._known:
            if known.keys() == distinct.keys() and used == settings:
                return known, result
        result = self._preprocess(list(distinct.values()), **settings)
        self._known.append((distinct, settings, result))
        return distinct, result


def _flat(images: Any) -> Iterator[Any]:
    if isinstance(images, list | tuple):
        for item in images:
            yield from _flat(item)
    else:
        yield images


def repeat_pictures(features: Any, order: Sequence[int]) -> dict[str, torch.Tensor]:
    """What the image processor would return for pictures `order` of those in `features`.

    Args:
        features: `pixel_values` (patches, features), the patches of one picture after the other, and
            `image_grid_thw` (pictures, 3) int; a picture has as many patches as its grid's product.
        order: numbers of pictures, with repetitions.

    Returns:
        both entries for `len(order)` pictures, in memory of their own.
    """
    pixels, grids = features["pixel_values"], features["image_grid_thw"]
    parts = pixels.split(grids.prod(dim=1).tolist())
    return {"pixel_values": torch.cat([parts[picture] for picture in order]), "image_grid_thw": grids[list(order)]}
