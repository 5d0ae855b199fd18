"""A tiny, real Qwen2.5-VL: model, tokenizer and processor, built in code, offline, in about a second.

The classes are those of the released 7B checkpoints (`Qwen2_5_VLForConditionalGeneration`, `Qwen2_5_VLProcessor`), so
everything that runs here (chat template, image tokens, generation, GRPO, saving and loading through the Auto classes)
takes the path a real checkpoint takes. Only sizes, tokenizer and weights differ. Used by the first-run recipe and as
the fixture of the tests.

What is ours: the chat template (written for this project after the Qwen layout), the byte-level BPE vocabulary
(trained in memory on the project's own prompt strings), and the initialisation. The default initialisation of the
library (normal, std 0.02) is meant for widths of thousands; at width 64 a model so initialised does not learn to see
in minutes. `init_tiny_weights` therefore keeps the variance of activations (std 1/sqrt(fan_in)) and gives the patch
embedding a whitened cosine basis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from thurl.errors import UsageError


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

__all__ = [
    "CHAT_TEMPLATE",
    "SPECIAL_TOKENS",
    "TAG_TOKENS",
    "TINY_QUESTION",
    "TINY_THINK_SUFFIX",
    "build_tiny_processor",
    "build_tiny_qwen2_5_vl",
    "build_tiny_tokenizer",
    "init_tiny_weights",
]


SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# One token each, but ordinary tokens: decoding with skip_special_tokens=True must keep them, rewards read them.
TAG_TOKENS = ("<think>", "</think>", "<answer>", "</answer>")

# A short question for two cores: every prompt token is paid for in each of the 8 completions of each picture.
TINY_QUESTION = "Rate the quality of this picture from 1 to 5."
TINY_THINK_SUFFIX = "First <think> </think> then <answer> </answer>."

_CORPUS = (
    "system\nYou are a helpful assistant.",
    "user\n",
    "assistant\n",
    "Picture 1: ",
    TINY_QUESTION,
    TINY_THINK_SUFFIX,
    # The verbatim strings of VisualQuality-R1 (section 2.1 of the method page), so that they stay short here.
    "You are doing the image quality assessment task. Here is the question: What is your overall rating on the "
    "quality of this picture? The rating should be a float between 1 and 5, rounded to two decimal places, with 1 "
    "representing very poor quality and 5 representing excellent quality.",
    "First output the thinking process in <think> </think> tags and then output the final answer with only one score "
    "in <answer> </answer> tags.",
    "Please only output the final answer with only one score in <answer> </answer> tags.",
    "Please describe the quality of this image.",
    "0 1 2 3 4 5 6 7 8 9 . - 3.25",
    # What the tiny model says while thinking.
    "<think>no flaw</think>",
    *(
        f"<think>{severity} {kind}</think>"
        for severity in ("slight", "moderate", "strong", "extreme")
        for kind in ("noise", "blur", "blocks", "darkness")
    ),
)

CHAT_TEMPLATE = (
    "{%- set count = namespace(image=0, video=0) -%}"
    "{%- for message in messages -%}"
    "{%- if loop.first and message['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}"
    "{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "{%- set count.image = count.image + 1 -%}"
    "{%- if add_vision_id -%}{{- 'Picture ' ~ count.image ~ ': ' -}}{%- endif -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'video' or 'video' in part -%}"
    "{%- set count.video = count.video + 1 -%}"
    "{%- if add_vision_id -%}{{- 'Video ' ~ count.video ~ ': ' -}}{%- endif -%}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in part -%}"
    "{{- part['text'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def build_tiny_tokenizer(texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE tokenizer trained in memory; every word of the project's prompts and of `texts` is one token.

    Being byte-level it has no unknown token and decodes every string to itself. Digits are always single tokens.
    Padding is on the left, as generation needs it. The same `texts` give the same ids.

    Args:
        texts: further strings whose words become single tokens (with and without a leading space).
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Letters keep one leading space; digits, punctuation and white space stand alone.
            pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [*_CORPUS, *texts]
    for tag in TAG_TOKENS:
        corpus = [text.replace(tag, "\n") for text in corpus]
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,  # an upper bound: training ends when every word of the corpus is merged
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAG_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def build_tiny_processor(
    texts: Iterable[str] = (), *, patch_size: int = 14, min_pixels: int = 56 * 56, max_pixels: int = 112 * 112
) -> Qwen2_5_VLProcessor:
    """`Qwen2_5_VLProcessor` around the tiny tokenizer, with the Qwen2-VL image and video processors.

    Args:
        texts: as in :func:`build_tiny_tokenizer`.
        patch_size: side of a patch in pixels; pictures are resized to multiples of twice this.
        min_pixels, max_pixels: area in pixels into which a picture is resized.
    """
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    area = {"patch_size": patch_size, "size": {"shortest_edge": min_pixels, "longest_edge": max_pixels}}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**area),
        tokenizer=build_tiny_tokenizer(texts),
        video_processor=Qwen2VLVideoProcessor(**area),
        chat_template=CHAT_TEMPLATE,
    )


def build_tiny_qwen2_5_vl(
    seed: int,
    *,
    texts: Iterable[str] = (),
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int | None = None,
    intermediate: int | None = None,
    vision_hidden: int = 64,
    vision_depth: int = 2,
    vision_heads: int = 2,
    vision_intermediate: int | None = None,
    patch_size: int = 14,
    min_pixels: int = 56 * 56,
    max_pixels: int = 112 * 112,
    tie_embeddings: bool = False,
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Build a randomly initialised Qwen2.5-VL of about 0.4 M parameters (defaults) and its processor.

    Both save and load with `save_pretrained` / `AutoModelForImageTextToText` / `AutoProcessor`. Same arguments, same
    weights, on any machine with the same torch; the global random state is left as it was.

    Args:
        seed: of the weights.
        texts: strings whose words become single tokens (see :func:`build_tiny_tokenizer`).
        hidden, layers, heads, kv_heads, intermediate: language model; head size is hidden / heads (32 by default, the
            smallest vLLM accepts on a CPU).
        vision_hidden, vision_depth, vision_heads, vision_intermediate: vision tower; every layer sees all patches.
        patch_size, min_pixels, max_pixels: see :func:`build_tiny_processor`.
        tie_embeddings: one matrix for input and output embeddings.

    Returns:
        float32 model in evaluation mode, processor.

    Raises:
        UsageError: widths that the attention heads do not divide, or head sizes the rotary embedding cannot split.
    """
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    problems = []
    for name, width, count, multiple in (
        ("hidden", hidden, heads, 16),
        ("vision_hidden", vision_hidden, vision_heads, 4),
    ):
        if width % count or (width // count) % multiple:
            problems.append(
                f"{name}={width} with {count} heads: the head size must be a multiple of {multiple}; "
                f"use {name}={count * multiple} times a whole number"
            )
    if problems:
        raise UsageError(problems)

    processor = build_tiny_processor(texts, patch_size=patch_size, min_pixels=min_pixels, max_pixels=max_pixels)
    tokenizer = processor.tokenizer
    token = tokenizer.convert_tokens_to_ids
    pairs = hidden // heads // 2
    side = 3 * pairs // 8  # the released models split 64 rotary pairs as time 16, height 24, width 24
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": math.ceil(len(tokenizer) / 8) * 8,
            "hidden_size": hidden,
            "intermediate_size": intermediate or 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads or heads,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [pairs - 2 * side, side, side],
            },
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_hidden,
            "intermediate_size": vision_intermediate or 2 * vision_hidden,
            "num_heads": vision_heads,
            "patch_size": patch_size,
            "window_size": 8 * patch_size,
            "fullatt_block_indexes": list(range(vision_depth)),
            "out_hidden_size": hidden,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
        tie_word_embeddings=tie_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).float().eval()
        init_tiny_weights(model, seed)
    # As the tokenizer has them, so that no trainer finds anything to align.
    model.generation_config.update(
        bos_token_id=None, eos_token_id=token("<|im_end|>"), pad_token_id=token("<|endoftext|>")
    )
    return model, processor


def init_tiny_weights(model: Qwen2_5_VLForConditionalGeneration, seed: int) -> None:
    """Initialise in place: matrices N(0, 1/fan_in), embeddings N(0, 0.15^2), zero biases, cosine patch embedding."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "patch_embed" in name:
                parameter.copy_(_whitened_cosines(tuple(parameter.shape), generator))
            elif parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                std = 0.15 if "embed_tokens" in name or "lm_head" in name else parameter.shape[1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def _whitened_cosines(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Patch filters `[out, 3, time, size, size]`: products of cosines, stronger for higher frequencies.

    Photographs have amplitudes that fall like 1/frequency; the gain undoes that fall so that all filter outputs have
    similar spread. Three of four filters look at brightness, the others at two opponent colours.
    """
    import torch

    out, channels, time, size, _ = shape
    steps = torch.arange(size) + 0.5
    waves = torch.stack([torch.cos(math.pi * k * steps / size) for k in range(size)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    # Sparse frequencies: neighbouring ones carry nearly the same, and the width is small.
    ladder = sorted({round(k) for k in (0, 1, 2, 3, 0.36 * size, 0.57 * size, 0.79 * size, size - 1)})
    grid = sorted(((u, v) for u in ladder for v in ladder), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])[:, :channels]
    colours = colours / colours.norm(dim=1, keepdim=True)
    n_colour = min(out // 4, 16)
    plan = [(0, uv) for uv in grid[: out - n_colour]]
    plan += [(1 + i % 2, grid[i // 2]) for i in range(n_colour)]
    filters = torch.randn(shape, generator=generator) * (channels * time * size * size) ** -0.5
    for row, (colour, (u, v)) in enumerate(plan):
        gain = (1.0 + math.hypot(u, v)) / size * (1.0 if colour == 0 else 2.0)
        pattern = torch.outer(waves[u], waves[v]) * gain
        filters[row] = colours[colour][:, None, None, None] * pattern / time
    return filters
