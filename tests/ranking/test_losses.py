"""Fidelity losses against the official ones (values and gradients), with missing labels, and at the ends of floats."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from thurl.ranking import (
    binary_fidelity_loss,
    class_fidelity_loss,
    expected_level,
    fidelity_loss,
    log_fidelity_loss,
    masked_mean,
    multilabel_fidelity_loss,
    pairwise_fidelity_loss,
    preference_probability,
)


GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {
    "rank_scalar_n8": lambda x, y: pairwise_fidelity_loss(x.squeeze(1), y),
    "rank_scalar_n33": lambda x, y: pairwise_fidelity_loss(x.squeeze(1), y),
    "rank_level3_n12": lambda x, y: pairwise_fidelity_loss(expected_level(x), y),
    "rank_level5_n10": lambda x, y: pairwise_fidelity_loss(expected_level(x), y),
    "fidelity_binary_n16": binary_fidelity_loss,
    "fidelity_coarse2_n9": class_fidelity_loss,
    "fidelity_cls10_n7": class_fidelity_loss,
    "fidelity_multilabel3_n11": multilabel_fidelity_loss,
    "focal_make10_n14": lambda x, y: class_fidelity_loss(x, y, gamma=2),
    "focal_wb2_n5": lambda x, y: class_fidelity_loss(x, y, gamma=2),
}
LOSSES = {
    "pairs": (lambda x, y, **k: pairwise_fidelity_loss(x[:, 0], y, **k), torch.tensor([3.0, 1.0, 2.0, 2.0, 5.0])),
    "binary": (lambda x, y, **k: binary_fidelity_loss(x[:, 0], y, **k), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])),
    "classes": (class_fidelity_loss, torch.tensor([0, 2, 1, 1, 0])),
    "focal": (lambda x, y, **k: class_fidelity_loss(x, y, gamma=2, **k), torch.tensor([0, 2, 1, 1, 0])),
    "multilabel": (multilabel_fidelity_loss, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]])),
}


def _gradient(function, *inputs):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    loss = function(*inputs)
    return loss.detach(), torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize(("bits", "tolerance"), [(64, 1e-7), (32, 2e-5)])
@pytest.mark.parametrize("case", CASES)
def test_official_values_and_gradients(case, bits, tolerance):
    data = load_file(GOLDEN / f"exif_losses_f{bits}.safetensors")
    labels = data[f"{case}.tag"] if f"{case}.tag" in data else data[f"{case}.label"]
    loss, (gradient,) = _gradient(lambda x: CASES[case](x, labels), data[f"{case}.input"])
    torch.testing.assert_close(loss, data[f"{case}.loss"].squeeze(), rtol=tolerance, atol=0)
    # The official float32 gradients carry rounding of 1 - p; ours lie nearer to those in float64 (test below).
    torch.testing.assert_close(gradient, data[f"{case}.grad"], rtol=tolerance, atol={64: 1e-9, 32: 4e-6}[bits])


def test_float32_gradients_are_nearer_to_float64_than_the_official_ones():
    data = load_file(GOLDEN / "exif_losses_f32.safetensors")
    x, tag, official = (data[f"rank_scalar_n33.{name}"] for name in ("input", "tag", "grad"))
    ours, exact = (_gradient(lambda x: CASES["rank_scalar_n33"](x, tag), value)[1][0] for value in (x, x.double()))
    assert (ours - exact).abs().max() < 0.5 * (official - exact).abs().max()


def test_official_total_of_eleven_tasks():
    data = load_file(GOLDEN / "exif_total49.safetensors")
    label = {name.removeprefix("y."): value for name, value in data.items() if name.startswith("y.")}

    def tasks(x):
        ordinal = zip(("iso", "av", "et", "fl"), (0, 3, 6, 9), strict=True)
        classes = zip(
            ("makes", "mm", "em", "wb", "ep"), ((12, 22), (22, 30), (30, 37), (37, 39), (39, 45)), strict=True
        )
        losses = [pairwise_fidelity_loss(expected_level(x[:, i : i + 3]), label[name]) for name, i in ordinal]
        losses += [class_fidelity_loss(x[:, i:j], label[name], gamma=2) for name, (i, j) in classes]
        coarse, fine = label["face2text"][:, :2].argmax(dim=1), label["face2text"][:, 2:]
        return torch.stack(
            [*losses, class_fidelity_loss(x[:, 45:47], coarse), multilabel_fidelity_loss(x[:, 47:], fine)]
        )

    torch.testing.assert_close(tasks(data["logits"]), data["task_losses"], rtol=1e-7, atol=0)
    _, (gradient,) = _gradient(lambda x: tasks(x).sum(), data["logits"])
    torch.testing.assert_close(gradient, data["grad_sum"], rtol=1e-7, atol=1e-9)


def test_marginals_of_the_joint_model_of_deepfakes():
    data = load_file(GOLDEN / "sjedd_joint_fidelity.safetensors")
    states, labels = data["legal_states"].double(), data["labels"].double()

    def losses(logits):
        log_p = (logits @ states.T).log_softmax(dim=1)
        p, complement = log_p.exp() @ states, log_p.exp() @ (1 - states)
        parts = [slice(0, 1), slice(1, 4), slice(4, 10)]
        return torch.stack([fidelity_loss(p[:, i], labels[:, i], complement=complement[:, i]) for i in parts])

    torch.testing.assert_close(losses(data["logits"].double()).float(), data["losses"], rtol=0, atol=1e-5)
    _, (gradient,) = _gradient(lambda x: losses(x).sum(), data["logits"].double())
    torch.testing.assert_close(gradient.float(), data["grad_sum_losses"], rtol=1e-4, atol=1e-6)


def test_probabilities_as_logarithms_are_exact_at_both_ends():
    x = torch.linspace(-20, 20, 9, dtype=torch.float64)
    g = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, -1.0, 1.0, math.nan, 0.0], dtype=torch.float64)
    log_p, log_not_p = (functional.logsigmoid(value) for value in (x, -x))
    for eps in (1e-8, 1e-4):
        expected = fidelity_loss(x.sigmoid(), g, complement=(-x).sigmoid(), eps=eps)
        torch.testing.assert_close(log_fidelity_loss(log_p, log_not_p, g, eps=eps), expected)
    torch.testing.assert_close(
        log_fidelity_loss(log_p, log_not_p, g), binary_fidelity_loss(x, g, eps=0.0), rtol=1e-9, atol=0
    )
    # Far beyond what a probability can hold: values in [0, 1], finite gradients, 0 where nothing is known.
    far = torch.tensor([-5000.0, 5000.0, 5000.0])

    def loss(x, g):
        return log_fidelity_loss(functional.logsigmoid(x), functional.logsigmoid(-x), g)

    for g in (torch.tensor([1.0, 0.0, 1.0]), torch.tensor([-1, -1, -1])):
        value, (gradient,) = _gradient(lambda x, g=g: loss(x, g), far)
        assert 0 <= value <= 1 and gradient.isfinite().all()
    assert value == 0 and (gradient == 0).all()


def test_given_pairs_of_a_fine():
    case = json.loads((GOLDEN / "afine_protocol.json").read_text())["stage1_loss"]
    names = ("u1", "u2", "uref")
    truth = {name: torch.tensor(case[name], dtype=torch.float64) for name in ("g12", "g1ref", "g2ref")}

    def loss(*u):
        # Lower is better there: the better picture of a pair is the one with the smaller score.
        u = dict(zip(names, u, strict=True))
        pairs = (("u1", "u2", "g12"), ("u1", "uref", "g1ref"), ("u2", "uref", "g2ref"))
        return sum(fidelity_loss(preference_probability(u[b], u[a], 1, 1, eps=0), truth[g]) for a, b, g in pairs)

    value, gradients = _gradient(loss, *(torch.tensor(case[name], dtype=torch.float64) for name in names))
    assert float(value) == pytest.approx(case["loss"], rel=1e-7)
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(
            gradient, torch.tensor(case[f"grad_{name}"], dtype=torch.float64), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("scale", [math.sqrt(2) / 2, math.sqrt(2), 2.0])
def test_scale_of_the_comparison(scale):
    s = torch.tensor([0.3, -0.9], dtype=torch.float64)
    p = 0.5 * (1 + math.erf(1.2 / scale))
    expected = 1 - math.sqrt(p + 1e-8) - math.sqrt(1e-8)
    assert float(pairwise_fidelity_loss(s, torch.tensor([7.0, 2.0]), scale=scale)) == pytest.approx(
        expected, rel=1e-12
    )
    # A tie pulls the scores together, whatever the unit of the labels.
    _, (gradient,) = _gradient(lambda x: pairwise_fidelity_loss(x, torch.tensor([4, 4]), scale=scale), s)
    assert gradient[0] > 0 > gradient[1]


@pytest.mark.parametrize("labels", [[64.0, 3200.0, 100.0, 400.0], [6.0, 11.6, 6.6, 8.6]], ids=["ISO", "log2(ISO)"])
def test_only_the_order_of_the_labels_counts(labels):
    s = torch.tensor([0.1, 0.4, -0.3, 0.9], dtype=torch.float64)
    order = torch.tensor([0, 3, 1, 2])
    assert pairwise_fidelity_loss(s, torch.tensor(labels)) == pairwise_fidelity_loss(s, order)
    assert pairwise_fidelity_loss(s, torch.tensor(labels)) != pairwise_fidelity_loss(s, -order)


def test_infinite_labels_compare():
    s = torch.tensor([0.1, 0.4, -0.3], dtype=torch.float64)
    infinite = torch.tensor([math.inf, 5.0, math.inf])
    assert pairwise_fidelity_loss(s, infinite) == pairwise_fidelity_loss(s, torch.tensor([9.0, 5.0, 9.0]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("how", ["nan", "mask"])
def test_a_missing_label_counts_in_nothing(name, how):
    function, labels = LOSSES[name]
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rest = [0, 1, 3]
    expected, (expected_gradient,) = _gradient(lambda x: function(x, labels[rest]), x[rest])
    if how == "mask":
        mask = torch.ones_like(labels, dtype=torch.bool)
        mask[[2, 4]] = False
        loss, (gradient,) = _gradient(lambda x: function(x, labels, mask=mask), x)
    else:
        missing = labels.clone()
        missing[[2, 4]] = math.nan if labels.is_floating_point() else -1
        loss, (gradient,) = _gradient(lambda x: function(x, missing), x)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient[rest], expected_gradient, rtol=1e-14, atol=1e-16)
    assert torch.equal(gradient[[2, 4]], torch.zeros(2, 3, dtype=torch.float64))
    assert function(x, labels) != expected


def test_partly_known_labels_of_a_sample_weigh_as_one_sample():
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    labels = torch.tensor([[1.0, math.nan], [0.0, 1.0], [math.nan, math.nan]])
    first = binary_fidelity_loss(x[0, :1], torch.ones(1))
    second = binary_fidelity_loss(x[1], labels[1])
    torch.testing.assert_close(multilabel_fidelity_loss(x, labels), (first + second) / 2, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_without_a_known_label_or_a_pair_the_loss_is_zero_with_a_graph(name, count):
    function, labels = LOSSES[name]
    missing = torch.full_like(labels, math.nan if labels.is_floating_point() else -1)[:count]
    if name == "pairs" and count:
        missing[0] = 1.0  # one known label is no pair
    loss, (gradient,) = _gradient(lambda x: function(x, missing), torch.randn(count, 3))
    assert loss == 0 and torch.equal(gradient, torch.zeros(count, 3))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    function, labels = LOSSES[name]
    x = 3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(5)).to(dtype)
    assert function(x, labels).dtype == torch.float32
    assert function(x, labels) == function(x.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert function(x, labels) == function(x.float(), labels)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [10.0, 100.0, 1e4])
def test_gradients_are_finite_when_certain(name, size):
    function, labels = LOSSES[name]
    x = size * torch.randn(5, 3, generator=torch.Generator().manual_seed(6))
    loss, (gradient,) = _gradient(lambda x: function(x, labels), x)
    assert bool(torch.isfinite(gradient).all()) and 0 < loss <= 1.001


def test_a_confident_mistake_keeps_its_gradient_where_one_minus_p_is_lost():
    """In float32 `1 - sigmoid(20)` is 0; the true gradient is `sqrt(1 - p) p / 2`, about e^-10 / 2."""

    def gradient(x):
        return _gradient(lambda x: binary_fidelity_loss(x, torch.zeros(1), eps=1e-30), x)[1][0]

    narrow, exact = gradient(torch.tensor([20.0])), gradient(torch.tensor([20.0], dtype=torch.float64))
    assert float(exact) == pytest.approx(math.exp(-10) / 2, rel=1e-6)
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives(name):
    """The exact outer gradient of `thurl.training.bilevel` goes through them."""
    function, labels = LOSSES[name]
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7), requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: function(x, labels), [x])


def test_masked_mean_broadcasts():
    values = torch.arange(6.0).reshape(2, 3)
    assert masked_mean(values, torch.tensor([True, False, True])) == pytest.approx((0 + 2 + 3 + 5) / 4)
    assert masked_mean(values) == pytest.approx(2.5)
    assert masked_mean(values, torch.tensor(False)) == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"scores \(3, 1\).*\(N,\)"):
        pairwise_fidelity_loss(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="scale is 0"):
        pairwise_fidelity_loss(torch.zeros(3), torch.zeros(3), scale=0)
    with pytest.raises(ValueError, match=r"\(N, K\) and \(N,\)"):
        class_fidelity_loss(torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="class labels are integers"):
        class_fidelity_loss(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="gamma is 0.5"):
        class_fidelity_loss(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), gamma=0.5)
