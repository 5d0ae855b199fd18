"""Frames out of video files, with PyAV: `pip install thurl[video]`. Nothing else of thurl needs it.

Frames are counted by decoding, not by what the file says about itself, which for many files is wrong; so a video is
decoded once to count and once to take. Each decoding is bounded in frames and in pixels per frame.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thurl.data.images import MAX_PIXELS
from thurl.errors import DataError, MissingRequirementError
from thurl.forensics.deepfake.folders import new_folder, write_face
from thurl.forensics.deepfake.manifest import FaceItem
from thurl.forensics.deepfake.sampling import FRAMES, evenly_spaced


__all__ = ["MAX_FRAMES", "VIDEO_ENDINGS", "cut_videos", "read_frames", "require_pyav"]

VIDEO_ENDINGS = (".avi", ".mkv", ".mov", ".mp4", ".webm")
"""Endings of the files that are taken for videos, in any case."""

MAX_FRAMES = 200_000
"""Frames of one file at most, about two hours."""


def read_frames(path: str | os.PathLike[str], frames: int = FRAMES) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Number and pixels, (H, W, 3) uint8 RGB, of evenly spaced frames; all of them where there are fewer.

    Args:
        path: a video file.
        frames: how many.

    Raises:
        MissingRequirementError: PyAV is not installed, or no such file.
        DataError: no video, a broken one, or one that is too long or too large.
    """
    count = sum(1 for _ in _decoded(path))
    if count == 0:
        raise DataError(f"{path}: no frame in it")
    wanted = set(evenly_spaced(count, frames))
    for number, picture in enumerate(_decoded(path)):
        if number in wanted:
            yield number, picture.to_ndarray(format="rgb24")


def cut_videos(
    items: Iterable[FaceItem], folder: str | os.PathLike[str], *, frames: int = FRAMES
) -> tuple[list[FaceItem], dict[str, str]]:
    """Frames of video files as pictures, `frames/NUMBER/FRAME.png`.

    Args:
        items: whose `path` is a video; one item per video.
        folder: must be new or empty.
        frames: of each video, evenly spaced.

    Returns:
        One item per frame with all that its video is known by, and video to the reason why it was left out. The video
        is called by its file's name where it has no other.

    Raises:
        MissingRequirementError: PyAV is not installed.
        UsageError: a folder that holds something.
        DataError: not one frame.
    """
    require_pyav()
    folder = new_folder(folder)
    cut: list[FaceItem] = []
    dropped: dict[str, str] = {}
    for place, item in enumerate(items):
        found = []
        try:
            for number, pixels in read_frames(item.path, frames):
                path, _, _ = write_face(folder, f"{place:06d}/{number:06d}", pixels)
                found.append(replace(item, path=path, video=item.video or Path(item.path).stem, frame=number))
        except (DataError, MissingRequirementError) as error:
            dropped[item.path] = str(error)
            continue
        cut += found
    if not cut:
        raise DataError(f"no frame in {len(dropped)} videos; the first: {next(iter(dropped.values()), 'none given')}")
    return cut, dropped


def require_pyav() -> Any:
    """PyAV's module.

    Raises:
        MissingRequirementError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingRequirementError("reading videos needs PyAV; pip install thurl[video]") from None
    return av


def _decoded(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Frames of the first video stream."""
    av = require_pyav()
    if not Path(path).is_file():
        raise MissingRequirementError(f"video {os.fspath(path)!r} does not exist")
    try:
        with av.open(os.fspath(path), mode="r") as container:
            if not container.streams.video:
                raise DataError(f"{path}: no picture in it")
            stream = container.streams.video[0]
            for number, frame in enumerate(container.decode(stream)):
                if number >= MAX_FRAMES:
                    raise DataError(f"{path}: more than {MAX_FRAMES} frames; cut it into shorter videos")
                if frame.width * frame.height > MAX_PIXELS:
                    raise DataError(f"{path}: frames of {frame.width}x{frame.height}; at most {MAX_PIXELS} pixels")
                yield frame
    except av.FFmpegError as error:
        raise DataError(f"{path}: not a video, or a broken one ({error}); copy it again") from error
