"""Small models of the right kinds, from a seed, and batches for them."""

import pytest
import torch

from thurl.forensics.exif.blades import BladesModel
from thurl.forensics.exif.config import BladesConfig, ExifOrdinalConfig
from thurl.forensics.exif.ordinal import ExifOrdinalModel
from thurl.forensics.exif.tasks import CATEGORICAL_TASKS, OFFICIAL_COLUMNS, ORDINAL_TASKS


ENCODER = {"depths": (1, 1), "hidden_sizes": (8, 16), "stem_channels": 8, "feature_size": 24}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 20,
}


@pytest.fixture(scope="session")
def tiny_ordinal():
    def build(seed=0, **changes):
        torch.manual_seed(seed)
        return ExifOrdinalModel(ExifOrdinalConfig(encoder_config=ENCODER, **changes))

    return build


@pytest.fixture(scope="session")
def tiny_blades():
    def build(seed=0, **changes):
        torch.manual_seed(seed)
        return BladesModel(BladesConfig(encoder_config=ENCODER, text_config=TEXT, **changes))

    return build


@pytest.fixture(scope="session")
def random_batch():
    def build(size=8, seed=0, side=24):
        generator = torch.Generator().manual_seed(seed)
        labels = {task: torch.rand(size, generator=generator) * 100 for task in ORDINAL_TASKS}
        for task in (*CATEGORICAL_TASKS, "coarse_face"):
            labels[task] = torch.randint(0, OFFICIAL_COLUMNS[task], (size,), generator=generator)
        labels["fine_face"] = torch.randint(0, 2, (size, 3), generator=generator).float()
        return torch.randn(size, 3, side, side, generator=generator), labels

    return build
