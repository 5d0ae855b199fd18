"""Photographs that come inside installed packages: real pictures without a download.

scikit-image, scikit-learn and matplotlib carry a few photographs in their wheels. They are opened as files of the
installed package; nothing is fetched. The splits are disjoint by photograph, so a crop of a validation or held-out
photograph never resembles a training crop. Pictures that are drawings, microscopy of single cells, stars, already
blurred or in a circle on black are not used; where a photograph has a stereo twin only the left one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from thurl.errors import DataError, MissingRequirementError


if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PHOTOS", "SPLITS", "Photo", "bundled_photos", "folder_photos"]


SPLITS = ("train", "validation", "held_out")


@dataclass(frozen=True)
class Photo:
    """One bundled photograph.

    Attributes:
        package: import name of the package that carries it.
        file: path inside the package.
        split: "train", "validation" or "held_out".
        group: training set it belongs to ("five": rated 1 to 5, "hundred": rated 0 to 100), else the split's name.
        source: where it comes from and its licence, as the package states it.
    """

    package: str
    file: str
    split: str
    group: str
    source: str


def _skimage(file: str, split: str, group: str, source: str) -> Photo:
    return Photo("skimage", f"data/{file}", split, group, source)


PHOTOS: Mapping[str, Photo] = {
    "astronaut": _skimage(
        "astronaut.png", "train", "five", "Eileen Collins, NASA Great Images; no known restrictions, public domain"
    ),
    "chelsea": _skimage("chelsea.png", "train", "five", "cat, photograph by Stefan van der Walt; CC0"),
    "immunohistochemistry": _skimage(
        "ihc.png",
        "train",
        "five",
        "stained tissue, Center for Microscopy And Molecular Imaging; no known restrictions",
    ),
    "motorcycle": _skimage(
        "motorcycle_left.png", "train", "five", "Middlebury 2014 stereo benchmark; licence not stated by the package"
    ),
    "brick": _skimage("brick.png", "train", "hundred", "CC0Textures Bricks25; CC0"),
    "camera": _skimage("camera.png", "train", "hundred", "photograph by Lav Varshney; CC0"),
    "gravel": _skimage("gravel.png", "train", "hundred", "CC0Textures Gravel04; CC0"),
    "rocket": _skimage("rocket.jpg", "train", "hundred", "DSCOVR launch, SpaceX Photos; public domain"),
    "grace_hopper": Photo(
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        "validation",
        "validation",
        "official portrait of Grace Hopper, U.S. Navy; licence not stated by the package",
    ),
    "grass": _skimage("grass.png", "validation", "validation", "DeviantArt, linolafett, Grass 01; CC0"),
    "flower": Photo(
        "sklearn",
        "datasets/images/flower.jpg",
        "validation",
        "validation",
        "flickr.com/photos/vultilion/6056698931; CC BY 2.0",
    ),
    "china": Photo(
        "sklearn",
        "datasets/images/china.jpg",
        "held_out",
        "held_out",
        "flickr.com/photos/danielbuechele/6061409035; CC BY 2.0",
    ),
    "coffee": _skimage("coffee.png", "held_out", "held_out", "photograph by Rachel Michetti; CC0"),
    "coins": _skimage("coins.png", "held_out", "held_out", "Brooklyn Museum Collection; no known restrictions"),
}


def bundled_photos(split: str, *, group: str | None = None) -> dict[str, Image.Image]:
    """Photographs of one split by name, as RGB pictures in their original size.

    Args:
        split: "train", "validation" or "held_out".
        group: only the photographs of this training set ("five" or "hundred").

    Raises:
        DataError: unknown split or group.
        MissingRequirementError: a package, or a file inside it, is not there; all missing ones are listed.
    """
    from PIL import Image

    if split not in SPLITS:
        raise DataError(f"split={split!r} is unknown: must be one of {', '.join(SPLITS)}")
    wanted = {name: photo for name, photo in PHOTOS.items() if photo.split == split and group in (None, photo.group)}
    if not wanted:
        groups = sorted({photo.group for photo in PHOTOS.values() if photo.split == split})
        raise DataError(f"group={group!r} is unknown in split {split!r}: must be one of {', '.join(groups)}")
    paths, problems = {}, []
    for name, photo in wanted.items():
        spec = find_spec(photo.package)  # finds the folder without importing the package
        if spec is None or spec.origin is None:
            problems.append(
                f"photograph {name!r}: package {photo.package!r} is not installed; pip install thurl[vision]"
            )
            continue
        paths[name] = Path(spec.origin).parent / photo.file
        if not paths[name].is_file():
            problems.append(f"photograph {name!r}: {photo.package} carries no {photo.file}; use a tested version")
    if problems:
        raise MissingRequirementError(problems)
    pictures = {}
    for name, path in paths.items():
        with Image.open(path) as picture:
            pictures[name] = picture.convert("RGB")
    return pictures


def folder_photos(
    folder: str | Path, *, suffixes: tuple[str, ...] = (".jpg", ".jpeg", ".png")
) -> dict[str, Image.Image]:
    """Photographs of a folder (not of its subfolders) by file name without suffix, RGB, sorted by name.

    Raises:
        MissingRequirementError: the folder does not exist or holds no picture.
        DataError: a picture that cannot be read.
    """
    from thurl.data.images import open_image

    folder = Path(folder)
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in suffixes) if folder.is_dir() else []
    if not paths:
        raise MissingRequirementError(
            f"folder {str(folder)!r} has no picture ({', '.join(suffixes)}): name another one"
        )
    return {path.stem: open_image(path) for path in paths}
