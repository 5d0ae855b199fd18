"""The digits: the same for the same seed, shifts of the test pictures, groups of failures."""

from __future__ import annotations

import pytest
import torch

from thurl.editing.classifier import as_classifier
from thurl.editing.digits import SHIFTS, failure_groups, load_digit_pictures, pretrain_digits, shifted
from thurl.errors import UsageError


def test_split_and_shifts() -> None:
    digits, again, other = (load_digit_pictures(seed) for seed in (0, 0, 1))
    assert digits.train.shape == (900, 1, 16, 16) and digits.test.shape == (897, 1, 16, 16)
    assert torch.equal(digits.train, again.train) and not torch.equal(digits.train, other.train)
    assert digits.train.min() == -1 and digits.train.max() == 1
    few = digits.test[:4]
    found = {shift: shifted(few, shift) for shift in SHIFTS}
    for shift, pictures in found.items():
        assert pictures.shape == few.shape and not torch.equal(pictures, few), shift
        assert pictures.min() >= -1 and pictures.max() <= 1
        assert torch.equal(pictures, shifted(few, shift))
    assert torch.equal(found["stripes"][:, :, 1::4], few[:, :, 1::4])
    plain = few * 0.5 + 0.5
    assert ((found["shrink"] * 0.5 + 0.5).sum() / plain.sum()).item() == pytest.approx(0.55**2, rel=0.1)
    assert found["blur"].std() < few.std()
    with pytest.raises(UsageError, match="did you mean `shear`"):
        shifted(few, "sheer")


def test_training_is_seeded_and_groups_are_failures() -> None:
    digits, state = load_digit_pictures(0), torch.get_rng_state()
    model, again = (pretrain_digits(digits, seed=3, epochs=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    classifier = as_classifier(model)
    groups = failure_groups(classifier, digits, smallest=5, largest=6, per_shift=1)
    assert 0 < len(groups) <= len(SHIFTS)
    for group in groups:
        assert 5 <= len(group.pictures) <= 6 and group.true != group.predicted
        assert (classifier.logits(group.pictures).argmax(dim=-1) == group.predicted).all()
    with pytest.raises(UsageError, match="epochs is 0"):
        pretrain_digits(digits, epochs=0)
