"""What is measured on trained adapters, with the tools of `thurl.coto`.

Per pair (two adapters of one task): accuracy, layers left out (`keep ...`, `drop ...`), the smallest entries set to 0,
the lines between the two in factor and in delta space, Shapley values. Per two tasks: adapters merged into one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch.nn.functional import cross_entropy

from coto_digits.network import Digits
from coto_digits.training import load
from thurl.coto.adapters import Adapter
from thurl.coto.interpolate import lmc_curve
from thurl.coto.merge import merge_tasks
from thurl.coto.prune import prune_layers, prune_magnitude
from thurl.coto.shapley import groups_of, shapley


THIRDS = ("low", "middle", "high")
SPARSITIES = (0.3, 0.5, 0.7)
DELTA_GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
SHAPLEY_DIGITS = 200
MERGES: dict[str, dict[str, Any]] = {
    "fusion": {"method": "fusion"},
    "aligned": {"method": "align"},
    "delta": {"method": "delta"},
    "svd": {"method": "svd"},
    "ties": {"method": "ties", "density": 0.5},
    "dare linear": {"method": "dare_linear", "density": 0.5},
    "dare ties": {"method": "dare_ties", "density": 0.5},
}


class Bench:
    """The base network with one adapter after another."""

    def __init__(self, base: dict[str, torch.Tensor]):
        self._base, self._model, self._config = base, None, None

    def model(self, adapter: Adapter) -> Any:
        """`PeftModel` in evaluation mode; the same object for adapters of the same config."""
        if self._model is None or adapter.config != self._config:
            settings = {name: adapter.config[name] for name in ("r", "lora_alpha", "target_modules", "lora_dropout")}
            settings |= {name: adapter.config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
            self._model = get_peft_model(load(self._base), LoraConfig(**settings)).eval()
            self._config = adapter.config
        unexpected = set_peft_model_state_dict(self._model, adapter.state_dict()).unexpected_keys
        assert not unexpected, unexpected
        return self._model

    def __call__(self, adapter: Adapter, data: Digits) -> dict[str, float]:
        """`loss` and `accuracy`."""
        return value(self.model(adapter), data)


@torch.no_grad()
def value(model: Callable[[torch.Tensor], torch.Tensor], data: Digits) -> dict[str, float]:
    """Mean cross-entropy and accuracy."""
    return value_of_logits(model(data[0]), data[1])


def value_of_logits(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The same of logits (n, 10)."""
    right = (logits.argmax(-1) == labels).float().mean().item()
    return {"loss": cross_entropy(logits, labels).item(), "accuracy": right}


def single_measures(bench: Bench, adapters: Sequence[Adapter], data: Digits) -> dict[str, float]:
    """Accuracy of each, whole and with parts left out; means over the adapters."""

    def mean(*versions: Callable[[Adapter], Adapter]) -> float:
        return statistics.mean(bench(version(a), data)["accuracy"] for a in adapters for version in versions)

    def kept(part: Any, keep: bool = True) -> Callable[[Adapter], Adapter]:
        return lambda adapter: prune_layers(adapter, part, keep=keep)

    def sparse(share: float) -> Callable[[Adapter], Adapter]:
        return lambda adapter: prune_magnitude(adapter, share)

    found = {"accuracy": mean(lambda adapter: adapter), "every other": mean(kept("even"), kept("odd"))}
    found |= {f"drop {part}": mean(kept(part, keep=False)) for part in THIRDS}
    found |= {f"keep {part}": mean(kept(part)) for part in THIRDS}
    found |= {f"{share:.0%} of entries 0": mean(sparse(share)) for share in SPARSITIES}
    return found


def pair_measures(bench: Bench, pair: Sequence[Adapter], data: Digits) -> dict[str, float]:
    """Means over both adapters (Shapley values too), and what lies between them."""
    found = single_measures(bench, pair, data)
    for space, grid in (("factor", None), ("delta", DELTA_GRID)):
        curve = lmc_curve(pair[0], pair[1], lambda adapter: bench(adapter, data), lambdas=grid, space=space)
        middle, accuracies = curve.lambdas.index(0.5), curve.metrics["accuracy"]
        ends = (accuracies[0] + accuracies[-1]) / 2
        found[f"{space} midpoint accuracy"] = accuracies[middle]
        found[f"{space} midpoint accuracy lost"] = ends - accuracies[middle]
        found[f"{space} midpoint loss"] = curve.losses[middle]
        found[f"{space} barrier"] = curve.barrier
        if space == "factor":
            found["end loss"] = (curve.losses[0] + curve.losses[-1]) / 2
    some = data[0][:SHAPLEY_DIGITS], data[1][:SHAPLEY_DIGITS]
    games = [
        shapley(bench.model(adapter), groups_of(adapter.modules), lambda model: -value(model, some)["loss"])
        for adapter in pair
    ]
    found["shapley cv"] = statistics.mean(game.cv for game in games)
    found["shapley top third"] = statistics.mean(game.top_third for game in games)
    return found


def merge_measures(bench: Bench, adapters: Sequence[Adapter], tests: Sequence[Digits]) -> dict[str, float]:
    """Mean accuracy over the tasks: of each task's own adapter, of the ensemble, and of one merged adapter."""
    with torch.no_grad():
        logits = [[bench.model(adapter)(data[0]) for adapter in adapters] for data in tests]
    rows = list(zip(logits, (labels for _, labels in tests), strict=True))
    own = [value_of_logits(row[i], labels)["accuracy"] for i, (row, labels) in enumerate(rows)]
    both = [value_of_logits(sum(row), labels)["accuracy"] for row, labels in rows]
    found = {"own adapter": statistics.mean(own), "ensemble": statistics.mean(both)}
    for name, options in MERGES.items():
        merged = merge_tasks(adapters, **options)
        found[name] = statistics.mean(bench(merged, data)["accuracy"] for data in tests)
    return found
