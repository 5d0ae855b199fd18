"""Logits of pictures and sentences: scale, length and precision."""

from __future__ import annotations

import pytest
import torch

from thurl.forensics.joint_embedding import joint_logits


PICTURES, SENTENCES = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0], [0.0, 0.0]])


def test_logits_are_scaled_inner_products():
    logits = joint_logits(PICTURES, SENTENCES, scale=0.1, normalize=False)
    assert logits.tolist() == [pytest.approx([0.3, 2.0, 0.0]), pytest.approx([0.0, 1.0, 0.0])]


def test_lengths_do_not_matter_where_they_are_brought_to_one():
    logits = joint_logits(PICTURES, SENTENCES, scale=torch.tensor(10.0), normalize=True)
    assert logits.tolist() == [pytest.approx([6.0, 8.0, 0.0]), pytest.approx([0.0, 10.0, 0.0])]


def test_half_precision_features_give_float32_logits():
    assert joint_logits(PICTURES.bfloat16(), SENTENCES.bfloat16(), scale=1.0, normalize=False).dtype == torch.float32
