"""Editing a vision transformer: the batched search of target masks against one picture at a time, and an edit with a
cached prefix and masked parameters against an edit through the whole network.

    python benchmarks/vit_editing_speed.py

Random weights, random pictures, float32, one thread, no GPU, 12 blocks of which 7 to 9 are edited. `ratio`: CPU time
of this process of the slow way, as the official code goes, over that of ours in the same round with the same weights
and draws. Larger is faster. `largest_difference`: of the loss after the search, and of an edited weight.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification
from vit_editing_loop import edit_whole_model, search_one_by_one

from thurl.editing.classifier import Classifier, as_classifier
from thurl.editing.delta import edited_weights
from thurl.editing.edit import EditSettings, edit
from thurl.editing.masks import random_mask
from thurl.editing.meta_step import SearchSettings, search_masks
from thurl.training.results import write_results


SIZES = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
RATE, DENSITY = 1e-4, 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="pictures of a search")
    parser.add_argument("--outer", type=int, default=2, help="outer steps of a search, of five inner ones each")
    parser.add_argument("--steps", type=int, default=20, help="of an edit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--out", type=Path, default=Path("results/vit_editing_speed.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = TINY if options.tiny else SIZES
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        seed = options.seed + number
        runs.append({"seed": seed, **one_round(sizes, options, seed)})
        sys.stdout.write(f"round {number}: {runs[-1]}\n")
        sys.stdout.flush()
    given = {name: getattr(options, name) for name in ("batch", "outer", "steps", "tiny")}
    write_results(
        options.out,
        recipe="benchmarks/vit_editing_speed.py",
        overrides={**given, "threads": 1},
        runs=runs,
        model=sizes,
    )
    return 0


def one_round(sizes: dict[str, int], options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Times of both ways of both kinds of work, in an order that turns with the seed."""
    classifier = build(sizes, seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (options.batch, 3, sizes["image_size"], sizes["image_size"])
    mixed, clean = (torch.randn(shape, generator=generator) for _ in range(2))
    start = torch.rand(options.batch, *classifier.mask_shape, generator=generator) * 2 - 1
    settings = SearchSettings(inner_rate=0.1, outer_steps=options.outer)
    mask = random_mask(classifier.mask_shape, DENSITY, seed)
    picture, label = mixed[:1], classifier.logits(mixed[:1]).argmin(dim=-1)
    wanted = EditSettings(rate=RATE, max_steps=options.steps, stop_loss=0.0)  # never reached: as many steps both ways

    def masked() -> dict[str, torch.Tensor]:
        return dict(edited_weights(classifier.model, edit(classifier, picture, label, mask, wanted).delta))

    work: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "search": (
            lambda: {"loss": search_masks(classifier, mixed, clean, settings, start=start).edited},
            lambda: {"loss": search_one_by_one(classifier, mixed, clean, settings, start).edited},
        ),
        "edit": (masked, lambda: edit_whole_model(classifier, picture, label, mask, RATE, options.steps)),
    }
    classifier.prefix(picture, classifier.first_layer)  # its check of the first call is part of neither
    record: dict[str, Any] = {"ratio": {}, "seconds": {}, "largest_difference": {}}
    for name, (ours, slow) in work.items():
        order = [ours, slow] if seed % 2 else [slow, ours]
        timed = {function: measured(function) for function in order}
        (fast_time, fast), (slow_time, whole) = timed[ours], timed[slow]
        record["ratio"][name] = slow_time / fast_time
        record["seconds"][name] = fast_time
        record["largest_difference"][name] = max((fast[key] - whole[key]).abs().max().item() for key in fast)
    return record


def build(sizes: dict[str, int], seed: int) -> Classifier:
    """Weights of the scale of a trained network: those of a new one hardly tell pictures apart."""
    torch.manual_seed(seed)
    model = ViTForImageClassification(ViTConfig(**sizes, num_hidden_layers=12, num_labels=10, layer_norm_eps=1e-6))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return as_classifier(model)


def measured(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and the result."""
    begin = time.process_time()
    result = function()
    return time.process_time() - begin, result


if __name__ == "__main__":
    raise SystemExit(main())
