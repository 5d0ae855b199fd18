from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from thurl.coto.shapley import (
    _node_weights,
    _shapley_weights,
    at_most,
    groups_of,
    only_active,
    shapley,
    shapley_values,
)
from thurl.errors import DataError, UsageError


def random_game(n, seed):
    table = np.random.default_rng(seed).normal(size=2**n)
    return lambda mask: table[int(mask @ (1 << np.arange(n)))]


def names(n):
    return [f"p{i}" for i in range(n)]


def by_all_orders(value, n):
    """The definition."""
    total = np.zeros(n)
    for order in itertools.permutations(range(n)):
        mask, before = np.zeros(n, dtype=bool), value(np.zeros(n, dtype=bool))
        for player in order:
            mask[player] = True
            total[player] += value(mask) - before
            before = value(mask)
    return total / math.factorial(n)


@pytest.mark.parametrize("method", ["exact", "mle"])
def test_golden_values_of_layers(golden, method):
    model = golden.load(golden.folders[0])
    groups = {f"layer {i}": [f"layers.{i}.fc1", f"layers.{i}.fc2"] for i in range(golden.depth)}

    def value(model):
        with torch.no_grad():
            return -(model(golden.x) - golden.y).square().mean().item()

    model.train()
    result = shapley(model, groups, value, method)
    expected = golden.numbers["shapley" if method == "exact" else "shapley_mle"]
    assert result.values == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert result.v_full == pytest.approx(golden.numbers["value_full"], rel=1e-9)
    assert result.v_empty == pytest.approx(golden.numbers["value_empty"], rel=1e-9)
    assert result.gap < 1e-9 and result.evaluations == 2**golden.depth
    assert all(module.training for module in model.modules())
    assert not [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_exact_is_the_mean_over_all_orders(n):
    value = random_game(n, n)
    result = shapley_values(value, names(n))
    assert result.values == pytest.approx(by_all_orders(value, n), abs=1e-12)
    assert result.gap < 1e-12


def test_efficiency_of_every_method():
    value = random_game(7, 3)
    for method, options in (("exact", {}), ("permutation", {"permutations": 3}), ("mle", {})):
        assert shapley_values(value, names(7), method, **options).gap < 1e-12
    assert shapley_values(value, names(7), "mle", samples=4).gap > 1e-6  # sampling error, reported as such


def test_permutation_converges_to_exact():
    value, n = random_game(5, 1), 5
    exact = np.array(shapley_values(value, names(n)).values)
    errors = []
    for count in (4, 4000):
        result = shapley_values(value, names(n), "permutation", permutations=count)
        errors.append(np.abs(np.array(result.values) - exact).max())
        assert (np.abs(np.array(result.values) - exact) < 5 * np.array(result.std_errors) + 1e-12).all()
    assert errors[1] < 0.03 < errors[0]
    assert result.evaluations <= 2**n  # each coalition once


def test_sampled_extension_converges_to_exact_beyond_the_limit():
    weights = np.linspace(0.1, 1, 14)

    def value(mask):
        return float(weights @ mask + 0.2 * (weights @ mask) ** 2)

    # Of a quadratic game: w_i + 0.2 (w_i^2 + w_i * sum of the others).
    exact = weights + 0.2 * weights * weights.sum()
    result = shapley_values(value, names(14), "mle", samples=40)
    assert np.abs(np.array(result.values) / exact - 1).max() < 0.02
    with pytest.raises(UsageError, match="14 players.*2\\^14.*use permutation"):
        shapley_values(value, names(14), "exact")


def test_symmetric_players_are_equal_and_idle_ones_get_nothing():
    def value(mask):  # 0 and 1 are interchangeable, 3 does nothing
        return float(mask[0] + mask[1] + 2 * mask[0] * mask[1] + mask[2] * (mask[0] or mask[1]))

    for method in ("exact", "mle"):
        result = shapley_values(value, names(4), method)
        assert result.values[0] == pytest.approx(result.values[1], abs=1e-12)
        assert result.values[3] == pytest.approx(0, abs=1e-12)
    assert shapley_values(value, names(4), "permutation").values[3] == 0


def test_antithetic_pairs_solve_quadratic_games_at_once():
    rng = np.random.default_rng(0)
    linear, pairwise = rng.normal(size=6), rng.normal(size=(6, 6))

    def value(mask):
        return float(linear @ mask + mask @ pairwise @ mask)

    exact = shapley_values(value, names(6)).values
    assert shapley_values(value, names(6), "permutation", permutations=1).values == pytest.approx(exact, abs=1e-12)


def test_quadrature_weights_are_the_shapley_weights_from_half_the_players_on():
    for n in range(1, 17):
        np.testing.assert_allclose(_node_weights(n, math.ceil(n / 2)), _shapley_weights(n), rtol=1e-10)
    assert np.abs(_node_weights(10, 2) / _shapley_weights(10) - 1).max() > 0.01


def test_bound_on_the_evaluations():
    assert [at_most(4, method) for method in ("exact", "permutation", "mle")] == [16, 16, 16]
    value = random_game(13, 0)
    for method, options in (("permutation", {"permutations": 5}), ("mle", {"samples": 3, "nodes": 4}), ("mle", {})):
        used = shapley_values(value, names(13), method, **options).evaluations
        # Some coalitions coincide, most do not.
        assert 0.5 * at_most(13, method, **options) < used <= at_most(13, method, **options)


def test_groups():
    paths = ["m.layers.10.q", "m.layers.2.v", "m.layers.2.q", "merger"]
    assert groups_of(paths) == {"m.layers.2": paths[1:3], "m.layers.10": paths[:1], "merger": ["merger"]}
    assert groups_of(paths, "type") == {"merger": ["merger"], "q": [paths[0], paths[2]], "v": [paths[1]]}
    assert list(groups_of(paths, "module")) == ["m.layers.2.q", "m.layers.2.v", "m.layers.10.q", "merger"]


def test_draws_follow_the_seed():
    value = random_game(6, 0)
    one, two, other = (
        shapley_values(value, names(6), "permutation", permutations=2, seed=s).values for s in (1, 1, 2)
    )
    assert one == two != other


def test_share_of_the_top_third_and_spread():
    values = np.arange(1.0, 13.0)
    result = shapley_values(lambda mask: float(values @ mask), names(12), "permutation", permutations=1)
    assert result.top_third == pytest.approx((9 + 10 + 11 + 12) / 78)
    assert result.cv == pytest.approx(values.std() / values.mean())
    assert math.isnan(result.std_errors[0])
    nothing = shapley_values(lambda mask: 1.0, names(2))
    assert math.isnan(nothing.top_third) and math.isnan(nothing.cv)


# --- models ----------------------------------------------------------------------------------------------------------

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)


def output(model):
    with torch.no_grad():
        return model(X).logits


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"hira": True}])
def test_a_layer_that_is_off_is_its_base_layer(towers, options):
    towers.make("a", 1, **options)
    model = towers.load(towers.folder / "a")
    full, state = output(model), {name: p.requires_grad for name, p in model.named_parameters()}
    with only_active(model, set()):
        assert torch.equal(output(model), towers.base()(X).logits)
        with only_active(model, {"merger"}):  # nested: what is off outside stays off
            assert torch.equal(output(model), towers.base()(X).logits)
    with only_active(model, {"merger"}):
        assert not torch.equal(output(model), full) and not torch.equal(output(model), towers.base()(X).logits)
    with pytest.raises(ZeroDivisionError), only_active(model, set()):
        raise ZeroDivisionError
    assert torch.equal(output(model), full)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == state


def test_modules_outside_every_group_stay_on(towers):
    towers.make("a", 1)
    model = towers.load(towers.folder / "a")
    seen = []
    shapley(model, {"g": ["merger"]}, lambda model: seen.append(output(model)) or 0.0)
    with only_active(model, set(path for path in towers_paths(model) if path != "merger")):
        without = output(model)
    assert torch.equal(seen[0], without) and torch.equal(seen[1], output(model))


def towers_paths(model):
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [name for name, module in model.base_model.model.named_modules() if isinstance(module, BaseTunerLayer)]


def test_wrong_use(towers):
    towers.make("a", 1)
    model = towers.load(towers.folder / "a")
    cases = {
        "q_proj is no adapted module": {"g": ["q_proj"]},
        "belongs to one": {"g": ["merger"], "h": ["merger"]},
        "'g' is empty": {"g": []},
    }
    for message, groups in cases.items():
        with pytest.raises(UsageError, match=message):
            shapley(model, groups, lambda model: 0.0)
    with pytest.raises(UsageError, match="no adapted modules"):
        shapley(towers.base(), {"g": ["merger"]}, lambda model: 0.0)
    with pytest.raises(DataError, match=r"\[\] on is nan"):
        shapley(model, {"g": ["merger"]}, lambda model: math.nan)
    with pytest.raises(UsageError, match="no adapted module"), only_active(model, {"x"}):
        pass
    model.merge_adapter()
    with pytest.raises(UsageError, match="unmerge_adapter"):
        shapley(model, {"g": ["merger"]}, lambda model: 0.0)
    with pytest.raises(UsageError) as error:
        shapley_values(lambda mask: 0.0, ["a", "a"], "monte carlo", permutations=0, samples=0, nodes=0)
    assert len(error.value.problems) == 5
