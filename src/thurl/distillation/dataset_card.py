"""Card of a distilled data set: README.md with the metadata the Hub reads, and all bits counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from thurl.distillation.coded import CodedDataset
from thurl.distillation.rate import pixel_bits
from thurl.hub.card_text import citation, front_matter, number, one_line, table
from thurl.hub.names import PLACEHOLDER


__all__ = ["dataset_card", "plain_bits"]

PAPER = "Dataset Distillation as Data Compression: A Rate-Utility Perspective"
PAPER_ID = "2507.17221"


def plain_bits(dataset: CodedDataset) -> dict[str, int]:
    """Bits that the same number of pictures takes as plain numbers, by their kind."""
    config = dataset.slices[0].config
    size = len(dataset.labels), config.height, config.width, config.channels
    return {name: pixel_bits(*size, bits) for name, bits in (("fp32", 32), ("fp16", 16), ("8 bits", 8))}


def dataset_card(
    dataset: CodedDataset,
    rate: Mapping[str, Any],
    *,
    name: str,
    license: str | None = None,
    tags: Sequence[str] = (),
    datasets: Sequence[str] = (),
    results: Mapping[str, float] | None = None,
    repo_id: str = PLACEHOLDER,
) -> str:
    """The text of the card.

    Args:
        dataset: what the card is of.
        rate: of its file, `thurl.distillation.ddr.Rate.row`.
        name: headline.
        license: of the data, an identifier of the Hub; None: not said.
        tags: of the Hub, beside those of the method.
        datasets: names on the Hub of what was distilled.
        results: metric to value of networks trained on the set; None: the card says nothing of it.
        repo_id: on the Hub, for the lines that load it; a push puts it there.
    """
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license=license,
        task_categories=["image-classification"],
        pretty_name=one_line(name),
        tags=sorted({"dataset-distillation", "thurl", *tags}),
        source_datasets=list(datasets) or None,
        size_categories=[_size(len(dataset.labels))],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    )
    config, samples, classes = dataset.slices[0].config, len(dataset.labels), len(dataset.classes)
    bits = {part: rate[part] for part in ("latents", "nets", "labels", "header")}
    rows = [(part, f"{count:,}", f"{100 * count / rate['total_bits']:.1f}") for part, count in bits.items()]
    rows.append(("all: the file `data.ddr`", f"{rate['total_bits']:,}", "100.0"))
    parts = [
        front_matter(data),
        f"# {one_line(name)}\n",
        f"{samples:,} synthetic pictures of {config.width}x{config.height} pixels and {config.channels} channels in "
        f"{classes:,} classes, distilled for training classifiers and stored as a compressed file of "
        f"{rate['total_bits'] // 8:,} bytes. Method: {PAPER} ([{PAPER_ID}](https://arxiv.org/abs/{PAPER_ID})).\n",
        "## Size\n",
        table(("part", "bits", "%"), rows),
        f"{rate['bpc']:,.0f} bits per class, networks, labels and header included. The pictures as plain numbers:\n",
        table(
            ("pixels as", "bits", "times the file"),
            [(kind, f"{count:,}", f"{count / rate['total_bits']:.1f}") for kind, count in plain_bits(dataset).items()],
        ),
        "Papers mostly count pixels as fp32; the row of 8 bits is the fairer one.\n",
        "## Loading\n",
        "`data.ddr` is the data set; the Parquet file holds the same pictures decoded, for viewers and for\n"
        "`datasets.load_dataset`, and is larger.\n",
        "```python\n"
        "from thurl.distillation import ddr\n\n"
        f'ds = ddr.load("{repo_id}")\n'
        "image, label = ds[0]  # uint8 (channels, height, width), int\n"
        "```\n",
        "## Training on it\n",
        "Pictures are normalised as (picture / 255 - mean) / std with\n",
        table(("", "values"), [("mean", _numbers(dataset.mean)), ("std", _numbers(dataset.std))]),
    ]
    if dataset.hints:
        parts += [
            "The setting it was made for; with another augmentation or network accuracy is lower as a rule:\n",
            table(("setting", "value"), [(key, json.dumps(value)) for key, value in sorted(dataset.hints.items())]),
        ]
    else:
        parts.append("The file says nothing of the training it was made for.\n")
    if results:
        parts += ["## Results\n", table(("metric", "value"), [(name, number(v)) for name, v in results.items()])]
    said = ", ".join(datasets) if datasets else "see the recipe, if there is one below"
    parts += [
        f"## Source\n\nDistilled from: {one_line(said)}. Licence: {license or 'not said'}.\n",
        "## Limits\n",
        "The pictures are made for training, not for looking at. They can show features of the pictures they were\n"
        "distilled from: a licence or a duty of privacy of those is not lifted by distillation.\n",
        citation(PAPER, PAPER_ID),
    ]
    return "\n".join(parts)


def _size(samples: int) -> str:
    """The Hub's word for a number of rows."""
    bounds = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
    return next((name for bound, name in bounds if samples < bound), "1M<n<10M")


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
