"""Loss totals of both methods against the official code, and what masks, missing tasks and gathered scores do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thurl.forensics.exif.losses import HEADS, blades_terms, ordinal_terms, present_tasks, total_loss
from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, OFFICIAL_COLUMNS, ORDINAL_TASKS, TASKS, columns_of


GOLDEN = Path(__file__).resolve().parents[3] / "golden"
TWO_REGIONS = {**OFFICIAL_COLUMNS, "fine_face": 2}
KEYS = dict(zip(TASKS[:9], ("iso", "av", "et", "fl", "makes", "mm", "em", "wb", "ep"), strict=True))


def official_batch():
    golden = load_file(GOLDEN / "exif_total49.safetensors")
    faces = golden["y.face2text"]  # photographic, manipulated, mouth, eye
    labels = {task: golden[f"y.{key}"] for task, key in KEYS.items()}
    labels |= {"coarse_face": faces[:, 1], "fine_face": faces[:, 2:].double()}
    return golden, labels


def random_logits(size=12, seed=0, widths=OFFICIAL_COLUMNS):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, sum(widths.values()), generator=generator, dtype=torch.float64) * 2
    labels = {task: torch.rand(size, generator=generator) * 100 for task in ORDINAL_TASKS}
    labels |= {
        task: torch.randint(0, widths[task], (size,), generator=generator)
        for task in (*CATEGORICAL_TASKS, "coarse_face")
    }
    labels["fine_face"] = torch.randint(0, 2, (size, widths["fine_face"]), generator=generator).float()
    return logits, labels


def test_the_eleven_losses_and_the_gradient_of_their_sum_are_the_official_ones():
    golden, labels = official_batch()
    logits = golden["logits"].clone().requires_grad_()
    terms = blades_terms(logits, labels, columns=TWO_REGIONS)
    assert tuple(terms) == TASKS
    torch.testing.assert_close(torch.stack(list(terms.values())), golden["task_losses"], rtol=1e-7, atol=0)
    (gradient,) = torch.autograd.grad(total_loss(terms), logits)
    # The official code holds sqrt(2) as float32, hence 1e-7 of the largest entry.
    torch.testing.assert_close(gradient, golden["grad_sum"], rtol=1e-7, atol=1e-7 * float(gradient.abs().max()))


def test_golden_notices_swapped_columns():
    golden, labels = official_batch()
    swapped = {**labels, "aperture": labels["exposure_time"], "exposure_time": labels["aperture"]}
    terms = blades_terms(golden["logits"], swapped, columns=TWO_REGIONS)
    assert abs(terms["aperture"] - golden["task_losses"][1]) > 1e-3


def test_three_region_labels_serve_a_model_with_two_regions():
    golden, labels = official_batch()
    wider = {**labels, "fine_face": torch.cat([labels["fine_face"], torch.ones(16, 1, dtype=torch.float64)], 1)}
    terms = blades_terms(golden["logits"], wider, columns=TWO_REGIONS)
    torch.testing.assert_close(terms["fine_face"], golden["task_losses"][10], rtol=1e-7, atol=0)
    with pytest.raises(ValueError, match="fine_face"):
        blades_terms(torch.zeros(16, 50), labels)


def test_the_five_headed_total_is_the_official_one():
    golden = load_file(GOLDEN / "exif_icassp_heads.safetensors")
    short = dict(zip(HEADS, ("iso", "av", "et", "fl", "face"), strict=True))
    scores = torch.cat([golden[f"out.{key}"] for key in short.values()], dim=1)
    terms = ordinal_terms(scores, {task: golden[f"y.{key}"] for task, key in short.items()})
    assert tuple(terms) == HEADS
    torch.testing.assert_close(total_loss(terms), golden["total_loss"][0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("task", TASKS)
def test_an_absent_task_is_zero_and_moves_nothing(task):
    logits, labels = random_logits()
    place = columns_of()[task]
    absent = torch.full_like(labels[task], -1 if not labels[task].is_floating_point() else float("nan"))
    for batch in ({**labels, task: absent}, {name: label for name, label in labels.items() if name != task}):
        x = logits.clone()
        x[:, place] *= 1e4
        x.requires_grad_()
        terms = blades_terms(x, batch)
        assert terms[task].item() == 0
        (gradient,) = torch.autograd.grad(total_loss(terms), x)
        assert not gradient[:, place].any()
        other = [column for name, where in columns_of().items() if name != task for column in range(50)[where]]
        assert gradient[:, other].abs().sum() > 0 and gradient.isfinite().all()


def test_a_masked_picture_is_as_if_it_were_not_in_the_batch():
    logits, labels = random_logits()
    hidden = dict(labels)
    keep = torch.arange(12) != 4
    for task, label in labels.items():
        hidden[task] = label.clone()
        hidden[task][4] = float("nan") if label.is_floating_point() else -1
    terms = blades_terms(logits, hidden)
    expected = blades_terms(logits[keep], {task: label[keep] for task, label in labels.items()})
    for task in TASKS:
        torch.testing.assert_close(terms[task], expected[task], rtol=1e-12, atol=1e-15)


def test_one_picture_gives_no_pair_and_no_nan():
    scores = torch.randn(1, 5, requires_grad=True)
    labels = {task: torch.tensor([1.0]) for task in ORDINAL_TASKS} | {"coarse_face": torch.tensor([1])}
    terms = ordinal_terms(scores, labels)
    assert [terms[task].item() for task in ORDINAL_TASKS] == [0, 0, 0, 0] and terms["coarse_face"] > 0
    (gradient,) = torch.autograd.grad(total_loss(terms), scores)
    assert gradient.isfinite().all() and not gradient[:, :4].any()


def test_softmax_is_per_task():
    logits, labels = random_logits()
    shifted = logits.clone()
    shifted[:, columns_of()["make"]] += 7.0
    before, after = blades_terms(logits, labels), blades_terms(shifted, labels)
    for task in TASKS:
        torch.testing.assert_close(before[task], after[task], rtol=1e-10, atol=1e-12)


def test_losses_of_half_precision_scores_are_computed_in_float32():
    logits, labels = random_logits()
    exact = blades_terms(logits.bfloat16().double(), labels)
    half = blades_terms(logits.bfloat16(), labels)
    for task in TASKS:
        assert half[task].dtype == torch.float32
        torch.testing.assert_close(half[task].double(), exact[task], rtol=2e-5, atol=2e-6)


def test_weights_multiply_terms():
    logits, labels = random_logits()
    terms = blades_terms(logits, labels)
    weights = {"iso": torch.tensor(0.25), "coarse_face": 0.0}
    expected = sum(terms.values()) - 0.75 * terms["iso"] - terms["coarse_face"]
    torch.testing.assert_close(total_loss(terms, weights), expected, rtol=1e-12, atol=0)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(N, 50\)"):
        blades_terms(torch.zeros(3, 49), {})
    with pytest.raises(ValueError, match=r"\(N, 5\)"):
        ordinal_terms(torch.zeros(3, 4), {})
    with pytest.raises(ValueError, match="iso"):
        ordinal_terms(torch.zeros(3, 5), {"iso": torch.zeros(4)})


def test_a_task_is_present_where_it_has_a_pair_or_a_label():
    nan = float("nan")
    labels = {
        "iso": torch.tensor([nan, 100.0, nan]),
        "aperture": torch.tensor([nan, 2.8, 2.8]),
        "make": torch.tensor([-1, -1, 3]),
        "white_balance": torch.tensor([-1, -1, -1]),
        "fine_face": torch.tensor([[nan, nan], [nan, 1.0], [nan, nan]]),
        "coarse_face": torch.tensor([-1, 0, 1]),
    }
    found = {task: bool(flag) for task, flag in present_tasks(labels, [*labels, "focal_length"]).items()}
    assert found == {
        "iso": False, "aperture": True, "make": True, "white_balance": False, "fine_face": True, "coarse_face": True,
        "focal_length": False,
    }  # fmt: skip
    # What is not present has a loss of zero and no gradient.
    logits = torch.randn(3, 50, requires_grad=True)
    wider = {**labels, "fine_face": torch.cat([labels["fine_face"], torch.full((3, 1), nan)], 1)}
    terms = blades_terms(logits, wider)
    for task, there in found.items():
        assert there or terms[task].item() == 0
        assert not there or torch.autograd.grad(terms[task], logits, retain_graph=True)[0].any()
