"""A-FINE: naturalness of a picture, its fidelity to a reference, and their adaptive sum, on one CLIP image tower.

"Toward Generalized Image Quality Assessment: Relaxing the Perfect Reference Quality Assumption" (CVPR 2025,
arXiv 2503.11221); Eq. 7 and 8 are the bounded maps. Details from the official code (GitHub `ChrisDud0257/AFINE`).

Pictures come in as RGB in [0, 1] at their own size: normalising, and enlarging to multiples of the patch size, are
part of the method and happen in here, differentiably. There is no image processor.

Deliberate differences: batches, pictures of mixed sizes, nothing is written into the input, and those of
`thurl.iqa.afine.mathematics`. The tower's class output and last layer norm exist, and are not used, as officially.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPVisionModel

from thurl.errors import DataError
from thurl.iqa.afine.config import AFineConfig
from thurl.iqa.afine.features import AFineFeatures, by_size
from thurl.iqa.afine.heads import Adapter, BoundedMap, FidelityHead, NaturalnessHead, initialise
from thurl.iqa.afine.mathematics import mean_and_variance, resize_positions, resize_to_multiple, scaled_score
from thurl.iqa.afine.outputs import AFineOutput
from thurl.training.tensor_files import UNFIT


__all__ = ["AFineModel", "Pictures"]

Pictures: TypeAlias = "torch.Tensor | Sequence[torch.Tensor]"
"""(B, 3, H, W), or a sequence of (3, H, W) of any sizes: RGB in [0, 1], floating, or uint8 (divided by 255)."""


class AFineModel(PreTrainedModel):
    """Compares pictures with references that need not be perfect. Lower is better in every score.

    Tensors (B, 3, H, W) are one batch; sequences of (3, H, W) are grouped by size, and come back in their order.
    Whatever the tower computes in (bfloat16, autocast), statistics and heads are float32 at least. A picture that is
    not finite gets NaN. Gradients reach pixels and parameters; `gradient_checkpointing_enable` saves memory in
    training mode, in which the model computes the same numbers.
    """

    config_class = AFineConfig
    base_model_prefix = "afine"
    main_input_name = "dis"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPVisionEmbeddings"]
    _keep_in_fp32_modules_strict = ["naturalness_head", "fidelity_head", "naturalness_map", "fidelity_map", "adapter"]

    def __init__(self, config: AFineConfig):
        super().__init__(config)
        self.vision = CLIPVisionModel._from_config(config.vision_config)
        self._freeze_unused()
        self.naturalness_head = NaturalnessHead(config)
        self.fidelity_head = FidelityHead(config)
        self.naturalness_map = BoundedMap(config.naturalness_centre, config.naturalness_width)
        self.fidelity_map = BoundedMap(
            config.fidelity_centre, config.fidelity_width, config.fidelity_centre_range, config.fidelity_width_range
        )
        self.adapter = Adapter(config)
        self.post_init()

    def forward(self, ref: Pictures | AFineFeatures, dis: Pictures | AFineFeatures, **_: Any) -> AFineOutput:
        """Compares each picture of `dis` with its reference: the scores D(ref, dis), which are not symmetric.

        Args:
            ref: references, as many as pictures, or one for all of them (a batch of 1); of the same sizes.
            dis: the pictures to judge.

        Raises:
            ValueError: sizes or counts that differ, shapes or dtypes that are no pictures.
        """
        if ref is dis:
            if isinstance(ref, AFineFeatures | torch.Tensor):
                found = self._as_features(ref)
                return self.compare(found, found)
            ref = dis = list(ref)
        if isinstance(ref, AFineFeatures | torch.Tensor) and isinstance(dis, AFineFeatures | torch.Tensor):
            return self._compare_batches(ref, dis)
        if isinstance(ref, AFineFeatures) or isinstance(dis, AFineFeatures):
            raise ValueError("features of one side need features or a batch (B, 3, H, W) of one size on the other")
        return self._compare_lists(list(ref), list(dis))

    def compare(self, ref: AFineFeatures, dis: AFineFeatures) -> AFineOutput:
        """The same from features: `features` of each picture once, then as many comparisons as wanted.

        Args:
            ref, dis: of one size, with levels; as many on both sides, or one on one of them.
        """
        raw = self.naturalness_raw(ref), self.naturalness_raw(dis), self.fidelity_raw(ref, dis)
        return self.combine(*torch.broadcast_tensors(*raw))

    def combine(
        self, naturalness_ref_raw: torch.Tensor, naturalness_dis_raw: torch.Tensor, fidelity_raw: torch.Tensor
    ) -> AFineOutput:
        """The maps and the adapter on raw scores, (B,) each: all that the third training stage trains."""
        with _full_precision(fidelity_raw.device):
            raw = [_at_least_float32(values) for values in (naturalness_ref_raw, naturalness_dis_raw, fidelity_raw)]
            ref, dis = self.naturalness_map(raw[0]), self.naturalness_map(raw[1])
            fidelity = self.fidelity_map(raw[2])
            weight, score, turned = self.adapter(ref, dis, fidelity)
            scaled = scaled_score(score, self.config.scale_centre, self.config.scale_width)
        return AFineOutput(
            naturalness_ref_raw=raw[0],
            naturalness_dis_raw=raw[1],
            naturalness_ref=ref,
            naturalness_dis=dis,
            fidelity_raw=raw[2],
            fidelity=fidelity,
            adapter_weight=weight,
            afine=score,
            afine_scaled=scaled,
            past_turning_point=turned,
        )

    def naturalness(self, pictures: Pictures | AFineFeatures) -> torch.Tensor:
        """N of each picture without a reference, (B,) in (-2, 2)."""
        return self.naturalness_map(self.naturalness_raw(pictures))

    def naturalness_raw(self, pictures: Pictures | AFineFeatures) -> torch.Tensor:
        """N before its map, (B,), unbounded: what the first training stage ranks."""
        if not isinstance(pictures, AFineFeatures | torch.Tensor):
            return self._by_groups(self._checked_list(pictures), self.naturalness_raw)
        if isinstance(pictures, torch.Tensor):
            pictures = self.features(pictures, keep_levels=False)
        with _full_precision(pictures.mean.device):
            return self.naturalness_head(pictures.mean, pictures.variance)

    def fidelity(self, ref: Pictures | AFineFeatures, dis: Pictures | AFineFeatures) -> torch.Tensor:
        """F of each picture against its reference, (B,) in (-2, 2)."""
        return self.fidelity_map(self.fidelity_raw(ref, dis))

    def fidelity_raw(self, ref: Pictures | AFineFeatures, dis: Pictures | AFineFeatures) -> torch.Tensor:
        """F before its map, (B,) in [0, 2), 0 for equal pictures: what the second training stage ranks."""
        if not isinstance(ref, AFineFeatures | torch.Tensor) or not isinstance(dis, AFineFeatures | torch.Tensor):
            return self.forward(ref, dis).fidelity_raw
        ref, dis = self._both_features(ref, dis)
        if ref.levels is None or dis.levels is None:
            raise ValueError("features without levels: fidelity needs `features(pictures)` with `keep_levels`")
        with _full_precision(ref.mean.device):
            return self.fidelity_head(ref, dis)

    def features(self, pictures: torch.Tensor, *, keep_levels: bool = True) -> AFineFeatures:
        """Features and statistics of one batch, to be used as often as wanted.

        Args:
            pictures: (B, 3, H, W), RGB in [0, 1].
            keep_levels: False keeps the statistics alone, which is all that naturalness needs.

        Raises:
            ValueError: not a batch of pictures.
        """
        pixels = self._pixels(pictures)
        with _full_precision(pixels.device):
            resized = resize_to_multiple(pixels, self.config.patch_size)
        statistics, levels = [], []
        for level in self._levels(resized):
            with _full_precision(pixels.device):
                statistics.append(mean_and_variance(level))
            if keep_levels:
                levels.append(level)
        mean, variance = (torch.cat(values, dim=1) for values in zip(*statistics, strict=True))
        return AFineFeatures(tuple(levels) if keep_levels else None, mean, variance, tuple(pictures.shape[-2:]))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **options: Any) -> Any:
        """As every model of transformers, but weights that are not there are an error, never random numbers.

        Raises:
            DataError: the folder lacks weights of the model.
        """
        with_info = options.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *arguments, output_loading_info=True, **options
            )
        except UNFIT as error:
            raise DataError(
                f"{pretrained_model_name_or_path}: the weights are broken or do not fit config.json "
                f"({str(error).splitlines()[0]}); save the model again"
            ) from error
        if lacking := sorted(info["missing_keys"]):
            shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
            raise DataError(
                f"{pretrained_model_name_or_path}: weights are missing: {shown}; save the model again, or take "
                "`AFineModel.from_clip` for the start of training"
            )
        model._freeze_unused()
        return (model, info) if with_info else model

    @classmethod
    def from_clip(cls, name_or_path: str | os.PathLike[str], **changes: Any) -> AFineModel:
        """A model to be trained: the image tower of a stock CLIP, everything else at its start.

        Not for scoring: the released heads belong to the fine-tuned tower.

        Args:
            name_or_path: a CLIP of transformers (folder or Hub name, any width and patch size), or a file of
                OpenAI's or open_clip's tensors (`thurl.iqa.afine.official`).
            changes: arguments of `AFineConfig` other than `vision_config`.

        Raises:
            DataError: weights of the image tower are missing or have other shapes.
            MissingRequirementError: no such file.
        """
        from thurl.iqa.afine.official import clip_tower

        tower = clip_tower(name_or_path)
        model = cls(AFineConfig(vision_config=tower.config.to_dict(), **changes))
        model.vision.load_state_dict(tower.state_dict())
        return model

    def _freeze_unused(self) -> None:
        # Nothing reads the class output: these parameters never get a gradient, and DDP stops where it waits for one.
        self.vision.post_layernorm.requires_grad_(False)

    def _compare_batches(self, ref: torch.Tensor | AFineFeatures, dis: torch.Tensor | AFineFeatures) -> AFineOutput:
        return self.compare(*self._both_features(ref, dis))

    def _compare_lists(self, ref: list[torch.Tensor], dis: list[torch.Tensor]) -> AFineOutput:
        if len(ref) == 1 and len(dis) > 1:
            ref = ref * len(dis)
        if len(ref) != len(dis):
            raise ValueError(f"{len(ref)} references for {len(dis)} pictures; one for each, or one for all, is needed")
        self._checked_list(ref)
        wrong = [i for i, (x, y) in enumerate(zip(ref, self._checked_list(dis), strict=True)) if x.shape != y.shape]
        if wrong:
            raise ValueError(
                "; ".join(_size_problem(ref[i].shape[-2:], dis[i].shape[-2:], f"picture {i}: ") for i in wrong[:5])
            )
        groups = by_size(dis)
        outputs = []
        for members in groups.values():
            # A reference that stands in the list several times goes through the tower once.
            unique = {id(ref[i]): ref[i] for i in members}
            row_of = {key: row for row, key in enumerate(unique)}
            features = self._one_pass(torch.stack(list(unique.values())), torch.stack([dis[i] for i in members]))
            references, judged = features[: len(unique)], features[len(unique) :]
            if len(unique) > 1:
                references = references[[row_of[id(ref[i])] for i in members]]
            outputs.append(self.compare(references, judged))
        order = _inverse([i for members in groups.values() for i in members], self.device)
        return AFineOutput(**{name: torch.cat([out[name] for out in outputs])[order] for name in outputs[0]})

    def _both_features(
        self, ref: torch.Tensor | AFineFeatures, dis: torch.Tensor | AFineFeatures
    ) -> tuple[AFineFeatures, AFineFeatures]:
        size_ref, size_dis = (x.size if isinstance(x, AFineFeatures) else tuple(x.shape[-2:]) for x in (ref, dis))
        if size_ref != size_dis:
            raise ValueError(_size_problem(size_ref, size_dis))
        if len(ref) != len(dis) and 1 not in (len(ref), len(dis)):
            raise ValueError(f"{len(ref)} references for {len(dis)} pictures; one for each, or one for all, is needed")
        if isinstance(ref, torch.Tensor) and isinstance(dis, torch.Tensor):
            both = self._one_pass(ref, dis)
            return both[: len(ref)], both[len(ref) :]
        return self._as_features(ref), self._as_features(dis)

    def _one_pass(self, ref: torch.Tensor, dis: torch.Tensor) -> AFineFeatures:
        """Features of both sides as one batch, (R + B, ...), references first."""
        return self.features(torch.cat([self._pixels(ref), self._pixels(dis)]))

    def _as_features(self, given: torch.Tensor | AFineFeatures) -> AFineFeatures:
        return given if isinstance(given, AFineFeatures) else self.features(given)

    def _by_groups(
        self, pictures: list[torch.Tensor], function: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        groups = by_size(pictures)
        parts = [function(torch.stack([pictures[i] for i in members])) for members in groups.values()]
        return torch.cat(parts)[_inverse([i for members in groups.values() for i in members], parts[0].device)]

    def _checked_list(self, pictures: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        pictures = list(pictures)
        if not pictures:
            raise ValueError("no pictures; at least one is needed")
        for index, picture in enumerate(pictures):
            if not isinstance(picture, torch.Tensor) or picture.dim() != 3 or picture.shape[0] != 3:
                shape = tuple(picture.shape) if isinstance(picture, torch.Tensor) else type(picture).__name__
                raise ValueError(f"picture {index} is {shape}; a tensor (3, H, W) is needed")
        if len(dtypes := {str(picture.dtype) for picture in pictures}) > 1:
            raise ValueError(f"pictures of {', '.join(sorted(dtypes))}; one dtype for all of them is needed")
        return pictures

    def _pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in the dtype of the statistics: float32, or float64 where pixels or tower are."""
        if pictures.dim() != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
            raise ValueError(f"pictures of the shape {tuple(pictures.shape)}; (B, 3, H, W) with pixels is needed")
        if pictures.dtype == torch.uint8:
            pictures = pictures.to(torch.float32) / 255
        elif not pictures.is_floating_point():
            raise ValueError(f"pictures of {pictures.dtype}; floating in [0, 1], or uint8, is needed")
        return pictures.to(torch.promote_types(self._working, pictures.dtype))

    @property
    def _working(self) -> torch.dtype:
        return torch.promote_types(self.vision.embeddings.patch_embedding.weight.dtype, torch.float32)

    def _levels(self, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
        """The levels of resized pixels, (B, n_l, C_l) each: the pixels, then ReLU of each block's patch tokens."""
        yield pixels.flatten(2).transpose(1, 2)
        for hidden in self._hidden_states(pixels):
            yield functional.relu(hidden[:, 1:].to(pixels.dtype))

    def _hidden_states(self, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
        """Tokens after each block, (B, n + 1, C), the class token first, in the tower's precision."""
        vision = self.vision
        with _full_precision(pixels.device):
            mean, std = (
                pixels.new_tensor(values)[:, None, None] for values in (self.config.image_mean, self.config.image_std)
            )
            normalised = (pixels - mean) / std
        dtype = vision.embeddings.patch_embedding.weight.dtype
        patches = vision.embeddings.patch_embedding(normalised.to(dtype)).flatten(2).transpose(1, 2)
        first = vision.embeddings.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = torch.cat([first, patches], dim=1)
        with _full_precision(pixels.device):
            positions = resize_positions(vision.embeddings.position_embedding.weight, tokens.shape[1])
        hidden = vision.pre_layrnorm(tokens + positions.to(tokens.dtype))
        for block in vision.encoder.layers:
            hidden = block(hidden, None)
            yield hidden

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialise(module)


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, enabled=False)


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _inverse(order: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(order, device=device).argsort()


def _size_problem(ref: Sequence[int], dis: Sequence[int], where: str = "") -> str:
    return (
        f"{where}the reference has {ref[1]}x{ref[0]} pixels, the picture {dis[1]}x{dis[0]}; both must have the same "
        "size: resize one of them before"
    )
