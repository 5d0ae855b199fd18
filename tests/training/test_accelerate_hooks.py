"""`without_autocast` and where accelerate keeps the forward it replaces."""

import inspect

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from thurl.training.accelerate_hooks import without_autocast


@pytest.fixture
def fresh_state():
    """accelerate keeps the precision of the first `Accelerator` of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_a_prepared_model_runs_in_the_precision_of_its_weights(fresh_state):
    source = inspect.getsource(Accelerator.prepare_model)
    assert "model._original_forward = model.forward" in source
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model, seen = torch.nn.Sequential(torch.nn.Linear(3, 3)), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    prepared = accelerator.prepare_model(model)
    x = torch.randn(2, 3)
    prepared(x)
    with without_autocast(prepared):
        exact = prepared(x)
    prepared(x)
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert torch.equal(exact, torch.nn.functional.linear(x, model[0].weight, model[0].bias))


def test_a_plain_model_is_left_as_it_is():
    model = torch.nn.Linear(3, 3)
    with without_autocast(model):
        assert "forward" not in model.__dict__
