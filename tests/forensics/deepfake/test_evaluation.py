"""Metrics of frames and videos, what has none, and videos of one name (verification G of the evaluation)."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from thurl.errors import DataError
from thurl.forensics.deepfake.deepfakebench import read_deepfakebench
from thurl.forensics.deepfake.evaluation import Thresholds, choose_thresholds, evaluate_frames
from thurl.forensics.deepfake.graph import load_graph
from thurl.forensics.deepfake.score_tables import FrameScores


NAMES = ("fake", "expression", "identity", "eye", "nose")
TASKS = {"binary": slice(0, 1), "global": slice(1, 3), "local": slice(3, 5)}


def table(rows):
    """Rows of (dataset, manipulation, video, label, score); other nodes follow the first."""
    scores = np.array([[row[4]] * len(NAMES) for row in rows], dtype=float)
    labels = np.array([[row[3]] * len(NAMES) for row in rows], dtype=np.int8)
    return FrameScores(NAMES, scores, labels, *([row[i] for row in rows] for i in (0, 1, 2)))


def drawn(videos=30, frames=4, seed=0, dataset="one"):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(videos):
        label = number % 2
        level = rng.normal(0.5 + 0.15 * label, 0.15)
        rows += [
            (dataset, "swap" if label else "", f"v{number:03d}", label, float(np.clip(level + noise, 0, 1)))
            for noise in rng.normal(0, 0.1, frames)
        ]
    return table(rows)


def by_folder(found):
    """The video AUC of a metric that knows a video by its name alone, as DeepfakeBench's does."""
    members = {}
    for name, score, label in zip(found.videos, found.probabilities[:, 0], found.labels[:, 0], strict=True):
        members.setdefault(name, []).append((score, label))
    means = [np.mean(values, axis=0) for values in members.values()]
    return roc_auc_score([int(label) for _, label in means], [score for score, _ in means])


def test_frame_and_video_auc_are_those_of_scikit_learn():
    found = drawn()
    result = evaluate_frames(found, TASKS, resamples=0)["datasets"]["one"]
    assert result["frames"]["auc"] == pytest.approx(roc_auc_score(found.labels[:, 0], found.probabilities[:, 0]))
    videos = found.probabilities[:, 0].reshape(30, 4).mean(axis=1)
    assert result["videos"]["auc"] == pytest.approx(roc_auc_score(found.labels[::4, 0], videos))
    assert (result["frames"]["n"], result["videos"]["n"], result["videos"]["fake"]) == (120, 30, 15)
    assert result["attributes"]["identity"] == result["regions"]["nose"] == result["frames"]["auc"]
    assert result["manipulations"]["swap"]["video_auc"] == result["videos"]["auc"]
    assert result["not_scored"] == {}


def test_videos_of_one_name_stay_apart():
    """000_003 of four manipulations and of a real source: five videos. A metric of folder names sees one."""
    rows = []
    for name, score in (("000_003", 0.1), ("001_007", 0.4)):
        rows += [("ff", "", name, 0, score)] * 3
        for place, kind in enumerate(("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")):
            rows += [("ff", kind, name, 1, (0.1 if kind == "FaceSwap" else 0.5) + 0.05 * place)] * 2
    rows += [("ff", "Deepfakes", "only_fake", 1, 0.15)] * 3
    found = table(rows)
    videos = found.by_video()
    assert len(videos.keys) == 11 and sorted(videos.frames) == [2] * 8 + [3] * 3
    truth = [1 if kind else 0 for _, _, kind, _ in videos.keys]
    right = roc_auc_score(truth, videos.scores)
    result = evaluate_frames(found, TASKS, resamples=0)["datasets"]["ff"]
    assert result["videos"]["auc"] == pytest.approx(right) and right == pytest.approx(15 / 18)
    assert result["manipulations"]["Face2Face"]["video_auc"] == 1
    assert result["manipulations"]["FaceSwap"]["video_auc"] == 0.5
    assert by_folder(found) != pytest.approx(right)  # both names with real frames became real videos


def test_a_deepfakebench_file_with_colliding_names(tmp_path):
    """Verification G: every method calls its videos alike, and two of them like the real ones."""
    graph = load_graph("ffpp")
    content = {}
    scores = {}
    for label, name, videos in (
        ("FF-real", "real", {"000": 0.3, "000_003": 0.1}),
        ("FF-DF", "Deepfakes", {"000_003": 0.6, "004_982": 0.8}),
        ("FF-NT", "NeuralTextures", {"000_003": 0.2, "000": 0.4}),
    ):
        entries = {}
        for video, score in videos.items():
            frames = [f"{name}/{video}/{number}.png" for number in range(4 if name == "real" else 2)]
            entries[video] = {"label": label, "frames": frames}
            scores |= dict.fromkeys(frames, score)
        content[label] = {"test": {"c23": entries}}
    (tmp_path / "FaceForensics++.json").write_text(json.dumps({"FaceForensics++": content}))
    items = read_deepfakebench(tmp_path / "FaceForensics++.json", graph)
    values = np.array([scores[Path(item.path).relative_to(tmp_path).as_posix()] for item in items])
    found = FrameScores.of_items(items, graph.names, np.repeat(values[:, None], 10, axis=1))
    result = evaluate_frames(found, graph.tasks, resamples=0)["datasets"]["FaceForensics++"]
    assert result["videos"]["n"] == 6
    # Real 0.3 and 0.1 against 0.6, 0.8, 0.2, 0.4: one of the eight pairs is wrong.
    assert result["videos"]["auc"] == pytest.approx(7 / 8)
    joined = by_folder(found)  # three videos, of which one is forged
    assert joined == pytest.approx(1.0) and joined != pytest.approx(7 / 8)
    assert result["manipulations"]["NeuralTextures"]["video_auc"] == pytest.approx(3 / 4)


def test_same_names_in_two_sets_are_two_videos():
    both = table([(name, "", "v0", 0, 0.1) for name in ("a", "b")] + [("a", "x", "v0", 1, 0.9)])
    assert [key[0] for key in both.by_video().keys] == ["a", "b", "a"]
    assert evaluate_frames(both, TASKS, resamples=0)["datasets"]["b"]["videos"]["n"] == 1


def test_a_set_of_one_class_is_named_and_not_scored():
    rows = [("a", "", f"r{i}", 0, 0.1 * i) for i in range(3)] + [("a", "x", f"f{i}", 1, 0.9) for i in range(3)]
    rows += [("fakes", "y", f"f{i}", 1, 0.5) for i in range(3)]
    result = evaluate_frames(table(rows), TASKS, resamples=20)
    assert set(result["not_scored"]) == {"fakes"} and "no real face" in result["not_scored"]["fakes"]
    lonely = result["datasets"]["fakes"]
    assert lonely["frames"]["fake"] == 3 and all(
        math.isnan(lonely[kind][name]) for kind in ("frames", "videos") for name in ("auc", "ap", "eer", "accuracy")
    )
    assert result["mean"]["video_auc"] == result["datasets"]["a"]["videos"]["auc"] == 1


def test_pictures_that_could_not_be_used_and_unknown_labels():
    found = drawn(videos=8)
    found.probabilities[[0, 5]] = np.nan
    found.labels[8:12, 0] = -1  # a whole video
    found.labels[:, 3] = -1
    result = evaluate_frames(found, TASKS, resamples=0)["datasets"]["one"]
    assert (result["unusable"], result["unlabelled"]) == (2, 4)
    assert result["frames"]["n"] == 26 and result["videos"]["n"] == 7
    assert "eye" in result["not_scored"] and math.isnan(result["regions"]["eye"])
    assert result["region_auc"] == result["regions"]["nose"]
    assert not math.isnan(result["videos"]["auc"])


def test_threshold_of_validation_data():
    chosen = choose_thresholds(drawn(videos=60, seed=3))
    test = drawn(videos=60, seed=4)
    before = evaluate_frames(test, TASKS, resamples=0)["datasets"]["one"]
    after = evaluate_frames(test, TASKS, thresholds=chosen, resamples=0)["datasets"]["one"]
    assert math.isnan(before["videos"]["accuracy_chosen"])
    scores, labels = test.probabilities[:, 0], test.labels[:, 0]
    assert after["frames"]["accuracy_chosen"] == pytest.approx(((scores >= chosen.frame) == labels).mean())
    assert after["frames"]["accuracy"] == pytest.approx(((scores >= 0.5) == labels).mean())
    assert after["videos"]["balanced_accuracy_chosen"] > after["videos"]["balanced_accuracy"]
    assert math.isnan(choose_thresholds(test.rows(test.labels[:, 0] == 1)).video)
    assert Thresholds() != chosen


def test_interval_of_frames_goes_by_videos():
    """Frames of one video are alike: resampled alone they would promise more than they hold."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        level = rng.normal(0.4 + 0.2 * (number % 2), 0.2)
        rows += [("a", "x" * (number % 2), f"v{number}", number % 2, float(np.clip(level, 0, 1)))] * 20
    result = evaluate_frames(table(rows), TASKS, resamples=200)["datasets"]["a"]
    wide, videos = (result[kind]["auc_high"] - result[kind]["auc_low"] for kind in ("frames", "videos"))
    assert wide == pytest.approx(videos, rel=0.3) and wide > 0.15
    assert result["frames"]["auc_low"] <= result["frames"]["auc"] <= result["frames"]["auc_high"]
    again = evaluate_frames(table(rows), TASKS, resamples=200)["datasets"]["a"]
    assert again["frames"]["auc_low"] == result["frames"]["auc_low"]


def test_wrong_tables_are_refused():
    good = drawn(videos=2)
    parts = (good.datasets, good.manipulations, good.videos)
    with pytest.raises(DataError, match="do not fit"):
        FrameScores(NAMES[:3], good.probabilities, good.labels, *parts)
    with pytest.raises(DataError, match=r"v000.*outside"):
        FrameScores(NAMES, good.probabilities + 1, good.labels, *parts)
    with pytest.raises(DataError, match="unknown"):
        FrameScores(NAMES, good.probabilities, good.labels + 4, *parts)
