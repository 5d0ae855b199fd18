"""What the evaluator's offline measures say about restorations whose quality is known beforehand.

    python benchmarks/face_restoration.py

Crops of photographs that come with scikit-image, scikit-learn and matplotlib (validation and held-out ones; no faces
data) are degraded: blurred, a quarter of the size and back, noisy, JPEG. The "restorations" are the original, the
original blurred, noisy, over-sharpened, recompressed or with other colours, and the untouched input. Each becomes
files that the evaluator reads as any entry. The pristine model behind `niqe_fitted` is fitted to the training
photographs.

One record per seed, which draws crops and noise: mean of each measure over the crops, by restoration.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from thurl.data.photos import bundled_photos
from thurl.iqa.face_restoration import EvaluationSettings, MetricContext, evaluate_faces
from thurl.iqa.face_restoration.pristine import fit_files, save_pristine
from thurl.training.results import write_results


SIDE = 256
METRICS = (
    *("psnr", "ssim", "lq_psnr_8", "lq_ssim_8", "colour_shift", "tenengrad"),
    *("noise_sigma", "blockiness", "niqe_fitted"),
)

Treatment = Callable[[Image.Image, Image.Image, np.random.Generator], Image.Image]


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def noise(picture: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture) + rng.normal(0, sigma, (*picture.size[::-1], 3))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def other_colours(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture.convert("YCbCr")).astype(int) + np.array([0, 12, -12])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "YCbCr").convert("RGB")


def degraded(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    small = picture.filter(ImageFilter.GaussianBlur(2)).resize((SIDE // 4, SIDE // 4), Image.Resampling.BICUBIC)
    return jpeg(noise(small, 8, rng), 60).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


RESTORATIONS: dict[str, Treatment] = {
    "original": lambda gt, lq, rng: gt,
    "blur_1": lambda gt, lq, rng: gt.filter(ImageFilter.GaussianBlur(1)),
    "blur_3": lambda gt, lq, rng: gt.filter(ImageFilter.GaussianBlur(3)),
    "noise_10": lambda gt, lq, rng: noise(gt, 10, rng),
    "sharpened": lambda gt, lq, rng: gt.filter(ImageFilter.UnsharpMask(2, 300, 0)),
    "jpeg_15": lambda gt, lq, rng: jpeg(gt, 15),
    "other_colours": lambda gt, lq, rng: other_colours(gt),
    "input": lambda gt, lq, rng: lq,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2024, 2025, 2026])
    parser.add_argument("--photos", type=int, help="crop so many photographs; default: all")
    parser.add_argument("--out", type=Path, default=Path("results/face_restoration.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    test = {**bundled_photos("validation"), **bundled_photos("held_out")}
    test = {name: photo for name, photo in test.items() if min(photo.size) >= SIDE}
    test = dict(list(test.items())[: options.photos])
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pristine(place)
        for seed in options.seeds:
            start = time.perf_counter()
            per_restoration = measure(test, place / str(seed), place / "pristine.npz", seed)
            runs.append({"seed": seed, "seconds": time.perf_counter() - start, "per_restoration": per_restoration})
            sys.stdout.write(f"seed {seed}: {runs[-1]['seconds']:.0f} s\n")
    details = {"crops": len(test), "side": SIDE, "data": "photographs of installed packages, synthetic degradations"}
    write_results(options.out, recipe="benchmarks/face_restoration.py", overrides=details, runs=runs)
    return 0


def pristine(place: Path) -> None:
    (place / "train").mkdir()
    for name, photo in bundled_photos("train").items():
        photo.crop((0, 0, min(photo.width, 768), min(photo.height, 768))).save(place / "train" / f"{name}.png")
    save_pristine(place / "pristine.npz", fit_files(sorted((place / "train").iterdir()))[0])


def measure(photos: dict[str, Image.Image], place: Path, model: Path, seed: int) -> dict[str, dict[str, float]]:
    """Mean of each metric by restoration."""
    rng = np.random.default_rng(seed)
    for name, photo in photos.items():
        x, y = (int(rng.integers(0, length - SIDE + 1)) for length in photo.size)
        gt = photo.crop((x, y, x + SIDE, y + SIDE))
        lq = degraded(gt, rng)
        for kind, picture in (("gt", gt), ("lq", lq)):
            save(place / kind, name, picture)
        for kind, treatment in RESTORATIONS.items():
            save(place / kind, name, treatment(gt, lq, rng))
    found = {}
    for kind in RESTORATIONS:
        settings = EvaluationSettings(
            place / kind,
            lq=place / "lq",
            gt=place / "gt",
            metrics=METRICS,
            context=MetricContext(weights={"pristine": model}),
        )
        evaluation = evaluate_faces(settings)
        evaluation.raise_for_status()
        found[kind] = {name: evaluation.summary["overall"][name] for name in METRICS}
    return found


def save(folder: Path, name: str, picture: Image.Image) -> None:
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    picture.save(folder / "photos" / f"{name}.png")


if __name__ == "__main__":
    raise SystemExit(main())
