"""Digits in seven domains: what each of them is, for pictures of any size."""

from __future__ import annotations

import numpy as np
import pytest

from thurl.continual.digit_domains import DOMAINS, domain_pool, seven_domains
from thurl.errors import UsageError


@pytest.mark.parametrize(("side", "block"), [(8, 1), (28, 7)])
def test_the_domains(side, block):
    pictures = np.random.default_rng(0).random((40, side, side)).astype(np.float32)
    made = seven_domains(pictures, np.random.default_rng(1), block=block)
    assert tuple(made) == DOMAINS
    for found in made.values():
        assert found.dtype == np.float32 and found.shape == pictures.shape and 0 <= found.min() <= found.max() <= 1
    assert np.array_equal(made["orig"], pictures) and np.array_equal(made["inverted"], 1 - pictures)
    assert np.array_equal(made["rot90"][3], np.rot90(pictures[3]))
    radius = side // 8
    square = pictures[:, : radius + 2, : radius + 2]  # around row 1, column 1; what lies outside counts as 0
    assert made["blur"][:, 1, 1] == pytest.approx(square.sum(axis=(1, 2)) / (2 * radius + 1) ** 2, abs=1e-6)
    # Blocks move, the same way in every picture, and stay as they are.
    cells = side // block

    def blocks(array):
        cut = array.reshape(-1, cells, block, cells, block).swapaxes(2, 3)
        return cut.reshape(len(array), cells**2, -1)

    before, after = blocks(pictures), blocks(made["permuted"])
    origin = [int(np.abs(before[0] - patch).sum(axis=1).argmin()) for patch in after[0]]
    assert sorted(origin) == list(range(cells**2)) != origin
    assert np.array_equal(before[:, origin], after)
    assert np.std(made["noise"] - pictures) < np.std(made["inverted_noise"] - made["inverted"])
    again = seven_domains(pictures, np.random.default_rng(1), block=block)
    assert all(np.array_equal(made[name], again[name]) for name in DOMAINS)


def test_a_block_must_fit():
    with pytest.raises(UsageError, match="block is 5; it must divide the side of the pictures, 28"):
        seven_domains(np.zeros((1, 28, 28), dtype=np.float32), np.random.default_rng(0), block=5)


def test_classes_called_alike_may_meet(tmp_path):
    generator, labels = np.random.default_rng(0), np.repeat([0, 1], 6)
    domains = {name: (generator.random((12, 8, 8)).astype(np.float32), labels) for name in ("a", "b")}
    pool = domain_pool(tmp_path / "new", domains, 0, sizes=(3, 2, 1))
    assert pool.classes == ("a/0", "a/1", "b/0", "b/1") and len(set(pool.groups)) == 4 and not pool.aliases
    assert set(map(tuple, (counts.values() for counts in pool.counts().values()))) == {(3, 2, 1)}
