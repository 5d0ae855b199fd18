"""Identity, pyiqa's networks through a stand-in, the cross-checks of other methods, and the reward."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import thurl.recipe.face_metrics  # noqa: F401 - registers A-FINE and the vision-language scorer
from thurl.errors import DataError, MissingRequirementError, UsageError
from thurl.iqa.face_restoration.checkpoints import load_adaface
from thurl.iqa.face_restoration.interface import FaceBatch, Metric, MetricContext, metric_class, metric_names
from thurl.iqa.face_restoration.landmarks import ffhq_points
from thurl.iqa.face_restoration.learned_metrics import _aligned, identity_similarity
from thurl.iqa.face_restoration.pristine import convert_niqe, fit_files, load_pristine, save_pristine
from thurl.iqa.face_restoration.reward import FaceRestorationReward
from thurl.iqa.face_restoration.weights import weights_digest

from .conftest import blurred, noisy, procedural, write


def batch_of(restored, **others):
    def stacked(pictures):
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    height, width = others.get("lq", restored)[0].shape[:2]
    points = np.array([ffhq_points(width, height)] * len(restored))
    pictures = {"restored": stacked(restored)} | {kind: stacked(value) for kind, value in others.items()}
    return FaceBatch([str(i) for i in range(len(restored))], pictures, points, [f"d{i}" for i in range(len(restored))])


# --- identity --------------------------------------------------------------------------------------------------------


def test_identity_compares_aligned_faces(small_adaface):
    context = MetricContext(weights={"adaface": small_adaface})
    scenes = [procedural(i, 256) for i in range(3)]
    metric = metric_class("id_sim")(context)
    same = metric.score(batch_of(scenes, lq=scenes))
    torch.testing.assert_close(same, torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)
    values = metric.score(batch_of(scenes, lq=[blurred(scene, 4) for scene in scenes]))
    assert (values < 1).all() and (values >= -1).all()
    single = [metric.score(batch_of([s], lq=[blurred(s, 4)])).item() for s in scenes]
    assert values.tolist() == pytest.approx(single, abs=1e-6)
    to_original = metric_class("id_sim_gt")(context).score(batch_of(scenes, gt=scenes, lq=scenes))
    torch.testing.assert_close(to_original, same)
    assert metric.fingerprint() == weights_digest(small_adaface)


def test_landmarks_are_pixels_of_the_input_when_sizes_differ():
    small = [blurred(procedural(i, 128), 2) for i in range(2)]
    large = [np.asarray(Image.fromarray(p).resize((256, 256), Image.Resampling.BICUBIC)) for p in small]
    batch = batch_of(large, lq=small)
    difference = np.abs(_aligned(batch, "restored").astype(int) - _aligned(batch, "lq"))
    assert difference.mean() < 2
    moved = FaceBatch(batch.keys, batch.pictures, batch.landmarks * 0.9)
    assert np.abs(_aligned(moved, "restored").astype(int) - _aligned(batch, "lq")).mean() > 5


def test_similarity_is_the_dot_product_of_the_embeddings(small_adaface):
    model = load_adaface(small_adaface)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (4, 112, 112, 3), dtype=np.uint8) for _ in range(2))
    from thurl.iqa.face_restoration.adaface import face_pixels

    with torch.no_grad():
        first, second = (model(face_pixels(x)).embedding for x in (a, b))
    torch.testing.assert_close(identity_similarity(model, a, b), (first * second).sum(1).double(), atol=1e-5, rtol=0)


# --- pyiqa -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pyiqa(monkeypatch, tmp_path):
    """A package of that name whose networks draw a random number and spoil their input."""
    made = []

    def create_metric(name, device=None, **options):
        made.append((name, options))

        def network(picture):
            assert picture.shape[0] == 1 and picture.dtype == torch.float32
            value = picture.mean() + torch.rand(())
            picture.zero_()
            return value

        return network

    package = types.ModuleType("pyiqa")
    package.create_metric = create_metric
    package.__spec__ = types.SimpleNamespace(name="pyiqa")
    monkeypatch.setitem(sys.modules, "pyiqa", package)
    for name in ("niqe_modelparameters.mat", "musiq_koniq.pth", "ckpt_koniq10k.pt", "RN50.pt"):
        (tmp_path / name).write_bytes(name.encode())
    return made


@pytest.mark.parametrize(
    ("name", "argument", "file"),
    [
        ("niqe", "pretrained_model_path", "niqe_modelparameters.mat"),
        ("musiq", "pretrained_model_path", "musiq_koniq.pth"),
        ("maniqa", "pretrained_model_path", "ckpt_koniq10k.pt"),
        ("clipiqa", "backbone", "RN50.pt"),
    ],
)
def test_networks_get_their_weights_by_path_and_seeded_pictures(pyiqa, tmp_path, name, argument, file):
    context = MetricContext(weights_dir=tmp_path, seed=5)
    cls = metric_class(name)
    assert cls.missing(context) == []
    metric = cls(context)
    assert pyiqa == [(name, {argument: str(tmp_path / file)})]
    assert weights_digest(tmp_path / file) in metric.fingerprint()
    scenes = [procedural(i, 32) for i in range(3)]
    batch = batch_of(scenes)
    state = torch.get_rng_state()
    values = metric.score(batch)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(values, metric.score(batch))  # neither the draw nor the spoilt input shows
    single = [metric.score(batch.single(i)).item() for i in range(3)]
    assert values.tolist() == single
    other = cls(MetricContext(weights_dir=tmp_path, seed=6)).score(batch)
    assert not torch.equal(values, other)


def test_q_align_runs_foreign_code_only_when_told(pyiqa, monkeypatch, tmp_path):
    cls = metric_class("qalign")
    messages = "\n".join(cls.missing(MetricContext()))
    assert "--allow-remote-code" in messages and "one-align" in messages
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: str(tmp_path / "config.json"))
    context = MetricContext(allow_remote_code=True, options={"qalign": "4bit"})
    assert cls.missing(context) == []
    assert "qalign_4bit" in cls(context).fingerprint()
    assert pyiqa == [("qalign_4bit", {})]
    assert "3bit" in "\n".join(cls.missing(MetricContext(allow_remote_code=True, options={"qalign": "3bit"})))


def test_without_the_package_its_licence_is_told():
    messages = "\n".join(metric_class("musiq").missing(MetricContext()))
    assert "pyiqa" in messages and "non-commercial" in messages and "musiq_koniq" in messages


def test_every_metric_says_what_it_misses_without_weights(tmp_path):
    context = MetricContext(weights_dir=tmp_path)
    for name in metric_names("learned"):
        assert metric_class(name).missing(context), name
        if name not in ("qalign",):
            with pytest.raises((MissingRequirementError, ImportError)):
                metric_class(name)(context)


# --- metrics of other methods ----------------------------------------------------------------------------------------


def test_a_fine_judges_against_the_input_and_the_original(tmp_path):
    from thurl.iqa.afine import AFineConfig, AFineModel
    from thurl.iqa.afine.metric import AFine

    torch.manual_seed(0)
    AFineModel(AFineConfig.tiny()).save_pretrained(tmp_path / "afine")
    context = MetricContext(weights_dir=tmp_path)
    assert any("afine" in message for message in metric_class("afine_lq").missing(MetricContext()))
    scenes = [procedural(i, 64) for i in range(2)]
    batch = batch_of([blurred(s, 1) for s in scenes], lq=[blurred(s, 3) for s in scenes], gt=scenes)
    judge = AFine.from_pretrained(tmp_path / "afine")
    for name, reference in (("afine_gt", "gt"), ("afine_lq", "lq")):
        cls = metric_class(name)
        assert cls.missing(context) == [] and cls.lower_is_better is judge.lower_better
        assert cls.range == judge.score_range
        pixels = [batch.pixels(kind, torch.float32) for kind in (reference, "restored")]
        torch.testing.assert_close(cls(context).score(batch), judge(*pixels))


def test_the_vision_language_scorer_is_a_metric(tmp_path):
    from thurl.rl.scorer import QualityScorer
    from thurl.rl.tiny import build_tiny_qwen2_5_vl

    model, processor = build_tiny_qwen2_5_vl(0)
    model.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    context = MetricContext(weights_dir=tmp_path)
    metric = metric_class("vlm")(context)
    scenes = [procedural(i, 56) for i in range(2)]
    values = metric.score(batch_of(scenes))
    expected = QualityScorer.from_pretrained(tmp_path / "vlm").score(
        [str(write(tmp_path / f"{i}.png", scene)) for i, scene in enumerate(scenes)], mode="expected", batch_size=1
    )
    for value, result in zip(values.tolist(), expected, strict=True):
        assert (math.isnan(value) and not result.ok) or value == pytest.approx(result.score, rel=1e-9)
    assert "weights" in metric.fingerprint()


# --- pristine model --------------------------------------------------------------------------------------------------


def test_a_pristine_model_is_fitted_to_files_and_kept(tmp_path):
    paths = [write(tmp_path / f"{i}.png", noisy(procedural(i, 288), 4, i)) for i in range(6)]
    paths.append(write(tmp_path / "small.png", procedural(0, 40)))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    model, problems = fit_files([*paths, tmp_path / "bad.png"])
    assert model.pictures == 6 and len(problems) == 2 and "40x40" in problems[0]
    save_pristine(tmp_path / "pristine.npz", model)
    loaded = load_pristine(tmp_path / "pristine.npz")
    for name in ("niqe_mean", "niqe_cov", "brisque_mean", "brisque_cov"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
    context = MetricContext(weights_dir=tmp_path)
    batch = batch_of([blurred(procedural(9, 192), s) if s else procedural(9, 192) for s in (0, 2)])
    for name in ("niqe_fitted", "brisque_fitted"):
        values = metric_class(name)(context).score(batch)
        assert values.isfinite().all() and values[1] > values[0]


def test_the_released_niqe_model_is_converted(tmp_path):
    rng = np.random.default_rng(0)
    mean, cov = rng.normal(size=(1, 36)), np.cov(rng.normal(size=(80, 36)), rowvar=False)
    savemat(tmp_path / "modelparameters.mat", {"mu_prisparam": mean, "cov_prisparam": cov})
    convert_niqe(tmp_path / "modelparameters.mat", tmp_path / "niqe.npz")
    loaded = load_pristine(tmp_path / "niqe.npz")
    np.testing.assert_allclose(loaded.niqe_mean, mean[0])
    assert loaded.brisque_mean is None
    context = MetricContext(weights={"pristine": tmp_path / "niqe.npz"})
    assert metric_class("niqe_fitted")(context).score(batch_of([procedural(1)])).isfinite().all()
    assert "no BRISQUE features" in "".join(metric_class("brisque_fitted").missing(context))
    assert metric_class("niqe_fitted").missing(context) == []
    with pytest.raises(DataError, match="BRISQUE"):
        metric_class("brisque_fitted")(context).score(batch_of([procedural(1)]))
    savemat(tmp_path / "wrong.mat", {"mu_prisparam": mean[:, :3], "cov_prisparam": cov})
    with pytest.raises(DataError, match="NIQE has"):
        convert_niqe(tmp_path / "wrong.mat", tmp_path / "x.npz")
    (tmp_path / "text.mat").write_text("x")
    for read in (
        lambda: convert_niqe(tmp_path / "text.mat", tmp_path / "x.npz"),
        lambda: load_pristine(tmp_path / "text.mat"),
    ):
        with pytest.raises(DataError):
            read()
    with pytest.raises(MissingRequirementError):
        load_pristine(tmp_path / "none.npz")


# --- reward ----------------------------------------------------------------------------------------------------------


class Constant(Metric):
    def __init__(self, values):
        super().__init__(MetricContext())
        self.values = values

    def score(self, batch):
        return torch.tensor(self.values, dtype=torch.float64)


def constant(metric, values, **attributes):
    return type("Constant", (Constant,), {"name": metric, **attributes})(values)


def tensor_of(*scenes):
    return torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).float() / 255


def test_rewards_are_the_terms_of_the_score_minus_the_hinge(monkeypatch):
    metrics = [
        constant("niqe", [4.0, 12.0], lower_is_better=True),
        constant("musiq", [75.0, 60.0]),
        constant("clipiqa", [0.8, 0.5]),
    ]
    reward = FaceRestorationReward(metrics, {"clipiqa": 2.0})
    pictures = tensor_of(procedural(0, 16), procedural(1, 16))
    result = reward(pictures)
    assert result.reward.tolist() == pytest.approx([0.6 + 0.75 + 1.6, 0.0 + 0.6 + 1.0])
    assert result.penalty.tolist() == [0, 0]
    reward.identity = constant("id_sim", [0.2, 0.7], needs=frozenset({"lq", "landmarks"}))
    with_identity = reward(pictures, lq=pictures, threshold=torch.tensor([0.3, 0.6]))
    assert with_identity.penalty.tolist() == pytest.approx([0.1, 0.0])
    assert with_identity.reward.tolist() == pytest.approx([2.85, 1.6])
    with pytest.raises(DataError, match="need lq"):
        reward(pictures)


def test_other_metrics_are_normalised_by_their_range():
    metrics = [
        constant("a", [25.0], range=(0.0, 100.0)),
        constant("b", [1.0], range=(-1.0, 3.0), lower_is_better=True),
    ]
    result = FaceRestorationReward(metrics)(tensor_of(procedural(0, 16)))
    assert result.terms["a"].item() == 0.25 and result.terms["b"].item() == 0.5


def test_an_undefined_metric_gives_an_undefined_reward():
    reward = FaceRestorationReward([constant("niqe", [math.nan, 4.0], lower_is_better=True)])
    values = reward(tensor_of(procedural(0, 16), procedural(1, 16))).reward
    assert values[0].isnan() and values[1] == pytest.approx(0.6)


def test_a_reward_with_the_identity_network(small_adaface):
    context = MetricContext(weights={"adaface": small_adaface})
    reward = FaceRestorationReward(["clipping", "lq_ssim_8"], identity=True, context=context)
    scene = procedural(0)
    pictures, inputs = tensor_of(scene, noisy(scene, 90)), tensor_of(scene, scene)
    result = reward(pictures, lq=inputs, threshold=0.999)
    assert result.penalty[0] == pytest.approx(0, abs=1e-5) and result.penalty[1] > 0
    assert result.reward[0] > result.reward[1]


def test_rewards_that_make_no_sense_are_refused():
    for metrics, weights in ((["fid"], None), (["tenengrad"], None), (["psnr"], None), ([], None),
                             ([constant("a", [1.0], range=(0.0, 1.0))], {"b": 1.0})):  # fmt: skip
        with pytest.raises(UsageError):
            FaceRestorationReward(metrics, weights)
    reward = FaceRestorationReward([constant("a", [1.0], range=(0.0, 1.0))])
    for pictures in (torch.rand(1, 3, 8, 8) + 0.5, torch.zeros(3, 8, 8), torch.full((1, 3, 8, 8), torch.nan)):
        with pytest.raises(DataError):
            reward(pictures)
