"""Released pools: their layout is read, everything else is refused, and nothing of a file is executed."""

from __future__ import annotations

import sys
import types
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from thurl.distillation.codec import LatentCodec
from thurl.distillation.geometry import CodecConfig
from thurl.distillation.post_quantisation import post_quantise
from thurl.distillation.released import coded_pool, pool_codec, read_pool, write_pool
from thurl.errors import DataError, MissingRequirementError, UsageError


CONFIG = CodecConfig(9, 12, 3, context=16, depth=2, widths=(6, 4))


@pytest.fixture(params=["core.ts.tensor_data_func_v6", "ts.tensor_data_func_v6"])
def holder(request, monkeypatch):
    """A class of the official name; the module is gone again before a file is read."""
    parts = request.param.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    class DPParams:
        pass

    DPParams.__module__, DPParams.__qualname__ = request.param, "DPParams"
    sys.modules[request.param].DPParams = DPParams
    return DPParams


@pytest.fixture
def trained():
    """Two classes with two slices each, the second of them smaller."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for samples, index in ((3, 0), (2, 1)):
        codec = LatentCodec(CONFIG, 2, samples, generator=generator)
        with torch.no_grad():
            for parameter in codec.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        made[index] = codec
    return made


def saved(trained, holder, path):
    pools = {}
    for index, codec in trained.items():
        for label in range(codec.slices):
            one = holder()
            lists = {"grids": codec.grids, "ap": codec.arm, "up": codec.upsampling, "sp": codec.synthesis}
            one.pool = {
                name: torch.nn.ParameterList(
                    [
                        torch.nn.Parameter((p[label].unsqueeze(1) if name == "grids" else p[label]).clone())
                        for p in members
                    ]
                )
                for name, members in lists.items()
            }
            one.spc = codec.samples
            pools[f"{label + 1}_{index}"] = {"param": one, "noise": [torch.zeros(2)]}
    torch.save(pools, path)  # noqa: TID251 - the released format
    for name in [name for name in sys.modules if name.split(".")[0] in ("core", "ts")]:
        del sys.modules[name]
    return path


def test_a_released_pool_is_read(trained, holder, tmp_path):
    slices = read_pool(saved(trained, holder, tmp_path / "pool_origin.pt"))
    assert [(part.label, part.index, part.samples) for part in slices] == [(1, 0, 3), (1, 1, 2), (2, 0, 3), (2, 1, 2)]
    assert all(part.config == CONFIG for part in slices)
    assert "core.ts.tensor_data_func_v6" not in sys.modules and "ts.tensor_data_func_v6" not in sys.modules
    for index, codec in trained.items():
        again = pool_codec([part for part in slices if part.index == index])
        assert torch.equal(again.hard().images, codec.hard().images)
        assert torch.equal(again.hard().bits, codec.hard().bits)
    with pytest.raises(UsageError, match="several shapes"):
        pool_codec(slices)
    with pytest.raises(DataError, match="slice 1_0, arm weight: no multiples of 2\\^-16"):
        coded_pool(slices)


def test_it_is_written_as_safetensors(trained, holder, tmp_path):
    slices = read_pool(saved(trained, holder, tmp_path / "pool_origin.pt"))
    write_pool(slices, tmp_path / "pool.safetensors")
    tensors = load_file(tmp_path / "pool.safetensors")
    assert {"1_0.grids.0", "1_0.ap.5", "2_1.up.0", "2_0.sp.9"} <= set(tensors)
    assert tensors["1_0.grids.0"].shape == (3, 1, 9, 12) and tensors["1_0.up.0"].shape == (1, 1, 8, 8)
    again = read_pool(tmp_path / "pool.safetensors")
    for ours, wanted in zip(again, slices, strict=True):
        assert (ours.label, ours.index, ours.config) == (wanted.label, wanted.index, wanted.config)
        assert all(torch.equal(a, b) for a, b in zip(ours.grids, wanted.grids, strict=True))
        for net, values in wanted.networks.items():
            assert all(torch.equal(a, b) for a, b in zip(ours.networks[net], values, strict=True))


def test_steps_are_found_again(trained, holder, tmp_path):
    """The pool holds networks that were quantised and dequantised, and float latents, as officially."""
    nets = {index: post_quantise(codec, 1e-4) for index, codec in trained.items()}
    quantised = {index: nets[index].apply(codec) for index, codec in trained.items()}
    slices = read_pool(saved(quantised, holder, tmp_path / "pool_quantized.pt"))
    for part, coded in zip(slices, coded_pool(slices), strict=True):
        assert coded.labels.tolist() == [part.label] * part.samples
        wanted = nets[part.index].slices[part.label - 1]
        for name, group in coded.nets.items():
            # Integers that all are even have a larger step than the one they were made with: the same values.
            assert group.exponent <= wanted.groups[name].exponent
            factor = 2 ** (wanted.groups[name].exponent - group.exponent)
            for ours, theirs in zip(group.values, wanted.groups[name].values, strict=True):
                assert np.array_equal(ours * factor, theirs)
        again = LatentCodec.from_coded([coded])
        picture = quantised[part.index].hard().images[part.label - 1]
        assert torch.equal(again.hard().images[0], picture)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize("content", [{"0_0": Evil()}, {"0_0": {"param": Fraction(1, 2), "noise": None}}, Evil()])
def test_foreign_objects_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "evil.pt")  # noqa: TID251 - what the restricted unpickler refuses
    with pytest.raises(DataError, match="evil.pt: not a checkpoint"):
        read_pool(tmp_path / "evil.pt")


def test_other_contents_are_named(trained, holder, tmp_path):
    for number, (content, message) in enumerate(
        [
            ([torch.zeros(1)], "not a pool"),
            ({}, "not a pool"),
            ({"0_0": {"noise": None}}, "no `param` with a `pool`"),
            ({"weight": torch.zeros(1)}, "'weight' is not a tensor of a pool"),
            ({"../x_0": {"param": None}}, "no `param`"),
        ]
    ):
        torch.save(content, tmp_path / f"{number}.pt")  # noqa: TID251 - the released format
        with pytest.raises(DataError, match=message):
            read_pool(tmp_path / f"{number}.pt")
    with pytest.raises(MissingRequirementError, match="no such file"):
        read_pool(tmp_path / "absent.pt")
    whole = saved(trained, holder, tmp_path / "pool.pt").read_bytes()
    (tmp_path / "torn.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="torn.pt"):
        read_pool(tmp_path / "torn.pt")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("1_0.grids.1", torch.zeros(3, 1, 4, 6), "do not fit each other"),
        ("1_0.grids.0", torch.zeros(2, 1, 9, 12), "are needed"),
        ("1_0.ap.0", torch.zeros(15, 15), "context: 15"),
        ("1_0.ap.1", torch.full((16,), float("nan")), "not finite"),
        ("1_0.sp.1", torch.zeros(6, dtype=torch.int32), "dense tensor of floats"),
        ("1_0.sp.3", torch.zeros(5), "do not fit each other"),
        ("1_0.grids.9", torch.zeros(3, 1, 1, 1), "do not fit each other"),
        ("1_x.grids.0", torch.zeros(3), "is not a tensor of a pool"),
        ("1_0.up.0", torch.zeros(0), "fewer values"),
        ("1_0.up.0", None, "no up"),
    ],
)
def test_tensors_that_do_not_fit_are_named(trained, holder, tmp_path, name, value, message):
    write_pool(read_pool(saved(trained, holder, tmp_path / "pool.pt")), tmp_path / "pool.safetensors")
    tensors = load_file(tmp_path / "pool.safetensors")
    tensors[name] = value
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, tmp_path / "broken.safetensors")
    with pytest.raises(DataError, match=message):
        read_pool(tmp_path / "broken.safetensors")


def test_a_tensor_with_more_values_than_the_file_is_refused(trained, holder, tmp_path):
    codec = trained[0]
    codec.grids[0] = torch.nn.Parameter(torch.zeros(1).expand(2, 3, 9, 12), requires_grad=False)
    one = holder()
    one.pool = {"grids": [torch.zeros(1).expand(10**9, 1, 9, 12)], "ap": [], "up": [], "sp": []}
    torch.save({"0_0": {"param": one}}, tmp_path / "bomb.pt")  # noqa: TID251 - the released format
    with pytest.raises(DataError, match="fewer values than that"):
        read_pool(tmp_path / "bomb.pt")
