"""Which frames of a video are looked at: evenly spaced, the same every time.

The official protocol of arXiv 2408.16305 takes `linspace(0, N - 1, n)` cut to whole numbers, of which equal ones
collapse: a video of fewer frames than asked for gives all it has, and is counted. DeepfakeBench's test loader means to
do the same and takes the first n frames.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from thurl.errors import UsageError
from thurl.forensics.deepfake.manifest import FaceItem, VideoKey


__all__ = ["FRAMES", "SampledFrames", "evenly_spaced", "sample_frames"]

logger = logging.getLogger(__name__)

FRAMES = 32
"""Frames per video, the usual number; the README of the official code takes 64."""


@dataclass(frozen=True)
class SampledFrames:
    """Frames that were taken.

    Attributes:
        items: in their old order.
        videos: how many videos they are of.
        short: video to its number of frames, where that is less than asked for.
    """

    items: list[FaceItem]
    videos: int
    short: Mapping[VideoKey, int] = field(default_factory=dict)


def evenly_spaced(count: int, frames: int) -> list[int]:
    """At most `frames` different places out of `count`, the first and the last among them, in order.

    Raises:
        UsageError: fewer than one frame asked for.
    """
    if frames < 1:
        raise UsageError(f"frames is {frames}; it must be 1 or more")
    return sorted({int(place) for place in np.linspace(0, count - 1, frames)}) if count else []


def sample_frames(items: Sequence[FaceItem], frames: int = FRAMES) -> SampledFrames:
    """`frames` frames of each video, evenly spaced in the order of their numbers.

    Args:
        items: of any number of videos; frames without a number follow those with one, in the given order.
        frames: per video.

    Raises:
        UsageError: fewer than one frame asked for.
    """
    videos: dict[VideoKey, list[int]] = {}
    for place, item in enumerate(items):
        videos.setdefault(item.video_key, []).append(place)
    chosen: set[int] = set()
    short: dict[VideoKey, int] = {}
    for key, places in videos.items():
        places.sort(key=lambda place: (items[place].frame is None, items[place].frame or 0))
        taken = evenly_spaced(len(places), frames)
        chosen.update(places[place] for place in taken)
        if len(taken) < frames:
            short[key] = len(taken)
    logger.info(
        "%d of %d frames of %d videos taken; %d videos have fewer than %d.",
        len(chosen),
        len(items),
        len(videos),
        len(short),
        frames,
    )
    return SampledFrames([items[place] for place in sorted(chosen)], len(videos), short)
