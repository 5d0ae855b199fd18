"""A trained model over pictures: energies in batches, tables for the metrics, and the same after perturbations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from thurl.forensics.deepfake.manifest import FaceItem
from thurl.forensics.deepfake.marginals import log_marginals
from thurl.forensics.deepfake.model import DeepFakeModel
from thurl.forensics.deepfake.score_tables import FrameScores
from thurl.forensics.perturbations import PERTURBATIONS, SpoiledPictures
from thurl.forensics.reading import Picture, PictureReader


__all__ = ["FaceScorer", "probabilities"]

_CHUNK = 256


def probabilities(log_odds: np.ndarray) -> np.ndarray:
    """Marginals of a model's `log_odds`, in float64: near 1 they stay apart, where float32 makes them equal."""
    return expit(np.asarray(log_odds, dtype=np.float64))


class FaceScorer:
    """A model and its image processor.

    Args:
        model: put into evaluation mode.
        processor: makes `pixel_values` of pictures and face boxes.
        batch_size: pictures that go through the model together.
        workers: threads that decode pictures meanwhile; 0 decodes in between.

    Raises:
        UsageError: a batch size below 1.
    """

    def __init__(self, model: DeepFakeModel, processor: Any, *, batch_size: int = 32, workers: int = 0):
        self.model, self.processor = model.eval(), processor
        self._reader = PictureReader(processor, batch_size=batch_size, workers=workers)

    def energies(
        self, pictures: Sequence[Picture], boxes: Sequence[Sequence[float] | None] | None = None
    ) -> Iterator[tuple[list[str], torch.Tensor]]:
        """Go through pictures once, in order.

        Args:
            pictures: paths, encoded bytes, PIL pictures or arrays.
            boxes: a face box in pixels for each picture, None for pictures used whole.

        Yields:
            errors of some pictures, empty where there is none, and their (B, n) float32 energies on the CPU, NaN
            where there is one.

        Raises:
            UsageError: another number of boxes.
        """
        device = self.model.device
        yield from self._reader.encoded(
            pictures,
            boxes,
            lambda pixels: self.model(pixel_values=pixels.to(device)).logits,
            len(self.model.graph.names),
            "the model's energies",
        )

    def table(
        self,
        items: Sequence[FaceItem],
        perturbation: str = "none",
        progress: Callable[[int], None] | None = None,
    ) -> tuple[FrameScores, list[str]]:
        """Marginals of a manifest's faces, beside what is known of them.

        Args:
            items: the faces.
            perturbation: a name of `PERTURBATIONS`, done to every picture first.
            progress: called with the pictures done so far.

        Returns:
            the table, a row of NaN for a picture that could not be used, and the reason for each, or "".
        """
        paths, boxes = [item.path for item in items], [item.box for item in items]
        errors: list[str] = []
        parts = [torch.empty(0, len(self.model.graph.names))]
        for start in range(0, len(items), _CHUNK):
            rows = slice(start, start + _CHUNK)
            pictures: Sequence[Picture] = paths[rows]
            own: Sequence[Sequence[float] | None] = boxes[rows]
            if perturbation != "none":
                upright = bool(getattr(self.processor, "upright", False))
                spoiled = SpoiledPictures(pictures, own, PERTURBATIONS[perturbation], upright)
                changed = [spoiled.one(place) for place in range(len(spoiled))]
                pictures, own = [picture for picture, _ in changed], [box for _, box in changed]
            for batch_errors, energies in self.energies(pictures, own):
                errors += batch_errors
                parts.append(energies)
                if progress is not None:
                    progress(len(errors))
        return FrameScores.of_items(items, self.model.graph.names, self._marginals(torch.cat(parts))), errors

    def _marginals(self, energies: torch.Tensor) -> np.ndarray:
        usable = energies.isfinite().all(dim=1)
        found = np.full(energies.shape, np.nan)
        if usable.any():
            on, off = log_marginals(energies[usable], self.model.graph.states)
            found[usable.numpy()] = probabilities((on - off).numpy())
        return found
