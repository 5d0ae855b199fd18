"""Explanations agree with the label graph and with the score, and are JSON."""

import json

import pytest
import torch

from thurl.forensics.deepfake.explanations import explain_output, explain_row
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.marginals import log_marginals, map_state
from thurl.forensics.deepfake.model import DeepFakeOutput


GRAPH = load_graph("ffpp")


def output_of(logits):
    log_p, log_not_p = log_marginals(logits, GRAPH.states)
    return DeepFakeOutput(
        logits=logits,
        marginals=log_p.exp().float(),
        log_odds=(log_p - log_not_p).float(),
        states=map_state(logits, GRAPH.states),
    )


def energies(on, strength=12.0):
    return strength * (2 * torch.tensor([[float(name in on) for name in GRAPH.names]]) - 1)


def test_what_is_on_is_named_with_its_probability():
    (found,) = explain_output(GRAPH, output_of(energies({"fake", "physical", "lip", "mouth"})))
    assert found.text == (
        "Manipulated (fake 1.000); altered attributes: physical inconsistency 1.000; "
        "altered regions: lip 1.000, mouth 1.000."
    )
    assert {name for name, on in found.state.items() if on} == {"fake", "physical", "lip", "mouth"}
    plain = json.loads(json.dumps(found.plain()))
    assert list(plain) == ["p_fake", "global", "local", "most_probable_state", "text"]
    assert list(plain["global"]) == ["expression", "identity", "physical"] and len(plain["local"]) == 6
    assert plain["most_probable_state"]["nose"] == 0 and plain["p_fake"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("on", "text"),
    [
        (set(), "No manipulation found (fake 0.000)."),
        ({"fake"}, "Manipulated (fake 1.000); no known attribute or region stands out."),
    ],
)
def test_faces_without_altered_regions(on, text):
    (found,) = explain_output(GRAPH, output_of(energies(on)))
    assert found.text == text


def test_an_undecided_model_says_that_nothing_stands_out():
    """Energies of 0 give 250 in 251 for fake, though no combination is likelier than "real"."""
    (found,) = explain_output(GRAPH, output_of(torch.zeros(1, 10)))
    assert found.p_fake == pytest.approx(250 / 251) and not any(found.state.values())
    assert found.text == "Manipulated (fake 0.996), but no combination of alterations stands out."
    (strict,) = explain_output(GRAPH, output_of(torch.zeros(1, 10)), threshold=0.999)
    assert strict.text == "No manipulation found (fake 0.996)."


def test_no_explanation_breaks_a_rule_of_the_graph():
    logits = 3 * torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    for found in explain_output(GRAPH, output_of(logits)):
        GRAPH.check({name: int(on) for name, on in found.state.items()})
        named = [part for part in ("attributes", "regions") if part in found.text]
        assert not named or found.state["fake"]
        assert ("regions" in found.text) <= ("attributes" in found.text)


def test_rows_that_do_not_fit():
    with pytest.raises(ValueError, match="9 marginals and 10 labels"):
        explain_row(GRAPH, [0.5] * 9, [False] * 10)
    with pytest.raises(ValueError, match="must lie in"):
        explain_row(GRAPH, [float("nan")] * 10, [False] * 10)
