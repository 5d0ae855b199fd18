"""Faces drawn from numbers, with 68 landmarks, identities and videos: data for tests, tiny recipes and benchmarks.

A drawn face is skin, hair, brows, eyes, a nose and a mouth in flat colours with a little texture and noise. What
belongs to a person is drawn from (seed, identity): proportions, colours, texture. What belongs to a recording is drawn
from (seed, identity, video): background and light. What belongs to a frame is drawn from all of them: pose, gaze,
mouth and brows, noise. In one face the parts agree, as in a photograph: lips are a redder skin, brows have the colour
of the hair, and light falls on brows, nose and lips from one side. A region taken from another face breaks that.

These are no photographs: results on them say that code works, not how well it detects forgeries.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from thurl.errors import UsageError
from thurl.forensics.deepfake.folders import write_face
from thurl.forensics.deepfake.graph import LabelGraph
from thurl.forensics.deepfake.manifest import FaceItem, write_manifest
from thurl.forensics.faces import average_landmarks


__all__ = ["PEOPLE", "SIZE", "DrawnFace", "draw_face", "write_drawn_faces"]

SIZE = 48
"""Side in pixels of a drawn face."""

PEOPLE: Mapping[str, int] = MappingProxyType({"train": 12, "val": 4, "test": 6})
"""People in each split of a small data set."""

_OVERSAMPLING = 4
# Face box in shares of the side: a little forehead and hair above, a little background beside.
_BOX = (0.14, 0.16, 0.86, 0.95)
_JAW, _BROWS, _NOSE, _EYES, _MOUTH = (
    (slice(0, 17),),
    (slice(17, 22), slice(22, 27)),
    (slice(27, 36),),
    (slice(36, 42), slice(42, 48)),
    (slice(48, 68),),
)
_SKINS = ((244, 208, 180), (228, 184, 150), (205, 155, 118), (172, 120, 84), (126, 84, 58))
_HAIRS = ((34, 26, 24), (78, 50, 34), (132, 90, 54), (190, 150, 92), (120, 118, 120))
_IRISES = ((70, 44, 26), (84, 104, 60), (70, 110, 150), (110, 110, 112))


@dataclass(frozen=True)
class DrawnFace:
    """A picture and where its parts are.

    Attributes:
        pixels: (size, size, 3) uint8.
        landmarks: (68, 2) float64, x and y in pixels, iBUG order.
    """

    pixels: NDArray[np.uint8]
    landmarks: NDArray[np.float64]


def draw_face(identity: int, *, video: int = 0, frame: int = 0, seed: int = 0, size: int = SIZE) -> DrawnFace:
    """One frame. The same numbers give the same bytes.

    Args:
        identity: whole number of 0 or more; the person.
        video: of this person.
        frame: of this video.
        seed: another seed draws other people.
        size: side of the picture in pixels, 32 or more.

    Raises:
        UsageError: a negative number, or a picture that is too small to draw a face in.
    """
    numbers = {"identity": identity, "video": video, "frame": frame, "seed": seed}
    problems = [f"{name} is {value}; it must be 0 or more" for name, value in numbers.items() if value < 0]
    if size < 32:
        problems.append(f"size is {size}; a face needs 32 pixels or more")
    if problems:
        raise UsageError(problems)
    person = _person(np.random.default_rng((seed, 1, identity)))
    light = _recording(np.random.default_rng((seed, 2, identity, video)))
    rng = np.random.default_rng((seed, 3, identity, video, frame))
    points = _posed(_proportioned(person, rng), rng) * size
    pixels = _rendered(points, person, light, rng, size)
    return DrawnFace(pixels, points)


def write_drawn_faces(
    folder: str | os.PathLike[str],
    graph: LabelGraph,
    *,
    people: Mapping[str, int] = PEOPLE,
    videos: int = 1,
    frames: int = 2,
    seed: int = 0,
    size: int = SIZE,
) -> list[FaceItem]:
    """A data set of unaltered faces: pictures, landmarks and `manifest.jsonl`. No person is in two splits.

    Args:
        folder: made where it does not exist. Gets `frames/VIDEO/FRAME.png` and `landmarks/VIDEO/FRAME.npy`.
        graph: what the labels are of; it must know the manipulation `real`.
        people: split to how many people.
        videos: of every person.
        frames: of every video.
        seed, size: see `draw_face`.

    Returns:
        The items of the manifest.

    Raises:
        UsageError: numbers out of their range.
    """
    if not people or min(people.values()) < 1 or videos < 1 or frames < 1:
        raise UsageError(f"people is {dict(people)}, videos {videos}, frames {frames}; each must be 1 or more")
    folder = Path(folder)
    items: list[FaceItem] = []
    labels = tuple(graph.vector("real"))
    split_of = [split for split, count in people.items() for _ in range(count)]
    for identity, split in enumerate(split_of):
        for video in range(videos):
            name = f"{identity:03d}" if videos == 1 else f"{identity:03d}-{video}"
            for frame in range(frames):
                face = draw_face(identity, video=video, frame=frame, seed=seed, size=size)
                path, _, points = write_face(folder, f"{name}/{frame:04d}", face.pixels, landmarks=face.landmarks)
                items.append(
                    FaceItem(
                        path=path,
                        labels=labels,
                        video=name,
                        frame=frame,
                        dataset="drawn",
                        split=split,
                        manipulation="real",
                        identities=(f"{identity:03d}",),
                        landmarks=points,
                    )
                )
    write_manifest(folder / "manifest.jsonl", items, graph)
    return items


def _person(rng: np.random.Generator) -> dict[str, Any]:
    """Proportions (factors around 1), colours in [0, 255] and the skin's texture."""
    skin = np.array(_SKINS[rng.integers(len(_SKINS))]) + rng.uniform(-10, 10, 3)
    hair = np.array(_HAIRS[rng.integers(len(_HAIRS))]) + rng.uniform(-8, 8, 3)
    redness = rng.uniform(0.25, 0.45)
    return {
        "skin": skin,
        "hair": hair,
        "lip": (1 - redness) * skin + redness * np.array([176, 40, 60]),
        "iris": np.array(_IRISES[rng.integers(len(_IRISES))]) + rng.uniform(-10, 10, 3),
        "jaw": (rng.uniform(0.9, 1.06), rng.uniform(0.95, 1.04)),
        "brow": (rng.uniform(0.85, 1.15), rng.uniform(0.7, 1.4)),
        "brow_width": rng.uniform(0.018, 0.036),
        "eye": (rng.uniform(0.95, 1.25), rng.uniform(1.2, 1.9)),
        "eye_apart": rng.uniform(-0.015, 0.02),
        "nose": (rng.uniform(0.8, 1.3), rng.uniform(0.85, 1.12)),
        "mouth": (rng.uniform(0.8, 1.15), rng.uniform(0.85, 1.25)),
        "hairline": rng.uniform(0.16, 0.24),
        "texture": rng.normal(0, 1, (7, 7)) * rng.uniform(2, 6),
    }


def _recording(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "background": rng.uniform(40, 215, 3),
        "slope": rng.uniform(-25, 25, 2),
        # Positive: from the picture's left.
        "side": rng.choice((-1.0, 1.0)) * rng.uniform(0.06, 0.14),
        "exposure": rng.uniform(0.9, 1.08),
    }


def _proportioned(person: dict[str, Any], rng: np.random.Generator) -> NDArray[np.float64]:
    """Landmarks of this person with this frame's expression, in shares of the picture's side."""
    points = average_landmarks(_BOX).copy()
    opening, raised = rng.uniform(0.7, 1.5), rng.uniform(-0.015, 0.01)

    def scale(parts: tuple[slice, ...], factors: tuple[float, float], shift: tuple[float, float] = (0, 0)) -> None:
        for place, part in enumerate(parts):
            centre = points[part].mean(0)
            outwards = (shift[0] * (1 if place else -1), shift[1])
            points[part] = centre + (points[part] - centre) * factors + outwards

    scale(_JAW, person["jaw"])
    scale(_BROWS, person["brow"], (person["eye_apart"], raised))
    scale(_EYES, person["eye"], (person["eye_apart"], 0))
    scale(_NOSE, person["nose"])
    scale(_MOUTH, (person["mouth"][0], person["mouth"][1] * (0.8 + 0.2 * opening)))
    scale((slice(60, 68),), (1.0, opening))
    return points


def _posed(points: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    angle, grown = np.deg2rad(rng.uniform(-5, 5)), rng.uniform(0.95, 1.03)
    turn = grown * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return (points - 0.5) @ turn.T + 0.5 + rng.uniform(-0.025, 0.025, 2)


def _rendered(
    points: NDArray[np.float64], person: dict[str, Any], light: dict[str, Any], rng: np.random.Generator, size: int
) -> NDArray[np.uint8]:
    wide = size * _OVERSAMPLING
    # Pixel i covers [i, i + 1), so the middle of the first pixel lies at 0.5 of the large picture's unit.
    fine = (points + 0.5) * _OVERSAMPLING
    y, x = (np.mgrid[0:wide, 0:wide] + 0.5) / wide - 0.5
    slope = light["slope"]
    ground = light["background"] + (slope[0] * x + slope[1] * y)[..., None]
    image = Image.fromarray(_bytes(ground))
    _draw_parts(ImageDraw.Draw(image), fine, person, light["side"], rng.uniform(-0.2, 0.2), wide)
    picture = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float64)
    texture = Image.fromarray(person["texture"].astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    across = (np.arange(size) + 0.5) / size - 0.5
    lit = light["exposure"] * (1 - light["side"] * 2 * across)[None, :, None]
    picture = picture * lit + np.asarray(texture)[..., None] + rng.normal(0, 1.5, (size, size, 3))
    return _bytes(picture)


def _draw_parts(
    draw: ImageDraw.ImageDraw,
    points: NDArray[np.float64],
    person: dict[str, Any],
    side: float,
    gaze: float,
    wide: int,
) -> None:
    """Parts from back to front on the large picture."""
    skin, hair, lip = person["skin"], person["hair"], person["lip"]
    jaw = points[_JAW[0]]
    left, right, middle = jaw[0], jaw[-1], (jaw[0] + jaw[-1]) / 2
    up = np.array([(right - left)[1], -(right - left)[0]]) / max(float(np.hypot(*(right - left))), 1e-9)
    arc = np.deg2rad(np.linspace(0, 180, 19))[:, None]

    def dome(width: float, height: float) -> NDArray[np.float64]:
        return middle + np.cos(arc) * (right - left) / 2 * width + np.sin(arc) * up * height * wide

    _polygon(draw, np.concatenate([dome(1.12, person["hairline"] + 0.14), [left], [right]]), hair)
    _polygon(draw, np.concatenate([jaw, dome(1.0, person["hairline"])]), skin)
    for brow in _BROWS:
        _line(draw, points[brow], hair, person["brow_width"] * wide)
    for eye in _EYES:
        corners = points[eye]
        _polygon(draw, corners, np.array([236, 234, 230]))
        centre, reach = corners.mean(0), float(np.hypot(*(corners[3] - corners[0])))
        centre = centre + gaze * (corners[3] - corners[0]) / 2
        _circle(draw, centre, 0.24 * reach, person["iris"])
        _circle(draw, centre, 0.11 * reach, np.array([16, 14, 14]))
        _line(draw, corners[:4], skin * 0.45, 0.012 * wide)
    ridge, base = points[27:31], points[31:36]
    lighter, darker = skin * (1 + abs(side)), skin * (1 - 1.8 * abs(side))
    near, far = (base[0], base[-1]) if side > 0 else (base[-1], base[0])
    _polygon(draw, np.stack([ridge[0], near, base[2]]), lighter)
    _polygon(draw, np.stack([ridge[0], far, base[2]]), darker)
    _line(draw, base, skin * 0.6, 0.014 * wide)
    _polygon(draw, points[48:60], lip)
    _polygon(draw, np.concatenate([points[54:60], points[64:68][::-1]]), lip * 0.85)
    _polygon(draw, points[60:68], np.array([70, 24, 30]))


def _polygon(draw: ImageDraw.ImageDraw, points: NDArray[np.float64], colour: NDArray[np.float64]) -> None:
    draw.polygon(_pairs(points), fill=_colour(colour))


def _line(draw: ImageDraw.ImageDraw, points: NDArray[np.float64], colour: NDArray[np.float64], width: float) -> None:
    draw.line(_pairs(points), fill=_colour(colour), width=max(round(width), 1), joint="curve")


def _circle(
    draw: ImageDraw.ImageDraw, centre: NDArray[np.float64], radius: float, colour: NDArray[np.float64]
) -> None:
    draw.ellipse(_pairs(np.stack([centre - radius, centre + radius])), fill=_colour(colour))


def _pairs(points: NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]


def _colour(values: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in _bytes(values))
    return red, green, blue


def _bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
