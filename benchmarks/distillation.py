"""What is a data set worth per bit? Rate-utility distillation against pixels and coded pictures at the same bits.

    python benchmarks/distillation.py --seeds 11 12 13 --photos PHOTOS --digits MNIST [--cifar CIFAR]

Experiment A of the method at a size that a CPU can do: pictures of 16 x 16, a ConvNet of depth 2 and width 32 that
both matches distributions and judges, 20 samples per class, one decoder for all classes (context 8, depth 2, width
24). For each seed and data set: one warm-up on real pictures, then for each size (bits per class, the whole file
counted) a fit of the warm-up to it and a joint run to it, DM pixels, real pixels, and real pictures as JPEG and WebP
of the quality that is best on held-out pictures, as many as the file's bits hold (entropy-coded data alone is counted,
in their favour). Pixel sets have one picture per class where not even that fits.

`--photos`: a folder of photographs, each a class, ten of them; patches of 24 pixels, averaged to 16, train and test
from separate regions. `--digits`: a folder with MNIST idx files, grey. `--cifar`: the binary version of CIFAR-10. The
seed draws classes, pictures, warm-up, codec and networks.

Bars, fixed before the run. They were set for CIFAR-10 in colour, from one run there. On photographs and digits they
are our own yardstick, and may be missed for reasons of the data: grey pictures have a third of the values, and digits
are nearly saturated by few samples. Test accuracy in points, mean over seeds, of the joint run, whose file must be
within the size:
(1) at 6,144 bits per class: at least DM pixels of one picture per class + 8, and JPEG + 3;
(2) at 3,000 bits per class: at least JPEG + 2.5; where not one JPEG fits, that alone meets it;
(3) at 6,144 bits per class: at least the warm-up fitted to the size + 5;
(4) the first fit has at least the PSNR of JPEG of the same pictures at the bits of its latents, for every seed; where
    even the lowest quality has more bits, that alone meets it.
Experiment B, on scikit-learn's digits (`--scikit`): the warm-up at no more than 1,600 bits per class trains to at
least 94 %. Exit status 1 when a bar is missed.

Results of single runs are kept in the work folder, and a run that was interrupted goes on there.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from thurl.distillation.baselines import fit_quality, pixels_that_fit
from thurl.distillation.pictures import PictureSet
from thurl.errors import DataError
from thurl.recipe.distill_baselines import baseline_records, judged, make_baselines
from thurl.recipe.distill_data import build_utility, evaluation_config, load_study
from thurl.recipe.distill_report import DistillOutcome, run_record, table
from thurl.recipe.distill_run import distil
from thurl.recipe.shipped import find_recipe
from thurl.recipe.validate import load_recipe
from thurl.training.progress import quiet_libraries
from thurl.training.results import plain, write_atomically, write_results


RECIPE = "tiny/distill_rate_utility"
SIZES = (3000, 6144, 12500)
SCIKIT_SIZE = 1600
DATA: dict[str, tuple[str, ...]] = {
    "photographs": ("data.source.format=photo_patches", "data.source.max_classes=10", "data.source.patch=24"),
    "digits": ("data.source.format=mnist", "data.train_per_class=200", "data.test_per_class=100"),
    "cifar": ("data.source.format=cifar10", "data.train_per_class=1000", "data.test_per_class=200"),
}
OVERRIDES = (
    *("model.depth=2", "model.widths=[24]", "data.size=16"),
    *("warm_up.iterations=200", "warm_up.candidates=1", "warm_up.keep=1", "warm_up.rate_weight=0.002"),
    *("fit.max_steps=120", "fit.learning_rate=3e-3", "training.max_steps=200", "training.learning_rate=3e-3"),
    *("utility.batch_real=32", "choice.seeds=[1000]", "evaluation.seeds=[0,1]", "baselines.qualities=[5,20]"),
    *("baselines.names=[jpeg, webp]", "evaluation.images=8000"),
    *("training.resume_from_checkpoint=auto", "report.results=null", "report.html=null"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--photos", type=Path, help="folder of photographs")
    parser.add_argument("--digits", type=Path, help="folder with MNIST idx files")
    parser.add_argument("--cifar", type=Path, help="folder with CIFAR-10's binary version")
    parser.add_argument("--scikit", action="store_true", help="experiment B on scikit-learn's digits")
    parser.add_argument("--sizes", type=float, nargs="+", default=list(SIZES), help="bits per class")
    parser.add_argument("--note", default="", help="what the pictures are, for the results file")
    parser.add_argument("--out", type=Path, default=Path("results/distillation.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="further overrides of the recipe")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    torch.set_num_threads(1)
    folders = {"photographs": options.photos, "digits": options.digits, "cifar": options.cifar}
    jobs = [(seed, name, folder) for seed in options.seeds for name, folder in folders.items() if folder is not None]
    jobs += [(seed, "scikit", None) for seed in options.seeds if options.scikit]
    runs: list[dict[str, Any]] = []
    for seed, name, folder in jobs:
        place = options.work / f"{name}_{seed}"
        sizes = [SCIKIT_SIZE] if name == "scikit" else options.sizes
        runs.append(run_seed(seed, name, folder, sizes, place, options.overrides))
        save(options.out, runs, options.overrides, options.note)
    missed = [f"{name}: {bar}" for name, bars in verdicts(runs).items() for bar, holds in bars.items() if not holds]
    sys.stdout.write(f"missed: {', '.join(missed) or 'none'}\n")
    return int(bool(missed))


def save(path: Path, runs: Sequence[dict[str, Any]], overrides: Sequence[str], note: str) -> None:
    """After every run, so that an interrupted study keeps what it has."""
    write_results(
        path,
        recipe=f"recipes/{RECIPE}.yaml",
        overrides=[*(OVERRIDES if any(run["data"] != "scikit" for run in runs) else ()), *overrides],
        runs=[with_rows(run) for run in runs],
        note=note,
        bars=verdicts(runs),
        curve=curve(runs),
    )


def with_rows(run: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its numbers by row of the tables: the data's name to size and set to bits and accuracy."""
    rows: dict[str, dict[str, float]] = {}
    for size, entry in run["sizes"].items():
        for name, (bits, score) in points(entry).items():
            rows[f"{float(size):,.0f} bits: {name.replace('_', ' ')}"] = {"bits": bits, "accuracy": score}
    first = next(iter(run["sizes"].values()))
    quality = {"psnr": {run["data"]: first["psnr"]}} if "psnr" in first else {}
    return {
        **run,
        run["data"]: rows,
        **quality,
        **({"margin": {run["data"]: found}} if (found := margins(run)) else {}),
    }


def margins(run: Mapping[str, Any]) -> dict[str, float | None]:
    """By how much each bar is met (0 or more) or missed, in parts of 1 of accuracy, and in dB for (4)."""
    found: dict[str, float | None] = {}
    large, small = run["sizes"].get("6144"), run["sizes"].get("3000")
    if run["data"] == "scikit":
        return {"B": accuracy(run["sizes"][f"{SCIKIT_SIZE}"], "warm_up") - 0.94}
    if large is not None:
        joint = accuracy(large, "joint")
        found["1: DM pixels"] = joint - large["dm_one_per_class"]["mean"] - 0.08
        found["1: JPEG"] = joint - coded(large, "jpeg") - 0.03
    if small is not None:
        found["2: JPEG"] = accuracy(small, "joint") - coded(small, "jpeg") - 0.025
    if large is not None:
        found["3: warm-up"] = joint - accuracy(large, "warm_up") - 0.05
        quality = large["psnr"]
        found["4: PSNR, dB"] = None if quality["jpeg"] is None else quality["warm_up"] - quality["jpeg"]
    return found


def run_seed(
    seed: int, name: str, folder: Path | None, sizes: Sequence[float], place: Path, overrides: Sequence[str]
) -> dict[str, Any]:
    """All sizes of one data set and seed: a record with an entry per size."""
    began = time.perf_counter()
    entries = {}
    for size in sizes:
        path = place / f"{size:g}.json"
        if not path.is_file():
            record = run_size(seed, name, folder, size, place, overrides)
            write_atomically(path, json.dumps(plain(record), allow_nan=False))
        entries[f"{size:g}"] = json.loads(path.read_text(encoding="utf-8"))
        say(
            f"{name}, seed {seed}, {size:g} bits per class ({time.perf_counter() - began:.0f} s):",
            entries[f"{size:g}"],
        )
    return {"seed": seed, "data": name, "sizes": entries}


def run_size(
    seed: int, name: str, folder: Path | None, size: float, place: Path, overrides: Sequence[str]
) -> dict[str, Any]:
    """One distillation at one size; the warm-up is that of the other sizes."""
    changes = [f"training.seed={seed}", f"training.output_dir={place}", f"data.seed={seed}"]
    changes += [f"rate.bits_per_class={size:g}"]
    if folder is not None:
        changes += [*OVERRIDES, *DATA[name], f"data.source.folder={folder}"]
    else:
        changes += ["training.resume_from_checkpoint=auto", "report.results=null", "report.html=null"]
    recipe = load_recipe(find_recipe(RECIPE), [*changes, *overrides]).recipe
    study = load_study(recipe)
    outcome = distil(recipe, study)
    record = run_record(recipe, outcome)
    if folder is not None:
        count = max(1, pixels_that_fit(size, *study.train.images.shape[1:]))
        record["psnr"] = warm_up_against_coders(outcome, seed)
        record["dm_one_per_class"] = pixel_sets(recipe, study, seed, 1, place)["dm_pixels"]["accuracy"]
        record["baselines"] = {**pixel_sets(recipe, study, seed, count, place), **record["baselines"]}
    record["rows"] = table(record)
    return record


def pixel_sets(recipe: Any, study: Any, seed: int, count: int, place: Path) -> dict[str, Any]:
    """Real and DM pixels of a number of pictures per class; made once, whatever sizes they are for."""
    path = place / f"pixels_{count}.json"
    if not path.is_file():
        config, seeds = evaluation_config(recipe, study.train), recipe.evaluation.seeds
        made = make_baselines(
            ("real_pixels", "dm_pixels"),
            study.train,
            count * study.train.images[0].numel() * 8,
            qualities=(),
            score=lambda baseline: 0.0,
            utility=lambda: build_utility(recipe, study.train),
            pixel_steps=recipe.fit.max_steps + recipe.training["max_steps"],
            pixel_learning_rate=recipe.baselines.pixel_learning_rate,
            seed=seed,
        )
        records = baseline_records(made, lambda images, labels: judged(images, labels, study.test, config, seeds))
        write_atomically(path, json.dumps(plain(records), allow_nan=False))
    return dict(json.loads(path.read_text(encoding="utf-8")))


def warm_up_against_coders(outcome: DistillOutcome, seed: int) -> dict[str, float | None]:
    """Bar (4): PSNR of the first fit, and of JPEG and WebP on the same pictures at the bits of its latents."""
    found: dict[str, float | None] = {}
    targets = (outcome.targets * 255).round().to(torch.uint8)
    coded = outcome.warmed.coded
    train = outcome.study.train
    same = PictureSet(targets, coded.labels, train.classes, train.mean, train.std)
    per_class = len(targets) // len(train.classes)
    budget = coded.rate.latents / len(train.classes)
    found["latent_bits_per_class"] = budget
    found["warm_up"] = psnr(coded.images, targets)
    for coder in ("jpeg", "webp"):
        try:
            # All pictures of each class are drawn, so the generator only orders them: the same order again below.
            generator = torch.Generator().manual_seed(seed)
            baseline = fit_quality(same, per_class, budget, generator, coder, "scan")
            again = same.draw(per_class, torch.Generator().manual_seed(seed))
            found[coder] = psnr(baseline.images, again.images)
            found[f"{coder}_bits_per_class"] = baseline.bits_per_class
        except DataError:  # even the lowest quality costs more
            found[coder] = found[f"{coder}_bits_per_class"] = None
    return found


def psnr(images: torch.Tensor, targets: torch.Tensor) -> float:
    """dB, of uint8 pictures."""
    error = float((images.double() - targets.double()).square().mean()) / 255**2
    return -10 * math.log10(error) if error else math.inf


def verdicts(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, bool]]:
    """Truth of the bars for each data set that has the sizes they speak of."""
    found: dict[str, dict[str, bool]] = {}
    for name in dict.fromkeys(run["data"] for run in runs):
        mine = [run["sizes"] for run in runs if run["data"] == name]
        if name == "scikit":
            values = [sizes[f"{SCIKIT_SIZE}"] for sizes in mine]
            fit = [entry["sets"]["warm_up"] for entry in values]
            holds = mean(entry["test"]["mean"] for entry in fit) >= 0.94
            found[name] = {"B": holds and all(entry["bits_per_class"] <= SCIKIT_SIZE for entry in fit)}
            continue
        bars: dict[str, bool] = {}
        large = [sizes["6144"] for sizes in mine if "6144" in sizes]
        small = [sizes["3000"] for sizes in mine if "3000" in sizes]
        if large:
            joint = mean(accuracy(entry, "joint") for entry in large)
            pixels = mean(entry["dm_one_per_class"]["mean"] for entry in large)
            jpeg = mean(coded(entry, "jpeg") for entry in large)
            within = all(entry["sets"]["joint"]["bits_per_class"] <= 6144 for entry in large)
            bars["1"] = within and joint >= pixels + 0.08 and not joint < jpeg + 0.03
            bars["3"] = within and joint >= mean(accuracy(entry, "warm_up") for entry in large) + 0.05
            bars["4"] = all(
                entry["psnr"]["jpeg"] is None or entry["psnr"]["warm_up"] >= entry["psnr"]["jpeg"] for entry in large
            )
        if small:
            joint = mean(accuracy(entry, "joint") for entry in small)
            within = all(entry["sets"]["joint"]["bits_per_class"] <= 3000 for entry in small)
            bars["2"] = within and not joint < mean(coded(entry, "jpeg") for entry in small) + 0.025
        found[name] = dict(sorted(bars.items()))
    return found


def curve(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rate and utility: a row for each data set, size and way to spend the bits, means over the seeds."""
    rows = []
    for name in dict.fromkeys(run["data"] for run in runs):
        mine = [run["sizes"] for run in runs if run["data"] == name]
        for size in dict.fromkeys(size for sizes in mine for size in sizes):
            entries = [sizes[size] for sizes in mine if size in sizes]
            found: dict[str, list[tuple[float, float]]] = {}
            for entry in entries:
                for key, point in points(entry).items():
                    found.setdefault(key, []).append(point)
            for key, values in found.items():
                scores = [score for _, score in values]
                rows.append(
                    {
                        "data": name,
                        "size": float(size),
                        "set": key,
                        "bits_per_class": mean(bits for bits, _ in values),
                        "accuracy": mean(scores),
                        "std": statistics.stdev(scores) if len(scores) > 1 else None,
                        "seeds": len(scores),
                    }
                )
    return rows


def points(entry: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Bits per class and test accuracy, 0 to 1, of everything that one size was spent on."""
    found = {name: (value["bits_per_class"], value["accuracy"]["mean"]) for name, value in entry["baselines"].items()}
    for name in ("warm_up", "joint"):
        found[name] = (entry["sets"][name]["bits_per_class"], entry["sets"][name]["test"]["mean"])
    return {**found, "shipped": (entry["bits_per_class"], entry["accuracy"]["mean"])}


def accuracy(entry: Mapping[str, Any], name: str) -> float:
    return float(entry["sets"][name]["test"]["mean"])


def coded(entry: Mapping[str, Any], name: str) -> float:
    """Accuracy of a coder's baseline; none at these bits counts as no accuracy."""
    return float(entry["baselines"][name]["accuracy"]["mean"]) if name in entry["baselines"] else 0.0


def mean(values: Any) -> float:
    return statistics.fmean(values)


def say(head: str, record: Mapping[str, Any]) -> None:
    sys.stdout.write(head + "\n")
    for row in record["rows"][1:]:
        sys.stdout.write(f"  {row[0]:<44} {row[1]:>9} bits  {row[2]:>12} %\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
