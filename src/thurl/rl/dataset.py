"""From rated pictures to the columns that GRPO and supervised fine-tuning train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thurl.data.records import RatedImage
from thurl.errors import DataError, UsageError
from thurl.rl.parsing import SCORE_RANGE
from thurl.rl.prompts import PRESETS, PromptPreset


if TYPE_CHECKING:
    from datasets import Dataset


__all__ = ["build_answer_dataset", "build_rank_dataset", "check_pictures", "shuffle_mos"]

# Qwen2-VL merges 2 x 2 patches of 14 pixels; the official code upsamples smaller sides to this (LANCZOS).
MIN_SIDE = 28


def build_rank_dataset(
    records: Sequence[RatedImage], preset: PromptPreset = PRESETS["thurl"], *, mode: str = "think"
) -> Dataset:
    """One row per picture: `prompt`, `image`, `mos`, `mos_std`, `dataset`, `image_id`.

    `prompt` is conversational with plain string content, into which TRL puts the picture; `image` is opened when the
    row is read, once per batch however often the row is repeated in it, so neither the table nor a checkpoint holds
    pixels. MOS stay on their own scale: only their order inside a dataset is used.

    Args:
        records: rated pictures of one or more datasets.
        preset: the question.
        mode: which instruction follows the question, `"think"` or `"direct"`.

    Raises:
        DataError: no records.
        UsageError: a preset with a vision id, which training never shows (arXiv 2505.14460, official code).
    """
    from datasets import Dataset

    prompt = _prompt(records, preset, mode)
    columns: dict[str, list[Any]] = {
        "prompt": [prompt] * len(records),
        "image": [record.image for record in records],
        "mos": [record.mos for record in records],
        "mos_std": [record.std for record in records],
        "dataset": [record.dataset for record in records],
        "image_id": [f"{record.dataset}/{record.image}" for record in records],
    }
    return Dataset.from_dict(columns).with_transform(_open_images)


def build_answer_dataset(records: Sequence[RatedImage], preset: PromptPreset = PRESETS["thurl"]) -> Dataset:
    """One row per picture for supervised fine-tuning: `prompt`, `completion`, `image`.

    The completion is the MOS with two decimals in answer tags, what the question without thinking asks for
    (`PromptPreset.direct_suffix`; arXiv 2505.14460, official prompts).

    Args:
        records: rated pictures with MOS from 1 to 5.
        preset: the question.

    Raises:
        DataError: no records, or a MOS outside 1 to 5.
        UsageError: a preset with a vision id.
    """
    from datasets import Dataset

    prompt = _prompt(records, preset, "direct")
    low, high = SCORE_RANGE
    strange = [record for record in records if not low <= record.mos <= high]
    if strange:
        raise DataError(
            f"{len(strange)} of {len(records)} pictures have a MOS outside {low:g} to {high:g}, the first is "
            f"{strange[0].mos:g} of {strange[0].image} ({strange[0].dataset or 'no dataset'}). An answer is a number "
            "on that scale: set `normalise: true` for this data."
        )
    return Dataset.from_dict(
        {
            "prompt": [prompt] * len(records),
            "completion": [
                [{"role": "assistant", "content": f"<answer>{record.mos:.2f}</answer>"}] for record in records
            ],
            "image": [record.image for record in records],
        }
    ).with_transform(_open_images)


def check_pictures(dataset: Dataset) -> None:
    """Refuse a data set in which rows have no picture although it has a column for them.

    A process whose rows are text alone leaves out the vision tower while the others run it. With sharded weights
    (ZeRO-3, FSDP) they would then wait for one another.

    Args:
        dataset: with a column `image` or `images`, or with neither (text alone, on all processes).

    Raises:
        UsageError: rows without a picture; how many, and the first ones.
    """
    import pyarrow
    import pyarrow.compute

    for column in ("image", "images"):
        if column not in dataset.column_names:
            continue
        without: list[int] = []
        for start, table in enumerate(dataset.select_columns([column]).with_format("arrow").iter(1000)):
            values = table[column].combine_chunks()
            empty = values.is_null()
            if pyarrow.types.is_list(values.type) or pyarrow.types.is_large_list(values.type):
                empty = pyarrow.compute.equal(pyarrow.compute.list_value_length(values).fill_null(0), 0)
            without += (1000 * start + np.flatnonzero(empty.to_numpy(zero_copy_only=False))).tolist()
        if without:
            raise UsageError(
                f"{len(without)} of {len(dataset)} rows have no picture in `{column}`, the first are "
                f"{without[:5]}. Processes with and without pictures in a batch would wait for one another: leave "
                f"these rows out, or remove the column `{column}` to train on text alone."
            )


def shuffle_mos(records: Sequence[RatedImage], seed: int) -> list[RatedImage]:
    """The same pictures with the MOS permuted inside each dataset: labels that carry no information.

    The control of a learning run: whatever a model learns from these was not learnt from the labels.
    """
    from dataclasses import replace

    rng = np.random.default_rng(seed)
    shuffled = list(records)
    for name in sorted({record.dataset for record in records}):
        indices = [index for index, record in enumerate(records) if record.dataset == name]
        for index, other in zip(indices, rng.permutation(indices), strict=True):
            shuffled[index] = replace(records[index], mos=records[other].mos, std=records[other].std)
    return shuffled


def _prompt(records: Sequence[RatedImage], preset: PromptPreset, mode: str) -> list[dict[str, Any]]:
    if not records:
        raise DataError("There are no images to train on. Check the label files, the split and `max_images`.")
    if preset.vision_id:
        raise UsageError(
            "`vision_id: true` puts 'Picture 1: ' before the picture. The published training does not; it is for "
            "scoring with released checkpoints. Train with `vision_id: false` (preset thurl)."
        )
    prompt = [{"role": "user", "content": preset.text(mode)}]
    if preset.system is not None:
        prompt.insert(0, {"role": "system", "content": preset.system})
    return prompt


def _open_images(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if "image" not in batch:
        return batch
    from thurl.data.images import ensure_min_side, open_image

    opened = {path: ensure_min_side(open_image(path), MIN_SIDE) for path in dict.fromkeys(batch["image"])}
    return {**batch, "image": [opened[path] for path in batch["image"]]}
