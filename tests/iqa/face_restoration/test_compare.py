"""Comparison of two runs, and the table of entries."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thurl.errors import DataError
from thurl.iqa.face_restoration.compare import Run, compare_runs, read_run
from thurl.iqa.face_restoration.evaluation import evaluate_faces
from thurl.iqa.face_restoration.leaderboard import COLUMNS, TEMPLATE, read_leaderboard
from thurl.iqa.face_restoration.report import write_evaluation
from thurl.iqa.face_restoration.settings import EvaluationSettings


def run_of(values, keys=None, protocol="free", lower=False, fingerprint="w"):
    count = len(next(iter(values.values())))
    keys = keys or [("set", str(i)) for i in range(count)]
    about = {name: {"lower_is_better": lower, "fingerprint": fingerprint} for name in values}
    arrays = {name: np.array(column, dtype=np.float64) for name, column in values.items()}
    return Run("run", tuple(keys), arrays, {"protocol": protocol, "metrics": about})


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        a = rng.normal(size=60)
        b = a + 0.3 + rng.normal(0, 0.5, 60)
        (line,), _ = compare_runs(run_of({"m": a}), run_of({"m": b}), resamples=400, level=0.9)
        inside += line.low <= 0.3 <= line.high
    assert 0.82 <= inside / 200 <= 0.96


def test_pairing_finds_differences_that_the_spread_would_hide():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 10, 50)
    (line,), _ = compare_runs(run_of({"m": a}), run_of({"m": a + 0.1 + rng.normal(0, 0.05, 50)}))
    assert line.low > 0 and line.better == "b" and line.difference == pytest.approx(0.1, abs=0.03)
    (line,), _ = compare_runs(
        run_of({"m": a}, lower=True), run_of({"m": a + 0.1 + rng.normal(0, 0.05, 50)}, lower=True)
    )
    assert line.better == "a"
    (line,), _ = compare_runs(run_of({"m": a}, lower=None), run_of({"m": a + 5}, lower=None))
    assert line.better == "" and line.low == pytest.approx(5)
    (line,), _ = compare_runs(run_of({"m": a}), run_of({"m": rng.permutation(a)}))
    assert line.better == "" and line.low < 0 < line.high


def test_pictures_are_paired_by_key_and_weighed_as_the_protocol_does():
    keys = [("CelebA", "0"), ("CelebA", "1"), ("CelebChild-Test", "0")]
    a = run_of({"m": [0.0, 0.0, 0.0]}, keys, "ntire2025")
    b = run_of({"m": [3.0, 1.0, 1.0]}, keys[::-1], "ntire2025")
    (line,), warnings = compare_runs(a, b)
    assert line.difference == pytest.approx((100 * 1 + 50 * 3) / 150) and warnings == []
    free_a, free_b = run_of({"m": [0.0, 0.0, 0.0]}, keys), run_of({"m": [3.0, 1.0, 1.0]}, keys[::-1])
    assert compare_runs(free_a, free_b)[0][0].difference == pytest.approx(5 / 3)


def test_what_cannot_be_compared_is_told():
    a = run_of({"m": [1.0, math.inf, math.nan, 2.0], "n": [1.0] * 4})
    b = run_of({"m": [2.0, 2.0, 2.0], "n": [1.0] * 3}, fingerprint="others")
    lines, warnings = compare_runs(a, b)
    text = "\n".join(warnings)
    assert lines[0].pictures == 1 and "1 pictures are in one run only" in text
    assert "m: 2 pairs without a finite value" in text and "n: the runs were computed with different weights" in text
    with pytest.raises(DataError, match="no picture in common"):
        compare_runs(a, run_of({"m": [1.0]}, [("other", "x")]))
    with pytest.raises(DataError, match="no metric in common"):
        compare_runs(a, run_of({"z": [1.0] * 4}))
    with pytest.raises(DataError, match="resamples"):
        compare_runs(a, b, resamples=1)


def test_runs_are_read_from_their_folders(faces, tmp_path):
    for kind in ("restored", "lq"):
        chosen = EvaluationSettings(faces / kind, gt=faces / "gt", metrics=("psnr", "ssim"))
        write_evaluation(evaluate_faces(chosen), tmp_path / "runs" / kind)
    a, b = read_run(tmp_path / "runs" / "lq"), read_run(tmp_path / "runs" / "restored")
    lines, warnings = compare_runs(a, b)
    assert [line.metric for line in lines] == ["psnr", "ssim"] and warnings == []
    assert all(line.better == "b" and line.pictures == 6 for line in lines)
    with pytest.raises(DataError, match=r"summary\.json is not there"):
        read_run(tmp_path)
    (tmp_path / "runs" / "lq" / "per_image.csv").write_text("dataset,name,psnr\na,b,x\n")
    with pytest.raises(DataError, match="not the folder of an evaluation"):
        read_run(tmp_path / "runs" / "lq")


# --- leaderboard -----------------------------------------------------------------------------------------------------


def table(path, *rows, columns=COLUMNS):
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_scores_are_computed_again_and_ranked(tmp_path):
    entries = read_leaderboard(
        table(
            tmp_path / "t.csv",
            ("low", 0.5, 0.4, 60, 12, 3, 130, 0, 2.1),
            ("best", 0.9, 0.9, 90, 2, 5, 10, 11, 5.4),
            ("good", 0.8, 0.6, 75, 4, 4.5, 50, 10, 4.15),
            ("same", 0.8, 0.6, 75, 4, 4.5, 50, 0, 4.156),
            ("no q-align", 0.8, 0.6, 75, 4, "", 50, 0, 3.25),
            ("unknown", 0.8, 0.6, 75, 4, 4.5, 50, "", ""),
        )
    )
    by_team = {entry.team: entry for entry in entries}
    assert [entry.team for entry in entries if entry.rank] == ["good", "same", "low"]
    assert [by_team[team].rank for team in ("good", "same", "low")] == [1, 1, 3]
    assert by_team["best"].valid is False and by_team["best"].rank is None  # eleven failures
    assert by_team["good"].valid is True  # ten
    assert by_team["good"].computed == pytest.approx(4.15) and not by_team["good"].flagged
    assert by_team["same"].flagged and by_team["same"].difference == pytest.approx(-0.006)
    assert by_team["no q-align"].label == "partial (5 of 6)" and by_team["no q-align"].rank is None
    assert by_team["unknown"].valid is None and math.isnan(by_team["unknown"].difference)


@pytest.mark.parametrize(("reported", "flagged"), [(4.145, False), (4.155, False), (4.1449, True), (4.1551, True)])
def test_differences_above_five_thousandths_are_flagged(tmp_path, reported, flagged):
    (entry,) = read_leaderboard(table(tmp_path / "t.csv", ("t", 0.8, 0.6, 75, 4, 4.5, 50, 0, reported)))
    assert entry.flagged is flagged


def test_the_empty_table_has_the_columns_and_bad_tables_name_every_problem(tmp_path):
    (tmp_path / "empty.csv").write_text(TEMPLATE)
    assert read_leaderboard(tmp_path / "empty.csv") == []
    rows = [
        ("t", "x", 0.6, 75, 4, 4.5, 50, 0, 4),
        ("t", 0.8, 0.6, 75, 4, 4.5, "inf", -1, 4),
        ("", 1, 1, 1, 1, 1, 1, 1, 1),
    ]
    with pytest.raises(DataError) as error:
        read_leaderboard(table(tmp_path / "bad.csv", *rows))
    text = str(error.value)
    for part in ("clipiqa='x'", "fid='inf'", "failed_ids='-1'", "'t' occurs twice", "line 4: no team"):
        assert part in text
    with pytest.raises(DataError, match="unknown columns nique"):
        read_leaderboard(table(tmp_path / "c.csv", columns=("team", "niqe", "nique")))
    with pytest.raises(DataError, match="no such file"):
        read_leaderboard(tmp_path / "none.csv")
