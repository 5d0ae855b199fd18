from __future__ import annotations

import pytest
import torch

from thurl.coto.adapters import write_adapter
from thurl.coto.prune import prune_layers, prune_magnitude, prune_types, third
from thurl.errors import UsageError


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_golden_outputs_of_unstructured_pruning(golden, sparsity, tmp_path):
    write_adapter(prune_magnitude(golden.adapters()[0], sparsity), tmp_path / "out")
    expected = golden.tensors[f"unstructured.{sparsity}"]
    torch.testing.assert_close(golden.output(tmp_path / "out"), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("part", "mask"), [("even", "1010"), ("high", "0001")])
def test_golden_outputs_of_kept_layers(golden_of, part, mask, tmp_path):
    golden = golden_of("lora")
    write_adapter(prune_layers(golden.adapters()[0], part), tmp_path / "out")
    expected = golden.tensors[f"out.{golden.numbers['masks'].index(mask)}"]
    torch.testing.assert_close(golden.output(tmp_path / "out"), expected, rtol=1e-9, atol=1e-9)


def test_golden_output_of_one_dora_layer(golden_of, tmp_path):
    golden = golden_of("dora")  # three layers, mask 010: without the magnitudes of the others
    write_adapter(prune_layers(golden.adapters()[0], "middle"), tmp_path / "out")
    torch.testing.assert_close(golden.output(tmp_path / "out"), golden.tensors["out.2"], rtol=1e-9, atol=1e-9)


def layers(adapter, stack):
    return sorted(
        {int(path.removeprefix(stack + ".").split(".")[0]) for path in adapter.modules if path.startswith(stack)}
    )


def test_parts_are_taken_per_stack_and_the_rest_stays(towers):
    adapter = towers.make("a", 1)
    expected = {  # part: language layers of 4, vision layers of 3
        "even": ([0, 2], [0, 2]), "odd": ([1, 3], [1]), "low": ([0, 1], [0]), "middle": ([2], [1]), "high": ([3], [2]),
    }  # fmt: skip
    for part, (text, vision) in expected.items():
        kept = prune_layers(adapter, part)
        dropped = prune_layers(adapter, part, keep=False)
        assert (layers(kept, "model.layers"), layers(kept, "model.visual.layers")) == (text, vision)
        assert set(kept.modules) & set(dropped.modules) == {"merger"}
        assert set(kept.modules) | set(dropped.modules) == set(adapter.modules)


def test_layers_are_counted_among_the_adapted_ones(towers):
    adapter = towers.make("a", 1, target_modules=r"model\.layers\.(1|3)\.up")
    assert layers(prune_layers(adapter, "even"), "model.layers") == [1]


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"hira": True}])
def test_plain_peft_builds_what_is_left_and_nothing_else(towers, options):
    """`layers.0.up` of the language model must not bring `visual.layers.0.up` back, whose path ends alike."""
    adapter = prune_types(towers.make("a", 1, **options), ["merger"], keep=False)
    modules = {path: f for path, f in adapter.modules.items() if not path.startswith("model.visual")}
    from thurl.coto.adapters import retarget

    write_adapter(retarget(adapter, modules), towers.folder / "out")
    model = towers.load(towers.folder / "out")
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {name for name, module in model.base_model.model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert adapted == set(modules) and adapted
    x = torch.ones(2, 6, dtype=torch.float64)
    with torch.no_grad():
        vision = model.base_model.model.model["visual"]["layers"][0]["up"](x)
        torch.testing.assert_close(vision, towers.base().model["visual"]["layers"][0]["up"](x), rtol=0, atol=0)
        assert not torch.equal(model(x).logits, towers.base()(x).logits)


def test_types(towers):
    adapter = towers.make("a", 1)
    assert {path.rsplit(".")[-1] for path in prune_types(adapter, ["up", "merger"]).modules} == {"up", "merger"}
    assert {path.rsplit(".")[-1] for path in prune_types(adapter, ["up"], keep=False).modules} == {"down", "merger"}


def test_magnitude_zeroes_the_smallest_over_all_modules(towers):
    adapter = towers.make("a", 1)

    def entries(which):
        return torch.cat([t.flatten() for f in which.modules.values() for t in (f.a, f.b)])

    before = entries(adapter)
    n = before.numel()
    for sparsity in (0.0, 0.29, 0.5, 1.0):
        after = entries(prune_magnitude(adapter, sparsity))
        gone = after == 0
        assert int(gone.sum()) == int(sparsity * n + 1e-9)
        assert torch.equal(after[~gone], before[~gone])
        if gone.any() and not gone.all():
            assert before[gone].abs().max() < before[~gone].abs().min()
    assert entries(adapter).count_nonzero() == n  # the input is as it was


def test_ties_go_together_and_the_count_is_not_rounded_down_by_floating_point(towers):
    from dataclasses import replace

    adapter = towers.make("a", 1, target_modules=["merger"])
    values = torch.arange(1, 101, dtype=torch.float64).view(2, 5, 10)

    def pruned(values, sparsity):
        factors = replace(adapter.modules["merger"], a=values[0], b=values[1].reshape(10, 5))
        out = prune_magnitude(replace(adapter, modules={"merger": factors}), sparsity).modules["merger"]
        return int((out.a == 0).sum() + (out.b == 0).sum())

    assert 0.29 * 100 < 29 and 0.57 * 100 < 57  # what rounding protects from
    assert [pruned(values, s) for s in (0.29, 0.57, 0.3, 0.299)] == [29, 57, 30, 29]
    tied = values.clone().clamp_min(10)  # ten entries of 10
    assert [pruned(tied, s) for s in (0.01, 0.1, 0.11)] == [10, 10, 11]


def test_half_precision_stays(towers):
    out = prune_magnitude(towers.make("a", 1, dtype=torch.bfloat16), 0.5)
    assert {f.a.dtype for f in out.modules.values()} == {torch.bfloat16}


def test_thirds():
    assert [third(i, 12) for i in range(12)] == ["low"] * 4 + ["middle"] * 4 + ["high"] * 4
    assert [third(i, 4) for i in range(4)] == ["low", "low", "middle", "high"]


def test_wrong_choices(towers):
    adapter = towers.make("a", 1)
    with pytest.raises(UsageError, match="choose from even, odd, low, middle, high"):
        prune_layers(adapter, "top")
    with pytest.raises(UsageError, match="q_proj.* has down, merger, up"):
        prune_types(adapter, ["q_proj"])
    with pytest.raises(UsageError, match="leaves no adapted module"):
        prune_types(adapter, ["up", "down", "merger"], keep=False)
    with pytest.raises(UsageError, match="prune by module type"):
        prune_layers(prune_types(adapter, ["merger"]), "low")
    for sparsity in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match=r"\[0, 1\]"):
            prune_magnitude(adapter, sparsity)
