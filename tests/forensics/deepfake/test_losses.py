"""Losses of the three tasks against the official ones, with unknown labels, and what can be mixed in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.losses import known_tasks, likelihood_terms, task_terms
from thurl.forensics.deepfake.marginals import log_marginals, observed_log_likelihood


GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "sjedd_joint_fidelity.safetensors")
GRAPH = load_graph("ffpp")
STATES, TASKS = GRAPH.states, GRAPH.tasks
KINDS = {
    "fidelity": {},
    "official": {"eps": 1e-8},
    "entropy": {"cross_entropy": 1.0},
    "likelihood": {"likelihood": 1.0},
}


def batch(rows=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 10, generator=generator, dtype=torch.float64)
    return logits, STATES[torch.randint(0, 251, (rows,), generator=generator)].to(torch.int8)


def losses(logits, labels, **options):
    return torch.stack(list(task_terms(logits, labels, STATES, TASKS, **options).values()))


def gradient(function, logits):
    logits = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(function(logits).sum(), logits)[0]


def test_official_losses_and_gradients():
    logits, labels = GOLDEN["logits"], GOLDEN["labels"].to(torch.int8)
    torch.testing.assert_close(losses(logits, labels, eps=1e-8).float(), GOLDEN["losses"], rtol=0, atol=1e-5)
    found = gradient(lambda x: losses(x, labels, eps=1e-8), logits)
    torch.testing.assert_close(found, GOLDEN["grad_sum_losses"], rtol=1e-4, atol=1e-6)


def test_without_the_official_constant_the_loss_is_almost_the_same_and_never_negative():
    logits, labels = batch(200)
    official, ours = losses(logits, labels, eps=1e-8), losses(logits, labels)
    torch.testing.assert_close(ours, official, rtol=0, atol=2e-4)
    perfect = 60.0 * (2 * labels.double() - 1)
    assert (losses(perfect, labels, eps=1e-8) < 0).any() and (losses(perfect, labels) >= 0).all()
    assert (losses(-perfect, labels) <= 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_labels_take_part_in_nothing(kind):
    logits, labels = batch(6)
    hidden = labels.clone()
    hidden[4:] = -1
    torch.testing.assert_close(losses(logits, hidden, **KINDS[kind]), losses(logits[:4], labels[:4], **KINDS[kind]))
    assert (gradient(lambda x: losses(x, hidden, **KINDS[kind]), logits)[4:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_without_labels_is_zero_and_absent(kind):
    logits, labels = batch(5)
    labels[:, TASKS["local"]] = -1
    terms = task_terms(logits.requires_grad_(), labels, STATES, TASKS, **KINDS[kind])
    present = known_tasks(labels, TASKS)
    assert {task: bool(has) for task, has in present.items()} == {"binary": True, "global": True, "local": False}
    assert terms["local"] == 0 and terms["local"].requires_grad
    assert (torch.autograd.grad(terms["local"], logits)[0] == 0).all()


def test_means_are_over_the_known_labels_of_a_level():
    logits, labels = batch(3)
    labels[0, 2] = labels[1, 1] = labels[2, 3] = -1
    log_p, log_not_p = log_marginals(logits, STATES)
    one_by_one = [
        1 - torch.exp((log_p if labels[row, column] else log_not_p)[row, column] / 2)
        for row in range(3)
        for column in range(1, 4)
        if labels[row, column] >= 0
    ]
    torch.testing.assert_close(losses(logits, labels)[1], torch.stack(one_by_one).mean())


def test_cross_entropy_is_that_of_the_marginals():
    logits, labels = batch(8)
    p = log_marginals(logits, STATES)[0].exp()
    expected = torch.nn.functional.binary_cross_entropy(p, labels.double(), reduction="none")
    found = losses(logits, labels, cross_entropy=1.0)
    torch.testing.assert_close(found, torch.stack([expected[:, columns].mean() for columns in TASKS.values()]))
    mixed = losses(logits, labels, cross_entropy=0.25, likelihood=0.25)
    parts = [losses(logits, labels), found, losses(logits, labels, likelihood=1.0)]
    torch.testing.assert_close(mixed, 0.5 * parts[0] + 0.25 * parts[1] + 0.25 * parts[2])


def test_likelihoods_of_the_tasks_add_up_to_that_of_the_joint_distribution():
    logits, labels = batch(20)
    labels = labels.masked_fill(torch.rand(20, 10, generator=torch.Generator().manual_seed(5)) < 0.4, -1)
    terms = likelihood_terms(logits, labels, STATES, TASKS)
    total = sum(terms[task] * (labels[:, columns] >= 0).sum() for task, columns in TASKS.items())
    torch.testing.assert_close(total, -observed_log_likelihood(logits, labels, STATES).sum())
    assert all(term >= -1e-12 for term in terms.values())


def test_what_is_known_of_a_real_face_teaches_its_regions():
    """One known label, "real", decides all others under the joint distribution, so all energies feel it."""
    logits = torch.zeros(1, 10, dtype=torch.float64)
    labels = torch.full((1, 10), -1)
    labels[0, 0] = 0
    assert (gradient(lambda x: losses(x, labels), logits) > 0).all()


def test_a_confidently_wrong_face_moves_again_with_cross_entropy_mixed_in():
    labels = torch.ones(1, 10, dtype=torch.int8)
    wrong = torch.full((1, 10), -40.0, dtype=torch.float64)
    stalled = gradient(lambda x: losses(x, labels), wrong).abs().max()
    moving = gradient(lambda x: losses(x, labels, cross_entropy=0.1), wrong).abs().max()
    assert stalled < 1e-8 < 0.01 < moving
    assert stalled > 100 * gradient(lambda x: losses(x, labels, eps=1e-8), wrong).abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences_and_finite_at_the_ends(kind):
    logits, labels = batch(3)
    assert torch.autograd.gradcheck(lambda x: losses(x, labels, **KINDS[kind]), logits.requires_grad_())
    for value in (300.0, -300.0):
        assert gradient(lambda x: losses(x, labels, **KINDS[kind]), torch.full((3, 10), value)).isfinite().all()


def test_shapes_and_labels_that_do_not_fit():
    logits, labels = batch(3)
    with pytest.raises(ValueError, match="both must have one shape"):
        losses(logits, labels[:, :9])
    labels[1] = 0
    labels[1, 5] = 1
    with pytest.raises(ValueError, match="row 1"):
        losses(logits, labels, likelihood=0.5)
