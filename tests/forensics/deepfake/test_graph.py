"""Label graphs: the legal states of both data sets, every rule, labels that cannot be, files that are no graphs."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from thurl.errors import DataError, UsageError
from thurl.forensics.deepfake.graph import SHIPPED, graph_from, load_graph


GOLDEN = Path(__file__).parents[2] / "golden"
FFPP = load_graph("ffpp")

# The table of the official loader: class to its ten labels.
VECTORS = {
    "real": "0 000 000000",
    "Deepfakes": "1 011 111111",
    "FaceSwap": "1 011 111111",
    "Face2Face": "1 101 001100",
    "NeuralTextures": "1 101 001100",
    "eyes": "1 001 100000",
    "mouth": "1 001 001100",
    "nose": "1 001 000010",
}
FFSC_VECTORS = {
    "real": "0 00000 000000",
    "age": "1 10000 100001",
    "smile": "1 01000 000110",
    "surprise": "1 01000 101111",
    "gender": "1 00110 111101",
    "identity": "1 00010 111111",
    "pose": "1 00001 111111",
}


def digits(text):
    return [int(digit) for digit in text.replace(" ", "")]


def changed(**changes):
    """The FF++ graph as plain data with other entries."""
    return {**FFPP.plain(), **changes}


def legal(graph, state):
    """The rules once more, one state at a time."""
    on = dict(zip(graph.names, state, strict=True))
    for node in graph.nodes:
        children = [child.name for child in graph.nodes if node.name in child.parents]
        if on[node.name] and node.parents and not any(on[parent] for parent in node.parents):
            return False
        if on[node.name] and node.level == "global" and children and not any(on[child] for child in children):
            return False
    return not any(on[first] and on[second] for first, second in graph.exclusions)


@pytest.mark.parametrize(("name", "count"), [("ffpp", 251), ("ffsc", 1544)])
def test_legal_states_are_those_of_the_rules_in_lexicographic_order(name, count):
    graph = load_graph(name)
    states = [state for state in itertools.product((0, 1), repeat=len(graph.names)) if legal(graph, state)]
    assert graph.states.dtype == torch.bool and graph.states.int().tolist() == [list(state) for state in states]
    assert len(states) == count and not graph.states[0].any()


def test_legal_states_are_the_official_ones():
    official = load_file(GOLDEN / "sjedd_joint_fidelity.safetensors")["legal_states"]
    assert torch.equal(FFPP.states, official.bool())


@pytest.mark.parametrize(("name", "vectors"), [("ffpp", VECTORS), ("ffsc", FFSC_VECTORS)])
def test_known_manipulations_have_the_official_labels(name, vectors):
    graph = load_graph(name)
    assert {kind: graph.vector(kind) for kind in graph.manipulations} == {k: digits(v) for k, v in vectors.items()}
    for kind in vectors:
        graph.check(graph.vector(kind))


def test_an_unknown_manipulation_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="'DeepFakes' is not in the label graph ffpp.*did you mean `Deepfakes`"):
        FFPP.vector("DeepFakes")


def test_columns_and_sentences():
    assert FFPP.names[:4] == ("fake", "expression", "identity", "physical")
    assert FFPP.tasks == {"binary": slice(0, 1), "global": slice(1, 4), "local": slice(4, 10)}
    assert load_graph("ffsc").tasks == {"binary": slice(0, 1), "global": slice(1, 6), "local": slice(6, 12)}
    sentences = FFPP.prompts()
    assert sentences[0] == "A photo of a fake face"
    assert sentences[3] == "A photo of a face with the global attribute of physical inconsistency altered"
    assert sentences[5] == "A photo of a face with the local attribute of eyebrow altered"


def test_what_is_not_resolved_about_ffsc_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        load_graph("ffpp")
        assert not caplog.records
        graph = load_graph("ffsc")
    assert "order of the six local regions of FFSC is not resolved" in caplog.text
    assert "before training" in graph.caution


@pytest.mark.parametrize("name", SHIPPED)
def test_a_graph_comes_back_from_plain_data_and_from_a_file(name, tmp_path):
    graph = load_graph(name)
    assert graph_from(graph.plain()) == graph
    text = (Path(__file__).parents[3] / f"src/thurl/forensics/deepfake/graphs/{name}.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert load_graph(tmp_path / "mine.yaml") == graph


# --- labels ----------------------------------------------------------------------------------------------------------


def test_a_row_takes_names_or_columns_and_says_what_is_wrong():
    assert FFPP.row({"fake": 1, "nose": True, "eye": None}) == [1, -1, -1, -1, -1, -1, -1, -1, 1, -1]
    assert FFPP.row([np.int64(1), *[0] * 8, None]) == [1, *[0] * 8, -1]
    for labels, message in [
        ({"fake": 2}, r"label fake is 2 \(int\); it must be 0, 1 or null"),
        ({"fake": 0.5}, "label fake is 0.5"),
        ({"fake": "1"}, "label fake is '1'"),
        ({"mouht": 1}, "no node of the label graph ffpp.*did you mean `mouth`"),
        ([0] * 9, "9 labels; the label graph ffpp has 10 nodes"),
    ]:
        with pytest.raises(DataError, match=message):
            FFPP.row(labels)


def test_partial_labels_are_legal_exactly_where_a_state_agrees():
    rows = torch.randint(-1, 2, (300, 10), generator=torch.Generator().manual_seed(0)).tolist()
    seen = set()
    for row in rows:
        agree = any(all(a in (-1, b) for a, b in zip(row, state, strict=True)) for state in FFPP.states.int().tolist())
        assert FFPP.completable(row) == agree == (FFPP.problem(row) == "")
        seen.add(agree)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"fake": 0, "identity": 1}, "identity is 1, but none of what it is a part of is .fake"),
        ({"nose": 1, "identity": 0, "physical": 0}, "nose is 1, but none of what it is a part of is .identity, phys"),
        ({"expression": 1, "lip": 0, "mouth": 0}, "expression is 1, but none of the regions it shows in is .lip, mou"),
        ({"fake": 0, "skin": 1, "eye": 0}, "no legal combination has fake 0, eye 0, skin 1"),
    ],
)
def test_illegal_labels_name_the_broken_rule(labels, message):
    with pytest.raises(DataError, match=message):
        FFPP.check(labels)


def test_what_follows_from_known_labels_is_filled_in():
    assert FFPP.implied(FFPP.row({"fake": 0})) == [0] * 10
    skin = dict(zip(FFPP.names, FFPP.implied(FFPP.row({"skin": 1})), strict=True))
    assert {name for name, value in skin.items() if value == 1} == {"fake", "identity", "skin"}
    assert 0 not in skin.values()
    mouth = dict(zip(FFPP.names, FFPP.implied(FFPP.row({"identity": 0, "physical": 0, "mouth": 1})), strict=True))
    assert (mouth["expression"], mouth["eye"], mouth["nose"], mouth["lip"]) == (1, 0, 0, -1)
    with pytest.raises(DataError, match="identity is 1"):
        FFPP.implied(FFPP.row({"fake": 0, "identity": 1}))


def test_nodes_that_exclude_each_other():
    graph = graph_from(changed(exclusions=[["expression", "identity"]], manipulations={}))
    states = graph.states
    assert 0 < len(states) < 251 and not (states[:, 1] & states[:, 2]).any()
    assert (
        graph.problem({"expression": 1, "identity": 1}) == "expression and identity exclude each other, and both are 1"
    )


# --- graphs that are none --------------------------------------------------------------------------------------------


def nodes(**changes):
    """Nodes of FF++, one of them changed, found by its name."""
    ((name, change),) = changes.items()
    return [{**row, **change} if row["name"] == name else row for row in FFPP.plain()["nodes"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"holds \[\]"),
        (changed(nods=[]), "unknown key 'nods'.*did you mean `nodes`"),
        ({"name": "x"}, "`nodes` is missing"),
        (changed(name=3), "`name` is 3"),
        (changed(nodes="fake"), "node 0"),
        (changed(nodes=[{"name": "fake"}]), "node 0"),
        (changed(nodes=nodes(eye={"parents": "identity"})), "node 4"),
        (changed(nodes=nodes(eye={"paernts": []})), "unknown key 'paernts'"),
        (changed(nodes=nodes(eye={"level": "regional"})), "level 'regional'"),
        (changed(nodes=nodes(eye={"parents": ["identiy"]})), "parent identiy; did you mean `identity`"),
        (changed(nodes=nodes(eye={"parents": ["fake"]})), "its parents are global nodes"),
        (changed(nodes=nodes(fake={"parents": ["eye"]})), "the binary node has no parents"),
        (changed(nodes=nodes(eye={"parents": []})), "node eye has no parents"),
        (changed(nodes=nodes(eye={"name": "nose"})), "two nodes are called nose"),
        (changed(nodes=nodes(eye={"level": "binary", "parents": []})), "2 binary nodes"),
        (changed(nodes=FFPP.plain()["nodes"][::-1]), "in the order binary, global, local"),
        (changed(nodes=[]), "0 nodes; 1 to 16 are possible"),
        (changed(templates={"binary": "{} face"}), "the template of level global"),
        (changed(templates={**FFPP.templates, "local": "{0.__class__}"}), "the template of level local"),
        (changed(templates={**FFPP.templates, "lokal": "{}"}), "template 'lokal'"),
        (changed(templates=["{}"]), "`templates` must give a sentence"),
        (changed(exclusions=[["eye", "eye"]]), "must name two nodes"),
        (changed(exclusions=["eye"]), "`exclusions` must be a list of pairs"),
        (changed(exclusions=[["fake", "identity"]], manipulations={}), "node identity is on in no legal combination"),
        (changed(manipulations={"swap": ["fake", "identity"]}), "manipulation swap: identity is 1, but none of the"),
        (changed(manipulations={"swap": ["fakes"]}), "manipulation swap: 'fakes'.*is no node; did you mean `fake`"),
        (changed(manipulations={"swap": "fake"}), "`manipulations` must give a list of names"),
    ],
    ids=range(27),
)  # fmt: skip
def test_what_is_wrong_with_a_graph_is_said(content, message):
    with pytest.raises(UsageError, match=message):
        graph_from(content)


def test_all_problems_come_together():
    with pytest.raises(UsageError) as caught:
        graph_from(changed(nodes=nodes(eye={"parents": ["fake"]}), templates={}))
    assert len(caught.value.problems) == 4


def test_too_many_nodes_are_refused_before_they_are_listed():
    many = FFPP.plain()["nodes"] + [
        {"name": f"spot {number}", "level": "local", "word": "spot", "parents": ["identity"]} for number in range(30)
    ]
    with pytest.raises(UsageError, match="40 nodes; 1 to 16 are possible"):
        graph_from(changed(nodes=many))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="neither one of ffpp, ffsc nor a file; did you mean `ffpp`"):
        load_graph("ffp")
    for content, message in ((b"a: [", "not readable as YAML"), (b"\xff\xfe\x00", "not readable"), (b"", "null")):
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(UsageError, match=message):
            load_graph(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("!!python/object/apply:os.system ['true']", encoding="utf-8")
    with pytest.raises(UsageError, match="not readable as YAML"):
        load_graph(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(UsageError, match="at most 1048576"):
        load_graph(tmp_path / "x.yaml")
