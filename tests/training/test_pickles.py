"""How other libraries read their pickles in a checkpoint, as docs/troubleshooting.md says."""

import ast
import importlib.util
import inspect
from pathlib import Path

import transformers.trainer


def loads(source):
    """`weights_only` of each call of `torch.load`, None where it is not given."""
    calls = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    return [
        next((ast.literal_eval(word.value) for word in call.keywords if word.arg == "weights_only"), None)
        for call in calls
    ]


def test_transformers_reads_no_code_from_a_checkpoint():
    source = inspect.getsource(transformers.trainer)
    found = loads(source)
    assert len(found) > 5 and set(found) == {True}
    # Written for people to look at; nothing in the trainer reads it.
    uses = [line.strip() for line in source.splitlines() if "TRAINING_ARGS_NAME" in line]
    assert len(uses) > 1 and all(line.startswith(("torch.save(self.args,", "TRAINING_ARGS_NAME =")) for line in uses)


def test_deepspeed_does():
    """When this fails, the warning in the page can go."""
    folder = Path(importlib.util.find_spec("deepspeed").origin).parent
    engine = folder / "runtime" / "checkpoint_engine" / "torch_checkpoint_engine.py"
    assert loads(engine.read_text(encoding="utf-8")) == [False]
