from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from thurl.coto.adapters import write_adapter
from thurl.coto.interpolate import barrier, interpolate, lmc_curve
from thurl.errors import UsageError


@pytest.mark.parametrize("kind", ["lora", "hira"])
@pytest.mark.parametrize("space", ["factor", "delta"])
@pytest.mark.parametrize("lam", [0.0, 0.25, 0.5, 1.0])
def test_golden_outputs_through_plain_peft(golden_of, kind, space, lam, tmp_path):
    golden = golden_of(kind)
    write_adapter(interpolate(*golden.adapters(), lam, space), tmp_path / "out")
    expected = golden.tensors[f"interp_{space}.{lam}"]
    torch.testing.assert_close(golden.output(tmp_path / "out"), expected, rtol=1e-9, atol=1e-9)


def test_the_two_lines_differ_between_their_ends(golden_of):
    first, second = golden_of("lora").adapters()
    for path in first.modules:
        halves = [interpolate(first, second, 0.5, space).modules[path].delta() for space in ("factor", "delta")]
        assert (halves[0] - halves[1]).norm() > 0.01 * halves[1].norm()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"hira": True}])
def test_ends_of_the_factor_line_are_the_inputs(towers, options):
    a, b = towers.make("a", 1, **options), towers.make("b", 2, **options)
    for lam, end in ((0.0, a), (1.0, b)):
        for path, factors in interpolate(a, b, lam).modules.items():
            assert torch.equal(factors.a, end.modules[path].a) and torch.equal(factors.b, end.modules[path].b)
            assert factors.scaling == end.modules[path].scaling
            if end.kind == "dora":
                assert torch.equal(factors.magnitude, end.modules[path].magnitude)


def test_delta_line_is_the_weighted_sum_whatever_ranks_scalings_and_modules(towers):
    a = towers.make("a", 1, r=4, lora_alpha=2, use_rslora=True, rank_pattern={"merger": 2}, alpha_pattern={"up": 5})
    b = towers.make("b", 2, r=3, target_modules=["up", "down"])
    for lam in (0.0, 0.3, 1.0, 1.5):
        line = interpolate(a, b, lam, "delta")
        assert set(line.modules) == set(a.modules) | set(b.modules)
        for path, factors in line.modules.items():
            expected = sum(
                weight * end.modules[path].delta() for weight, end in ((1 - lam, a), (lam, b)) if path in end.modules
            )
            torch.testing.assert_close(factors.delta(), expected, rtol=1e-12, atol=1e-12)
            assert factors.rank == sum(end.modules[path].rank for end in (a, b) if path in end.modules)
    # Two ranks in one file: PEFT must build each module with its own.
    write_adapter(line, towers.folder / "out")
    model = towers.load(towers.folder / "out")
    for path, factors in line.modules.items():
        layer = model.base_model.model.get_submodule(path)
        torch.testing.assert_close(layer.get_delta_weight("default"), factors.delta(), rtol=1e-12, atol=1e-12)


def test_a_rank_of_one_module_is_not_taken_for_another_whose_path_ends_alike(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    from thurl.coto.adapters import read_adapter

    def base():
        inner = torch.nn.ModuleDict({"up": torch.nn.Linear(4, 4)})
        return torch.nn.ModuleDict({"up": torch.nn.Linear(4, 4), "inner": inner})

    for name, targets in (("a", ["up"]), ("b", "up")):  # as a list it ends both paths, as a pattern it is one
        get_peft_model(base(), LoraConfig(r=2, target_modules=targets)).save_pretrained(tmp_path / name)
    line = interpolate(read_adapter(tmp_path / "a"), read_adapter(tmp_path / "b"), 0.5, "delta")
    assert {path: factors.rank for path, factors in line.modules.items()} == {"up": 4, "inner.up": 2}
    write_adapter(line, tmp_path / "out")
    built = PeftModel.from_pretrained(base(), tmp_path / "out").base_model.model
    assert (built["up"].r["default"], built["inner"]["up"].r["default"]) == (4, 2)


def test_half_precision_is_combined_in_single(towers):
    a, b = (towers.make(name, seed, dtype=torch.bfloat16) for name, seed in (("a", 1), ("b", 2)))
    line = interpolate(a, b, 0.3, "delta")
    for path, factors in line.modules.items():
        assert factors.a.dtype == factors.b.dtype == torch.float32
        expected = sum(w * e.modules[path].scaling * e.modules[path].b.double() @ e.modules[path].a.double()
                       for w, e in ((0.7, a), (0.3, b)))  # fmt: skip
        assert (factors.b.double() @ factors.a.double() - expected).norm() < 1e-6 * expected.norm()


def test_trained_heads_are_interpolated_as_weights(towers):
    options = {"target_modules": ["up", "down"], "modules_to_save": ["merger"]}
    a, b = towers.make("a", 1, **options), towers.make("b", 2, **options)
    name = "base_model.model.merger.weight"
    b = replace(b, extra={**b.extra, name: b.extra[name] + 1.0})
    for space in ("factor", "delta"):
        line = interpolate(a, b, 0.25, space)
        torch.testing.assert_close(line.extra[name], a.extra[name] + 0.25)
    write_adapter(line, towers.folder / "out")
    head = towers.load(towers.folder / "out").base_model.model.merger.modules_to_save["default"].weight
    torch.testing.assert_close(head.detach(), line.extra[name])


def test_what_does_not_fit_is_refused(towers):
    a = towers.make("a", 1)
    cases = {
        r"ranks 3 and 2 .* use the delta space": towers.make("rank", 2, r=2, lora_alpha=4),
        r"scalings 2 and 1 .* use the delta space": towers.make("alpha", 2, lora_alpha=3),
        r"scalings 2 and 3\.46.* use_rslora": towers.make("rs", 2, use_rslora=True),
        r"kinds lora and dora": towers.make("dora", 2, use_dora=True),
        r"modules are adapted by only one": towers.make("fewer", 2, target_modules=["up"]),
        r"modules_to_save": towers.make("head", 2, target_modules=["up", "down"], modules_to_save=["merger"]),
    }
    for message, b in cases.items():
        with pytest.raises(UsageError, match=message):
            interpolate(a, b, 0.5)
    dora = [towers.make(f"dora{i}", i, use_dora=True) for i in (1, 2)]
    with pytest.raises(UsageError, match="not of low rank; use the factor space"):
        interpolate(*dora, 0.5, "delta")
    other = replace(a, modules={path: replace(f, a=f.a[:, :-1]) for path, f in a.modules.items()})
    with pytest.raises(UsageError, match="the base models differ"):
        interpolate(a, other, 0.5, "delta")
    for lam in (math.nan, math.inf):
        with pytest.raises(UsageError, match="finite"):
            interpolate(a, a, lam)
    with pytest.raises(UsageError, match="choose factor or delta"):
        interpolate(a, a, 0.5, "weights")


def test_barrier_by_hand():
    assert barrier([0, 0.25, 0.5, 1], [1.0, 2.5, 3.0, 3.0]) == (1.0, 0.25)
    assert barrier([0, 0.5, 1], [1.0, 0.2, 3.0]) == (0.0, 0)
    assert all(map(math.isnan, barrier([0, 0.5, 1], [1.0, math.nan, 3.0])))


def test_curve_of_the_golden_network(golden_of, tmp_path):
    golden = golden_of("lora")
    names = iter(range(100))

    def evaluate(adapter):
        folder = tmp_path / str(next(names))
        write_adapter(adapter, folder)
        error = golden.output(folder) - golden.y
        return {"loss": error.square().mean().item(), "largest": error.abs().max().item()}

    curve = lmc_curve(*golden.adapters(), evaluate, lambdas=[0, 0.25, 0.5, 1], space="factor")
    losses = [
        (golden.tensors[f"interp_factor.{lam}"] - golden.y).square().mean().item() for lam in (0.0, 0.25, 0.5, 1.0)
    ]
    assert curve.losses == pytest.approx(losses, rel=1e-9) and len(curve.metrics["largest"]) == 4
    rises = [
        loss - ((1 - lam) * losses[0] + lam * losses[-1]) for lam, loss in zip(curve.lambdas, losses, strict=True)
    ]
    assert curve.barrier == pytest.approx(max(rises), rel=1e-9, abs=1e-9)
    assert curve.losses[0] == pytest.approx(golden.numbers["loss"][0], rel=1e-9)
    a, b = golden.adapters()
    assert len(lmc_curve(a, b, lambda adapter: 0.0).lambdas) == 11
    for grid in ([0, 0.5], [0.5, 1], [0, 1, 0.5], [0, 0.5, 0.5, 1], [0]):
        with pytest.raises(UsageError, match="ascend from 0 to 1"):
            lmc_curve(a, b, lambda adapter: 0.0, lambdas=grid)
