"""Vision models of transformers as encoders, from folders as `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thurl.vision_models.files import from_pretrained


__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """A `model_type` of transformers.

    Args:
        load: model and what of its output are the features, see `thurl.continual.encoding.VisionEncoder`, from
            a folder and its settings.
        any_size: it interpolates its positions: pictures have the size of its image processor, not that of its
            pre-training.
    """

    load: Callable[[Path, dict[str, Any]], tuple[Any, str]]
    any_size: bool = False

    def size(self, backbone: Any) -> tuple[int, int, int] | None:
        """Channels, height and width of its pictures; None where the image processor decides."""
        if self.any_size:
            return None
        side = backbone.config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return backbone.config.num_channels, height, width


def _vit(name: str, **options: Any) -> Callable[[Path, dict[str, Any]], tuple[Any, str]]:
    def load(folder: Path, config: dict[str, Any]) -> tuple[Any, str]:
        import transformers

        return from_pretrained(getattr(transformers, name), folder, **options), "cls"

    return load


def _clip(folder: Path, config: dict[str, Any]) -> tuple[Any, str]:
    from transformers import CLIPConfig, CLIPVisionModelWithProjection

    both = CLIPConfig.from_pretrained(folder, local_files_only=True)
    # The vision part has a size of the projection of its own, which need not be that of the whole.
    both.vision_config.projection_dim = both.projection_dim
    return from_pretrained(CLIPVisionModelWithProjection, folder, config=both.vision_config), "projected"


def _clip_vision(folder: Path, config: dict[str, Any]) -> tuple[Any, str]:
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

    if "CLIPVisionModelWithProjection" in (config.get("architectures") or ()):
        return from_pretrained(CLIPVisionModelWithProjection, folder), "projected"
    return from_pretrained(CLIPVisionModel, folder), "pooled"


KINDS = {
    "vit": Kind(_vit("ViTModel", add_pooling_layer=False)),
    "deit": Kind(_vit("DeiTModel", add_pooling_layer=False)),
    "dinov2": Kind(_vit("Dinov2Model"), any_size=True),
    "clip": Kind(_clip),
    "clip_vision_model": Kind(_clip_vision),
}
"""By `model_type`."""
