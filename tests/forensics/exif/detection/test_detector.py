"""The detector file: bit-equal round trips, and everything that can be wrong with one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.forensics.exif.detector import FORMAT, Detector, load_detector, save_detector
from thurl.forensics.exif.encoder import ExifEncoder, encoder_fingerprint
from thurl.forensics.exif.fitting import fit_one_class
from thurl.forensics.exif.head import FaceHead, FaceHeadConfig
from thurl.forensics.exif.mixture import Mixture


GOLDEN = Path(__file__).resolve().parents[3] / "golden"


@pytest.fixture(params=["oc", "bc"])
def detector(request, one_class, binary):
    return one_class if request.param == "oc" else binary


def rewritten(path, *, tensors=None, settings=None, drop=()):
    """The same file with other tensors or settings."""
    with safe_open(path, "pt") as file:
        old = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kept = json.loads(file.metadata()["thurl_exif_detector"])
    old = {name: tensor for name, tensor in {**old, **(tensors or {})}.items() if name not in drop}
    kept = {name: value for name, value in {**kept, **(settings or {})}.items() if name not in drop}
    save_file(old, path, metadata={"thurl_exif_detector": json.dumps(kept)})
    return path


# --- round trips -----------------------------------------------------------------------------------------------------


def test_save_and_load_scores_bit_for_bit(detector, tables, tmp_path):
    detector = detector.calibrated(detector.scores(tables["test"].features), [0.1], domain="phone")
    save_detector(detector, tmp_path / "new" / "d.safetensors")
    again = load_detector(tmp_path / "new" / "d.safetensors")
    features = torch.cat([tables["test"].features, tables["fake"].features])
    np.testing.assert_array_equal(detector.scores(features), again.scores(features))
    assert again.kind == detector.kind and set(again.calibrations) == {"", "phone"}
    for domain, calibration in detector.calibrations.items():
        other = again.calibrations[domain]
        assert other.rates == calibration.rates
        np.testing.assert_array_equal(other.scores, calibration.scores)
    for name in ("encoder", "unit_length", "transform", "training", "in_sample"):
        assert getattr(again, name) == getattr(detector, name), name


@pytest.mark.parametrize(
    "options", [{"covariance": "tied"}, {"covariance": "diag"}, {"pca": 3}, {"covariance": "full"}], ids=str
)
def test_every_kind_of_mixture_round_trips(options, tables, tmp_path):
    detector = fit_one_class(tables["fit"], unit_length=False, components=2, **options)
    save_detector(detector, tmp_path / "d.safetensors")
    again = load_detector(tmp_path / "d.safetensors")
    features = tables["test"].features
    np.testing.assert_array_equal(detector.scores(features), again.scores(features))


def test_no_pickle_in_the_file(detector, tmp_path):
    save_detector(detector, tmp_path / "d.safetensors")
    assert set(load_file(tmp_path / "d.safetensors")) >= {"calibration.scores", "calibration.thresholds"}
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]  # no half file is left beside it


def test_the_golden_mixture_scores_the_same_after_a_round_trip(tmp_path):
    golden = load_file(GOLDEN / "exif_gmm.safetensors")
    names = ("weights", "means", "precisions_cholesky")
    mixture = Mixture.from_tensors("full", {name: golden[name] for name in names})
    save_detector(Detector(mixture, "0" * 64, unit_length=False), tmp_path / "d.safetensors")
    scores = load_detector(tmp_path / "d.safetensors").scores(golden["real"])
    np.testing.assert_allclose(scores, golden["loglik_real"].numpy(), rtol=1e-9)


def test_the_golden_perceptron_gives_the_official_probabilities(tmp_path):
    golden = load_file(GOLDEN / "exif_bc_mlp.safetensors")
    head = FaceHead(FaceHeadConfig(feature_size=96, hidden_size=192))
    head.load_state_dict({name: golden[name] for name in head.state_dict()})
    save_detector(Detector(head, "0" * 64, unit_length=True), tmp_path / "d.safetensors")
    log_odds = load_detector(tmp_path / "d.safetensors").scores(golden["raw_features"])
    np.testing.assert_allclose(1 / (1 + np.exp(log_odds)), golden["prob_generated"].numpy(), rtol=1e-5)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_length_is_brought_to_one_where_the_detector_says_so(tables):
    raw = fit_one_class(tables["fit"], unit_length=False, components=2)
    unit = fit_one_class(tables["fit"], unit_length=True, components=2)
    features = tables["test"].features
    np.testing.assert_allclose(unit.scores(features), unit.scores(features * 4), rtol=1e-9)
    assert np.abs(raw.scores(features) - raw.scores(features * 4)).max() > 1
    assert np.isfinite(unit.scores(torch.zeros(1, 6))).all()


def test_rows_do_not_depend_on_each_other_and_bad_rows_are_nan(detector, tables):
    features = tables["test"].features.clone()
    features[3] = torch.nan
    scores = detector.scores(features)
    assert np.isnan(scores).tolist() == [row == 3 for row in range(len(features))]
    np.testing.assert_allclose(scores[5:6], detector.scores(features[5:6]), rtol=1e-12)
    with pytest.raises(DataError, match=r"\(N, 6\)"):
        detector.scores(features[:, :5])


def test_half_precision_features(detector, tables):
    half = tables["test"].features.to(torch.bfloat16)
    np.testing.assert_array_equal(detector.scores(half), detector.scores(half.double()))


# --- calibrations ----------------------------------------------------------------------------------------------------


def test_a_domain_has_its_own_threshold(one_class, tables):
    shifted = one_class.scores(tables["calibrate"].features) - 5
    both = one_class.calibrated(shifted, [0.05], domain="phone")
    assert both.calibration("phone").threshold(0.05) == one_class.calibration().threshold(0.05) - 5
    assert "phone" not in one_class.calibrations  # the first one is untouched
    with pytest.raises(UsageError, match="did you mean `phone`"):
        both.calibration("phon")
    with pytest.raises(UsageError, match="letters, digits"):
        one_class.calibrated(shifted, domain="a.b")


# --- what can be wrong -----------------------------------------------------------------------------------------------


def test_another_encoder_is_refused(one_class, encoder, tmp_path):
    one_class.check_encoder(encoder)
    other = ExifEncoder(encoder.config).eval()
    other.load_state_dict(encoder.state_dict())
    assert encoder_fingerprint(other) == one_class.encoder
    other.layer1[0].bn1.running_mean += 1e-3
    save_detector(one_class, tmp_path / "d.safetensors")
    load_detector(tmp_path / "d.safetensors", encoder=encoder)
    with pytest.raises(DataError, match="made with the encoder"):
        load_detector(tmp_path / "d.safetensors", encoder=other)


@pytest.mark.parametrize("keep", [0, 7, 40, 0.5, 0.99])
def test_a_truncated_file(detector, tmp_path, keep):
    path = tmp_path / "d.safetensors"
    save_detector(detector, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match="d.safetensors: not a readable safetensors file"):
        load_detector(path)


def broken_mixtures(one_class):
    tensors = {f"gmm.{name}": tensor for name, tensor in one_class.scorer.tensors().items()}
    means, chol = tensors["gmm.means"].clone(), tensors["gmm.precisions_cholesky"].clone()
    means[0, 1] = float("nan")
    chol[0, 2, 2] *= -1
    calibration = one_class.calibration()
    scores = torch.from_numpy(calibration.scores.copy())
    return {
        "a NaN mean": ({"gmm.means": means}, {}, (), "means holds values that are not finite"),
        "a negative precision": ({"gmm.precisions_cholesky": chol}, {}, (), "diagonal of precisions_cholesky"),
        "weights": ({"gmm.weights": tensors["gmm.weights"] * 2}, {}, (), "sum 2"),
        "a missing tensor": ({}, {}, ("gmm.means",), "means missing"),
        "a tensor too many": ({"gmm.extra": scores}, {}, (), "gmm.extra"),
        "a head in a mixture": ({"head.fc1.bias": scores}, {}, (), "head.fc1.bias"),
        "another shape": ({"gmm.means": means[:, :4].nan_to_num()}, {}, (), r"\(2, 4, 4\)"),
        "single precision": ({"gmm.weights": tensors["gmm.weights"].float()}, {}, (), "float64"),
        "another covariance": ({}, {"covariance": "tied"}, (), r"\(6, 6\)"),
        "no covariance": ({}, {"covariance": None}, (), "none of full"),
        "a pca half": ({"pca.mean": scores[:6].clone()}, {}, (), "belong together"),
        "unsorted scores": ({"calibration.scores": scores.flip(0)}, {}, (), "ascending"),
        "NaN scores": ({"calibration.scores": scores * torch.nan}, {}, (), "finite float64"),
        "other thresholds": ({"calibration.thresholds": scores[:2].clone()}, {}, (), "do not follow"),
        "no thresholds": ({}, {}, ("calibration.thresholds",), "lacks thresholds"),
        "wild rates": ({"calibration.rates": scores[:2].clone()}, {}, (), "false-alarm rate"),
        "an odd name": ({"calibration.domain.a b.scores": scores}, {}, (), "no tensor of a calibration"),
        "another kind": ({}, {"kind": "tc"}, (), "none of oc, bc"),
        "a newer layout": ({}, {"format": FORMAT + 1}, (), "newer thurl"),
        "no encoder": ({}, {}, ("encoder",), "`encoder` is missing"),
        "no hash": ({}, {"encoder": "abc"}, (), "SHA-256"),
        "a text for a truth value": ({}, {"unit_length": "yes"}, (), "`unit_length` is no bool"),
    }  # fmt: skip


CASES = [
    "a NaN mean", "a negative precision", "weights", "a missing tensor", "a tensor too many", "a head in a mixture",
    "another shape", "single precision", "another covariance", "no covariance", "a pca half", "unsorted scores",
    "NaN scores", "other thresholds", "no thresholds", "wild rates", "an odd name", "another kind", "a newer layout",
    "no encoder", "no hash", "a text for a truth value",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_changed_file_is_refused_with_the_reason(case, one_class, tmp_path):
    found = broken_mixtures(one_class)
    assert set(found) == set(CASES)
    tensors, settings, drop, match = found[case]
    save_detector(one_class, tmp_path / "d.safetensors")
    rewritten(tmp_path / "d.safetensors")
    load_detector(tmp_path / "d.safetensors")  # rewriting alone breaks nothing
    rewritten(tmp_path / "d.safetensors", tensors=tensors, settings=settings, drop=drop)
    with pytest.raises(DataError, match=match) as error:
        load_detector(tmp_path / "d.safetensors")
    assert "d.safetensors" in str(error.value)


@pytest.mark.parametrize("case", ["nan", "shape", "missing", "extra", "kind"])
def test_a_changed_perceptron_is_refused(case, binary, tmp_path):
    path = tmp_path / "d.safetensors"
    save_detector(binary, path)
    bias = binary.scorer.fc1.bias.detach().clone()
    if case == "nan":
        rewritten(path, tensors={"head.fc1.bias": bias * torch.nan})
    elif case == "shape":
        rewritten(path, tensors={"head.fc1.bias": bias[:3].clone()})
    elif case == "missing":
        rewritten(path, drop=("head.fc1.bias",))
    elif case == "extra":
        rewritten(path, tensors={"head.fc3.bias": bias})
    else:
        rewritten(path, settings={"kind": "oc"})
    with pytest.raises(DataError, match=r"head\.fc"):
        load_detector(path)


def test_files_that_are_no_detectors(tmp_path):
    with pytest.raises(MissingRequirementError, match="no such detector"):
        load_detector(tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="not a detector of thurl"):
        load_detector(tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors", metadata={"thurl_exif_detector": "{"})
    with pytest.raises(DataError, match="not JSON"):
        load_detector(tmp_path / "x.safetensors")


def test_a_detector_without_calibration_round_trips(one_class, tmp_path):
    bare = dataclasses.replace(one_class, calibrations={})
    save_detector(bare, tmp_path / "d.safetensors")
    assert load_detector(tmp_path / "d.safetensors").calibration() is None
