"""Small models from a seed, the golden checkpoint and its pictures."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thurl.iqa.afine.checkpoint_files import read_official
from thurl.iqa.afine.config import AFineConfig
from thurl.iqa.afine.model import AFineModel
from thurl.iqa.afine.official import from_official


GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CASES = sorted(json.loads((GOLDEN / "afine_tiny_summary.json").read_text())["cases"])


@pytest.fixture(scope="session")
def golden_weights():
    return GOLDEN / "afine_tiny_weights.safetensors"


@pytest.fixture(scope="session")
def golden_io():
    return load_file(GOLDEN / "afine_tiny_io.safetensors")


@pytest.fixture(scope="session")
def golden_model(golden_weights):
    """The official tiny weights in our model; do not train it."""
    return from_official(read_official(golden_weights)).model


@pytest.fixture(scope="session")
def golden_pictures(golden_io):
    """Case to reference and picture, (1, 3, H, W) in [0, 1]."""
    return {
        case: tuple(
            golden_io[f"{case}.{side}_u8"].permute(2, 0, 1)[None].to(torch.float32) / 255 for side in ("ref", "dis")
        )
        for case in CASES
    }


@pytest.fixture(scope="session")
def tiny_afine():
    def build(seed=0, dtype=torch.float32, **changes):
        torch.manual_seed(seed)
        return AFineModel(AFineConfig.tiny(**changes)).to(dtype).eval()

    return build
