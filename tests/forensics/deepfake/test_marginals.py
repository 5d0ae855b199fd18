"""The joint distribution against the official marginals, against brute force, and at the ends of floats."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.marginals import log_marginals, map_state, observed_log_likelihood, state_energies


GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "sjedd_joint_fidelity.safetensors")
GRAPHS = {name: load_graph(name) for name in ("ffpp", "ffsc")}
STATES = GRAPHS["ffpp"].states


def energies(rows=40, columns=10, scale=3.0, seed=0):
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(logits, states):
    """Probabilities of the states of each row, by plain exponentials."""
    weight = torch.stack([torch.stack([(row[state]).sum().exp() for state in states]) for row in logits])
    return weight / weight.sum(dim=1, keepdim=True)


def test_official_marginals():
    log_p, log_not_p = log_marginals(GOLDEN["logits"], STATES)
    torch.testing.assert_close(log_p.exp().float(), GOLDEN["marginals"], rtol=0, atol=1e-5)
    torch.testing.assert_close((-torch.expm1(log_not_p)).float(), GOLDEN["marginals"], rtol=0, atol=1e-5)


def test_the_energy_of_a_state_is_the_sum_of_its_nodes():
    logits = energies(3, STATES.shape[1])
    wanted = torch.stack([torch.stack([row[state].sum() for state in STATES]) for row in logits])
    torch.testing.assert_close(state_energies(logits, STATES), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", GRAPHS)
def test_marginals_are_sums_over_the_states(name):
    states = GRAPHS[name].states
    logits = energies(4, states.shape[1])
    p = brute_force(logits, states)
    log_p, log_not_p = log_marginals(logits, states)
    torch.testing.assert_close(log_p.exp(), p @ states.double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(log_not_p.exp(), p @ (~states).double(), rtol=0, atol=1e-9)
    assert torch.equal(map_state(logits, states), states[p.argmax(dim=1)])


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
def test_no_attribute_is_likelier_than_fake(name, scale):
    states = GRAPHS[name].states
    log_p, _ = log_marginals(energies(500, states.shape[1], scale, seed=1), states)
    assert (log_p[:, :1] >= log_p).all()
    # Nor an attribute likelier than its regions together, nor a region than what it is a part of.
    p = log_p.exp()
    place = {node: column for column, node in enumerate(GRAPHS[name].names)}
    for node in GRAPHS[name].nodes[1:]:
        above = p[:, [place[parent] for parent in node.parents]].sum(dim=1)
        assert (p[:, place[node.name]] <= above + 1e-12).all()


def test_without_evidence_every_state_is_equally_likely():
    log_p, log_not_p = log_marginals(torch.zeros(1, 10), STATES)
    assert log_p.exp()[0, 0].item() == pytest.approx(250 / 251, abs=1e-12)
    assert log_not_p.exp()[0, 0].item() == pytest.approx(1 / 251, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_energies_of_three_hundred_have_finite_marginals_and_gradients(dtype):
    signs = torch.randint(0, 2, (64, 10), generator=torch.Generator().manual_seed(2)) * 2 - 1
    logits = (300.0 * signs).to(dtype).requires_grad_()
    log_p, log_not_p = log_marginals(logits, STATES)
    (gradient,) = torch.autograd.grad(log_p.sum() + log_not_p.sum(), logits)
    for tensor in (log_p, log_not_p, gradient):
        assert tensor.isfinite().all()
    assert (log_p <= 0).all() and (log_not_p <= 0).all() and (log_p.exp() <= 1).all()
    # Neither end is lost, and the two logarithms of every answer still belong together.
    torch.testing.assert_close(log_p.exp() + log_not_p.exp(), torch.ones(64, 10, dtype=torch.float64))
    assert (torch.minimum(log_p, log_not_p) < -250).double().mean() > 0.9


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="must have the shapes"):
        log_marginals(torch.zeros(2, 9), STATES)


# --- labels of which some are unknown --------------------------------------------------------------------------------


def test_the_likelihood_of_known_labels_is_the_sum_over_what_is_unknown():
    logits = energies(30)
    picked = STATES[torch.randint(0, 251, (30,), generator=torch.Generator().manual_seed(3))].to(torch.int8)
    hidden = torch.rand(30, 10, generator=torch.Generator().manual_seed(4)) < 0.5
    labels = picked.masked_fill(hidden, -1)
    p = brute_force(logits, STATES)
    agree = ((labels[:, None] == STATES[None].to(torch.int8)) | (labels[:, None] < 0)).all(dim=2)
    expected = (p * agree).sum(dim=1).log()
    torch.testing.assert_close(observed_log_likelihood(logits, labels, STATES), expected, rtol=0, atol=1e-9)


def test_nothing_known_is_certain_and_pulls_at_nothing():
    logits = energies(3).requires_grad_()
    value = observed_log_likelihood(logits, torch.full((3, 10), -1), STATES)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert (value == 0).all() and (gradient == 0).all()


def test_one_known_label_is_its_marginal():
    logits = energies(5)
    log_p, log_not_p = log_marginals(logits, STATES)
    for column in range(10):
        labels = torch.full((5, 10), -1)
        for value, expected in ((1, log_p), (0, log_not_p)):
            labels[:, column] = value
            found = observed_log_likelihood(logits, labels, STATES)
            torch.testing.assert_close(found, expected[:, column], rtol=0, atol=1e-12)


def test_labels_that_cannot_be_are_named_by_row():
    labels = torch.zeros(4, 10, dtype=torch.int8)
    labels[2, 4] = 1
    with pytest.raises(ValueError, match="row 2: no legal state agrees"):
        observed_log_likelihood(energies(4), labels, STATES)
