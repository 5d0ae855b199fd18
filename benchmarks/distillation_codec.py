"""All slices of a distilled data set at once against one after another: forward and backward on the CPU.

    python benchmarks/distillation_codec.py

Random networks and latents, float32, one thread, no GPU. Ratios of CPU time of this process, larger is faster, to the
same networks in the same round:

- `layers`: slice by slice with torch's own layers (`PlainSlice`), as the official code has them;
- `slices`: slice by slice with the code of `thurl.distillation`, each slice a codec of its own.

A step is pictures, bits and all gradients. `largest_difference` is the largest difference of pictures, and of bits
relative to them, between the codec and `PlainSlice`. `memory`: largest sum of living tensors in MiB of a step, at once
and slice by slice (`latents_at_once`), parameters left out; a count, the same in every round.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from thurl.distillation.codec import LatentCodec, Noise
from thurl.distillation.geometry import DECODERS, CodecConfig
from thurl.training.results import write_results
from thurl.training.tensor_memory import TensorMemory


TEMPERATURE = 0.3

# Configuration, slices, samples in each: a tiny set, that of MNIST, CIFAR-10 and CIFAR-100 at low rates.
SETTINGS: dict[str, tuple[CodecConfig, int, int]] = {
    "digits_8x8": (CodecConfig(8, 8, 1, 8, 1, (12,)), 10, 20),
    "cifar10_16x16": (CodecConfig(16, 16, 3, 8, 2, (24,)), 10, 20),
    "cifar10_32x32": (CodecConfig(32, 32, 3, 16, 2, DECODERS["v0"]), 10, 10),
    "cifar100_32x32": (CodecConfig(32, 32, 3, 8, 2, DECODERS["v0-0"]), 100, 2),
}


class PlainSlice(torch.nn.Module):
    """Slice `index` of a codec by its description, with torch's layers and none of the codec's functions.

    Args:
        codec: where the values are copied from.
        index: of the slice.
    """

    MASKS = {
        8: [13, 22, 30, 31, 32, 37, 38, 39],
        16: [13, 14, 20, 21, 22, 23, 24, 28, 29, 30, 31, 32, 33, 37, 38, 39],
        24: [4, *range(11, 16), *range(19, 26), *range(28, 35), 36, 37, 38, 39],
        32: [2, 3, 4, 5, *range(10, 17), *range(19, 27), *range(27, 36), 36, 37, 38, 39],
    }

    def __init__(self, codec: LatentCodec, index: int) -> None:
        super().__init__()
        self.gain = codec.config.gain
        self.mask = self.MASKS[codec.config.context]
        for name in ("grids", "arm", "upsampling", "synthesis"):
            values = [torch.nn.Parameter(p.detach()[index].clone()) for p in getattr(codec, name)]
            setattr(self, name, torch.nn.ParameterList(values))

    def forward(self, noise: Sequence[torch.Tensor], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (B, channels, H, W) and bits (B,)."""
        levels = [self.quantise(self.gain * g, n, temperature) for g, n in zip(self.grids, noise, strict=True)]
        return self.decode(levels), torch.stack([self.bits(level) for level in levels]).sum(0)

    def quantise(self, x: torch.Tensor, noise: torch.Tensor, temperature: float) -> torch.Tensor:
        def soft(v: torch.Tensor) -> torch.Tensor:
            d = v - v.floor() - 0.5
            return v.floor() + 0.5 * torch.tanh(d / temperature) / math.tanh(1 / (2 * temperature)) + 0.5

        return soft(soft(x) + noise)

    def bits(self, level: torch.Tensor) -> torch.Tensor:
        windows = F.unfold(level[:, None], 9, padding=4)[:, self.mask].transpose(1, 2)
        layers = list(self.arm)
        for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
            windows = F.relu(F.linear(windows, weight, bias) + windows)
        mean, raw = F.linear(windows, layers[-2], layers[-1]).unbind(-1)
        law = torch.distributions.Laplace(mean, torch.exp(torch.clamp(raw - 4, -4.6, 5.0)))
        values = level.flatten(1)
        mass = law.cdf(values + 0.5) - law.cdf(values - 0.5)
        return -torch.log2(mass.clamp(min=2**-16)).sum(1)

    def decode(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        joined = levels[-1][:, None]
        for level in reversed(levels[:-1]):
            flat = joined.reshape(-1, 1, *joined.shape[-2:])
            large = F.conv_transpose2d(F.pad(flat, (4, 4, 4, 4), mode="replicate"), self.upsampling[0], stride=2)
            large = large[..., 11:-11, 11:-11].reshape(*joined.shape[:2], 2 * joined.shape[2], 2 * joined.shape[3])
            joined = torch.cat([level[:, None], large[..., : level.shape[-2], : level.shape[-1]]], dim=1)
        layers = list(self.synthesis)
        pairs = list(zip(layers[::2], layers[1::2], strict=True))
        for index, (weight, bias) in enumerate(pairs[:-2]):
            joined = F.conv2d(joined, weight, bias)
            if index < len(pairs) - 3:
                joined = F.relu(joined)
        for index, (weight, bias) in enumerate(pairs[-2:]):
            joined = joined + F.conv2d(F.pad(joined, (1, 1, 1, 1), mode="replicate"), weight, bias)
            if index == 0:
                joined = F.relu(joined)
        return joined


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="steps per timing, of which the fastest counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--out", type=Path, default=Path("results/distillation_codec.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        seed = options.seed + number
        runs.append({"seed": seed, **{name: one_round(name, options.repeats, seed) for name in options.settings}})
        sys.stdout.write(f"round {number}: {runs[-1]}\n")
        sys.stdout.flush()
    sizes = {name: describe(name) for name in options.settings}
    overrides = {"repeats": options.repeats, "threads": 1, "temperature": TEMPERATURE}
    recipe = "benchmarks/distillation_codec.py"
    write_results(options.out, recipe=recipe, overrides=overrides, runs=runs, settings=sizes)
    return 0


def describe(name: str) -> dict[str, Any]:
    """Sizes of a setting for the result file."""
    config, slices, samples = SETTINGS[name]
    return {
        "slices": slices,
        "samples": samples,
        "picture": [config.channels, config.height, config.width],
        "context": config.context,
        "depth": config.depth,
        "widths": list(config.widths),
    }


def one_round(name: str, repeats: int, seed: int) -> dict[str, Any]:
    """Ratios, difference and memory of one setting."""
    config, slices, samples = SETTINGS[name]
    generator = torch.Generator().manual_seed(seed)
    codec = LatentCodec(config, slices, samples, generator=generator)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    noise = codec.draw_noise("gaussian", 0.25, generator)
    plain = [PlainSlice(codec, s) for s in range(slices)]
    single = [codec.select(torch.tensor([s])) for s in range(slices)]
    noises = [[level[s] for level in noise.levels] for s in range(slices)]
    single_noises = [Noise(tuple(level[s : s + 1] for level in noise.levels)) for s in range(slices)]

    def at_once(latents_at_once: int | None = None) -> None:
        output = codec(noise, TEMPERATURE, latents_at_once=latents_at_once)
        step(codec, output.images, output.bits)

    def layers() -> None:
        for module, own in zip(plain, noises, strict=True):
            step(module, *module(own, TEMPERATURE))

    def one_by_one() -> None:
        for module, own in zip(single, single_noises, strict=True):
            output = module(own, TEMPERATURE)
            step(module, output.images, output.bits)

    ways = [at_once, layers, one_by_one]
    order = ways[seed % 3 :] + ways[: seed % 3]
    seconds = {way: fastest(way, repeats) for way in order}
    return {
        "ratio": {
            "layers": seconds[layers] / seconds[at_once],
            "slices": seconds[one_by_one] / seconds[at_once],
        },
        "seconds_at_once": seconds[at_once],
        "largest_difference": difference(codec, noise, plain, noises),
        "memory": {"at_once_mib": peak(at_once), "in_parts_mib": peak(lambda: at_once(samples * config.latents))},
    }


def step(module: torch.nn.Module, images: torch.Tensor, bits: torch.Tensor) -> None:
    """Backward of a stand-in for error and rate."""
    (images.square().sum() + 1e-3 * bits.sum()).backward()
    module.zero_grad(set_to_none=True)


def fastest(function: Callable[[], None], repeats: int) -> float:
    """CPU seconds of the fastest of several runs, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


@torch.no_grad()
def difference(
    codec: LatentCodec, noise: Noise, plain: Sequence[PlainSlice], noises: Sequence[Sequence[torch.Tensor]]
) -> float:
    """Largest of the absolute differences of pictures and the relative ones of bits."""
    output = codec(noise, TEMPERATURE)
    found = 0.0
    for s, (module, own) in enumerate(zip(plain, noises, strict=True)):
        images, bits = module(own, TEMPERATURE)
        found = max(found, (output.images[s] - images).abs().max().item())
        found = max(found, ((output.bits[s] - bits).abs() / bits).max().item())
    return found


def peak(function: Callable[[], None]) -> float:
    """MiB of the tensors that a function makes."""
    with TensorMemory() as memory:
        function()
    return memory.peak / 2**20


if __name__ == "__main__":
    raise SystemExit(main())
