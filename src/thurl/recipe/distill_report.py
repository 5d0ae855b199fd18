"""What a distillation leaves for a person: a results file, tables on the console, a one-page report."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from thurl.distillation.ddr import Rate
from thurl.recipe.distill_choice import Choice
from thurl.recipe.distill_coding import Coded
from thurl.recipe.distill_data import DistillStudy
from thurl.recipe.distill_stages import Stage
from thurl.recipe.run_record import logged_points, print_table, say_where, write_run_results
from thurl.training.picture_page import PictureRow, write_picture_page
from thurl.training.timing import phase_rows


__all__ = ["DistillOutcome", "montage", "run_record", "table", "write_report"]

logger = logging.getLogger(__name__)

_TITLES = {
    "joint": "joint run",
    "warm_up": "warm-up fitted to the size",
    "real_pixels": "real pictures, 8-bit pixels",
    "dm_pixels": "distilled pictures, 8-bit pixels",
    "jpeg": "real pictures, JPEG",
    "webp": "real pictures, WebP",
}


@dataclass(frozen=True)
class DistillOutcome:
    """What the stages of a distillation gave.

    Attributes:
        seed: of the run.
        study: real pictures.
        warmed, reference, joint: stages; `reference` is the warm-up at the bits of the joint run.
        choice: which set is shipped.
        rate: bits of its file.
        decode_seconds: of reading the file and decoding all pictures, one process.
        images, labels: of the file.
        test: accuracies on the test pictures by candidate.
        across: the same of other networks on the shipped set.
        baselines: records by name.
        targets: pictures the warm-up started from.
        seconds: of everything.
    """

    seed: int
    study: DistillStudy
    warmed: Stage
    reference: Stage
    joint: Stage
    choice: Choice
    rate: Rate
    decode_seconds: float
    images: torch.Tensor
    labels: torch.Tensor
    test: dict[str, dict[str, Any]]
    across: dict[str, dict[str, Any]]
    baselines: dict[str, Any]
    targets: torch.Tensor
    seconds: float


def run_record(recipe: Any, outcome: DistillOutcome) -> dict[str, Any]:
    """One record of a results file.

    `shipped` (name of the set), `target` (bits per class, null without), `within_target`, `bits` of the file by part,
    `paper_bits_per_class` (latents and networks alone), `sets` (per candidate: bits, accuracy on held-out and test
    pictures), `pixels` (the same pictures as plain numbers, bits per class), `baselines`, `across`, `decode_seconds`,
    `warm_up_psnr` (dB, of the first fit), `seconds` and `seconds_by_stage`. Accuracies are 0 to 1.
    """
    choice, rate = outcome.choice, outcome.rate
    stages = {"joint": outcome.joint.coded, "warm_up": outcome.reference.coded}
    stages.setdefault(choice.chosen.name, choice.chosen.coded)
    sets = {
        name: {
            "bits_per_class": coded.bits_per_class,
            "max_mse": coded.max_mse,
            "held_out": choice.held_out.get(name),
            "test": outcome.test.get(name),
        }
        for name, coded in stages.items()
    }
    values = outcome.images[0].numel() * len(outcome.images) / rate.classes
    return {
        "seed": outcome.seed,
        "shipped": choice.chosen.name,
        "target": recipe.rate.bits_per_class,
        "within_target": choice.within_target,
        "bits_per_class": rate.total_bits / rate.classes,
        "paper_bits_per_class": (rate.latents + rate.nets) / rate.classes,
        "bits": rate.row(),
        "accuracy": outcome.test[choice.chosen.name],
        "sets": sets,
        "pixels": {"fp32": 32 * values, "fp16": 16 * values, "uint8": 8 * values},
        "baselines": outcome.baselines,
        "across": outcome.across,
        "decode_seconds": outcome.decode_seconds,
        "warm_up_psnr": psnr(outcome.warmed.coded, outcome.targets),
        "warm_up_bits_per_class": outcome.warmed.coded.bits_per_class,
        "test_pictures": len(outcome.study.test),
        "seconds": outcome.seconds,
        "seconds_by_stage": {
            "warm_up": outcome.warmed.seconds,
            "fit": outcome.reference.seconds if outcome.reference is not outcome.warmed else 0.0,
            "joint": outcome.joint.seconds,
        },
    }


def psnr(coded: Coded, targets: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of all decoded pictures together; infinite where nothing differs."""
    error = float((coded.images.double() / 255 - targets.double()).square().mean())
    return -10 * math.log10(error) if error > 0 else math.inf


def table(record: Mapping[str, Any]) -> list[list[str]]:
    """Headings, baselines, sets, the shipped one last: bits per class and test accuracy."""
    rows = [["data", "bits per class", "accuracy (%)"]]
    for name, entry in record["baselines"].items():
        settings = entry["settings"]
        count = f"{settings['per_class']} per class"
        if "quality" in settings:
            count += f", quality {settings['quality']}"
        rows.append([f"{_TITLES[name]}, {count}", f"{entry['bits_per_class']:,.0f}", _accuracy(entry["accuracy"])])
    for name, entry in record["sets"].items():
        if name != record["shipped"] and entry["test"] is not None:
            rows.append([_TITLES.get(name, name), f"{entry['bits_per_class']:,.0f}", _accuracy(entry["test"])])
    shipped = f"shipped: {_TITLES.get(record['shipped'], record['shipped'])}"
    return [*rows, [shipped, f"{record['bits_per_class']:,.0f}", _accuracy(record["accuracy"])]]


def size_table(record: Mapping[str, Any]) -> list[list[str]]:
    """Where the bits of the file are, and what the same pictures cost otherwise."""
    bits = record["bits"]
    classes = bits["total_bits"] / bits["bpc"]
    rows = [["size", "bits per class", "times the file"]]
    for part in ("latents", "nets", "labels", "header"):
        rows.append([f"in the file: {part}", f"{bits[part] / classes:,.0f}", f"{bits[part] / bits['total_bits']:.2f}"])
    rows.append(
        ["as papers count (latents and nets)", f"{record['paper_bits_per_class']:,.0f}", _times(record, "paper")]
    )
    for name in ("uint8", "fp16", "fp32"):
        rows.append([f"same pictures as {name}", f"{record['pixels'][name]:,.0f}", _times(record, name)])
    return [*rows, ["the file", f"{bits['bpc']:,.0f}", "1.00"]]


def _times(record: Mapping[str, Any], name: str) -> str:
    bits = record["paper_bits_per_class"] if name == "paper" else record["pixels"][name]
    return f"{bits / record['bits']['bpc']:.2f}"


def _accuracy(entry: Mapping[str, Any]) -> str:
    if not math.isfinite(entry["mean"]):
        return "undefined"
    spread = f" ± {100 * entry['std']:.1f}" if len(entry["each"]) > 1 else ""
    return f"{100 * entry['mean']:.1f}{spread}"


def write_report(
    recipe: Any, outcome: DistillOutcome, recipe_path: str, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Write what the recipe's `report` section asks for and print the tables.

    Returns:
        the record of this run, see `run_record`.
    """
    record = run_record(recipe, outcome)
    section = recipe.report
    if section.results:
        write_run_results(section.results, recipe, record, recipe_path, overrides)
    rows = table(record)
    print_table("Test accuracy of networks trained on each set", rows, bold_last=True)
    print_table("Size", size_table(record), bold_last=True)
    if section.html:
        _write_html(recipe, outcome, rows, record)
    say_where(section.html, section.results, recipe.training["output_dir"], output_is="Data set")
    if record["shipped"] == "warm_up":
        logger.info("The joint run was not better than the warm-up at these bits; the warm-up is shipped.")
    if not record["within_target"]:
        logger.warning(
            "The set has %.0f bits per class, above the %.0f asked for",
            *(record["bits_per_class"], record["target"] or record["sets"]["joint"]["bits_per_class"]),
        )
    return record


def montage(images: torch.Tensor, labels: torch.Tensor, classes: int, count: int) -> Image.Image:
    """The first samples of each class, a row per class, at most twenty classes.

    Args:
        images: uint8 (N, channels, H, W).
        labels: int64 (N,).
        count: samples of each class.
    """
    channels, height, width = images.shape[1:]
    shown = min(classes, 20)
    canvas = torch.full((channels, shown * (height + 1), count * (width + 1)), 255, dtype=torch.uint8)
    for label in range(shown):
        for place, index in enumerate((labels == label).nonzero().flatten()[:count].tolist()):
            top, left = label * (height + 1), place * (width + 1)
            canvas[:, top : top + height, left : left + width] = images[index]
    array = canvas.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if channels == 1 else array)


def _write_html(
    recipe: Any, outcome: DistillOutcome, rows: Sequence[Sequence[str]], record: Mapping[str, Any]
) -> None:
    classes, count = len(outcome.study.train.classes), recipe.report.examples
    joint, fitted = outcome.joint, outcome.reference
    lines = {"joint run": joint.log, "warm-up to the size": fitted.log}
    curves = {
        title: {name: logged_points(log, key) for name, log in lines.items() if any(key in entry for entry in log)}
        for title, key in (("Bits per pixel", "terms/rate"), ("Bits of latents", "rate/bits"))
    }
    curves["Utility"] = {"joint run": logged_points(joint.log, "terms/utility")}
    pictures = []
    if count:
        real = (outcome.targets * 255).round().to(torch.uint8)
        order = torch.as_tensor(joint.model.labels.cpu())
        states = {
            "real": montage(real, order, classes, count),
            "warm-up": montage(fitted.coded.images, fitted.coded.labels, classes, count),
            "joint": montage(joint.coded.images, joint.coded.labels, classes, count),
        }
        pictures.append(PictureRow(states, "The first samples of each class, a row per class."))
    sizes = size_table(record)
    notes = [
        f"Accuracy: fresh networks trained on the pictures decoded from the file, judged on {len(outcome.study.test)} "
        f"test pictures; mean and standard deviation over {len(recipe.evaluation.seeds)} networks.",
        f"Choices were made on {len(outcome.study.held_out)} training pictures that were held out; the test pictures "
        "had no part in them.",
        "JPEG and WebP are counted by their entropy-coded data alone, without headers.",
        *(f"{row[0]}: {row[1]} bits per class, {row[2]} times the file" for row in sizes[1:]),
    ]
    if record["shipped"] == "warm_up":
        notes.insert(0, "The joint run was not better than the warm-up at these bits; the warm-up is shipped.")
    if not record["within_target"]:
        notes.insert(0, "No set was within the size asked for; the smallest is shipped.")
    write_picture_page(
        Path(recipe.report.html),
        title="Distilled data set",
        summary=f"{recipe.method}: {len(outcome.images)} samples in {classes} classes from "
        f"{len(outcome.study.train)} pictures, {outcome.rate.total_bits // 8:,} bytes.",
        facts=[
            ("bits per class", f"{record['bits_per_class']:,.0f}"),
            ("accuracy (%)", _accuracy(record["accuracy"])),
            ("shipped", _TITLES.get(record["shipped"], record["shipped"])),
            ("seconds to decode", f"{record['decode_seconds']:.2f}"),
        ],
        table=rows,
        curves={name: found for name, found in curves.items() if found},
        pictures=pictures,
        notes=notes,
        timing=phase_rows(joint.timing["seconds"], joint.timing["steps"]) if joint.timing else (),
    )
