"""What a `.ddr` file costs against the estimate that training optimises, and how fast it is read.

    python benchmarks/ddr.py

Codecs are fitted to patches of the photographs that come inside scikit-image, scikit-learn and matplotlib: 200
patches of 64 x 64 pixels averaged to 16 x 16, one decoder for all (context 8, depth 2, width 24), 200 iterations in
two stages, the last tenth with hard rounding; the networks are quantised at a mean squared error of 5e-5. Weights of
bits are chosen for about 80, 50 and 25 kbit of latents. A run is one fit.

- `latents`: the file's section against the float estimate of the official formula (float32, probabilities of at
  least 2^-16, quantised networks); `whole`: all bits of the file against that estimate and the exponential Golomb
  codes of the networks.
- `symbols_per_second`: latents read, all 200 samples at a position, in CPU seconds of one thread, the best of three,
  by constriction's coder and by the one in Python; `ratio` is theirs.
- `pixels_changed`: share of pixels in which the whole-number pictures differ from the rounded float ones, and by how
  much at most (`largest_change`, of 255 levels).

Bars, set before the run: latents and whole at most 1.01 times the estimate plus 64 bytes from 50 kbit on, at most
1.025 times the estimate below; at least 50,000 symbols per second with constriction; at most one level of change.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from thurl.data.photos import bundled_photos
from thurl.distillation import ddr
from thurl.distillation.coded import CodedDataset, CodedSlice
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.integer import decode_images
from thurl.distillation.latent_stream import decode_latents, encode_latents
from thurl.distillation.post_quantisation import post_quantise
from thurl.distillation.range_coder import make_decoder, make_encoder
from thurl.distillation.warm_up import WarmUpConfig, warm_up
from thurl.training.results import write_results


SAMPLES, SIDE, PATCH = 200, 16, 64
ITERATIONS, LR = 100, 2e-2
WEIGHTS = {"large": 0.002, "middle": 0.005, "small": 0.02}
SEEDS = (11, 12, 13)
CONFIG = CodecConfig(SIDE, SIDE, 3, context=8, depth=2, widths=(24,))


def patches(seed: int) -> torch.Tensor:
    """Float (1, SAMPLES, 3, SIDE, SIDE) in [0, 1], from photographs in turn."""
    rng = np.random.default_rng(seed)
    photos = [np.asarray(photo) for photo in bundled_photos("train").values()]
    found = []
    for i in range(SAMPLES):
        photo = photos[i % len(photos)]
        y, x = (int(rng.integers(0, size - PATCH + 1)) for size in photo.shape[:2])
        patch = Image.fromarray(photo[y : y + PATCH, x : x + PATCH]).resize((SIDE, SIDE), Image.Resampling.BOX)
        found.append(np.asarray(patch))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float()[None] / 255


def run(name: str, weight: float, seed: int) -> dict[str, Any]:
    """Fit, write, read and measure."""
    settings = WarmUpConfig(
        iterations=ITERATIONS, candidates=1, keep=1, rate_weight=weight, lr=LR, straight_through=0.1
    )
    start = time.process_time()
    images = patches(seed)
    codec = warm_up(CONFIG, images, settings, torch.Generator().manual_seed(seed))
    fit_seconds = time.process_time() - start
    nets = post_quantise(codec, 5e-5)
    (coded,) = codec.coded(np.zeros((1, SAMPLES), np.int32), nets)
    estimate, net_estimate = nets.slices[0].latent_bits, sum(nets.slices[0].net_bits.values())
    rate = ddr.rate(CodedDataset((coded,), ("patch",), (0.5,) * 3, (0.25,) * 3))
    whole = nets.apply(codec).hard().images[0].detach().numpy()
    floats = np.clip(np.floor(whole * 255.0 + 0.5), 0, 255).astype(int)
    pixels = decode_images(coded).astype(int)
    error = float(np.square(pixels / 255 - images[0].numpy()).mean())
    speeds = {coder: speed(coded, coder) for coder in ("constriction", "reference")}
    return {
        "seed": seed,
        "setting": name,
        "rate_weight": weight,
        "estimate": {"latents": estimate, "nets": net_estimate},
        "file": {part: value for part, value in rate.row().items() if part != "bpc"},
        "latents_over_estimate": rate.latents / estimate,
        "whole_over_estimate": rate.total_bits / (estimate + net_estimate),
        "within_bar": max(over(rate.latents, estimate), over(rate.total_bits, estimate + net_estimate)) <= 0,
        "largest_latent": int(max(np.abs(level).max() for level in coded.latents)),
        "symbols": SAMPLES * CONFIG.latents,
        "symbols_per_second": speeds,
        "ratio": speeds["constriction"] / speeds["reference"],
        "pixels_changed": float((pixels != floats).mean()),
        "largest_change": int(np.abs(pixels - floats).max()),
        "psnr": -10 * float(np.log10(error)),
        "fit_cpu_seconds": fit_seconds,
    }


def over(bits: float, estimate: float) -> float:
    """Bits above the bar; not positive: met."""
    return bits - (1.01 * estimate + 8 * 64 if estimate >= 50_000 else 1.025 * estimate)


def speed(coded: CodedSlice, coder: str) -> float:
    """Latents read per CPU second."""
    encoder = make_encoder(coder)
    encode_latents(encoder, coded)
    data, seconds = encoder.finish(), []
    for _ in range(3):
        start = time.process_time()
        found = decode_latents(make_decoder(data, coder), coded.config, len(coded.labels), coded.nets)
        seconds.append(time.process_time() - start)
    if not all(np.array_equal(a, b) for a, b in zip(found, coded.latents, strict=True)):
        raise RuntimeError("what was read is not what was written")
    return len(coded.labels) * coded.config.latents / min(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all, write the results; exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "results" / "ddr.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = []
    for seed in options.seeds:
        for name, weight in WEIGHTS.items():
            runs.append(run(name, weight, seed))
            print({key: runs[-1][key] for key in ("setting", "seed", "estimate", "latents_over_estimate",
                  "whole_over_estimate", "symbols_per_second", "within_bar")}, flush=True)  # fmt: skip
    failed = [
        one for one in runs
        if not one["within_bar"] or one["symbols_per_second"]["constriction"] < 50_000 or one["largest_change"] > 1
    ]  # fmt: skip
    write_results(options.output, recipe="benchmarks/ddr.py", runs=runs, bars_missed=len(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
