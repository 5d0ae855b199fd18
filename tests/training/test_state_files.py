from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from thurl.training.state_files import load_state, random_states, save_state, set_random_states


def test_states_come_back_bit_by_bit(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "tensors": [base, base[1:], base.t(), torch.tensor(3), torch.zeros(0, 2), base.bfloat16(), base > 5],
        "plain": {"none": None, "true": True, "third": 1 / 3, "text": "ä", "list": [1, [2]], "nan": float("nan")},
        "tuple": (1, (2.5, "x")),
        "array": np.arange(4, dtype=np.uint32),
        "number": np.float64(0.1),
        "empty": {},
    }
    save_state(tmp_path / "state", state)
    back = load_state(tmp_path / "state")
    for ours, theirs in zip(back["tensors"], state["tensors"], strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
        assert not ours.numel() or ours.data_ptr() % 16 == 0
    assert np.isnan(back["plain"].pop("nan")) and np.isnan(state["plain"].pop("nan"))
    assert back["plain"] == state["plain"] and back["tuple"] == state["tuple"] and back["empty"] == {}
    assert back["array"].dtype == np.uint32 and back["array"].tolist() == [0, 1, 2, 3] and back["number"] == 0.1
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("value", [{1: "key"}, object(), {"deep": [{"set": {1}}]}])
def test_states_of_other_kinds_are_refused(tmp_path, value):
    with pytest.raises(TypeError, match="A checkpoint cannot hold"):
        save_state(tmp_path / "state", value)


def test_random_states_come_back(tmp_path):
    def draw():
        return [random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]

    random.gauss(), np.random.randn()  # so that a second value waits in each
    save_state(tmp_path / "random", random_states())
    expected = draw()
    draw()
    set_random_states(load_state(tmp_path / "random"))
    assert draw() == expected
