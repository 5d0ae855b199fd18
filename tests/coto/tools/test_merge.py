from __future__ import annotations

import math

import pytest
import torch
from peft import PeftModel

from thurl.coto.adapters import write_adapter
from thurl.coto.align import _gradient, align_factors, alignment_objective
from thurl.coto.interpolate import interpolate
from thurl.coto.merge import distance_to_mean, ensemble_logits, merge_tasks, truncate
from thurl.errors import UsageError


@pytest.fixture
def three(towers):
    return [towers.make(f"task{i}", i) for i in range(3)]


def deltas(adapter):
    return {path: factors.delta().double() for path, factors in adapter.modules.items()}


def mean_delta(adapters, path):
    return sum(adapter.modules[path].delta() for adapter in adapters) / len(adapters)


def reference(towers, adapters, combination_type, weights, **options):
    """PEFT's own `add_weighted_adapter`."""
    model = PeftModel.from_pretrained(towers.base(), towers.folder / "task0", adapter_name="task0")
    for i in range(1, len(adapters)):
        model.load_adapter(towers.folder / f"task{i}", adapter_name=f"task{i}")
    names = [f"task{i}" for i in range(len(adapters))]
    model.double().add_weighted_adapter(names, weights, "merged", combination_type=combination_type, **options)
    return {
        path: model.base_model.model.get_submodule(path).get_delta_weight("merged") for path in adapters[0].modules
    }


def assert_same(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys()
    for path in found:
        torch.testing.assert_close(found[path], expected[path], rtol=tolerance, atol=tolerance)


def test_fusion_of_two_is_the_midpoint(three):
    merged, middle = merge_tasks(three[:2], "fusion"), interpolate(*three[:2], 0.5)
    assert_same(deltas(merged), deltas(middle))


def test_delta_mean_is_exact_and_as_peft_concatenates(three, towers):
    merged = merge_tasks(three, "delta", weights=[1, 2, 1])
    assert merged.ranks == [9]
    assert_same(deltas(merged), reference(towers, three, "cat", [0.25, 0.5, 0.25]))
    assert distance_to_mean(merged, three, [1, 2, 1]) < 1e-7 < distance_to_mean(merged, three)


@pytest.mark.parametrize("options", [{}, {"hira": True}])
def test_svd_is_exact_at_full_rank_and_best_below(towers, options):
    adapters = [towers.make(f"task{i}", i, **options) for i in range(3)]
    full = merge_tasks(adapters, "svd", rank=9)
    for path, delta in deltas(full).items():
        torch.testing.assert_close(delta, mean_delta(adapters, path), rtol=1e-12, atol=1e-12)
    small = merge_tasks(adapters, "svd", rank=2)
    for path, delta in deltas(small).items():
        mean = mean_delta(adapters, path)
        rest = torch.linalg.svdvals(mean)[2:]
        assert torch.linalg.matrix_rank(delta) == 2
        torch.testing.assert_close((delta - mean).norm(), rest.norm(), rtol=1e-10, atol=1e-10)
    write_adapter(small, towers.folder / "out")
    x = torch.ones(2, 6, dtype=torch.float64)
    assert torch.isfinite(towers.logits(towers.folder / "out", x)).all()


def test_svd_agrees_with_peft_and_pads_small_layers(three, towers):
    assert_same(
        deltas(merge_tasks(three, "svd", weights=[1, 2, 1])), reference(towers, three, "svd", [0.25, 0.5, 0.25])
    )
    # Rank 8 is more than a 6 x 6 layer has; all modules get it, filled up with zeros.
    wide = truncate(merge_tasks(three, "delta"), 8)
    assert wide.ranks == [8]
    for path in ("merger", "model.layers.0.up"):
        torch.testing.assert_close(wide.modules[path].delta(), mean_delta(three, path), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_ties_and_dare_in_delta_space_are_those_of_peft(three, towers, method):
    # PEFT's TIES divides by the count of agreeing adapters itself, its DARE does not. Rank 6 loses nothing (width 6).
    weights = [1 / 3] * 3 if method == "dare_linear" else [1.0] * 3
    merged = merge_tasks(three, method, density=0.4, rank=6, seed=7)
    if method == "ties":
        expected = reference(towers, three, "ties_svd", weights, density=0.4, svd_rank=6)
        assert_same(deltas(merged), expected)
    # DARE draws; one draw over all modules in order is what the seed fixes.
    from peft.utils.merge_utils import dare_linear, dare_ties, ties

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        function = {"ties": ties, "dare_linear": dare_linear, "dare_ties": dare_ties}[method]
        for path, delta in deltas(merged).items():
            tasks = [adapter.modules[path].delta() for adapter in three]
            expected = function(tasks, torch.tensor(weights, dtype=torch.float64), 0.4)
            torch.testing.assert_close(delta, expected, rtol=1e-10, atol=1e-10)


def test_dare_follows_its_seed_only(three):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    one = merge_tasks(three, "dare_linear", seed=1, space="factor")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(4)
    assert_same(deltas(one), deltas(merge_tasks(three, "dare_linear", seed=1, space="factor")), 0)
    other = merge_tasks(three, "dare_linear", seed=2, space="factor")
    assert any(not torch.equal(one.modules[path].a, other.modules[path].a) for path in one.modules)


@pytest.mark.filterwarnings("ignore:The density 1")
def test_at_density_one_dare_and_ties_of_equal_signs_are_the_mean(three):
    for space, reference_method in (("delta", "delta"), ("factor", "fusion")):
        merged = merge_tasks(
            three, "dare_linear", density=1.0, space=space, **({"rank": 6} if space == "delta" else {})
        )
        assert_same(deltas(merged), deltas(merge_tasks(three, reference_method)))
    twins = [three[0], three[0]]
    assert_same(deltas(merge_tasks(twins, "ties", density=1.0)), deltas(three[0]))


# --- alignment -------------------------------------------------------------------------------------------------------


def grams(adapters, path):
    b = torch.cat([adapter.modules[path].b for adapter in adapters], dim=1)
    a = torch.cat([adapter.modules[path].a for adapter in adapters])
    return (b.mT @ b)[None], (a @ a.mT)[None]


def test_objective_is_the_distance_of_dense_updates(three):
    path, generator = "model.layers.0.up", torch.Generator().manual_seed(0)
    p = torch.randn(1, 3, 3, 3, generator=generator, dtype=torch.float64)
    q, w = torch.linalg.inv(p), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    parts = [adapter.modules[path] for adapter in three]
    b = sum(w[i] * part.b @ p[0, i] for i, part in enumerate(parts))
    a = sum(w[i] * q[0, i] @ part.a for i, part in enumerate(parts))
    mean = sum(w[i] * part.b @ part.a for i, part in enumerate(parts))
    expected = (b @ a - mean).square().sum()
    torch.testing.assert_close(alignment_objective(*grams(three, path), w, p, q)[0], expected, rtol=1e-10, atol=0)


def test_gradient_of_the_objective(three):
    gb, ga = grams(three, "merger")
    w = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(1, 3, 3, 3, generator=generator, dtype=torch.float64)
    p[:, 0] = torch.eye(3)
    q = torch.linalg.inv(p)
    x = torch.zeros(1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    moved = alignment_objective(gb, ga, w, p @ torch.matrix_exp(x), torch.matrix_exp(-x) @ q).sum()
    (expected,) = torch.autograd.grad(moved, x)
    _, gradient = _gradient(gb, ga, w, p, q)
    torch.testing.assert_close(gradient[:, 1:], expected[:, 1:], rtol=1e-9, atol=1e-9)
    assert not gradient[:, 0].any()


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("options", [{}, {"hira": True}])
def test_alignment_is_never_worse_than_fusion(towers, n, options):
    adapters = [towers.make(f"task{i}", i, **options) for i in range(n)]
    aligned, fused = merge_tasks(adapters, "align"), merge_tasks(adapters, "fusion")
    better = 0
    for path in aligned.modules:
        mean = mean_delta(adapters, path)
        gap, plain = ((merged.modules[path].delta() - mean).norm() for merged in (aligned, fused))
        assert gap <= plain * (1 + 1e-9)
        better += gap < 0.95 * plain
        assert aligned.modules[path].rank == 3
    assert better > len(aligned.modules) / 2
    assert distance_to_mean(aligned, adapters) < distance_to_mean(fused, adapters)


def test_alignment_undoes_a_hidden_change_of_basis(towers):
    """The same update in another basis: fusion spoils it, alignment restores it."""
    from dataclasses import replace

    first = towers.make("task0", 0)
    generator = torch.Generator().manual_seed(5)
    hidden = {}
    for path, factors in first.modules.items():
        basis = torch.randn(3, 3, generator=generator, dtype=torch.float64) + 2 * torch.eye(3)
        hidden[path] = replace(factors, a=torch.linalg.solve(basis, factors.a), b=factors.b @ basis)
    second = replace(first, modules=hidden)
    assert distance_to_mean(merge_tasks([first, second], "fusion"), [first, second]) > 0.05
    aligned = merge_tasks([first, second], "align")
    for path, delta in deltas(aligned).items():
        torch.testing.assert_close(delta, first.modules[path].delta(), rtol=1e-4, atol=1e-4)


def test_alignment_of_untrained_and_equal_adapters(three):
    from dataclasses import replace

    empty = replace(three[0], modules={p: replace(f, b=torch.zeros_like(f.b)) for p, f in three[0].modules.items()})
    for pair in ([three[0], three[0]], [empty, empty]):
        assert_same(deltas(merge_tasks(pair, "align")), deltas(pair[0]), 1e-9)
    merged = merge_tasks([three[0], empty], "align")
    assert all(
        torch.isfinite(factors.a).all() and torch.isfinite(factors.b).all() for factors in merged.modules.values()
    )


def test_alignment_solves_a_batch_as_one_by_one(three):
    # Pairs: with three adapters rounding can decide which of several minima is found.
    w = torch.full((2,), 0.5, dtype=torch.float64)
    parts = [grams(three[:2], path) for path in ("merger", "model.layers.0.up", "model.layers.1.down")]
    batch = align_factors(torch.cat([gb for gb, _ in parts]), torch.cat([ga for _, ga in parts]), w)
    single = torch.cat([align_factors(gb, ga, w).objective for gb, ga in parts])
    torch.testing.assert_close(batch.objective, single, rtol=1e-6, atol=0)
    assert (batch.objective <= batch.fusion).all()
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(batch.p @ batch.q, eye.expand_as(batch.p), rtol=0, atol=1e-9)


# --- errors, ensemble ------------------------------------------------------------------------------------------------


def test_wrong_options_all_at_once(three):
    with pytest.raises(UsageError) as error:
        merge_tasks(three[:1], "sum", density=0.0, rank=0, space="x")
    assert len(error.value.problems) == 5
    for weights in ([1, -1, 0], [1, 2], [1, math.nan, 1]):
        with pytest.raises(UsageError, match="weights"):
            merge_tasks(three, "fusion", weights=weights)
    with pytest.raises(UsageError, match="only for svd"):
        merge_tasks(three, "fusion", rank=2)
    with pytest.raises(UsageError, match="at least 1"):
        truncate(three[0], 0)


def test_dora_merges_by_fusion_only(towers):
    pair = [towers.make(f"task{i}", i, use_dora=True) for i in range(2)]
    merged = merge_tasks(pair, "fusion")
    write_adapter(merged, towers.folder / "out")
    magnitude = towers.load(towers.folder / "out").base_model.model.merger.lora_magnitude_vector["default"].weight
    expected = (pair[0].modules["merger"].magnitude + pair[1].modules["merger"].magnitude) / 2
    torch.testing.assert_close(magnitude.detach(), expected)
    assert math.isnan(distance_to_mean(merged, pair))
    for method in ("align", "delta", "svd", "ties", "dare_linear"):
        with pytest.raises(UsageError, match="DoRA"):
            merge_tasks(pair, method)
    with pytest.raises(UsageError, match="DoRA"):
        merge_tasks(pair, "ties", space="factor")


def test_ensemble_is_the_mean_of_logits_and_leaves_the_model_alone(three, towers):
    model = PeftModel.from_pretrained(towers.base(), towers.folder / "task0", adapter_name="task0", is_trainable=True)
    for i in (1, 2):
        model.load_adapter(towers.folder / f"task{i}", adapter_name=f"task{i}")
    model.double().eval()
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.no_grad():
        mixed = ensemble_logits(model, ["task1", "task2"], {"x": x}, weights=[1, 3])
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert model.active_adapters == ["task0"] and model.active_adapter == "task0"
    single = [towers.logits(towers.folder / f"task{i}", x) for i in (1, 2)]
    torch.testing.assert_close(mixed, 0.25 * single[0] + 0.75 * single[1])
    with pytest.raises(UsageError, match="task0, task1, task2"):
        ensemble_logits(model, ["task9"], {"x": x})
