"""How much each group of adapters contributes: Shapley values of the game "which adapters are on".

Players are groups of adapted modules, the value v(R) of a coalition R is the performance with only R on (accuracy, or
minus the loss). The Shapley value of a player is its mean marginal contribution over all orders of joining, and also
`integral over p in [0, 1] of E[v(R + i) - v(R)]` with R drawn by independent coins of probability p (multilinear
extension, Owen 1972). CoTo (arXiv 2506.05713) trains over such random coalitions, hence its interest in these values.

Three ways to compute them: `exact` (2^n coalitions), `permutation` (random orders, each with its reverse) and `mle`
(Gauss-Legendre nodes over p; the expectation exact for few players, else from draws, each with its complement).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from thurl.coto.adapters import layer_of, natural
from thurl.coto.prune import third
from thurl.errors import DataError, UsageError


__all__ = ["EXACT_LIMIT", "ShapleyResult", "at_most", "groups_of", "only_active", "shapley", "shapley_values"]

EXACT_LIMIT = 12
"""Most players for which all coalitions are evaluated (4096)."""

ShapleyMethod = Literal["exact", "permutation", "mle"]


@dataclass(frozen=True)
class ShapleyResult:
    """Outcome.

    Attributes:
        players: names, in the order given.
        values: Shapley value per player.
        std_errors: standard error per player; 0 where nothing is drawn, NaN from a single draw.
        v_empty, v_full: value without any player and with all.
        gap: `|sum of values - (v_full - v_empty)|`; rounding, except for a sampled `mle`.
        top_third: part of the sum of |values| that the last third of the players holds (players given from input to
            output: the highest layers); NaN for fewer than 3 players or no contribution at all.
        cv: standard deviation (over players, not sample-corrected) over |mean| of the values; NaN if the mean is 0.
        evaluations: different coalitions evaluated.
        method: how.
    """

    players: tuple[str, ...]
    values: tuple[float, ...]
    std_errors: tuple[float, ...]
    v_empty: float
    v_full: float
    gap: float
    top_third: float
    cv: float
    evaluations: int
    method: ShapleyMethod


class _Game:
    """Value of coalitions by bit pattern, each evaluated once."""

    def __init__(self, value: Callable[[np.ndarray], float], n: int):
        self._value, self._n = value, n
        self._memo: dict[bytes, float] = {}

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        """Values (m,) of boolean masks (m, n)."""
        keys = [row.tobytes() for row in np.packbits(masks, axis=1)]
        for key, mask in zip(keys, masks, strict=True):
            if key not in self._memo:
                number = float(self._value(mask))
                if not math.isfinite(number):
                    on = np.flatnonzero(mask).tolist()
                    raise DataError(f"the value with the players {on} on is {number}; Shapley values need finite ones")
                self._memo[key] = number
        return np.array([self._memo[key] for key in keys])

    @property
    def evaluations(self) -> int:
        return len(self._memo)


def shapley_values(
    value: Callable[[np.ndarray], float],
    players: Sequence[str],
    method: ShapleyMethod = "exact",
    *,
    permutations: int = 16,
    nodes: int | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> ShapleyResult:
    """Shapley values of any game.

    Args:
        value: v(R) for a boolean mask (n,); called once per coalition.
        players: their names, from input to output where that means something.
        method: `exact`, `permutation` or `mle`.
        permutations: random orders for `permutation`; each comes with its reverse.
        nodes: Gauss-Legendre nodes of `mle`. Default: n / 2 rounded up, which is exact, but at most 8.
        samples: coalitions drawn per node of `mle`, each with its complement. Default: none up to
            12 players, where the expectation is taken over all coalitions; 8 beyond.
        seed: of all draws.

    Raises:
        UsageError: options out of range, `exact` with more than 12 players, repeated names.
        DataError: a value that is not finite.
    """
    n = len(players)
    _check(players, method, permutations, nodes, samples)
    game = _Game(value, n)
    v_empty, v_full = game(np.array([[False] * n, [True] * n]))
    rng = np.random.default_rng(seed)
    if method == "exact":
        values, errors = _weighted_marginals(game, n, _shapley_weights(n)), np.zeros(n)
    elif method == "permutation":
        values, errors = _permutation(game, n, permutations, rng)
    else:
        nodes, samples = _mle_settings(n, nodes, samples)
        if samples is None:
            values, errors = _weighted_marginals(game, n, _node_weights(n, nodes)), np.zeros(n)
        else:
            values, errors = _mle(game, n, nodes, samples, rng)
    mass, mean = np.abs(values).sum(), values.mean()
    top = sum(abs(v) for i, v in enumerate(values) if third(i, n) == "high")
    return ShapleyResult(
        players=tuple(players),
        values=tuple(values.tolist()),
        std_errors=tuple(errors.tolist()),
        v_empty=float(v_empty),
        v_full=float(v_full),
        gap=float(abs(values.sum() - (v_full - v_empty))),
        top_third=float(top / mass) if n >= 3 and mass > 0 else math.nan,
        cv=float(values.std() / abs(mean)) if mean != 0 else math.nan,
        evaluations=game.evaluations,
        method=method,
    )


def at_most(
    n: int,
    method: ShapleyMethod,
    *,
    permutations: int = 16,
    nodes: int | None = None,
    samples: int | None = None,
) -> int:
    """Most coalitions that :func:`shapley_values` evaluates for `n` players with these options."""
    if method == "permutation":
        return min(2**n, 2 * permutations * (n - 1) + 2)
    nodes, samples = _mle_settings(n, nodes, samples)
    return 2**n if method == "exact" or samples is None else min(2**n, 2 * samples * nodes * (n + 1) + 2)


def shapley(
    model: Any,
    groups: Mapping[str, Sequence[str]],
    value_fn: Callable[[Any], float],
    method: ShapleyMethod = "exact",
    **options: Any,
) -> ShapleyResult:
    """Shapley values of groups of adapted modules of a PEFT model.

    Args:
        model: `PeftModel` (or a model with PEFT layers), not merged. It is put in evaluation mode meanwhile and left
            as it was.
        groups: name -> paths of adapted modules in the base model, groups from input to output. Modules in no group
            stay on.
        value_fn: performance of the model as it is: accuracy, or minus the loss; must give the same number each time.
        method: see :func:`shapley_values`, as are the `options`.

    Raises:
        UsageError: a path that is no adapted module, one in two groups, or wrong options.
    """
    layers = _adapted_layers(model)
    _check_groups(groups, layers)
    names = list(groups)

    def value(mask: np.ndarray) -> float:
        off = {path for name, on in zip(names, mask, strict=True) if not on for path in groups[name]}
        with only_active(model, set(layers) - off):
            return value_fn(model)

    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return shapley_values(value, names, method, **options)
    finally:
        for module, training in was_training.items():
            module.training = training


def groups_of(paths: Iterable[str], by: Literal["layer", "type", "module"] = "layer") -> dict[str, list[str]]:
    """Players for :func:`shapley`: modules by numbered layer (others alone), by last part of the path, or one by one.

    Args:
        paths: of adapted modules, as in `Adapter.modules`.
        by: `layer`, `type` or `module`.

    Returns:
        name -> paths, names in natural order: layer 2 before layer 10.
    """
    groups: dict[str, list[str]] = {}
    for path in paths:
        layer = layer_of(path) if by == "layer" else None
        name = f"{layer[0]}.{layer[1]}" if layer else path.rsplit(".", 1)[-1] if by == "type" else path
        groups.setdefault(name, []).append(path)
    return {name: groups[name] for name in sorted(groups, key=natural)}


@contextmanager
def only_active(model: Any, paths: set[str]) -> Iterator[None]:
    """Within, adapted modules outside `paths` compute with their base layer alone: no adapter, no normalisation.

    For evaluation; a bypass of one layer is an attribute of that layer object, and parameters, their `requires_grad`
    and the state dict are untouched.

    Args:
        model: with PEFT layers; none of them merged.
        paths: of modules in the base model.

    Raises:
        UsageError: merged layers (their base weights hold the adapter), or a path that is no adapted module.
    """
    layers = _adapted_layers(model)
    unknown = sorted(set(paths) - set(layers))
    if unknown:
        raise UsageError(
            f"{unknown[0]}: no adapted module of this model; there are e.g. {', '.join(list(layers)[:3])}"
        )
    if any(layer.merged for layer in layers.values()):
        raise UsageError("the adapter is merged into the base weights; call unmerge_adapter() first")
    saved = []
    try:
        for path, layer in layers.items():
            if path not in paths:
                saved.append((layer, vars(layer).get("forward")))
                layer.forward = _base_forward(layer)
        yield
    finally:
        for layer, forward in saved:
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _base_forward(layer: Any) -> Callable[..., Any]:
    base = layer.get_base_layer()
    return lambda x, *args, **kwargs: base(x)


def _adapted_layers(model: Any) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    if not found:
        raise UsageError("the model has no adapted modules; load an adapter with PEFT first")
    return found


def _mle_settings(n: int, nodes: int | None, samples: int | None) -> tuple[int, int | None]:
    """Nodes, and draws per node; None for the expectation over all coalitions."""
    return nodes or min(math.ceil(n / 2), 8), samples or (None if n <= EXACT_LIMIT else 8)


def _check_groups(groups: Mapping[str, Sequence[str]], layers: Mapping[str, Any]) -> None:
    problems: list[str] = []
    seen: dict[str, str] = {}
    for name, paths in groups.items():
        if not paths:
            problems.append(f"group {name!r} is empty")
        for path in paths:
            if path not in layers:
                problems.append(f"group {name!r}: {path} is no adapted module")
            elif path in seen:
                problems.append(f"{path} is in the groups {seen[path]!r} and {name!r}; a module belongs to one")
            seen[path] = name
    if problems:
        raise UsageError(problems[:5])


def _check(players: Sequence[str], method: str, permutations: int, nodes: int | None, samples: int | None) -> None:
    n, problems = len(players), []
    if n < 1 or len(set(players)) != n:
        problems.append(f"{n} players, {len(set(players))} different names: at least one, each once")
    if method not in ("exact", "permutation", "mle"):
        problems.append(f"method={method!r}: choose exact, permutation or mle")
    if method == "exact" and n > EXACT_LIMIT:
        problems.append(
            f"exact with {n} players means 2^{n} evaluations; the limit is {EXACT_LIMIT}, use permutation or mle, or "
            "larger groups"
        )
    for name, number in (("permutations", permutations), ("nodes", nodes), ("samples", samples)):
        if number is not None and number < 1:
            problems.append(f"{name}={number}: at least 1 is needed")
    if problems:
        raise UsageError(problems)


def _shapley_weights(n: int) -> np.ndarray:
    """Weight of a coalition of each size 0 .. n-1 without the player: k! (n-1-k)! / n!."""
    return np.array([1 / (n * math.comb(n - 1, k)) for k in range(n)])


def _node_weights(n: int, nodes: int) -> np.ndarray:
    """The same from quadrature: sum over nodes of weight * p^k (1-p)^(n-1-k). Exact for nodes >= n / 2."""
    p, weight = _gauss_legendre(nodes)
    k = np.arange(n)[:, None]
    return (weight * p**k * (1 - p) ** (n - 1 - k)).sum(axis=1)


def _gauss_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    x, weight = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, weight / 2


def _weighted_marginals(game: _Game, n: int, by_size: np.ndarray) -> np.ndarray:
    """`sum over R without i of by_size[|R|] (v(R + i) - v(R))` for every i, from all 2^n values at once."""
    numbers = np.arange(2**n)
    masks = (numbers[:, None] >> np.arange(n) & 1).astype(bool)
    v, sizes = game(masks), masks.sum(axis=1)
    joined = numbers[:, None] | 1 << np.arange(n)
    weights = np.where(masks, 0.0, by_size[np.minimum(sizes, n - 1)][:, None])
    return (weights * (v[joined] - v[:, None])).sum(axis=0)


def _permutation(game: _Game, n: int, permutations: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    pairs = []
    for _ in range(permutations):
        order = rng.permutation(n)
        pairs.append((_marginals(game, order) + _marginals(game, order[::-1])) / 2)
    return _mean_and_error(np.array(pairs))


def _marginals(game: _Game, order: np.ndarray) -> np.ndarray:
    n = len(order)
    masks = np.zeros((n + 1, n), dtype=bool)
    masks[:, order] = np.tri(n + 1, n, -1, dtype=bool)
    gains = np.empty(n)
    gains[order] = np.diff(game(masks))
    return gains


def _mle(game: _Game, n: int, nodes: int, samples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    p, weight = _gauss_legendre(nodes)
    draws = []
    for _ in range(samples):
        u = rng.random((nodes, n))
        # The complement of a coalition drawn at p is one drawn at 1 - p, a node of the same weight.
        for masks in (u < p[:, None], u >= p[:, None]):
            eye = np.eye(n, dtype=bool)
            on, off = masks[:, None, :] | eye, masks[:, None, :] & ~eye
            gains = (game(on.reshape(-1, n)) - game(off.reshape(-1, n))).reshape(nodes, n)
            draws.append(weight @ gains)
    return _mean_and_error(np.array(draws).reshape(samples, 2, n).mean(axis=1))


def _mean_and_error(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = len(draws)
    error = draws.std(axis=0, ddof=1) / math.sqrt(count) if count > 1 else np.full(draws.shape[1], math.nan)
    return draws.mean(axis=0), error
