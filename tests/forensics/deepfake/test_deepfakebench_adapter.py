"""The DeepfakeBench detector, used as that project's `test.py` and `trainer.py` (June 2025) use one."""

import numpy as np
import pytest
import torch

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.deepfake.deepfakebench_adapter import DeepfakeBenchDetector
from thurl.forensics.deepfake.model import DeepFakeModel
from thurl.forensics.deepfake.tiny import tiny_config
from thurl.forensics.processing import FaceImageProcessor


CLASSES = {1: "Deepfakes", 2: "Face2Face"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    DeepFakeModel(tiny_config(image_size=16, patch_size=8, hidden=16, layers=1)).save_pretrained(place)
    FaceImageProcessor(size=16).save_pretrained(place)
    return place


@pytest.fixture
def detector(folder):
    config = {"model_name": "thurl_deepfake", "thurl_model": str(folder), "resolution": 16, "thurl_classes": CLASSES}
    return DeepfakeBenchDetector({**config, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.4, 0.25]})


def batch(detector, labels=(0, 1, 2, 0, 3)):
    """Pictures normalised as the benchmark does it, and the same as the model's own processor does it."""
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (len(labels), 16, 16, 3), dtype=np.uint8)
    plain = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(detector.config[name])[:, None, None] for name in ("mean", "std"))
    own = FaceImageProcessor(size=16)(list(pictures))["pixel_values"]
    return {"image": (plain - mean) / std, "label": torch.tensor(labels), "landmark": None, "mask": None}, own


def test_it_says_what_the_model_says(detector):
    data, own = batch(detector)
    detector.eval()
    with torch.no_grad():
        found = detector(data, inference=True)
        expected = detector.backbone(own)
    torch.testing.assert_close(found["prob"], expected.marginals[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["cls"].softmax(dim=1)[:, 1], found["prob"])
    torch.testing.assert_close(found["marginals"], expected.marginals, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(detector.classifier(detector.features(data)), found["cls"])
    assert found["feat"].shape == (5, 16) and found["prob"].shape == (5,)


def test_labels_by_class_in_training_and_real_against_fake_in_testing(detector):
    data, _ = batch(detector)
    graph = detector.backbone.graph
    detector.train()
    found = detector(data)
    unknown = [-1] * 9
    rows = [[0] * 10, graph.vector("Deepfakes"), graph.vector("Face2Face"), [0] * 10, [1, *unknown]]
    expected = detector.backbone.compute_terms(found["energies"], torch.tensor(rows))
    losses = detector.get_losses(data, found)
    assert set(losses) == {"overall", "binary", "global", "local"}
    assert all(torch.equal(losses[name], term) for name, term in expected.items())
    detector.eval()
    data["label"] = torch.where(data["label"] != 0, 1, 0)  # as the benchmark does
    rows = [[0] * 10 if not label else [1, *unknown] for label in data["label"]]
    assert torch.equal(
        detector.get_losses(data, found)["local"],
        detector.backbone.compute_terms(found["energies"], torch.tensor(rows))["local"],
    )


def test_a_step_of_the_trainer(detector):
    detector.to("cpu")
    detector.device = "cpu"  # the trainer sets it
    before = {name: value.clone() for name, value in detector.named_parameters()}
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-2)
    data, _ = batch(detector)
    detector.train()
    predictions = detector(data)
    losses = detector.get_losses(data, predictions)
    optimizer.zero_grad()
    losses["overall"].backward()
    optimizer.step()
    # Not used by CLIP's features, and the text tower's own positions beyond the longest sentence.
    still = [name for name, value in detector.named_parameters() if torch.equal(value, before[name])]
    assert not [name for name in still if "post_layernorm" not in name and "bias" not in name]
    metrics = detector.get_train_metrics(data, predictions)
    assert set(metrics) == {"acc", "auc", "eer", "ap"} and all(0 <= value <= 1 for value in metrics.values())


def test_a_batch_of_one_class_has_no_auc(detector):
    data, _ = batch(detector, labels=(1, 1))
    metrics = detector.get_train_metrics(data, detector(data))
    assert metrics["auc"] is None and metrics["eer"] is None and metrics["acc"] is not None


def test_checkpoints_are_the_models_weights_only(detector, folder):
    state = detector.state_dict()
    assert all(name.startswith("backbone.") for name in state)
    other = DeepfakeBenchDetector({"thurl_model": str(folder)})
    with torch.no_grad():
        detector.backbone.visual_projection.weight.add_(1)
    other.load_state_dict(detector.state_dict(), strict=True)
    assert torch.equal(other.backbone.visual_projection.weight, detector.backbone.visual_projection.weight)


def test_what_cannot_be_is_named(detector, folder):
    with pytest.raises(UsageError, match="thurl_model"):
        DeepfakeBenchDetector({})
    with pytest.raises(MissingRequirementError, match="nowhere"):
        DeepfakeBenchDetector({"thurl_model": "nowhere"})
    with pytest.raises(UsageError, match="resolution is 224"):
        DeepfakeBenchDetector({"thurl_model": str(folder), "resolution": 224})
    with pytest.raises(UsageError, match="Face2face"):
        DeepfakeBenchDetector({"thurl_model": str(folder), "thurl_classes": {1: "Face2face"}})
    with pytest.raises(DataError, match="takes frames"):
        detector({"image": torch.zeros(2, 4, 3, 16, 16), "label": torch.zeros(2)})
