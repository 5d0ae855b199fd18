from __future__ import annotations

import torch

from thurl.training.tensor_memory import TensorMemory


def test_counter_of_tensors():
    held = torch.zeros(1000)
    memory = TensorMemory()
    memory.hold([held, held[:10]])  # one storage
    assert memory.now == memory.peak == 4000
    with memory:
        other = torch.ones(500)
        view = other[5:]
        assert memory.now == 6000
        del other
        assert memory.now == 6000  # the view keeps it
        del view
        assert memory.now == 4000
        held.add_(1)
    assert memory.peak == 6000
    with TensorMemory(reserved=False) as memory:
        torch.empty(1000)
        held.view(-1)  # neither held nor made here
    assert memory.peak == 0


def test_memory_is_counted_once_and_until_it_is_freed():
    outside = torch.ones(1000)
    with TensorMemory(reserved=False) as memory:
        made = outside.view(10, 100) * 2  # a view of what was there, and 4000 bytes
        assert memory.now == 4000
        part = made[3:]
        del made
        assert memory.now == 4000, "the part keeps the whole"
        more = part + 1
        assert memory.now == 6800
        del part, more
    assert memory.now == 0 and memory.peak == 6800
