"""The sizes of a Qwen2.5-VL: parameters, floating point operations, bytes of activations. Pure arithmetic.

Checked against the real classes of transformers (parameter counts exactly, saved activations of the tiny model in
float32) by tests/rl/plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thurl.errors import UsageError


__all__ = ["RELEASED", "ModelShape", "picture_patches", "released_shape"]


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Qwen2.5-VL; names as in its configuration, the vision tower's with `vision_`.

    Attributes:
        vision_full: layers of the vision tower that see the whole picture; the others see windows.
        window: side of a window in pixels.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    vision_hidden: int
    vision_layers: int
    vision_intermediate: int
    patch: int = 14
    merge: int = 2
    temporal_patch: int = 2
    vision_full: int = 4
    window: int = 112

    @property
    def keys(self) -> int:
        """Width of the keys (and of the values) of one layer."""
        return self.hidden * self.kv_heads // self.heads

    @property
    def head_parameters(self) -> int:
        """Output embedding, one with the input embedding where tied."""
        return self.vocabulary * self.hidden

    @property
    def layer_parameters(self) -> int:
        """One layer of the language model."""
        hidden, keys = self.hidden, self.keys
        attention = 2 * hidden * hidden + hidden + 2 * (hidden * keys + keys)
        return attention + 3 * hidden * self.intermediate + 2 * hidden

    @property
    def language_parameters(self) -> int:
        """Language model with both embeddings."""
        embeddings = self.head_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + self.hidden + embeddings

    @property
    def vision_layer_parameters(self) -> int:
        """One layer of the vision tower."""
        width, inner = self.vision_hidden, self.vision_intermediate
        return 4 * width * width + 4 * width + 3 * width * inner + 2 * inner + width + 2 * width

    @property
    def merger_parameters(self) -> int:
        """From patches to tokens of the language model."""
        inside = self.vision_hidden * self.merge**2
        return self.vision_hidden + inside * inside + inside + inside * self.hidden + self.hidden

    @property
    def patch_values(self) -> int:
        """Numbers of one patch, as the image processor gives them."""
        return 3 * self.temporal_patch * self.patch**2

    @property
    def vision_parameters(self) -> int:
        """Vision tower with patch embedding and merger."""
        layers = self.vision_layers * self.vision_layer_parameters
        return self.patch_values * self.vision_hidden + layers + self.merger_parameters

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.language_parameters + self.vision_parameters

    def adapter_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """LoRA matrices of rank `rank` on the named projections of every layer of the language model."""
        hidden, keys, inner = self.hidden, self.keys, self.intermediate
        sides = {
            **{"q_proj": hidden + hidden, "k_proj": hidden + keys, "v_proj": hidden + keys, "o_proj": hidden + hidden},
            **{"gate_proj": hidden + inner, "up_proj": hidden + inner, "down_proj": inner + hidden},
        }
        return self.layers * rank * sum(sides[name] for name in targets if name in sides)

    # -- operations of a forward pass: 2 per multiplication and addition ---------------------------------------------

    def language_flops(self, rows: float, length: float, scored: float) -> float:
        """Layers over `rows` x `length` tokens, causal attention, and the output embedding at `scored` positions."""
        matrices = 2 * self.hidden * (self.hidden + self.keys) + 3 * self.hidden * self.intermediate
        attention = 2 * self.hidden * length  # two products, of which the causal half is needed
        return rows * length * self.layers * (2 * matrices + attention) + 2 * scored * self.head_parameters

    def vision_flops(self, pictures: float, patches: float) -> float:
        """Patch embedding, layers and merger over `pictures` of `patches` each."""
        layers = self.vision_layers * self.vision_layer_parameters
        weights = self.patch_values * self.vision_hidden + layers + self.merger_parameters / self.merge**2
        seen = min(patches, (self.window / self.patch) ** 2)
        pairs = self.vision_full * patches + (self.vision_layers - self.vision_full) * seen
        return pictures * patches * (2 * weights + 4 * self.vision_hidden * pairs)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read `config.json` of a Qwen2.5-VL, written by transformers 4 (flat) or 5 (with `text_config`).

        Raises:
            UsageError: another architecture, or sizes that are missing.
        """
        if config.get("model_type") != "qwen2_5_vl":
            raise UsageError(f"the model is a {config.get('model_type')!r}; planning knows the sizes of qwen2_5_vl")
        text, vision = config.get("text_config") or config, config.get("vision_config") or {}
        try:
            return cls(
                hidden=text["hidden_size"],
                layers=text["num_hidden_layers"],
                heads=text["num_attention_heads"],
                kv_heads=text["num_key_value_heads"],
                intermediate=text["intermediate_size"],
                vocabulary=text["vocab_size"],
                tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
                vision_hidden=vision["hidden_size"],
                vision_layers=vision["depth"],
                vision_intermediate=vision["intermediate_size"],
                patch=vision.get("patch_size", 14),
                merge=vision.get("spatial_merge_size", 2),
                temporal_patch=vision.get("temporal_patch_size", 2),
                vision_full=len(vision.get("fullatt_block_indexes", range(4))),
                window=vision.get("window_size", 112),
            )
        except KeyError as error:
            raise UsageError(f"config.json lacks {error}: it is no complete configuration of a Qwen2.5-VL") from None


# Published configurations: https://huggingface.co/Qwen (config.json of each).
RELEASED = {
    "Qwen2.5-VL-3B": ModelShape(2048, 36, 16, 2, 11008, 151936, True, 1280, 32, 3420),
    "Qwen2.5-VL-7B": ModelShape(3584, 28, 28, 4, 18944, 152064, False, 1280, 32, 3420),
    "Qwen2.5-VL-32B": ModelShape(5120, 64, 40, 8, 27648, 152064, False, 1280, 32, 3456),
    "Qwen2.5-VL-72B": ModelShape(8192, 80, 64, 8, 29568, 152064, False, 1280, 32, 3456),
}


def released_shape(name: str) -> ModelShape | None:
    """Shape of a released checkpoint by its Hub name, None for a name that is not among `RELEASED`.

    `VisualQuality-R1-7B` and its like are fine-tuned from the 7B model and have its shape.
    """
    last = name.rpartition("/")[2]
    if last.startswith("VisualQuality-R1-7B"):
        last = "Qwen2.5-VL-7B"
    return next((shape for known, shape in RELEASED.items() if last in (known, f"{known}-Instruct")), None)


def picture_patches(width: int, height: int, shape: ModelShape, min_pixels: int, max_pixels: int) -> int:
    """Patches of a picture after the processor of Qwen2-VL has resized it; `merge**2` of them make a token.

    Args:
        width, height: pixels.
        min_pixels, max_pixels: area into which the processor resizes.
    """
    step = shape.patch * shape.merge
    rows, columns = max(1, round(height / step)), max(1, round(width / step))
    if rows * columns * step**2 > max_pixels:
        scale = math.sqrt(width * height / max_pixels)
        rows, columns = (max(1, math.floor(side / scale / step)) for side in (height, width))
    elif rows * columns * step**2 < min_pixels:
        scale = math.sqrt(min_pixels / (width * height))
        rows, columns = (math.ceil(side * scale / step) for side in (height, width))
    return rows * columns * shape.merge**2
