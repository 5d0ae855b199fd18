"""A trained model at work: pictures in, restored pictures out; files and folders, of which none stops the others."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from thurl.data.images import open_image
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.restoration.model import RestorationModel
from thurl.restoration.processing import Picture, RestorationImageProcessor
from thurl.restoration.tiling import restore_tiled
from thurl.training.tensor_files import UNFIT


__all__ = ["RestoredFile", "Restorer", "plan_outputs", "restore_files"]

logger = logging.getLogger(__name__)


class Restorer:
    """Restores pictures.

    Args:
        model: trained; taken to `device` and into evaluation mode.
        processor: saved beside it.
        device: "cpu", "cuda", "cuda:1"; the first GPU, else the CPU, when left out.
    """

    def __init__(
        self, model: RestorationModel, processor: RestorationImageProcessor, device: str | torch.device | None = None
    ):
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.processor, self.device = model.to(place).eval(), processor, torch.device(place)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], device: str | torch.device | None = None) -> Restorer:
        """Load a folder that a training run wrote, or a Hub name.

        Raises:
            MissingRequirementError: there is no such model.
            UsageError: the folder holds another kind of model.
        """
        name = os.fspath(path)
        folder = Path(name).expanduser()
        if folder.is_dir():
            name = str(folder)
            lacking = [file for file in ("config.json", "preprocessor_config.json") if not (folder / file).is_file()]
            if lacking:
                raise MissingRequirementError(
                    f"model folder {folder} lacks {', '.join(lacking)}; give the `training.output_dir` of a "
                    "face_restoration run"
                )
        config = RestorationModel.config_class
        try:
            found = config.get_config_dict(name)[0].get("model_type")
            if found != config.model_type:
                raise UsageError(
                    f"{name} is a model of type {found!r}; `thurl restore` needs one of type {config.model_type!r}"
                )
            model = RestorationModel.from_pretrained(name)
            processor = RestorationImageProcessor.from_pretrained(name)
        except OSError as error:
            raise MissingRequirementError(
                f"model {name} cannot be loaded ({str(error).splitlines()[0]}); give a folder or a Hub name"
            ) from error
        except UNFIT as error:
            raise DataError(
                f"{name}: the weights are broken or do not fit config.json ({str(error).splitlines()[0]}); save the "
                "model again"
            ) from error
        return cls(model, processor, device)

    def restore(
        self,
        images: Picture | Sequence[Picture],
        *,
        size: int | None = None,
        scale: float = 1.0,
        tile: int = 1024,
        overlap: int = 64,
        batch_size: int = 1,
    ) -> list[Image.Image]:
        """Restored pictures, in order.

        Args:
            images: paths, encoded bytes, PIL pictures or (H, W, 3) uint8 arrays.
            size: resize to such a square first; the processor's when left out, 0 to resize nothing.
            scale: enlarge by this factor before restoring (bicubic), as the training pictures were after they had
                been shrunk.
            tile: pictures with a longer side are restored in tiles of this side.
            overlap: of the tiles.
            batch_size: tiles restored together.

        Raises:
            ImageError: a picture that cannot be read.
            UsageError: numbers out of their range.
        """
        check_options(size=size, scale=scale, tile=tile, overlap=overlap, batch_size=batch_size)
        pictures = list(images) if isinstance(images, (list, tuple)) else [images]
        return [self._restore(picture, size, scale, tile, overlap, batch_size) for picture in pictures]

    @torch.inference_mode()
    def _restore(
        self, picture: Picture, size: int | None, scale: float, tile: int, overlap: int, batch_size: int
    ) -> Image.Image:
        multiple = self.model.config.multiple
        if tile - overlap < multiple:
            raise UsageError(
                f"tile is {tile} and overlap {overlap}; this model needs tiles longer than their overlap by {multiple}"
            )
        pixels = self.processor.pixels(picture, size)
        if scale != 1:
            sides = [max(1, round(side * scale)) for side in pixels.shape[1:]]
            shrink = scale < 1
            grown = functional.interpolate(pixels[None], size=sides, mode="bicubic", antialias=shrink)
            pixels = grown[0].clamp(0, 1)
        restored = restore_tiled(
            lambda batch: self.model(batch).restored,
            pixels.to(self.device),
            tile=tile,
            overlap=overlap,
            multiple=multiple,
            batch_size=batch_size,
        )
        return self.processor.picture(restored)


def check_options(*, size: int | None, scale: float, tile: int, overlap: int, batch_size: int) -> None:
    """Raise a `UsageError` that names every option of `Restorer.restore` that is out of its range."""
    problems = []
    if size is not None and size < 0:
        problems.append(f"size is {size}; it must be a number of pixels, or 0 to resize nothing")
    if not 0 < scale <= 64:
        problems.append(f"scale is {scale}; it must be above 0 and at most 64")
    if not 0 <= overlap < tile:
        problems.append(f"tile is {tile} and overlap {overlap}; a tile must be larger than its overlap of 0 or more")
    if batch_size < 1:
        problems.append(f"batch_size is {batch_size}; it must be at least 1")
    if problems:
        raise UsageError(problems)


@dataclass(frozen=True)
class RestoredFile:
    """What became of one file.

    Attributes:
        image: path as it was found.
        output: where the restored picture is, empty if there is none.
        error: why there is none.
        skipped: it was there already.
    """

    image: str
    output: str
    error: str = ""
    skipped: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is a restored picture."""
        return not self.error

    def row(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "image": self.image,
            "output": self.output or None,
            "ok": self.ok,
            "skipped": self.skipped,
            "error": self.error,
        }


def plan_outputs(paths: Iterable[Path], root: Path | None, out: Path) -> dict[Path, Path]:
    """Where each picture is written: below `out`, as PNG, in the subfolder it has below `root`.

    Two pictures that differ in their endings only keep them (`a.jpg.png`), so that none overwrites the other.

    Raises:
        UsageError: an output would be the file or the folder that is read.
    """
    listed = list(paths)
    below = [path.relative_to(root) if root and path.is_relative_to(root) else Path(path.name) for path in listed]
    stems: dict[Path, int] = {}
    for place in below:
        stems[place.with_suffix("")] = stems.get(place.with_suffix(""), 0) + 1
    planned: dict[Path, Path] = {}
    taken: set[Path] = set()
    for path, place in zip(listed, below, strict=True):
        name = place.name if stems[place.with_suffix("")] > 1 else place.stem
        target, number = out / place.parent / f"{name}.png", 2
        while target in taken:
            target, number = out / place.parent / f"{name}_{number}.png", number + 1
        taken.add(target)
        planned[path] = target
    sources = {path.resolve() for path in listed}
    clash = sorted(str(target) for target in taken if target.resolve() in sources)
    if clash:
        raise UsageError(
            f"the output would overwrite what is read: {', '.join(clash[:5])}; name another output folder"
        )
    return planned


def restore_files(
    restorer: Restorer, planned: Mapping[Path, Path], *, overwrite: bool = False, **options: Any
) -> Iterator[RestoredFile]:
    """Restore files one by one; yields a line for each.

    Args:
        restorer: the model at work.
        planned: picture to output, see `plan_outputs`.
        overwrite: write outputs that are there already anew; without it they are skipped.
        options: of `Restorer.restore`.
    """
    check_options(**{"size": None, "scale": 1.0, "tile": 1024, "overlap": 64, "batch_size": 1, **options})
    for path, target in planned.items():
        if target.exists() and not overwrite:
            yield RestoredFile(str(path), str(target), skipped=True)
            continue
        try:
            (restored,) = restorer.restore([open_image(path)], **options)
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(restored, target)
        except (DataError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: no memory for a large picture
            logger.debug("%s", path, exc_info=True)
            yield RestoredFile(str(path), "", error=" ".join(str(error).split()) or type(error).__name__)
            continue
        yield RestoredFile(str(path), str(target))


def _write(picture: Image.Image, target: Path) -> None:
    """Whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        picture.save(temporary, format="PNG")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
