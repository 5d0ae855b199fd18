"""Which samples share a decoder, and clipping slice by slice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thurl.distillation.slices import clip_gradients, plan_slices, split
from thurl.errors import UsageError


def test_slices_hold_all_samples_whatever_divides():
    for count in range(1, 40):
        for largest in range(1, 45):
            sizes = split(count, largest)
            assert sum(sizes) == count and max(sizes) <= largest and min(sizes) >= 1
            assert len(sizes) == -(-count // largest) and max(sizes) - min(sizes) <= 1
    assert split(200, 200) == (200,)  # officially an empty slice
    with pytest.raises(UsageError, match="1 or more"):
        split(0, 5)


def test_a_plan_holds_every_sample_once_and_classes_apart():
    labels = np.array([2, 0, 1, 0, 2, 2, 2, 2, 1, 0, 2])
    plan = plan_slices(labels, 3)
    assert sorted(np.concatenate([part.ravel() for part in plan]).tolist()) == list(range(len(labels)))
    for part in plan:
        assert (labels[part] == labels[part][:, :1]).all()
        assert (np.diff(part, axis=1) > 0).all()
    assert [part.shape for part in plan] == [(3, 3), (1, 2)]
    assert labels[plan[0]][:, 0].tolist() == [0, 2, 2] and labels[plan[1]].tolist() == [[1, 1]]


def test_a_shared_decoder_takes_samples_of_several_classes():
    labels = np.array([1, 0, 1, 0, 1])
    (part,) = plan_slices(labels, 5, shared=True)
    assert labels[part].tolist() == [[0, 0, 1, 1, 1]]
    assert [part.shape for part in plan_slices(labels, 3, shared=True)] == [(1, 3), (1, 2)]
    with pytest.raises(UsageError, match="labels of shape"):
        plan_slices(labels[:0], 3)


def test_clipping_is_that_of_each_slice_alone():
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(4, *shape)) for shape in ((3, 2), (5,), (1, 2, 2))]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * torch.tensor(
            [0.001, 1.0, 10.0, 0.0]
        ).view(-1, *[1] * (parameter.ndim - 1))
    alone = []
    for s in range(4):
        own = [torch.nn.Parameter(p.detach()[s].clone()) for p in parameters]
        for mine, whole in zip(own, parameters, strict=True):
            mine.grad = whole.grad[s].clone()
        alone.append((torch.nn.utils.clip_grad_norm_(own, 0.1), own))
    norms = clip_gradients([*parameters, torch.nn.Parameter(torch.zeros(4))], 0.1)
    for s, (norm, own) in enumerate(alone):
        torch.testing.assert_close(norms[s], norm)
        for mine, whole in zip(own, parameters, strict=True):
            torch.testing.assert_close(whole.grad[s], mine.grad)
    with pytest.raises(ValueError, match="backward"):
        clip_gradients([torch.nn.Parameter(torch.zeros(2))], 0.1)
