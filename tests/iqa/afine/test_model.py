"""Properties of the model: batches, sizes, flat pictures, precision, gradients, files."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig

from thurl.errors import DataError
from thurl.iqa.afine.config import AFineConfig
from thurl.iqa.afine.features import AFineFeatures
from thurl.iqa.afine.model import AFineModel
from thurl.iqa.afine.outputs import AFineOutput
from thurl.ranking import fidelity_loss, preference_probability


STAGES = [name for name in AFineOutput.__dataclass_fields__ if name not in ("loss", "terms", "present")]


def pictures(count=1, height=64, width=64, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(count, 3, 5, 5, generator=generator)
    size = (height, width)
    smooth = torch.nn.functional.interpolate(smooth, size=size, mode="bicubic", align_corners=True).clamp(0, 1)
    return (0.8 * smooth + 0.2 * torch.rand(count, 3, height, width, generator=generator)).to(dtype)


def close(a, b, atol=1e-4, rtol=1e-4):
    for name in STAGES:
        assert a[name].shape == b[name].shape, name
        assert torch.allclose(a[name].float(), b[name].float(), atol=atol, rtol=rtol), name


# --- one against many ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_batch_equals_single_pictures(golden_model):
    ref, dis = pictures(5, 64, 96, seed=1), pictures(5, 64, 96, seed=2)
    batch = golden_model(ref, dis)
    assert all(batch[name].shape == (5,) for name in STAGES)
    for i in range(5):
        single = golden_model(ref[i : i + 1], dis[i : i + 1])
        close(AFineOutput(**{name: batch[name][i : i + 1] for name in STAGES}), single)


@torch.no_grad()
def test_lists_of_mixed_sizes_come_back_in_their_order(golden_model):
    sizes = [(64, 64), (33, 65), (64, 64), (40, 96), (33, 65)]
    ref = [pictures(1, *size, seed=i)[0] for i, size in enumerate(sizes)]
    dis = [pictures(1, *size, seed=10 + i)[0] for i, size in enumerate(sizes)]
    ref[2] = ref[0]  # the same reference twice
    ref, dis = [*ref, *ref[:2]], [*dis, *[pictures(1, *size, seed=20)[0] for size in sizes[:2]]]
    together = golden_model(ref, dis)
    for i in range(7):
        close(AFineOutput(**{n: together[n][i : i + 1] for n in STAGES}), golden_model(ref[i][None], dis[i][None]))
    assert torch.allclose(golden_model.naturalness(dis), together.naturalness_dis, atol=1e-4)
    assert torch.allclose(golden_model.fidelity(ref, dis), together.fidelity, atol=1e-4)


def test_a_reference_of_several_pictures_goes_through_the_tower_once(tiny_afine, monkeypatch):
    model, ref = tiny_afine(), pictures(1)[0]
    seen = []
    original = AFineModel.features
    monkeypatch.setattr(AFineModel, "features", lambda self, x, **o: seen.append(len(x)) or original(self, x, **o))
    with torch.no_grad():
        model([ref] * 4, list(pictures(4, seed=1)))
        assert seen == [5]
        model(ref[None], pictures(4, seed=1))
        assert seen == [5, 5]


@torch.no_grad()
def test_features_are_kept_for_many_comparisons(golden_model):
    ref, dis = pictures(1, seed=1), pictures(4, seed=2)
    kept, judged = golden_model.features(ref), golden_model.features(dis)
    assert [level.shape[1] for level in kept.levels] == [64 * 64, 4, 4]
    assert kept.mean.shape == (1, 3 + 2 * 128) and kept.size == (64, 64)
    whole = golden_model(ref, dis)
    close(golden_model(kept, dis), whole)
    close(golden_model.compare(kept, judged), whole)
    close(golden_model.compare(kept[[0, 0, 0, 0]], judged), whole)
    close(golden_model.compare(AFineFeatures.cat([kept] * 4), judged), whole)
    back = golden_model.compare(judged, kept)  # one judged against four references
    assert back.afine.shape == (4,) and not torch.allclose(back.afine, whole.afine)
    assert golden_model.features(dis, keep_levels=False).levels is None
    assert torch.equal(golden_model.naturalness(judged), golden_model.naturalness(dis))
    with pytest.raises(ValueError, match="without levels"):
        golden_model.fidelity(kept, golden_model.features(dis, keep_levels=False))


@torch.no_grad()
def test_scores_do_not_depend_on_the_layout_and_inputs_stay_as_they_are(golden_model):
    ref, dis = pictures(2, 50, 70, seed=1), pictures(2, 50, 70, seed=2)
    kept = ref.clone(), dis.clone()
    first = golden_model(ref, dis)
    assert torch.equal(ref, kept[0]) and torch.equal(dis, kept[1])
    close(golden_model(ref, dis), first, atol=0, rtol=0)
    last = {"memory_format": torch.channels_last}
    close(golden_model(ref.contiguous(**last), dis.contiguous(**last)), first)
    rows = dis.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert not rows.is_contiguous()
    close(golden_model(ref, rows), first)


@torch.no_grad()
def test_bytes_are_divided_by_255(golden_model):
    raw = (pictures(2, seed=3) * 255).round().to(torch.uint8)
    close(golden_model(raw, raw.flip(0)), golden_model(raw / 255, raw.flip(0) / 255), atol=0, rtol=0)


# --- equal and flat pictures -----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", [64, 50], ids=["multiple", "resized"])
def test_flat_pictures_of_every_grey_level_are_equal_to_themselves(golden_model, side):
    levels = torch.arange(0, 256, 3 if side == 64 else 15, dtype=torch.uint8)
    flat = levels[:, None, None, None].expand(-1, 3, side, side).contiguous()
    raw = golden_model.fidelity_raw(flat, flat.clone())
    assert raw.abs().max() < 1e-4  # officially 4.2 for grey 128 and 14.1 for grey 200


@torch.no_grad()
def test_equal_pictures_have_fidelity_zero_and_differing_ones_do_not(golden_model):
    samples = torch.cat([pictures(2, seed=4), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))])
    for ref, dis in ((samples, samples), (samples, samples.clone())):
        output = golden_model(ref, dis)
        assert output.fidelity_raw.abs().max() < 1e-6
        floor = golden_model.fidelity_map(torch.zeros(4))
        # lambda is 1, hence D(x, x) = N(x) + F(0).
        assert torch.allclose(output.afine, output.naturalness_dis + floor, atol=1e-5)
    assert (golden_model.fidelity_raw(samples, samples.flip(0)) > 0.05).all()


@torch.no_grad()
def test_the_two_sides_are_not_exchangeable(golden_model):
    ref, dis = pictures(3, seed=1), pictures(3, seed=2)
    assert not torch.allclose(golden_model(ref, dis).afine, golden_model(dis, ref).afine)
    # Fidelity alone is symmetric.
    assert torch.allclose(golden_model.fidelity(ref, dis), golden_model.fidelity(dis, ref), atol=1e-5)


@torch.no_grad()
def test_scaled_scores_stay_in_range_and_order_as_the_unscaled(tiny_afine):
    model = tiny_afine(naturalness_width=0.05)  # a steep map: naturalness at both of its ends
    ref, dis = torch.rand(16, 3, 32, 32), torch.rand(16, 3, 32, 32) ** 4
    output = model(ref, dis)
    assert output.afine_scaled.isfinite().all()
    assert (output.afine_scaled >= 0).all() and (output.afine_scaled <= 100).all()
    order = output.afine.argsort()
    assert (output.afine_scaled[order].diff() >= 0).all()


def test_pictures_that_are_not_finite_get_no_number(golden_model):
    dis = pictures(3, seed=5)
    dis[1, 0, 3, 3] = torch.nan
    with torch.no_grad():
        output = golden_model(pictures(3, seed=6), dis)
    for name in ("naturalness_dis", "fidelity", "afine", "afine_scaled"):
        assert output[name].isnan().tolist() == [False, True, False], name
    assert not output.naturalness_ref.isnan().any()


# --- diagnostics and the other adapter -------------------------------------------------------------------------------


def test_combine_flags_pairs_past_the_turning_point(tiny_afine):
    model = tiny_afine(naturalness_centre=0.0, naturalness_width=1.0)
    logit = torch.logit((torch.tensor([1.0, -1.0, 0.1, 1.0, 1.9]) + 2) / 4)  # N of the pictures
    ref = torch.logit((torch.tensor([1.5, 1.5, 1.5, 0.5, -1.9]) + 2) / 4)
    output = model.combine(ref, logit, torch.full((5,), 0.2))
    assert output.past_turning_point.tolist() == [True, False, False, False, False]
    assert output.adapter_weight[0] > 1 and output.adapter_weight[4] < 1e-6
    assert torch.allclose(output.afine[4], output.fidelity[4], atol=1e-5)
    monotone = tiny_afine(naturalness_centre=0.0, naturalness_width=1.0, adapter="monotone")
    other = monotone.combine(ref, logit, torch.full((5,), 0.2))
    assert not other.past_turning_point.any()
    shift = 2 * output.adapter_weight
    assert torch.allclose(other.afine, output.afine - shift, rtol=1e-5)


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "dis", "message"),
    [
        (torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 32), "64x64 pixels, the picture 32x64"),
        (torch.rand(2, 3, 64, 64), torch.rand(3, 3, 64, 64), "2 references for 3 pictures"),
        (torch.rand(1, 1, 64, 64), torch.rand(1, 1, 64, 64), r"\(B, 3, H, W\)"),
        (torch.rand(3, 64, 64), torch.rand(3, 64, 64), r"\(B, 3, H, W\)"),
        (torch.ones(1, 3, 8, 8, dtype=torch.int32), torch.ones(1, 3, 8, 8, dtype=torch.int32), "int32"),
        ([torch.rand(3, 64, 64)], [torch.rand(3, 64, 32)], "picture 0: the reference has 64x64"),
        ([torch.rand(3, 64, 64)] * 2, [torch.rand(3, 64, 64)] * 3, "2 references for 3"),
        ([torch.rand(3, 64, 64)], [torch.rand(1, 64, 64)], "picture 0 is"),
        ([torch.rand(3, 8, 8)] * 2, [torch.rand(3, 8, 8), torch.ones(3, 8, 8, dtype=torch.uint8)], "one dtype"),
        ([], [], "no pictures"),
    ],
)
def test_wrong_pictures_are_refused(golden_model, ref, dis, message):
    with pytest.raises(ValueError, match=message):
        golden_model(ref, dis)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "better"}, "official, monotone"),
        ({"scale_width": 0}, "scale_width"),
        ({"image_std": [1, 0, 1]}, "image_std"),
        ({"fidelity_width_range": [0.7, 0.1]}, "fidelity_width_range"),
        ({"untrained": ["head"]}, "untrained"),
        ({"vision_config": {"num_channels": 1}}, "3 colours"),
        ({"projection_size": 0}, "projection_size"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AFineConfig.tiny(**changes)


def test_the_defaults_are_the_released_model():
    with torch.device("meta"):
        model = AFineModel(AFineConfig())
    assert model.fidelity_head.alpha.shape == (9219,)
    assert model.naturalness_head.projection.weight.shape == (128, 1536)
    assert model.naturalness_head.hidden.weight.shape == (768, 1542)
    assert model.vision.embeddings.position_embedding.weight.shape == (50, 768)
    assert model.vision.config.hidden_act == "quick_gelu" and model.vision.config.layer_norm_eps == 1e-5


# --- gradients -------------------------------------------------------------------------------------------------------


def test_gradcheck_of_the_score_by_the_picture(tiny_afine):
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "patch_size": 4, "image_size": 8}
    model = tiny_afine(dtype=torch.float64, vision_config=vision, projection_size=4)
    ref = pictures(2, 6, 8, seed=1, dtype=torch.float64)  # 6 is resized to 8
    dis = pictures(2, 6, 8, seed=2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(ref, x).afine, dis, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: model(x, ref).afine_scaled, dis, fast_mode=True)


def test_gradcheck_of_the_loss_by_the_trained_numbers(tiny_afine):
    model = tiny_afine(dtype=torch.float64)
    with torch.no_grad():
        ref, x1, x2 = (model.features(pictures(3, seed=seed, dtype=torch.float64)) for seed in (1, 2, 3))
    names = ["fidelity_head.alpha", "fidelity_head.beta", "adapter.k"]
    names += [f"{part}.{name}" for part in ("naturalness_map", "fidelity_map") for name in ("centre", "width")]
    parameters = [model.get_parameter(name) for name in names]

    def loss(*values):
        with torch.nn.utils.stateless._reparametrize_module(model, dict(zip(names, values, strict=True))):
            u1, u2 = model.compare(ref, x1).afine, model.compare(ref, x2).afine
        p = preference_probability(u2, u1, 1.0, 1.0, eps=0.0)
        return fidelity_loss(p, torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64))

    assert torch.autograd.gradcheck(
        loss, [value.detach().clone().requires_grad_() for value in parameters], fast_mode=True
    )


def test_every_parameter_but_the_unused_norm_gets_a_gradient(tiny_afine):
    model = tiny_afine().train()
    model(pictures(2, 50, 64, seed=1), pictures(2, 50, 64, seed=2)).afine.sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The bias of the keys shifts all of a query's scores alike, so its gradient is rounding at most.
    without = [name for name in without if not name.endswith("k_proj.bias")]
    assert without == ["vision.post_layernorm.weight", "vision.post_layernorm.bias"]


def test_clamped_numbers_get_no_gradient_outside_their_range(tiny_afine):
    model = tiny_afine(fidelity_centre=0.99, fidelity_width=0.005)
    zero = torch.zeros(2)
    output = model.combine(zero, zero, torch.tensor([0.2, 0.9]))
    output.afine.sum().backward()
    assert model.fidelity_map.centre.grad.item() == model.fidelity_map.width.grad.item() == 0
    expected = tiny_afine(fidelity_centre=0.95, fidelity_width=0.01).combine(zero, zero, torch.tensor([0.2, 0.9]))
    assert torch.allclose(output.fidelity, expected.fidelity)
    assert model.fidelity_map.centre.item() == pytest.approx(0.99)  # stored as it is


def test_checkpointing_changes_no_gradient(tiny_afine):
    found = []
    for checkpointing in (False, True):
        model = tiny_afine().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        dis = pictures(2, seed=2).requires_grad_()
        model(pictures(2, seed=1), dis).afine.sum().backward()
        found.append([dis.grad, *[p.grad for p in model.parameters() if p.grad is not None]])
    assert len(found[0]) == len(found[1])
    for plain, saved in zip(*found, strict=True):
        assert torch.allclose(plain, saved, atol=1e-6)


# --- precision -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("how", ["tower", "autocast", "whole"])
def test_statistics_and_heads_stay_float32(tiny_afine, how):
    ref, dis = pictures(4, 50, 64, seed=1), pictures(4, 50, 64, seed=2)
    exact, model = tiny_afine()(ref, dis), tiny_afine()
    if how == "tower":
        model.vision.to(torch.bfloat16)
    if how == "whole":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        output, features = model(ref, dis), model.features(dis)
        flat = torch.full((1, 3, 50, 64), 0.7)
        assert model.fidelity_raw(flat, flat.clone()).abs().max() < 1e-4
    assert {tensor.dtype for tensor in (*features.levels, features.mean, features.variance)} == {torch.float32}
    assert all(output[name].dtype == torch.float32 for name in STAGES if name != "past_turning_point")
    assert (output.fidelity_raw - exact.fidelity_raw).abs().max() < 0.02
    assert (output.naturalness_dis_raw - exact.naturalness_dis_raw).abs().max() < 0.02
    assert (output.fidelity_raw - exact.fidelity_raw).abs().max() > 0  # the tower did compute in bfloat16


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_saved_model_scores_the_same(tiny_afine, tmp_path):
    model = tiny_afine(seed=3, adapter="monotone")
    model.save_pretrained(tmp_path)
    again = AFineModel.from_pretrained(tmp_path)
    ref, dis = pictures(2, seed=1), pictures(2, seed=2)
    with torch.no_grad():
        close(model(ref, dis), again(ref, dis), atol=1e-5)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert again.config.adapter == "monotone" and not again.training
    assert [n for n, p in again.named_parameters() if not p.requires_grad] == [
        "vision.post_layernorm.weight",
        "vision.post_layernorm.bias",
    ]
    half = AFineModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.vision.pre_layrnorm.weight.dtype == torch.bfloat16
    assert half.naturalness_head.hidden.weight.dtype == half.adapter.k.dtype == torch.float32


def test_a_folder_without_some_weights_is_refused(tiny_afine, tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_afine().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["adapter.k"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"adapter\.k"):
        AFineModel.from_pretrained(tmp_path)


def test_the_start_follows_the_seed_and_keeps_clips_own_start(tiny_afine):
    a, b, c = (tiny_afine(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["fidelity_head.alpha"], c["fidelity_head.alpha"])
    assert abs(a["fidelity_head.alpha"].mean().item() - 0.1) < 0.005
    assert abs(a["fidelity_head.beta"].std().item() - 0.01) < 0.003
    expected = 64**-0.5 * (2 * 2) ** -0.5
    assert a["vision.encoder.layers.0.self_attn.q_proj.weight"].std().item() == pytest.approx(expected, rel=0.1)


@torch.no_grad()
@pytest.mark.parametrize(("width", "heads", "patch", "side"), [(128, 2, 16, 48), (192, 3, 14, 28), (64, 1, 32, 64)])
def test_any_tower_fits(width, heads, patch, side):
    vision = CLIPVisionConfig(
        hidden_size=width, num_attention_heads=heads, patch_size=patch, image_size=side, num_hidden_layers=3
    )
    model = AFineModel(AFineConfig.tiny(vision_config=vision)).eval()
    output = model(pictures(2, 45, 61, seed=1), pictures(2, 45, 61, seed=2))
    assert output.afine.isfinite().all() and (output.fidelity_raw > 0).all()
