"""Configurations of the face encoder, the five-headed model and the joint embedding."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.clip.configuration_clip import CLIPTextConfig

from thurl.forensics.exif.tasks import OFFICIAL_COLUMNS, TASKS, class_names, prompts
from thurl.forensics.joint_embedding import prompt_problem


__all__ = ["BladesConfig", "ExifEncoderConfig", "ExifOrdinalConfig", "FaceHeadConfig"]

_BLOCKS = ("bottleneck", "basic")
_NORMS = ("batch", "group")


class ExifEncoderConfig(PreTrainedConfig):
    """The visual tower. The defaults are the ResNet-50 of both papers, 25.08 million parameters.

    Args:
        depths: blocks per stage.
        hidden_sizes: channels that each stage puts out, as many as `depths`; four times the inner width where
            `block` is "bottleneck".
        block: "bottleneck" (ResNet-50) or "basic" (ResNet-18).
        stem_channels: channels of the first convolution.
        stem_kernel, stem_stride: its size, odd, and its stride.
        stem_pool: whether a 3x3 max pooling of stride 2 follows. For pictures of 64 pixels and less take kernel 3,
            stride 1 and no pooling, else the first two layers blur away what a camera leaves in the pixels.
        feature_size: width of the features.
        norm: "batch", as in both papers, or "group", whose rows do not depend on each other: several processes, or
            accumulated micro-batches, then train what one batch does.
    """

    model_type = "thurl_exif_encoder"
    base_config_key = "encoder_config"  # lets `ExifEncoder.from_pretrained` read the folder of a whole model

    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    block: str = "bottleneck"
    stem_channels: int = 64
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True
    feature_size: int = 768
    norm: str = "batch"

    def __post_init__(self, **kwargs: Any) -> None:
        self.depths, self.hidden_sizes = list(self.depths), list(self.hidden_sizes)
        if not self.depths or len(self.depths) != len(self.hidden_sizes) or min(self.depths) < 1:
            raise ValueError(
                f"depths={self.depths} and hidden_sizes={self.hidden_sizes}: one of each per stage, at least one block"
            )
        if self.block not in _BLOCKS:
            raise ValueError(f"block={self.block!r} is none of {', '.join(_BLOCKS)}")
        if self.block == "bottleneck" and any(size % 4 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes={self.hidden_sizes}: bottleneck blocks need multiples of 4")
        if self.norm not in _NORMS:
            raise ValueError(f"norm={self.norm!r} is none of {', '.join(_NORMS)}")
        if self.stem_kernel % 2 == 0 or self.stem_kernel < 1:
            raise ValueError(f"stem_kernel={self.stem_kernel}: an odd number is needed")
        super().__post_init__(**kwargs)


class ExifOrdinalConfig(PreTrainedConfig):
    """The one-class method's model: the encoder and five linear heads (arXiv 2501.02207).

    Args:
        encoder_config: the visual tower.
        rank_scale: c in `p = (1 + erf((s_i - s_j) / c)) / 2`; sqrt(2)/2 in the official code.
        untrained: names of parts that a converted checkpoint lacked and that hold random numbers.
    """

    model_type = "thurl_exif_ordinal"
    sub_configs = {"encoder_config": ExifEncoderConfig}

    encoder_config: dict | ExifEncoderConfig | None = None
    rank_scale: float = 2**0.5 / 2
    untrained: list[str] | tuple[str, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        self.encoder_config = _as_config(self.encoder_config, ExifEncoderConfig)
        self.untrained = list(self.untrained)
        _require_positive(rank_scale=self.rank_scale)
        super().__post_init__(**kwargs)


class BladesConfig(PreTrainedConfig):
    """The joint embedding of faces and prompts (arXiv 2507.22824).

    Args:
        encoder_config: the visual tower.
        text_config: the text tower; `projection_dim` is the width that `text_fc` maps to the features' width. The
            default is the text tower of CLIP RN50.
        columns: prompts per task, in the order in which they lie; the released 50 by default. The fine face task may
            have fewer regions, an ordinal task 5 levels, a task may be left out.
        prompt_ids: token ids of the prompts in that order, with start and end and without padding. The released
            prompts by default; 5 levels need prompts of your own.
        logit_scale_init: logarithm of the scale at the start, CLIP's ln(1 / 0.07).
        rank_scale: c in `p = (1 + erf((s_i - s_j) / c)) / 2`.
        focal_gamma: exponent of the focal factor of the categorical tasks.
        untrained: names of parts that a converted checkpoint lacked and that hold random numbers.
    """

    model_type = "thurl_blades"
    sub_configs = {"encoder_config": ExifEncoderConfig, "text_config": CLIPTextConfig}

    encoder_config: dict | ExifEncoderConfig | None = None
    text_config: dict | CLIPTextConfig | None = None
    columns: dict[str, int] | None = None
    prompt_ids: list[list[int]] | tuple[tuple[int, ...], ...] | None = None
    logit_scale_init: float = 2.6592
    rank_scale: float = 2**0.5 / 2
    focal_gamma: float = 2.0
    untrained: list[str] | tuple[str, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        self.encoder_config = _as_config(self.encoder_config, ExifEncoderConfig)
        self.text_config = _as_config(self.text_config, CLIPTextConfig, projection_dim=1024)
        self.columns = dict(OFFICIAL_COLUMNS if self.columns is None else self.columns)
        self.untrained = list(self.untrained)
        if unknown := [task for task in self.columns if task not in TASKS]:
            raise ValueError(f"columns: {', '.join(unknown)} is none of the tasks {', '.join(TASKS)}")
        for task, width in self.columns.items():
            class_names(task, width)  # raises for a width the task cannot have
        self.prompt_ids = self._prompts() if self.prompt_ids is None else [list(ids) for ids in self.prompt_ids]
        if problem := prompt_problem(self.prompt_ids, self.text_config, sum(self.columns.values())):
            raise ValueError(problem)
        _require_positive(rank_scale=self.rank_scale)
        super().__post_init__(**kwargs)

    def _prompts(self) -> list[list[int]]:
        """The released prompts of the chosen tasks; of the fine face task the first regions."""
        chosen = []
        for task, width in self.columns.items():
            own = [list(prompt.ids) for prompt in prompts() if prompt.task == task]
            if width > len(own):
                raise ValueError(
                    f"columns: {task} has {width} columns and {len(own)} released prompts; give all prompts as "
                    "`prompt_ids`"
                )
            chosen += own[:width]
        return chosen


class FaceHeadConfig(PreTrainedConfig):
    """The binary detector's perceptron on features of length 1.

    Args:
        feature_size: width of the features.
        hidden_size: width of the hidden layer; twice the features' in the official code.
    """

    model_type = "thurl_exif_face_head"

    feature_size: int = 768
    hidden_size: int = 1536


def _as_config(given: Any, kind: type, **defaults: Any) -> Any:
    if isinstance(given, kind):
        return given
    return kind(**{**defaults, **(given or {})})


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: a positive number is needed")
