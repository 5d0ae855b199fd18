"""Configuration of the restoration network."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


__all__ = ["RestorationConfig"]


class RestorationConfig(PreTrainedConfig):
    """A residual U-Net. The defaults have 15.4 million parameters and are meant for faces of 512 pixels.

    Args:
        hidden_sizes: channels of each level, the finest first; sides halve from level to level.
        depths: residual blocks of each level on the way down, as many as `hidden_sizes`.
        decoder_depths: blocks of each level but the last on the way up, in the same order; 1 each when left out.
        patch_size: side of the square of pixels that becomes one position of the finest level. 2 costs a quarter of
            1; what was downsampled before loses little.
        expansion: width of a block's inner layer over its channels.
        contrast_window: side in pixels, odd, of the window whose mean is taken out of what the network sees, channel
            by channel. It then need not learn that brightness is not noise, for which few training pictures are not
            enough, but it cannot mend colours either. None: it sees the pixels themselves.
        pixel_loss: "charbonnier" or "l1", the term `pixel`.
        charbonnier_eps: of that loss, on pixels in [0, 1].
    """

    model_type = "thurl_restoration"

    hidden_sizes: list[int] | tuple[int, ...] = (48, 96, 192, 384)
    depths: list[int] | tuple[int, ...] = (2, 2, 4, 4)
    decoder_depths: list[int] | tuple[int, ...] | None = None
    patch_size: int = 1
    expansion: float = 1.0
    contrast_window: int | None = None
    pixel_loss: str = "charbonnier"
    charbonnier_eps: float = 1e-3

    def __post_init__(self, **kwargs: Any) -> None:
        self.hidden_sizes, self.depths = list(self.hidden_sizes), list(self.depths)
        if self.decoder_depths is None:
            self.decoder_depths = [1] * (len(self.hidden_sizes) - 1)
        self.decoder_depths = list(self.decoder_depths)
        if not self.depths or len(self.depths) != len(self.hidden_sizes) or min(self.depths) < 1:
            raise ValueError(
                f"depths={self.depths} and hidden_sizes={self.hidden_sizes}: one of each per level, at least one block"
            )
        if len(self.decoder_depths) != len(self.depths) - 1 or min(self.decoder_depths, default=1) < 1:
            raise ValueError(f"decoder_depths={self.decoder_depths}: at least one block for each level but the last")
        if min(self.hidden_sizes) < 1 or self.patch_size < 1 or self.expansion <= 0 or self.charbonnier_eps <= 0:
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes}, patch_size={self.patch_size}, expansion={self.expansion}, "
                f"charbonnier_eps={self.charbonnier_eps}: all must be above 0"
            )
        if self.contrast_window is not None and (self.contrast_window < 3 or self.contrast_window % 2 == 0):
            raise ValueError(f"contrast_window={self.contrast_window}: it must be odd and at least 3, or None")
        if self.pixel_loss not in ("charbonnier", "l1"):
            raise ValueError(f"pixel_loss={self.pixel_loss!r}: it must be charbonnier or l1")
        super().__post_init__(**kwargs)

    @property
    def multiple(self) -> int:
        """Sides of the picture are padded to a multiple of this inside the network."""
        return self.patch_size * 2 ** (len(self.hidden_sizes) - 1)
