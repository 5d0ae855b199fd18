"""What a model of faces found, in words and as JSON values: how likely each attribute and region was altered.

Ours; the paper (arXiv 2408.16305) gives the marginals. The sentence names what is on in the most probable legal state,
so that it never contradicts the label graph, and takes its verdict from the marginal of the first node, the detection
score. The two can part where many combinations share the probability: then it says that none stands out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thurl.forensics.deepfake.graph import LabelGraph


if TYPE_CHECKING:
    import torch

    from thurl.forensics.deepfake.model import DeepFakeOutput

__all__ = ["Explanation", "explain_energies", "explain_output", "explain_row"]


@dataclass(frozen=True)
class Explanation:
    """What was found in one face.

    Attributes:
        p_fake: marginal of the first node, in [0, 1].
        attributes: global node to marginal.
        regions: local node to marginal.
        state: node to whether it is on in the most probable legal state.
        text: one sentence.
    """

    p_fake: float
    attributes: dict[str, float]
    regions: dict[str, float]
    state: dict[str, bool]
    text: str

    def plain(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "p_fake": self.p_fake,
            "global": dict(self.attributes),
            "local": dict(self.regions),
            "most_probable_state": {name: int(on) for name, on in self.state.items()},
            "text": self.text,
        }


def explain_output(graph: LabelGraph, output: DeepFakeOutput, *, threshold: float = 0.5) -> list[Explanation]:
    """One explanation per row of a model's output.

    Args:
        graph: of the model.
        output: with `marginals` and `states`, (B, n).
        threshold: from which `p_fake` the verdict is fake, in [0, 1].
    """
    assert output.marginals is not None and output.states is not None
    rows = zip(output.marginals.detach().cpu().numpy(), output.states.cpu().numpy(), strict=True)
    return [explain_row(graph, marginals, state, threshold=threshold) for marginals, state in rows]


def explain_energies(graph: LabelGraph, energies: torch.Tensor, *, threshold: float = 0.5) -> list[Explanation]:
    """One explanation per row of energies, computed in float64.

    Args:
        graph: of the model.
        energies: (B, n), a model's `logits`.
        threshold: from which `p_fake` the verdict is fake, in [0, 1].
    """
    from thurl.forensics.deepfake.marginals import log_marginals, map_state

    marginals = log_marginals(energies, graph.states)[0].exp()
    rows = zip(marginals.numpy(), map_state(energies, graph.states).numpy(), strict=True)
    return [explain_row(graph, own, state, threshold=threshold) for own, state in rows]


def explain_row(
    graph: LabelGraph,
    marginals: np.ndarray | Sequence[float],
    state: np.ndarray | Sequence[bool],
    *,
    threshold: float = 0.5,
) -> Explanation:
    """The explanation of one face.

    Args:
        graph: whose nodes.
        marginals: (n,) in [0, 1].
        state: (n,), the most probable legal state.
        threshold: from which `p_fake` the verdict is fake, in [0, 1].

    Raises:
        ValueError: another number of nodes, or marginals outside [0, 1].
    """
    values = [float(value) for value in marginals]
    if len(values) != len(graph.names) or len(state) != len(graph.names):
        raise ValueError(f"{len(values)} marginals and {len(state)} labels; {graph.name} has {len(graph.names)} nodes")
    if not all(0 <= value <= 1 for value in values):
        raise ValueError(f"marginals {values}: all must lie in [0, 1]")
    on = {name: bool(value) for name, value in zip(graph.names, state, strict=True)}
    p = dict(zip(graph.names, values, strict=True))
    parts = {level: {name: p[name] for name in graph.names[columns]} for level, columns in graph.tasks.items()}
    return Explanation(
        p_fake=values[0],
        attributes=parts.get("global", {}),
        regions=parts.get("local", {}),
        state=on,
        text=_sentence(graph, p, on, threshold),
    )


def _sentence(graph: LabelGraph, p: dict[str, float], on: dict[str, bool], threshold: float) -> str:
    first = graph.nodes[0]
    verdict = f"{first.word} {p[first.name]:.3f}"
    if p[first.name] < threshold:
        return f"No manipulation found ({verdict})."
    if not on[first.name]:
        return f"Manipulated ({verdict}), but no combination of alterations stands out."
    levels = {
        level: [f"{node.word} {p[node.name]:.3f}" for node in graph.nodes if node.level == level and on[node.name]]
        for level in ("global", "local")
    }
    found = [
        f"{title}: {', '.join(words)}"
        for title, words in (("altered attributes", levels["global"]), ("altered regions", levels["local"]))
        if words
    ]
    return f"Manipulated ({verdict}); {'; '.join(found) or 'no known attribute or region stands out'}."
