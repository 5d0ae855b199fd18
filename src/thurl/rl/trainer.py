"""GRPO with Thurstone fidelity rewards: `trl.GRPOTrainer` with dataset-pure batches, the paper's defaults and guards.

Paper: "VisualQuality-R1", arXiv 2505.14460, Section 3; defaults from its official scripts where the paper is silent.
Everything about generation, advantages and the loss is TRL's.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import PartialState
from transformers import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from thurl.errors import ThurlError, UsageError
from thurl.rl.checked_reward import checked_reward
from thurl.rl.dataset import check_pictures
from thurl.rl.frozen_vision import VISION_MODULES, skip_frozen_towers
from thurl.rl.preprocessing import FetchedOnce, PreprocessedOnce
from thurl.rl.rank_reward import FormatReward, RankReward
from thurl.rl.rollouts import RolloutOptions, check_options, constrain
from thurl.rl.sampler import DatasetBlockSampler, Weights
from thurl.rl.shared_prefix import PrefixSharing, PrefixSharingMode, split_whole_groups, unsupported
from thurl.rl.timed_rollouts import TimedRollouts, timed_log_probs
from thurl.rl.vllm_engine import WeightSync, built_with, plan_engine
from thurl.rl.vllm_prompts import wrap_colocate_generation
from thurl.rl.vllm_server import guard_server, serve_command, server_url, wait_for_server
from thurl.training.resumable_trl import ResumableGRPO


__all__ = ["RankGRPOConfig", "RankGRPOTrainer", "freeze_parameters"]

logger = logging.getLogger(__name__)

MAX_LOGP_DIFFERENCE = 0.05
"""nats; 0.002 measured in bfloat16 with right prompts, 0.54 with the corrupted ones of TRL 1.16."""
ROLLOUT_CHECKS = 5
# How a part of a model is recognised in its parameter names in memory (transformers 5: `model.visual.*`).
_VISION_NAMES = tuple(f"{name}." for name in VISION_MODULES)


@dataclass
class RankGRPOConfig(GRPOConfig):
    """`trl.GRPOConfig` with the values of VisualQuality-R1 where TRL's defaults differ.

    Each of these silently changes the method when left at TRL's default, which is why they are defaults here and not
    only lines of a recipe. Further keyword arguments are those of `trl.GRPOConfig`.
    """

    num_generations: int | None = field(default=6, metadata={"help": "K (paper: 6; TRL: 8)."})
    per_device_train_batch_size: int = field(
        default=48, metadata={"help": "Rows per device: 8 images x 6 completions (paper)."}
    )
    max_completion_length: int | None = field(default=256, metadata={"help": "New tokens (official: 256; TRL: 512)."})
    beta: float = field(default=0.04, metadata={"help": "KL coefficient (paper: 0.04; TRL: 0)."})
    loss_type: str = field(default="grpo", metadata={"help": "Mean over tokens, then completions (TRL: dapo)."})
    use_bias_correction_kl: bool = field(
        default=False, metadata={"help": "TRL multiplies the KL term by the ratio, which changes its gradient."}
    )
    num_train_epochs: float = field(default=10, metadata={"help": "Epochs (paper: 10; TRL: 3)."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Linear decay (paper)."})
    log_multimodal: bool = field(
        default=False, metadata={"help": "TRL gathers every picture to the first process on each generation."}
    )


def freeze_parameters(model: torch.nn.Module, parts: Sequence[Literal["vision", "language"]]) -> int:
    """Stop training the vision tower or everything else; call it before the trainer is built.

    Args:
        model: a vision-language model of transformers.
        parts: `"vision"` (parameters named `visual.`, `vision_tower.`, `vision_model.`), `"language"` (all others).

    Returns:
        Number of frozen parameters (scalars).

    Raises:
        UsageError: an unknown part, or one the model does not have.
    """
    frozen = 0
    for part in parts:
        if part not in ("vision", "language"):
            raise UsageError(f"`freeze` has {part!r}; it may have 'vision' and 'language'.")
        chosen = [
            parameter
            for name, parameter in model.named_parameters()
            if any(key in name for key in _VISION_NAMES) == (part == "vision")
        ]
        if not chosen:
            raise UsageError(f"`freeze: [{part}]` found no such parameters in {type(model).__name__}.")
        for parameter in chosen:
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    return frozen


class RankGRPOTrainer(TimedRollouts, ResumableGRPO, GRPOTrainer):
    """`trl.GRPOTrainer` for learning to rank images, which resumes exactly (`thurl.training.exact_resume`).

    Logs where the time of a step goes (`timing/*`, `thurl.rl.timed_rollouts`).

    Overrides of TRL's private methods, each guarded by a test of its signature:
    - `_get_train_sampler`: batches of dataset-pure blocks (`DatasetBlockSampler`);
    - `_get_dataloader`: pictures are opened once per generation batch (`thurl.rl.preprocessing`);
    - `_generate_and_score_completions`: pictures are preprocessed once for all their completions; a check of the first
      batch's image markers (TRL issue 5785), and of vLLM's log-probabilities against the trainer's in the first ones;
    - `_get_per_token_logps_and_entropies`, `_prepare_inputs`: with prefix sharing, packed rows and whole groups.
    Saved in checkpoints: what `thurl.training.resumable_trl.ResumableGRPO` says.

    Args:
        model: model or path, as in TRL.
        reward_funcs: default: `RankReward` and `FormatReward`, weights 1 and 1 (arXiv 2505.14460).
        args: a `RankGRPOConfig`; a plain `GRPOConfig` is used as it is, with TRL's defaults.
        train_dataset: as made by `thurl.rl.dataset.build_rank_dataset`; needs a column `dataset` or is one dataset.
        processing_class: the model's processor; set to left padding.
        block_size, sampler_weights, remainder: see `DatasetBlockSampler`.
        prefix_sharing: compute each prompt once for all its completions (`thurl.rl.shared_prefix`): `"auto"` where it
            is possible and less work, `"on"` always. The result is that of `"off"` up to rounding. Only with
            `steps_per_generation` above `gradient_accumulation_steps` does another set of completions meet in a step:
            whole groups instead of shuffled rows.
        rollouts: what completions may contain, and how vLLM gets new weights (`thurl.rl.rollouts`).
        **kwargs: as in TRL.

    Raises:
        UsageError: a generation batch that is no whole number of blocks, a dataset that is too small or lacks some of
            its pictures, or `prefix_sharing="on"` where it is not possible.
    """

    _tag_names = ["trl", "grpo", "thurl", "visualquality-r1"]
    _name = "VisualQuality-R1 (GRPO with Thurstone fidelity rewards)"
    _paper = {
        "title": "VisualQuality-R1: Reasoning-Induced Image Quality Assessment via Reinforcement Learning to Rank",
        "id": "2505.14460",
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        processing_class: Any = None,
        *,
        block_size: int = 8,
        sampler_weights: Weights = "proportional",
        remainder: Literal["carry", "fill"] = "carry",
        prefix_sharing: PrefixSharingMode = "off",
        rollouts: RolloutOptions | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            raise UsageError("`args` is missing: pass a `RankGRPOConfig` with at least an `output_dir`.")
        if prefix_sharing not in get_args(PrefixSharingMode):
            raise UsageError(f"`prefix_sharing` is {prefix_sharing!r}; it is 'auto', 'on' or 'off'.")
        # Before the parent, which may take minutes to load a model.
        self._sampler = _block_sampler(args, train_dataset, block_size, sampler_weights, remainder)
        check_pictures(train_dataset)
        first_epoch = np.concatenate(self._sampler.image_batches(0)).astype(np.int64)
        self._order = zlib.crc32(first_epoch.tobytes())
        if reward_funcs is None:
            reward_funcs = [RankReward(args.num_generations), FormatReward()]
        if not isinstance(reward_funcs, list | tuple):
            reward_funcs = [reward_funcs]
        reward_funcs = [checked_reward(function) for function in reward_funcs]
        if isinstance(processing_class, ProcessorMixin):
            # A processor loaded by hand may pad on the right; TRL then misaligns the image markers without a word.
            processing_class.tokenizer.padding_side = "left"
        self._markers_checked = False
        rollouts = rollouts or RolloutOptions()
        check_options(rollouts, args)
        # Log-probabilities under an enforced format are those of another distribution, whatever the weights.
        self._rollouts_checked = ROLLOUT_CHECKS if rollouts.answer_format == "strict" else 0
        plan = self.weight_sync = None
        if args.use_vllm and args.vllm_mode == "colocate":
            plan = plan_engine(rollouts, args, model, kwargs.get("peft_config"))
        elif args.use_vllm and PartialState().is_main_process:
            serve = serve_command(str(getattr(model, "name_or_path", model)), server_url(args))
            wait_for_server(server_url(args), args.vllm_server_timeout, serve)
        with built_with(plan.arguments) if plan is not None else nullcontext():
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=train_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        skip_frozen_towers(self.model)
        self._tokenizer.padding_side = "left"
        self._pictures = PreprocessedOnce(self.processing_class)
        constrain(self, rollouts)
        if plan is not None:
            self.weight_sync = WeightSync(self.vllm_generation, plan)
            if self._image_pad_token_id is not None:
                wrap_colocate_generation(self.vllm_generation, self._image_pad_token_id)
        elif self.use_vllm:
            serve = serve_command(self.model.name_or_path, server_url(args))
            guard_server(self.vllm_generation, server_url(args), args.output_dir, serve)
        self._sharing = None if prefix_sharing == "off" else self._prefix_sharing(prefix_sharing)

    def _prefix_sharing(self, mode: Literal["auto", "on"]) -> PrefixSharing | None:
        """None where nothing in this run can be shared, so that the run stays TRL's in every respect."""
        sharing = PrefixSharing(
            mode, self._tokenizer.pad_token_id, self.accelerator.autocast, warn=self.accelerator.is_main_process
        )
        reason = unsupported(self.model)
        if reason is None and mode == "on" and self.ref_model is not None:
            reason = unsupported(self.ref_model)  # TRL loads it with settings of its own
        if reason is None and self.aux_loss_enabled:
            reason = "the router's auxiliary loss is counted over the rows of the plain layout"
        if reason is None:
            return sharing
        sharing.fall_back(reason)
        return None

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        generate_every = self.args.steps_per_generation * self.num_iterations
        generates = self._step % generate_every == 0 or self._buffered_inputs is None
        if self._sharing is None or not self.model.training or not generates:
            return super()._prepare_inputs(generation_batch)
        completed = self._generate_and_score_completions(generation_batch)
        self._buffered_inputs = split_whole_groups(completed, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    @timed_log_probs
    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if self._sharing is not None:
            shared = self._sharing.log_probs(
                model, input_ids, attention_mask, logits_to_keep, batch_size, multimodal, compute_aux_loss
            )
            if shared is not None:
                logps, entropies = shared
                return logps, entropies if compute_entropy else None, None
        return super()._get_per_token_logps_and_entropies(
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size=batch_size,
            compute_entropy=compute_entropy,
            compute_aux_loss=compute_aux_loss,
            **multimodal,
        )

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        if dataset is not None and dataset is not self.train_dataset:
            raise UsageError("The sampler was built for `train_dataset`; it cannot order another dataset.")
        return self._sampler

    def _get_dataloader(self, dataset: Any, *args: Any, sampler_fn: Any = None, **kwargs: Any) -> Any:
        if not hasattr(dataset, "__len__"):  # a stream, for evaluation
            return super()._get_dataloader(dataset, *args, sampler_fn=sampler_fn, **kwargs)
        sampler = None if sampler_fn is None else lambda _: sampler_fn(dataset)
        return super()._get_dataloader(FetchedOnce(dataset), *args, sampler_fn=sampler, **kwargs)

    # -- exact resume ------------------------------------------------------------------------------------------------

    def resume_settings(self) -> dict[str, Any]:
        return {
            **super().resume_settings(),
            "pictures": len(self.train_dataset),
            "order of the pictures": self._order,
        }

    def begin_epoch(self, epoch: int) -> None:
        self._sampler.set_epoch(epoch)

    # -- rollouts ----------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self._pictures.batch():
            outputs = super()._generate_and_score_completions(inputs)
        if not self._markers_checked:
            check_image_markers(outputs, self._image_pad_token_id)
            self._markers_checked = True
        if self._rollouts_checked < ROLLOUT_CHECKS:
            difference = self._rollout_difference(outputs)
            if difference is not None:
                check_rollout(difference)
                self._rollouts_checked += 1
        return outputs

    def _rollout_difference(self, outputs: dict[str, Any]) -> float | None:
        """What `check_rollout` judges, in nats; None where vLLM gave no log-probabilities."""
        differences = self._metrics["train"].get("sampling/sampling_logp_difference/mean")
        return differences[-1] if differences else None


def check_rollout(difference: float) -> None:
    """Refuse rollouts that another model or another prompt produced.

    Args:
        difference: mean absolute difference of the sampled tokens' log-probabilities, vLLM against trainer, in nats.

    Raises:
        ThurlError: above `MAX_LOGP_DIFFERENCE`.
    """
    if not difference <= MAX_LOGP_DIFFERENCE:  # NaN is refused too
        raise ThurlError(
            f"vLLM and the trainer disagree on the log-probabilities of sampled tokens by {difference:.3f} nats on "
            f"average (at most {MAX_LOGP_DIFFERENCE}). vLLM sees another prompt or other weights; importance sampling "
            "would silently discard such samples. Check the versions in constraints.txt, use `top_k: 0`, or generate "
            "with `use_vllm: false`."
        )


def check_image_markers(outputs: dict[str, Any], image_token_id: int | None) -> None:
    """Refuse a batch whose image markers do not lie on its image tokens (right padding, TRL issue 5785).

    Nothing crashes in that state: the rotary positions of the pictures are wrong and training goes on.

    Args:
        outputs: with `prompt_ids` (B, P) and, for models that use them, `mm_token_type_ids` (B, P + C) int.
        image_token_id: id of the image placeholder.

    Raises:
        ThurlError: markers and image tokens differ.
    """
    markers = outputs.get("mm_token_type_ids")
    if markers is None or image_token_id is None:
        return
    prompt_ids = outputs["prompt_ids"]
    is_image = prompt_ids == image_token_id
    marked = markers[:, : prompt_ids.shape[1]] == 1
    if not torch.equal(is_image, marked):
        rows = (is_image != marked).any(dim=1).nonzero().flatten().tolist()
        raise ThurlError(
            f"Image markers and image tokens disagree in rows {rows[:10]} of the first batch: the processor did not "
            "pad on the left. Set `processor.tokenizer.padding_side = 'left'` and pass that processor to the trainer."
        )


def _block_sampler(
    args: GRPOConfig, dataset: Any, block_size: int, weights: Weights, remainder: Literal["carry", "fill"]
) -> DatasetBlockSampler:
    if dataset is None or not hasattr(dataset, "__len__"):
        raise UsageError("`train_dataset` must be a map-style dataset: blocks of one dataset need random access.")
    images, rest = divmod(args.generation_batch_size, args.num_generations)
    if rest or images % block_size:
        raise UsageError(
            f"A generation batch of {args.generation_batch_size} rows holds {images} images of {args.num_generations} "
            f"completions, which is no whole number of blocks of {block_size}. Change `block_size` or "
            "`per_device_train_batch_size`."
        )
    names: Sequence[Any] = [""] * len(dataset)
    if "dataset" in dataset.column_names:
        names = dataset.with_format(None)["dataset"][:]
    try:
        return DatasetBlockSampler(
            names,
            block_size=block_size,
            blocks_per_batch=images // block_size,
            num_generations=args.num_generations,
            repeat_count=args.num_iterations * args.steps_per_generation,
            weights=weights,
            remainder=remainder,
            seed=args.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
