"""A-FINE as a metric: one object with a direction and a range, for pictures in any form, or as a loss."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from thurl.errors import DataError, MissingRequirementError
from thurl.iqa.afine.checkpoint_files import read_official
from thurl.iqa.afine.model import AFineModel
from thurl.iqa.afine.official import from_official
from thurl.iqa.afine.outputs import AFineOutput
from thurl.iqa.afine.pictures import Picture, as_batch


__all__ = ["VARIANTS", "AFine", "load_afine"]


@dataclass(frozen=True)
class _Variant:
    field: str
    mode: str
    low: float
    high: float
    parts: tuple[str, ...]


_NATURALNESS = ("vision", "naturalness_head", "naturalness_map")
_FIDELITY = ("vision", "fidelity_head", "fidelity_map")
_ALL = tuple(dict.fromkeys((*_NATURALNESS, *_FIDELITY, "adapter")))

VARIANTS = {
    "afine_nr": _Variant("naturalness_dis", "NR", -2.0, 2.0, _NATURALNESS),
    "afine_fr": _Variant("fidelity", "FR", -2.0, 2.0, _FIDELITY),
    "afine": _Variant("afine", "FR", -math.inf, math.inf, _ALL),
    "afine_scaled": _Variant("afine_scaled", "FR", 0.0, 100.0, _ALL),
}
"""The four scores that are reported under the name A-FINE: N of the picture, F, D and D_s. Say which one it is."""


class AFine:
    """One of the four scores of A-FINE for pictures, batches and lists of pictures. Lower is better in all of them.

    ```python
    afine = AFine.from_pretrained("afine_model")
    afine("reference.png", "restored.png")  # D_s, a tensor (1,) in [0, 100], lower is better
    afine_nr = afine.variant("afine_nr")
    afine_nr(["restored.png", "another.png"])  # without a reference
    ```

    The two arguments are not exchangeable: D(ref, dis) is not D(dis, ref).

    Args:
        model: on its device, in its precision.
        name: one of `VARIANTS`.
        as_loss: let gradients flow to the pictures (the model's own parameters get none), and take pixels of any
            range, since what a network puts out may leave [0, 1].
        upright: whether EXIF orientation of files is applied.

    Attributes:
        lower_better: true.
        metric_mode: "FR", or "NR" for the variant without a reference.
        score_range: ends of the scores.

    Raises:
        ValueError: no such variant.
        DataError: the model's parts that the variant needs were never trained (`config.untrained`).
    """

    lower_better = True

    def __init__(self, model: AFineModel, name: str = "afine_scaled", *, as_loss: bool = False, upright: bool = True):
        if name not in VARIANTS:
            raise ValueError(f"variant {name!r} is none of {', '.join(VARIANTS)}")
        chosen = VARIANTS[name]
        if lacking := [part for part in model.config.untrained if part in chosen.parts]:
            raise DataError(
                f"{name} needs {', '.join(lacking)}, which this model's checkpoint lacked: its scores mean nothing. "
                "Convert the whole release, or train these parts"
            )
        self.model = model.eval().requires_grad_(False) if as_loss else model.eval()
        self.name = name
        self.as_loss = as_loss
        self.upright = upright
        self.metric_mode = chosen.mode
        self.score_range = (chosen.low, chosen.high)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        name: str = "afine_scaled",
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> AFine:
        """The metric from a folder of `AFineModel`, a Hub name, or a released checkpoint.

        Args:
            path: as `load_afine` takes it.
            name: one of `VARIANTS`.
            device, dtype: as `load_afine` takes them.
            options: further arguments of the class.
        """
        return cls(load_afine(path, device=device, dtype=dtype), name, **options)

    def variant(self, name: str) -> AFine:
        """Another score of the same model, which is shared."""
        return AFine(self.model, name, as_loss=self.as_loss, upright=self.upright)

    def __call__(
        self, ref: Picture | Sequence[Picture] | None = None, dis: Picture | Sequence[Picture] | None = None
    ) -> torch.Tensor:
        """Scores, (B,), B = 1 for a single picture.

        Args:
            ref: references, as many as pictures or one for all. `afine_nr` takes pictures alone.
            dis: the pictures to judge.

        Raises:
            ImageError: a file that cannot be read.
            ValueError: sizes or counts that differ, wrong shapes, pixels out of range, a missing reference.
        """
        if self.metric_mode == "NR":
            if (ref is None) == (dis is None):
                raise ValueError("afine_nr judges pictures without a reference: give one argument")
            with self._gradients():
                return self.model.naturalness(self._batch(ref if dis is None else dis))
        if ref is None or dis is None:
            raise ValueError(f"{self.name} needs a reference and a picture; without a reference there is afine_nr")
        if self.name == "afine_fr":
            with self._gradients():
                return self.model.fidelity(self._batch(ref), self._batch(dis))
        return getattr(self.components(ref, dis), VARIANTS[self.name].field)

    def components(self, ref: Picture | Sequence[Picture], dis: Picture | Sequence[Picture]) -> AFineOutput:
        """All stages of the same comparisons: naturalness of both, fidelity, lambda, D, D_s, and the diagnostic."""
        with self._gradients():
            return self.model(self._batch(ref), self._batch(dis))

    def _batch(self, pictures: Any) -> Any:
        return as_batch(pictures, self.model.device, upright=self.upright, check_range=not self.as_loss)

    def _gradients(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.as_loss else torch.no_grad()


def load_afine(
    path: str | os.PathLike[str], *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> AFineModel:
    """An A-FINE model in evaluation mode.

    Args:
        path: a folder that `AFineModel.save_pretrained` or the conversion wrote, a Hub name, or the release itself:
            `afine.pth`, or a folder with the files of its training stages.
        device: the CPU by default.
        dtype: of the tower; float32 by default. Statistics and heads stay float32.

    Raises:
        MissingRequirementError: no such model.
        DataError: a model that cannot be used.
    """
    place = Path(path)
    if place.is_file() or (place.is_dir() and not (place / "config.json").is_file()):
        model = from_official(read_official(place)).model
        model.vision.to(dtype or torch.float32)
    else:
        try:
            model = AFineModel.from_pretrained(path, dtype=dtype or torch.float32)
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise MissingRequirementError(
                f"{path}: no A-FINE model to be had ({reason}); give the folder or file of the weights"
            ) from None
    return model.to(device or "cpu").eval()
