"""A small generated set of triplets, once per session."""

from __future__ import annotations

import pytest

from thurl.iqa.afine.generated import texture_contents, write_generated
from thurl.iqa.afine.triplets import read_triplets


@pytest.fixture(scope="session")
def textures(tmp_path_factory):
    """Folder with pictures, opinions and `perfect` and `imperfect` triplets of six textures of 32 pixels."""
    folder = tmp_path_factory.mktemp("textures")
    write_generated(folder, texture_contents(6, size=32, seed=5), triplets=40, seed=5)
    return folder


@pytest.fixture(scope="session")
def triplets(textures):
    """Imperfect ones first."""
    return [
        triplet
        for name in ("imperfect", "perfect")
        for triplet in read_triplets(textures / f"{name}.csv", images=textures / "images")
    ]
