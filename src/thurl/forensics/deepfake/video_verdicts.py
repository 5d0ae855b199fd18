"""A trained model over video files: evenly spaced frames, as the evaluation takes them, and their mean."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from thurl.errors import DataError, MissingRequirementError
from thurl.forensics.deepfake.explanations import Explanation, explain_energies, explain_row
from thurl.forensics.deepfake.graph import LabelGraph
from thurl.forensics.deepfake.scoring import FaceScorer
from thurl.forensics.deepfake.video import VIDEO_ENDINGS, read_frames, require_pyav


__all__ = ["LEAST_FRAMES", "FrameVerdict", "VideoVerdict", "explain_frames", "find_videos", "judge_video"]

LEAST_FRAMES = 8
"""Usable frames below which a video has no verdict; all of them where fewer are asked for."""

_TOGETHER = 8


@dataclass(frozen=True)
class FrameVerdict:
    """What was found in one frame: its number in the video, and an explanation or the reason why there is none."""

    frame: int
    explanation: Explanation | None = None
    error: str = ""


@dataclass(frozen=True)
class VideoVerdict:
    """What was found in a video: its frames, and an explanation of all or the reason why there is none."""

    frames: list[FrameVerdict] = field(default_factory=list)
    explanation: Explanation | None = None
    error: str = ""


def find_videos(inputs: Sequence[str], *, recursive: bool = False) -> tuple[list[Path], list[str]]:
    """The videos among `inputs`, by their endings, and those in folders; and the inputs that may hold pictures.

    A folder stays among the latter unless it holds videos and no other file.

    Args:
        inputs: files, folders, patterns.
        recursive: also videos in subfolders of folders; hidden ones are left out.
    """
    videos: dict[Path, None] = {}
    others = []
    for name in inputs:
        path = Path(name).expanduser()
        if path.suffix.lower() in VIDEO_ENDINGS and not path.is_dir():
            videos.setdefault(path)
            continue
        files = sorted(path.rglob("*") if recursive else path.glob("*")) if path.is_dir() else []
        files = [f for f in files if f.is_file() and not any(n.startswith(".") for n in f.relative_to(path).parts)]
        own = [file for file in files if file.suffix.lower() in VIDEO_ENDINGS]
        videos |= dict.fromkeys(own)
        if not own or len(own) < len(files):
            others.append(name)
    if videos:
        require_pyav()
    return list(videos), others


def judge_video(
    scorer: FaceScorer,
    path: str | os.PathLike[str],
    *,
    frames: int,
    least: int = LEAST_FRAMES,
    threshold: float = 0.5,
) -> VideoVerdict:
    """Frames of a video and the verdict on all of them. A video that cannot be judged has a reason and no numbers.

    Args:
        scorer: model and image processor.
        path: a video file; its frames are faces.
        frames: how many are looked at, evenly spaced.
        least: usable frames that a verdict needs; never more than `frames`.
        threshold: from which `p_fake` the verdict is fake, in [0, 1].
    """
    found: list[FrameVerdict] = []
    rows: list[torch.Tensor] = []
    graph = scorer.model.graph
    try:
        taken = read_frames(path, frames)
        while some := list(itertools.islice(taken, _TOGETHER)):
            done = len(found)
            for errors, energies in scorer.energies([pixels for _, pixels in some]):
                for error, row in zip(errors, energies, strict=True):
                    number = some[len(found) - done][0]
                    own = None if error else explain_energies(graph, row[None], threshold=threshold)[0]
                    found.append(FrameVerdict(number, own, error))
                    rows += [] if error else [row]
    except (DataError, MissingRequirementError) as error:
        return VideoVerdict(found, error=str(error))
    least = min(least, frames)
    if len(rows) < least:
        return VideoVerdict(found, error=f"{path}: {len(rows)} usable frames; a verdict needs {least}")
    return VideoVerdict(found, explain_frames(graph, torch.stack(rows), threshold=threshold))


def explain_frames(graph: LabelGraph, energies: torch.Tensor, *, threshold: float = 0.5) -> Explanation:
    """The explanation of a video: the mean over its frames of the distribution over legal states.

    Its marginals are the means of the frames' marginals, of which P(fake) is the score that the evaluation takes.

    Args:
        graph: of the model.
        energies: (F, n) of the frames, a model's `logits`.
        threshold: from which `p_fake` the verdict is fake, in [0, 1].
    """
    states = torch.as_tensor(graph.states, dtype=torch.float64)
    mean = torch.softmax(energies.double() @ states.T, dim=1).mean(0)  # (S,)
    marginals = (mean @ states).clamp(0, 1)
    return explain_row(graph, marginals.numpy(), states[mean.argmax()].bool().numpy(), threshold=threshold)
