"""Sizes of latent pyramids and of the three small networks that read them."""

from __future__ import annotations

from dataclasses import dataclass

from thurl.errors import UsageError


__all__ = ["CONTEXTS", "DECODERS", "CodecConfig"]

CONTEXTS = (8, 16, 24, 32)
"""Numbers of decoded neighbours an entropy network may see."""

DECODERS: dict[str, tuple[int, ...]] = {
    "v0-0": (24,),
    "v0": (40,),
    "v1": (40, 20),
    "v2": (20, 20, 20),
    "v3": (128, 40),
    "v3-2": (160,),
    "v3-3": (80, 40),
    "v3-4": (240,),
    "v4": (160, 40),
    "v5": (240, 40),
    "v5-1": (240,),
    "v5-2": (720,),
    "v5-3": (480,),
    "v5-4": (960,),
    "v5-6": (1200,),
    "v5-640": (640,),
    "v6": (320, 40),
    "v7": (480, 40),
}
"""Widths of the 1x1 convolutions in front of the one that outputs channels, by the names of the official code."""

KERNEL = 8
"""Side of the upsampling kernel, shared by all levels."""


@dataclass(frozen=True)
class CodecConfig:
    """What fixes all shapes of a slice of a data set, but for its number of samples.

    Args:
        height, width: of the pictures, in pixels.
        channels: 1 or 3.
        context: decoded neighbours the entropy network sees, one of `CONTEXTS`; also its width.
        depth: hidden layers of the entropy network, at least 1.
        widths: of the 1x1 convolutions of the synthesis in front of the one that outputs `channels`, see `DECODERS`.
        gain: a trained grid times this is rounded to integers.

    Raises:
        UsageError: a value outside its range.
    """

    height: int
    width: int
    channels: int
    context: int = 8
    depth: int = 2
    widths: tuple[int, ...] = (24,)
    gain: float = 16.0

    def __post_init__(self) -> None:
        problems = []
        if min(self.height, self.width) < 2 or max(self.height, self.width) > 4096:
            problems.append(f"pictures of {self.height}x{self.width}: sides must be 2 to 4096 pixels")
        if self.channels not in (1, 3):
            problems.append(f"channels: {self.channels} must be 1 or 3")
        if self.context not in CONTEXTS:
            problems.append(f"context: {self.context} must be one of {', '.join(map(str, CONTEXTS))}")
        if not 1 <= self.depth <= 16:
            problems.append(f"depth: {self.depth} must be 1 to 16")
        if not self.widths or len(self.widths) > 8 or not all(1 <= width <= 4096 for width in self.widths):
            problems.append(f"widths: {list(self.widths)} must be 1 to 8 numbers from 1 to 4096")
        if not 0 < self.gain < 2**16:
            problems.append(f"gain: {self.gain} must be above 0 and below 65536")
        if problems:
            raise UsageError(problems)

    @property
    def levels(self) -> int:
        """Levels of the pyramid: 6 from 64 pixels on, below that down to one pixel."""
        side = min(self.height, self.width)
        return 6 if side >= 64 else side.bit_length()

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each level, the finest first; halves are rounded up."""
        return tuple((-(-self.height // 2**i), -(-self.width // 2**i)) for i in range(self.levels))

    @property
    def latents(self) -> int:
        """Latents of one sample."""
        return sum(height * width for height, width in self.level_sizes)

    @property
    def arm_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the entropy network: weight and bias of each hidden layer, then of the one for mean and scale."""
        size = self.context
        return ((size, size), (size,)) * self.depth + ((2, size), (2,))

    @property
    def upsampling_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of the one kernel."""
        return ((1, 1, KERNEL, KERNEL),)

    @property
    def synthesis_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the synthesis: weight and bias of each 1x1, then of the two residual 3x3 convolutions."""
        ends = (self.levels, *self.widths, self.channels)
        shapes: list[tuple[int, ...]] = []
        for inside, outside in zip(ends, ends[1:], strict=False):
            shapes += [(outside, inside, 1, 1), (outside,)]
        shapes += [(self.channels, self.channels, 3, 3), (self.channels,)] * 2
        return tuple(shapes)
