from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from thurl.data.degradations import KINDS, LEVELS, QUALITY, SEVERITIES, STRENGTH, degrade, describe, quality
from thurl.errors import DataError


def picture(side: int = 56) -> Image.Image:
    """A textured picture with shading, so that every kind has something to spoil."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    base = 90 + 80 * np.sin(9 * x) * np.cos(7 * y)
    pixels = base[..., None] + rng.normal(0, 20, (side, side, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def distance(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_every_level_spoils_more_than_the_one_before(kind):
    clean = picture()
    before = clean.tobytes()
    spoiled = [degrade(clean, kind, level, np.random.default_rng(1)) for level in LEVELS]
    distances = [distance(clean, image) for image in spoiled]
    assert distances[0] == 0 and spoiled[0] is not clean
    assert all(later > earlier for earlier, later in itertools.pairwise(distances))
    assert clean.tobytes() == before
    assert {image.size for image in spoiled} == {clean.size} and {image.mode for image in spoiled} == {"RGB"}


def test_kinds_do_what_they_are_called():
    clean = picture()
    rng = np.random.default_rng(2)

    def roughness(image):
        return float(np.abs(np.diff(np.asarray(image.convert("L"), float), axis=1)).mean())

    assert roughness(degrade(clean, "noise", 2, rng)) > roughness(clean) > roughness(degrade(clean, "blur", 2, rng))
    blocks = np.asarray(degrade(clean, "blocks", 3, rng))
    assert (blocks.reshape(8, 7, 8, 7, 3) == blocks.reshape(8, 7, 8, 7, 3)[:, :1, :, :1]).all()
    dark = np.asarray(degrade(clean, "darkness", 3, rng), float)
    assert dark.mean() == pytest.approx(np.asarray(clean, float).mean() * STRENGTH["darkness"][3], abs=0.5)
    noise = np.asarray(degrade(Image.new("RGB", (200, 200), (128, 128, 128)), "noise", 2, rng), float)
    assert noise.std() == pytest.approx(28, rel=0.03)


def test_same_generator_state_same_picture():
    first, again, other = (degrade(picture(), "noise", 2, np.random.default_rng(s)).tobytes() for s in (3, 3, 4))
    assert first == again != other


def test_any_mode_and_size_is_accepted():
    for mode, size in (("L", (5, 3)), ("RGBA", (40, 30)), ("P", (1, 1))):
        for kind in KINDS:
            out = degrade(Image.new(mode, size), kind, 4, np.random.default_rng(0))
            assert out.mode == "RGB" and out.size == size


def test_each_kind_has_its_own_slope_and_orders_interleave():
    for kind in KINDS:
        assert len(QUALITY[kind]) == len(STRENGTH[kind]) == len(LEVELS) == len(SEVERITIES) == 5
        assert QUALITY[kind][0] == 1 and all(a > b > 0 for a, b in itertools.pairwise(QUALITY[kind]))
    assert len(KINDS) >= 4
    assert len({QUALITY[kind] for kind in KINDS}) == len(KINDS)
    values = [quality(kind, level) for kind in KINDS for level in LEVELS[1:]]
    assert len(set(values)) == len(values)
    # Neither word alone gives the order: a milder level of one kind can be worse than a higher level of another,
    # and every two kinds but the mildest overlap.
    assert quality("blur", 2) < quality("noise", 3) and quality("blur", 1) < quality("darkness", 4)
    assert quality("noise", 4) < quality("blocks", 3) < quality("noise", 3)


def test_descriptions_are_two_words_and_unique():
    words = {describe(kind, level) for kind in KINDS for level in LEVELS[1:]}
    assert len(words) == len(KINDS) * 4
    assert {describe(kind, 0) for kind in KINDS} == {"no flaw"}
    assert all(len(text.split()) == 2 for text in words)


@pytest.mark.parametrize(("kind", "level"), [("smoke", 1), ("blur", 5), ("blur", -1), ("blur", 1.5)])
def test_unknown_kind_or_level_is_refused(kind, level):
    with pytest.raises(DataError, match="must be"):
        degrade(picture(), kind, level, np.random.default_rng(0))
    with pytest.raises(DataError, match="must be"):
        quality(kind, level)


def test_neither_word_alone_tells_the_order():
    """The two numbers the page of VisualQuality-R1 compares its results with."""
    from thurl.metrics import srcc

    true = [quality(kind, level) for kind in KINDS for level in LEVELS]
    by_severity = [sum(quality(kind, level) for kind in KINDS) for _ in KINDS for level in LEVELS]
    by_kind = [sum(quality(kind, x) for x in LEVELS[1:]) if level else 4.0 for kind in KINDS for level in LEVELS]
    assert srcc(by_severity, true) == pytest.approx(0.83, abs=0.005)
    assert srcc(by_kind, true) == pytest.approx(0.85, abs=0.005)
