"""What a completion may contain: forbidden vision tokens, stop strings, and the answer format enforced while sampling.

One description (`RolloutOptions`) becomes the sampling arguments of the three back ends that TRL 1.16 generates with:
transformers, vLLM inside the training process, and a vLLM server. Nothing here imports vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from thurl.errors import UsageError


__all__ = [
    "VISION_TOKENS",
    "AdapterSync",
    "RolloutOptions",
    "answer_regex",
    "check_options",
    "constrain",
    "transformers_arguments",
    "vision_token_ids",
    "vllm_arguments",
]

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""Of the Qwen-VL family. One placeholder more than there are picture features, and the training forward stops."""

AdapterSync = Literal["auto", "merged", "adapter"]
EngineDtype = Literal["auto", "bfloat16", "float16", "float32"]

# Far below any logit difference of a trained model; -100 is the lowest vLLM takes.
_FORBIDDEN_BIAS = -100.0

_FIXED_CHARACTERS = len("<think></think> <answer>1.25</answer>")


@dataclass(frozen=True)
class RolloutOptions:
    """How completions are drawn during training, beyond the fields of `trl.GRPOConfig`.

    Args:
        engine_dtype: number format of vLLM inside the training process; `"auto"` is the one the trainer computes in.
        adapter_sync: with a LoRA adapter, whether vLLM gets the whole model with `"merged"` weights after each update
            or only the `"adapter"`; `"auto"` is `"merged"`, the faster one where it was measured (docs/rollouts.md).
        stop: strings that end a completion; the string stays in it. vLLM only.
        answer_format: `"strict"` lets vLLM draw only completions that match `answer_regex`, so none fails to parse.

    Raises:
        UsageError: a value that is none of these, or an empty stop string.
    """

    engine_dtype: EngineDtype = "auto"
    adapter_sync: AdapterSync = "auto"
    stop: Sequence[str] = ()
    answer_format: Literal["free", "strict"] = "free"

    def __post_init__(self) -> None:
        problems = [
            f"`{name}` is {getattr(self, name)!r}; it is one of {', '.join(allowed)}."
            for name, allowed in (
                ("engine_dtype", get_args(EngineDtype)),
                ("adapter_sync", get_args(AdapterSync)),
                ("answer_format", ("free", "strict")),
            )
            if getattr(self, name) not in allowed
        ]
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            problems.append(f"`stop` is {self.stop!r}; it is a list of strings that are not empty.")
        if problems:
            raise UsageError(problems)


def answer_regex(max_completion_length: int) -> str:
    """A thinking block that says something, then one plain number of 1 to 5 with at most two decimals.

    Whatever matches, `thurl.rl.parsing` reads strictly. The thinking is plain ASCII and so short that the whole text
    ends within the tokens: in a byte-level vocabulary no token is shorter than one such character.

    Args:
        max_completion_length: tokens, the one that ends the completion among them.

    Raises:
        UsageError: too few tokens for the tags, a number and one character of thinking.
    """
    thinking = max_completion_length - _FIXED_CHARACTERS - 1
    if thinking < 1:
        raise UsageError(
            f"`answer_format: strict` needs `max_completion_length` of {_FIXED_CHARACTERS + 2} or more, "
            f"it is {max_completion_length}."
        )
    number = r"([1-4](\.[0-9]{1,2})?|5(\.0{1,2})?)"
    # Printable ASCII without the angle brackets; the first character is not a space.
    return rf"<think>[!-;=?-~][ -;=?-~]{{0,{thinking - 1}}}</think> ?<answer>{number}</answer>"


def vision_token_ids(tokenizer: Any) -> list[int]:
    """Ids of the `VISION_TOKENS` that are single tokens of `tokenizer`, in that order; empty for other families."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in VISION_TOKENS if token in vocabulary]


def check_options(options: RolloutOptions, args: Any) -> None:
    """Refuse options that the configuration cannot carry out, before a model is loaded.

    Args:
        options: see there.
        args: `trl.GRPOConfig`.

    Raises:
        UsageError: options that need vLLM without it, a second regular expression, or stop strings together with
            `mask_truncated_completions`, which would discard every completion that ended at one.
    """
    problems = []
    if options.stop and not args.use_vllm:
        problems.append("`stop` needs `use_vllm: true`; transformers inside TRL ends completions at tokens only.")
    if options.stop and args.mask_truncated_completions:
        problems.append(
            "`mask_truncated_completions` takes a completion that ends at a `stop` string for a truncated one and "
            "discards it; leave out one of them."
        )
    if options.answer_format == "strict" and not args.use_vllm:
        problems.append("`answer_format: strict` needs `use_vllm: true`.")
    if options.answer_format == "strict" and args.vllm_structured_outputs_regex is not None:
        problems.append("`answer_format: strict` is a regular expression; remove `vllm_structured_outputs_regex`.")
    if options.answer_format == "strict":
        answer_regex(args.max_completion_length)
    if problems:
        raise UsageError(problems)


def transformers_arguments(forbidden: Sequence[int], own: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` that keep the `forbidden` ids out, with those of the user's `own`."""
    suppressed = {*forbidden, *(own.get("suppress_tokens") or ())}
    return {**own, "suppress_tokens": sorted(suppressed)} if suppressed else dict(own)


def vllm_arguments(options: RolloutOptions, forbidden: Sequence[int], own: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` that do the same and end completions at the stop strings; `own` wins.

    vLLM's log-probabilities are those of the distribution it draws from, hence without the forbidden ids, the
    trainer's are over the whole vocabulary: they differ by -log(1 - p) for a probability p of the forbidden ids, which
    trained models leave at nothing.
    """
    arguments: dict[str, Any] = {}
    if options.stop:
        arguments.update(stop=list(options.stop), include_stop_str_in_output=True)
    arguments.update(own)
    if forbidden:
        bias = {int(token): float(value) for token, value in (own.get("logit_bias") or {}).items()}
        arguments["logit_bias"] = {**bias, **dict.fromkeys(forbidden, _FORBIDDEN_BIAS)}
    return arguments


def constrain(trainer: Any, options: RolloutOptions) -> None:
    """Make a built `trl.GRPOTrainer` draw completions as `options` say."""
    forbidden = vision_token_ids(trainer._tokenizer)
    if trainer.use_vllm:
        generation = trainer.vllm_generation
        generation.generation_kwargs = vllm_arguments(options, forbidden, generation.generation_kwargs)
        if options.answer_format == "strict":
            generation.structured_outputs_regex = answer_regex(trainer.max_completion_length)
    elif not trainer.use_transformers_continuous_batching:
        trainer.generation_kwargs = transformers_arguments(forbidden, trainer.generation_kwargs)
        trainer.generation_config.suppress_tokens = trainer.generation_kwargs.get("suppress_tokens")
