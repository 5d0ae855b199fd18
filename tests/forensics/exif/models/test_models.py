"""The trained models: golden outputs, named terms, prompt features that are never stale, bit-equal files."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from thurl.forensics.exif.blades import BladesModel
from thurl.forensics.exif.config import BladesConfig, ExifOrdinalConfig, FaceHeadConfig
from thurl.forensics.exif.encoder import EncoderOutput, ExifEncoder, encoder_fingerprint
from thurl.forensics.exif.head import FaceHead
from thurl.forensics.exif.losses import HEADS, total_loss
from thurl.forensics.exif.official import from_official
from thurl.forensics.exif.ordinal import ExifOrdinalModel
from thurl.forensics.exif.tasks import OFFICIAL_COLUMNS, TASKS


GOLDEN = Path(__file__).resolve().parents[3] / "golden"


# --- golden values ---------------------------------------------------------------------------------------------------


class OneConvolution(nn.Module):
    """The golden file's stand-in for the ResNet: convolution, ReLU, mean over the picture, 16 values tiled to 2048."""

    def __init__(self, state):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 7, stride=4)
        self.fc = nn.Linear(2048, 768)
        self.conv.load_state_dict({"weight": state["visual.conv1.weight"], "bias": state["visual.conv1.bias"]})
        self.fc.load_state_dict({"weight": state["visual.fc.weight"], "bias": state["visual.fc.bias"]})

    def forward(self, pixel_values):
        means = self.conv(pixel_values).relu().mean(dim=(2, 3))
        return EncoderOutput(features=self.fc(means.repeat(1, 128)))


@pytest.fixture(scope="module")
def golden_joint():
    arrays = np.load(GOLDEN / "exif_joint_embedding_tiny.npz")
    golden = {name: torch.from_numpy(value) for name, value in arrays.items()}
    state = {name.removeprefix("state.model."): golden[name] for name in golden if name.startswith("state.")}
    end = int(golden["text"].max())
    config = BladesConfig(
        encoder_config={"depths": (1,), "hidden_sizes": (8,), "stem_channels": 4},
        text_config={
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 200,
            "projection_dim": 1024,
            "eos_token_id": end,
        },
        prompt_ids=[row[: row.index(end) + 1] for row in golden["text"].tolist()],
    )
    encoder = ExifEncoder(config.encoder_config)
    visual = {f"model.visual.{name}": tensor for name, tensor in encoder.state_dict().items()}
    text = {f"model.{name}": tensor for name, tensor in state.items() if not name.startswith("visual.")}
    converted = from_official(visual | text, "blades_oc", config=config)
    assert converted.missing == [] and converted.unused == []
    converted.model.visual = OneConvolution(state)
    return golden, converted.model


def test_the_joint_embedding_is_the_official_one(golden_joint):
    golden, model = golden_joint
    with torch.no_grad():
        output = model(golden["image"])
        torch.testing.assert_close(model.text_features(), golden["text_features_unnormalised"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.features, golden["image_features"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.scores, golden["logits_per_image"], rtol=0, atol=1e-4)


def test_golden_notices_a_swap_inside_the_text_tower(golden_joint):
    golden, model = golden_joint
    broken = copy.deepcopy(model)
    attention = broken.text.text_model.encoder.layers[0].self_attn
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj
    attention.v_proj.bias.data.neg_()
    with torch.no_grad():
        assert (broken(golden["image"]).scores - golden["logits_per_image"]).abs().max() > 1e-3


def test_padding_to_the_longest_prompt_changes_nothing(golden_joint):
    golden, model = golden_joint
    with torch.no_grad():
        padded = model.text_fc(model.text(input_ids=golden["text"]).text_embeds)
        torch.testing.assert_close(model.text_features(), padded, rtol=1e-5, atol=1e-5)


def test_the_five_heads_are_the_official_ones():
    golden = load_file(GOLDEN / "exif_icassp_heads.safetensors")
    model = ExifOrdinalModel(ExifOrdinalConfig(encoder_config={"depths": (1,), "hidden_sizes": (8,)}))
    for task, key in zip(HEADS, ("iso", "av", "et", "fl", "face"), strict=True):
        model.heads[task].load_state_dict({kind: golden[f"fc_{key}.{kind}"] for kind in ("weight", "bias")})

    class Fixed(nn.Module):
        def forward(self, pixel_values):
            return EncoderOutput(features=pixel_values)

    model.visual = Fixed()
    labels = {task: golden[f"y.{key}"] for task, key in zip(HEADS, ("iso", "av", "et", "fl", "face"), strict=True)}
    output = model(golden["features"], labels=labels)
    expected = torch.cat([golden[f"out.{key}"] for key in ("iso", "av", "et", "fl", "face")], dim=1)
    torch.testing.assert_close(output.scores, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, golden["total_loss"][0], rtol=1e-5, atol=0)


def test_the_binary_head_is_the_official_one():
    golden = load_file(GOLDEN / "exif_bc_mlp.safetensors")
    head = FaceHead(FaceHeadConfig(feature_size=96, hidden_size=192))
    head.load_state_dict({name: golden[name] for name in head.state_dict()})
    logits = head(golden["raw_features"]).logits
    torch.testing.assert_close(logits, golden["logits"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.softmax(1)[:, 1], golden["prob_generated"], rtol=1e-5, atol=0)
    torch.testing.assert_close(head(golden["normalised"]).logits, golden["logits"], rtol=1e-5, atol=1e-5)


# --- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ordinal", "blades"])
def test_loss_is_the_sum_of_the_named_terms_of_the_scores(kind, tiny_ordinal, tiny_blades, random_batch):
    model = (tiny_ordinal if kind == "ordinal" else tiny_blades)()
    pictures, labels = random_batch()
    output = model(pixel_values=pictures, labels=labels)
    assert tuple(output.terms) == (HEADS if kind == "ordinal" else TASKS)
    again = model.compute_terms(output.scores, labels)
    for task, term in output.terms.items():
        assert torch.equal(term, again[task])
    torch.testing.assert_close(output.loss, total_loss(output.terms))
    bare = model(pixel_values=pictures)
    assert bare.loss is None and bare.terms is None


@pytest.mark.parametrize("kind", ["ordinal", "blades"])
def test_every_parameter_gets_a_gradient(kind, tiny_ordinal, tiny_blades, random_batch):
    model = (tiny_ordinal if kind == "ordinal" else tiny_blades)()
    pictures, labels = random_batch(16)
    model.train()(pixel_values=pictures, labels=labels).loss.backward()
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    # The biases of the keys cannot move anything: softmax does not see what is the same for all keys.
    assert [name for name in still if "k_proj.bias" not in name] == []


def test_features_are_what_the_papers_detectors_take(tiny_ordinal, tiny_blades, random_batch):
    pictures, _ = random_batch()
    ordinal, blades = tiny_ordinal().eval(), tiny_blades().eval()
    with torch.no_grad():
        raw = ordinal.visual(pictures).features
        assert torch.equal(ordinal(pictures).features, raw) and torch.equal(ordinal.image_features(pictures), raw)
        unit = blades.image_features(pictures)
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(8))
        assert torch.equal(blades(pictures).features, unit)
    assert not ordinal.unit_length and blades.unit_length


def test_a_zero_feature_has_finite_logits(tiny_blades, random_batch):
    model = tiny_blades().eval()
    model.visual.fc.weight.data.zero_()
    model.visual.fc.bias.data.zero_()
    output = model(random_batch()[0])
    assert not output.features.any() and not output.scores.any()


def test_autocast_keeps_logits_in_float32(tiny_blades, random_batch):
    model = tiny_blades().eval()
    pictures, labels = random_batch()
    with torch.no_grad():
        exact = model(pictures, labels=labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(pictures, labels=labels)
    assert half.scores.dtype == torch.float32 and half.loss.dtype == torch.float32
    assert half.features.dtype == torch.float32
    torch.testing.assert_close(half.scores, exact.scores, rtol=0, atol=0.25)
    assert not torch.equal(half.scores, exact.scores)  # autocast did act


def test_half_precision_model(tiny_blades, random_batch):
    model = tiny_blades().eval().to(torch.bfloat16)
    pictures, labels = random_batch()
    output = model(pictures.to(torch.bfloat16), labels=labels)
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()


# --- prompts ---------------------------------------------------------------------------------------------------------


def count_encodings(model):
    calls = []
    model.text.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_prompts_are_encoded_once_in_evaluation_and_each_time_in_training(tiny_blades, random_batch):
    model, (pictures, _) = tiny_blades(), random_batch()
    calls = count_encodings(model)
    model.eval()
    with torch.no_grad():
        for _ in range(3):
            model(pictures)
    assert len(calls) == 1
    model(pictures)  # with a graph
    model.train()
    with torch.no_grad():
        model(pictures)
        model(pictures)
    assert len(calls) == 4


@pytest.mark.parametrize("change", ["in place", "replaced", "loaded", "text_fc", "dtype"])
def test_kept_prompt_features_do_not_outlive_their_weights(change, tiny_blades):
    model = tiny_blades().eval()
    other = tiny_blades(seed=1)
    with torch.no_grad():
        before = model.text_features()
        weight = model.text.text_model.final_layer_norm.weight
        if change == "in place":
            weight.mul_(1.5)
        elif change == "replaced":
            model.text.text_model.final_layer_norm.weight = nn.Parameter(weight * 1.5)
        elif change == "loaded":
            model.load_state_dict(other.state_dict())
        elif change == "text_fc":
            model.text_fc.bias.add_(1.0)
        else:
            model.to(torch.bfloat16)
        after = model.text_features()
        assert not torch.equal(before.float(), after.float())
        assert torch.equal(after, model._encode_prompts())


def test_kept_prompt_features_do_not_survive_a_copy_or_an_optimizer_step(tiny_blades, random_batch):
    model = tiny_blades().eval()
    with torch.no_grad():
        model.text_features()
        copied = copy.deepcopy(model)
        copied.text_fc.bias.add_(1.0)
        assert torch.equal(copied.text_features(), copied._encode_prompts())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    pictures, labels = random_batch()
    model(pictures, labels=labels).loss.backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(model.text_features(), model._encode_prompts())


def test_kept_prompt_features_of_inference_mode_serve_no_grad_mode(tiny_blades, random_batch):
    model, (pictures, labels) = tiny_blades().eval(), random_batch()
    with torch.inference_mode():
        first = model(pictures).scores.clone()
    with torch.no_grad():
        assert torch.equal(model(pictures).scores, first)
    model(pictures, labels=labels).loss.backward()


# --- configurations and files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ordinal", "blades"])
def test_save_and_load_is_bit_equal(kind, tmp_path, tiny_ordinal, tiny_blades, random_batch):
    model = (tiny_ordinal if kind == "ordinal" else tiny_blades)()
    pictures, _ = random_batch()
    model.train()(pictures)  # moves the statistics
    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model(pictures).scores, again(pictures).scores)
        assert torch.equal(model(pictures).features, again(pictures).features)
    assert again.config.to_dict() == {**model.config.to_dict(), **again.config.to_dict()}


@pytest.mark.parametrize("kind", ["ordinal", "blades"])
def test_the_encoder_alone_loads_from_the_folder_of_a_model(kind, tmp_path, tiny_ordinal, tiny_blades):
    model = (tiny_ordinal if kind == "ordinal" else tiny_blades)(seed=3)
    model.save_pretrained(tmp_path)
    encoder = ExifEncoder.from_pretrained(tmp_path)
    assert encoder_fingerprint(encoder) == encoder_fingerprint(model.visual)


def test_head_save_and_load_is_bit_equal(tmp_path):
    torch.manual_seed(0)
    head = FaceHead(FaceHeadConfig(feature_size=24, hidden_size=48))
    head.save_pretrained(tmp_path)
    features = torch.randn(5, 24)
    assert torch.equal(head(features).logits, FaceHead.from_pretrained(tmp_path)(features).logits)


def test_released_sizes():
    with torch.device("meta"):
        model = BladesModel(BladesConfig())
    assert abs(sum(parameter.numel() for parameter in model.parameters()) / 1e6 - 89.56) < 0.01
    assert len(model.config.prompt_ids) == 50 and max(map(len, model.config.prompt_ids)) == 17


def test_two_regions_five_levels_and_fewer_tasks(tiny_blades, random_batch):
    pictures, labels = random_batch()
    two = tiny_blades(columns={**OFFICIAL_COLUMNS, "fine_face": 2})
    assert two(pictures, labels=labels).scores.shape == (8, 49)
    few = tiny_blades(columns={"iso": 3, "coarse_face": 2})
    output = few(pictures, labels=labels)
    assert output.scores.shape == (8, 5) and tuple(output.terms) == ("iso", "coarse_face")
    own = [[49406, number + 1, 49407] for number in range(7)]
    five = tiny_blades(columns={"iso": 5, "coarse_face": 2}, prompt_ids=own)
    assert five(pictures, labels=labels).loss.isfinite()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"columns": {"iso": 5}}, "3 released prompts"),
        ({"columns": {"shutter": 3}}, "none of the tasks"),
        ({"columns": {"make": 9}}, "10 classes"),
        ({"columns": {"iso": 3}, "prompt_ids": [[49406, 49407]]}, "1 prompts for 3 columns"),
        ({"columns": {"white_balance": 2}, "prompt_ids": [[1, 2], [1, 49407]]}, "end token"),
        ({"columns": {"white_balance": 2}, "prompt_ids": [[1, 60000], [1, 49407]]}, "vocabulary"),
        ({"columns": {"white_balance": 2}, "prompt_ids": [[7] * 78, [49407]]}, "78 tokens"),
        ({"rank_scale": 0.0}, "positive"),
    ],
)
def test_configurations_that_fit_nothing(changes, match):
    with pytest.raises(ValueError, match=match):
        BladesConfig(**changes)
