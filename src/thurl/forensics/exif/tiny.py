"""Small networks of both methods for pictures of the simulated camera, from a few numbers."""

from __future__ import annotations

from collections.abc import Sequence

from thurl.forensics.exif.config import BladesConfig, ExifEncoderConfig
from thurl.forensics.joint_embedding import compact_prompts


__all__ = ["tiny_blades_config", "tiny_encoder_config"]


def tiny_encoder_config(
    *,
    depths: Sequence[int] = (1, 1, 1, 1),
    hidden_sizes: Sequence[int] = (16, 24, 32, 64),
    stem_channels: int = 16,
    feature_size: int = 32,
    norm: str = "batch",
) -> ExifEncoderConfig:
    """A ResNet of basic blocks whose first layers keep the resolution, for pictures of 64 pixels and less."""
    return ExifEncoderConfig(
        depths=list(depths),
        hidden_sizes=list(hidden_sizes),
        block="basic",
        stem_channels=stem_channels,
        stem_kernel=3,
        stem_stride=1,
        stem_pool=False,
        feature_size=feature_size,
        norm=norm,
    )


def tiny_blades_config(
    encoder: ExifEncoderConfig,
    *,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 2,
    columns: dict[str, int] | None = None,
    rank_scale: float = 2**0.5 / 2,
    focal_gamma: float = 2.0,
) -> BladesConfig:
    """A joint embedding with a small text tower, whose vocabulary is the tokens that the released prompts use."""
    whole = BladesConfig(encoder_config=encoder, columns=columns)
    sentences = [list(ids) for ids in whole.prompt_ids or ()]
    ids, vocabulary = compact_prompts(sentences)
    text = {
        **vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": hidden,
    }
    return BladesConfig(
        encoder_config=encoder,
        text_config=text,
        columns=whole.columns,
        prompt_ids=ids,
        rank_scale=rank_scale,
        focal_gamma=focal_gamma,
    )
