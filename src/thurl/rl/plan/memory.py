"""Bytes on one device in each phase of a GRPO step. Pure arithmetic on `ModelShape` and `RunShape`.

The counts of saved activations follow the code of transformers 5.17 and of TRL 1.16's fused head; on a CPU in float32
and bfloat16 they are checked against the tensors of a real update (tests/rl/plan, results/plan.json). What several
GPUs, DeepSpeed and vLLM take is arithmetic that was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from thurl.rl.plan.shape import ModelShape


__all__ = ["RunShape", "generation_memory", "resident_memory", "update_memory"]

# Of TRL 1.16's fused head (`trl/kernels/chunked_logprob.py`).
HEAD_TOKENS, HEAD_VOCABULARY = 4096, 32768
# Copies of a tile that its backward pass makes where there is no Triton.
HEAD_COPIES = 7
# DeepSpeed's default of `stage3_max_live_parameters`.
ZERO3_LIVE = 1_000_000_000
# `reduce_bucket_size` and `allgather_bucket_size` of deepspeed_configs/zero2.json, twice because they overlap.
ZERO2_BUCKET = 2 * 200_000_000
# What vLLM keeps on the device while it sleeps, and what it needs beside weights and cache: estimates.
VLLM_ASLEEP, VLLM_WORKING = 1.0e9, 1.5e9


@dataclass(frozen=True)
class RunShape:
    """What of a run decides about memory and time.

    Attributes:
        gpus: processes, one on each device.
        zero: 0 for DDP, else the stage of DeepSpeed ZeRO.
        offload: optimizer states in CPU memory (`deepspeed_configs/zero3_offload.json`).
        dtype: bytes of a weight as the model is held: 2 or 4.
        compute: bytes of an activation: 2 with bf16 or fp16.
        train_vision, train_language: which parts get gradients.
        adapter: parameters of the adapter on one layer stack, 0 for full fine-tuning.
        rank: of the adapter.
        images, completions: pictures of one micro-batch on one device, and completions of each.
        micro_batches: of one generation batch on one device.
        prompt: tokens before the answer, visual ones included.
        answer: tokens of a completion, at most.
        patches: of the picture of one prompt.
        shared: whether the update computes a prompt once for all its completions.
        checkpointing: whether layers are computed again in the backward pass.
        reference: whether a second model is held for the KL term.
        on_gpu: a CUDA device; a CPU scores every position and folds tiles in torch.
        vllm: generation with vLLM in the training processes, on a server, or with transformers.
        vllm_share: share of the device that a colocated vLLM takes.
        vllm_sleeps: whether it hands that memory back for the update.
        tensor_parallel: devices over which vLLM splits the model.
    """

    gpus: int = 1
    zero: Literal[0, 1, 2, 3] = 0
    offload: bool = False
    dtype: int = 4
    compute: int = 4
    train_vision: bool = True
    train_language: bool = True
    adapter: int = 0
    rank: int = 0
    images: int = 8
    completions: int = 6
    micro_batches: int = 1
    prompt: int = 0
    answer: int = 0
    patches: int = 0
    shared: bool = False
    checkpointing: bool = False
    reference: bool = False
    on_gpu: bool = True
    vllm: Literal["colocate", "server", "none"] = "none"
    vllm_share: float = 0.3
    vllm_sleeps: bool = False
    tensor_parallel: int = 1

    @property
    def rows(self) -> int:
        """Rows of a micro-batch in the plain layout."""
        return self.images * self.completions

    @property
    def length(self) -> int:
        """Tokens of a row in the plain layout."""
        return self.prompt + self.answer

    @property
    def tokens(self) -> int:
        """Tokens that the update computes for a micro-batch."""
        if self.shared:
            return self.images * (self.prompt - 1 + self.completions * (1 + self.answer))
        return self.rows * self.length

    @property
    def pictures(self) -> int:
        """Pictures that the vision tower sees in a micro-batch; the plain layout repeats each."""
        return self.images if self.shared else self.rows

    def share(self, stage: int) -> float:
        """Part of something on one device that ZeRO splits from `stage` on."""
        return 1 / self.gpus if self.zero >= stage else 1.0


def trained_parameters(model: ModelShape, run: RunShape) -> int:
    """Parameters that get gradients."""
    if run.adapter:
        return run.adapter
    return run.train_vision * model.vision_parameters + run.train_language * model.language_parameters


def resident_memory(model: ModelShape, run: RunShape) -> dict[str, float]:
    """Bytes on one device from start to end of the training: weights, optimizer, reference, batch.

    DeepSpeed holds bfloat16 weights and, split over the devices, a float32 copy with two moments of Adam. Without it
    the optimizer works on the weights themselves.
    """
    trained = trained_parameters(model, run)
    frozen = model.parameters if run.adapter else model.parameters - trained
    weight = 4 if run.adapter or not run.zero else run.dtype  # adapters are held in float32
    memory = {"weights": (frozen * run.dtype + trained * weight) * run.share(3)}
    states = 12 if run.zero and weight == 2 else 8
    memory["optimizer"] = 0.0 if run.offload else trained * states * run.share(1)
    if run.reference and not run.adapter:
        memory["reference model"] = model.parameters * run.dtype * run.share(3)
    pixels = run.rows * run.micro_batches * run.patches * model.patch_values * 4
    memory["pictures"] = pixels + run.rows * run.micro_batches * run.length * 8 * 4
    return memory


def update_memory(model: ModelShape, run: RunShape) -> dict[str, float]:
    """Bytes that forward and backward pass of one micro-batch add on one device, at their highest point."""
    trained = trained_parameters(model, run)
    memory = {"gradients": trained * (4 if run.adapter or not run.zero else run.dtype) * run.share(2)}
    if run.zero == 0 and run.gpus > 1:
        memory["gradients"] *= 2  # DDP's buckets
    if run.zero == 0 and not run.adapter and run.compute < run.dtype:
        memory["weights cast by autocast"] = model.parameters * run.compute
    if run.zero == 3:
        memory["gathered weights"] = min(model.parameters, ZERO3_LIVE) * run.dtype
    elif run.zero:
        memory["communication buckets"] = min(trained, ZERO2_BUCKET) * run.dtype
    text, vision = run.tokens, run.pictures * run.patches if run.train_vision and not run.adapter else 0
    layer, vision_layer = text * _text_layer(model, run), vision * _vision_layer(model, run)
    if run.shared:  # keys and values of the prompt, copied behind each segment's own, and its queries and results
        layer += run.rows * (2 * (run.length + 1) * model.keys + 2 * (run.answer + 1) * model.hidden) * run.compute
    kept = text * 4 * model.hidden * run.compute  # embeddings, last norm, input of the head
    edge = vision * (_vision_edges(model) * run.compute)
    if run.checkpointing:
        kept += model.layers * text * model.hidden * run.compute
        edge += model.vision_layers * vision * model.vision_hidden * run.compute
        # A layer is computed again when the head's tiles are gone already.
        highest = {
            "head": _head(model, run),
            "one layer, recomputed": max(
                layer + text * _gradients(model.hidden, model.intermediate, run),
                vision_layer + vision * _gradients(model.vision_hidden, model.vision_intermediate, run),
            ),
        }
        name = max(highest, key=lambda key: highest[key])
        memory["activations"] = kept + edge
        memory[name] = highest[name]
    else:
        memory["activations"] = kept + edge + model.layers * layer + model.vision_layers * vision_layer
        memory["head"] = _head(model, run)
    return memory


def generation_memory(model: ModelShape, run: RunShape, device: float) -> dict[str, float]:
    """Bytes that drawing the completions of one generation batch adds on one device.

    Args:
        device: memory of the device in bytes, of which vLLM takes its share.
    """
    if run.vllm == "colocate":
        return {"vLLM": run.vllm_share * device}
    if run.vllm == "server":
        return {}
    rows = run.rows * run.micro_batches
    memory: dict[str, float] = {"cache": rows * run.length * 2 * model.layers * model.keys * run.compute}
    if run.zero == 3:
        memory["gathered weights"] = model.parameters * run.dtype
    inner = max(2 * model.intermediate, 4 * model.hidden)
    memory["activations"] = rows * run.prompt * inner * run.compute
    memory["logits"] = rows * model.vocabulary * 4 * 3
    return memory


def _text_layer(model: ModelShape, run: RunShape) -> float:
    """Bytes per token that a layer of the language model saves for its backward pass."""
    hidden, keys, inner, number = model.hidden, model.keys, model.intermediate, run.compute
    # Each norm: its input in float32, what it multiplies with its weight, its output. A frozen weight saves less.
    norm = 4 * hidden + number * hidden * (1 if run.adapter else 2)
    if number < 4:
        norm += number * hidden  # the residual stream itself, beside its float32 copy
    attention = number * (2 * hidden + 2 * keys)  # queries, keys, values and output
    saved = 2 * norm + attention + 4 * number * inner
    if run.adapter:
        saved += 7 * run.rank * number
        if number < 4:
            saved += number * (6 * hidden + inner)  # PEFT casts the input of every projection by itself
    return saved


def _vision_layer(model: ModelShape, run: RunShape) -> float:
    """Bytes per patch that a layer of the vision tower saves."""
    width, inner, number = model.vision_hidden, model.vision_intermediate, run.compute
    norm = 4 * width + 2 * number * width + (number * width if number < 4 else 0)
    attention = (
        number * 7 * width
    )  # queries, keys, their product with the values, output, and its windows put together
    return 2 * norm + attention + 4 * number * inner


def _vision_edges(model: ModelShape) -> float:
    """Numbers per patch saved outside the layers: the patch itself, norm and two matrices of the merger."""
    tokens = 1 / model.merge**2
    return model.patch_values + 6 * model.vision_hidden + model.hidden * tokens


def _gradients(hidden: int, inner: int, run: RunShape) -> float:
    """Bytes per token of gradients that live together inside one layer: two of the wide ones and two of the stream."""
    return run.compute * (2 * inner + 2 * hidden)


def _head(model: ModelShape, run: RunShape) -> float:
    """Bytes of the fused head's backward pass: tiles of logits, float32 gradients of its input and of its weight."""
    if run.on_gpu:
        positions, copies = run.rows * run.answer, 0  # only scored positions; a kernel writes into the tile
    else:
        positions, copies = run.tokens - (run.images if run.shared else run.rows), HEAD_COPIES
    tile = min(positions, HEAD_TOKENS)
    trained = run.train_language and not run.adapter
    return (
        tile * HEAD_VOCABULARY * run.compute
        + tile * min(model.vocabulary, HEAD_VOCABULARY) * 4 * copies
        + positions * model.hidden * 4
        + (4 * model.head_parameters if trained else 0)
    )
