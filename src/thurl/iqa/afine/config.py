"""Configuration of A-FINE. The defaults are the released model, on CLIP ViT-B/32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.configuration_clip import CLIPVisionConfig


__all__ = ["ADAPTERS", "PARTS", "AFineConfig"]

ADAPTERS = ("official", "monotone")
"""`official`: `lambda N(dis) + F`. `monotone`: `lambda (N(dis) - 2) + F`, an experiment of ours (docs/afine.md)."""

PARTS = ("vision", "naturalness_head", "fidelity_head", "naturalness_map", "fidelity_map", "adapter")
"""The parts of the model, which are also the parts of the released checkpoint."""


class AFineConfig(PreTrainedConfig):
    """Sizes, starting values and constants of an `AFineModel`.

    Starting values matter only for weights that do not come from a file.

    Args:
        vision_config: the image tower, any `CLIPVisionConfig` with square patches; ViT-B/32 by default.
        projection_size: numbers that the naturalness head keeps per level (official `hidden_dim`).
        head_size: width of its hidden layer; `6 * projection_size` when None, as officially.
        image_mean, image_std: per channel, for pixels in [0, 1].
        similarity_eps: c1 and c2 of the similarity terms.
        naturalness_centre, naturalness_width: start of the naturalness map; the values of the official calibration.
        fidelity_centre, fidelity_width: start of the fidelity map.
        fidelity_centre_range, fidelity_width_range: what the two are clamped to where they are used.
        adapter_k: start of k, before softplus.
        adapter: one of `ADAPTERS`.
        scale_centre, scale_width: constants of the last map, to (0, 100).
        untrained: parts that a converted checkpoint lacked and that hold starting values, of `PARTS`.

    Raises:
        ValueError: a value outside its range.
    """

    model_type = "thurl_afine"
    sub_configs = {"vision_config": CLIPVisionConfig}

    vision_config: dict | CLIPVisionConfig | None = None
    projection_size: int = 128
    head_size: int | None = None
    image_mean: list[float] | tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(OPENAI_CLIP_STD)
    similarity_eps: float = 1e-10
    naturalness_centre: float = 4.9592
    naturalness_width: float = 21.5968
    fidelity_centre: float = 0.5
    fidelity_width: float = 0.15
    fidelity_centre_range: list[float] | tuple[float, float] = (0.05, 0.95)
    fidelity_width_range: list[float] | tuple[float, float] = (0.01, 0.70)
    adapter_k: float = 5.0
    adapter: str = "official"
    scale_centre: float = -1.9710
    scale_width: float = 2.3734
    untrained: list[str] | tuple[str, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        given = self.vision_config
        self.vision_config = given if isinstance(given, CLIPVisionConfig) else CLIPVisionConfig(**(given or {}))
        if self.head_size is None:
            self.head_size = 6 * self.projection_size
        self.image_mean, self.image_std = list(self.image_mean), list(self.image_std)
        self.fidelity_centre_range = list(self.fidelity_centre_range)
        self.fidelity_width_range = list(self.fidelity_width_range)
        self.untrained = list(self.untrained)
        if problems := [*self._wrong_sizes(), *self._wrong_values()]:
            raise ValueError("; ".join(problems))
        super().__post_init__(**kwargs)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; pictures are resized to multiples of it."""
        return int(self.tower.patch_size)

    @property
    def tower(self) -> Any:
        """`vision_config`, which is a `CLIPVisionConfig` once the configuration is made."""
        return self.vision_config

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the levels: the colours, then the width of the tower for each block."""
        vision = self.tower
        return (3, *[vision.hidden_size] * vision.num_hidden_layers)

    @classmethod
    def tiny(cls, **changes: Any) -> AFineConfig:
        """A model for tests and small experiments: width 64, two blocks, patches of 16 pixels, a table for 64x64.

        Args:
            changes: arguments of the configuration; `vision_config` as a dictionary is laid over the tiny one.
        """
        vision = {
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "image_size": 64,
            "patch_size": 16,
        }
        changed = changes.pop("vision_config", {})
        if isinstance(changed, CLIPVisionConfig):
            return cls(vision_config=changed, **{"projection_size": 8, **changes})
        return cls(vision_config={**vision, **changed}, **{"projection_size": 8, **changes})

    def _wrong_sizes(self) -> list[str]:
        vision, problems = self.tower, []
        for name in ("image_size", "patch_size"):
            value = getattr(vision, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                problems.append(f"vision_config.{name}={value!r}: one whole number is needed, for squares")
        if vision.num_channels != 3:
            problems.append(f"vision_config.num_channels={vision.num_channels}: pictures have 3 colours")
        for name in ("projection_size", "head_size"):
            if not getattr(self, name) >= 1:
                problems.append(f"{name}={getattr(self, name)}: at least 1 is needed")
        return problems

    def _wrong_values(self) -> list[str]:
        problems = []
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            problems.append(
                f"image_mean={self.image_mean}, image_std={self.image_std}: three numbers each, image_std above 0"
            )
        for name in ("similarity_eps", "naturalness_width", "fidelity_width", "scale_width"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                problems.append(f"{name}={value}: a positive number is needed")
        for name in ("fidelity_centre_range", "fidelity_width_range"):
            if not _is_range(getattr(self, name)):
                problems.append(f"{name}={getattr(self, name)}: two positive numbers, the lower one first, are needed")
        if self.adapter not in ADAPTERS:
            problems.append(f"adapter={self.adapter!r} is none of {', '.join(ADAPTERS)}")
        if unknown := [part for part in self.untrained if part not in PARTS]:
            problems.append(f"untrained: {', '.join(unknown)} is none of {', '.join(PARTS)}")
        return problems


def _is_range(values: Sequence[float]) -> bool:
    return len(values) == 2 and 0 < values[0] < values[1]
