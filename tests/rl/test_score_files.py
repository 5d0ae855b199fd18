from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thurl.data.records import RatedImage
from thurl.errors import DataError, UsageError
from thurl.rl.decoding import Decoding, QualityScore
from thurl.rl.predictions import evaluate_predictions
from thurl.rl.score_files import CSV_COLUMNS, find_images, read_scores, score_files, settings_path


class Stub:
    """Stands in for a `QualityScorer`: the score is the mean brightness; counts what it is asked."""

    def __init__(self, weights="w1", text='dark,\n"or" not \\n'):
        self.weights, self.text, self.asked, self.fail_after = weights, text, [], None

    def settings(self):
        return {"model": "stub", "weights": self.weights, "prompt": {"name": "thurl"}}

    def score(self, images, *, decoding, batch_size, errors):
        assert errors == "mark"
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += [os.path.basename(image) for image in images]
        results = []
        for image in images:
            try:
                value = 1 + float(np.asarray(Image.open(image)).mean()) / 64
            except OSError as error:
                results.append(QualityScore(math.nan, math.nan, "", False, str(error)))
                continue
            results.append(QualityScore(value, math.nan, self.text, True, "", (value,), (self.text,)))
        return results


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / "in" / f"{i}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "sub" / "deep.JPG", "JPEG")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / ".hidden.png").write_bytes(b"x")
    return tmp_path / "in"


def run(scorer, paths, target, **options):
    return list(score_files(scorer, paths, csv_path=target, decoding=Decoding(), batch_size=2, **options))


def test_find_images(folder):
    assert [path.name for path in find_images([folder])] == [f"{i}.png" for i in range(5)]
    assert [path.name for path in find_images([folder], recursive=True)][-1] == "deep.JPG"
    assert [path.name for path in find_images([folder / "2.png", folder])] == [
        "2.png",
        "0.png",
        "1.png",
        "3.png",
        "4.png",
    ]
    assert find_images([folder / "notes.txt"]) == [folder / "notes.txt"]  # named directly: the decoder will say


def test_nothing_to_score(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no pictures in .*empty.*--recursive"):
        find_images([tmp_path / "empty"])
    with pytest.raises(DataError, match=r"no such file or folder: .*a\.png, .*b"):
        find_images([tmp_path / "a.png", folder, tmp_path / "b"])


def test_file_holds_every_line_and_reads_back(folder, tmp_path):
    target = tmp_path / "out" / "scores.csv"
    (folder / "bad.png").write_bytes(b"no picture")
    lines = run(Stub(), find_images([folder]), target)
    back = read_scores(target)
    assert [line.image for line in back] == [line.image for line in lines] and len(back) == 6
    assert back[0].text == Stub().text and back[0].score == lines[0].score
    bad = back[-1]
    assert not bad.ok and math.isnan(bad.score) and "cannot identify" in bad.error and bad.n_samples == 0
    with target.open(newline="") as file:
        assert tuple(next(csv.reader(file))) == CSV_COLUMNS
    assert len(target.read_text().splitlines()) == 7  # one physical line each
    settings = json.loads(settings_path(target).read_text())["settings"]
    assert settings["weights"] == "w1" and settings["mode"] == "think" and settings["seed"] == 0


def test_interrupted_run_goes_on_where_it_ended(folder, tmp_path):
    target = tmp_path / "scores.csv"
    first = Stub()
    first.fail_after = 4
    with pytest.raises(KeyboardInterrupt):
        run(first, find_images([folder]), target)
    assert len(read_scores(target)) == 4
    second = Stub()
    lines = run(second, find_images([folder]), target)
    assert second.asked == ["4.png"] and [line.resumed for line in lines] == [True] * 4 + [False]
    whole = tmp_path / "whole.csv"
    run(Stub(), find_images([folder]), whole)
    assert target.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "tail", [b"/in/4.png,3.", b"x,1,2\n", b"\0\0\0\0", b'/in/4.png,3.5,,1,1,1,"half\n', "/in/é".encode()[:-1]]
)
def test_half_written_end_is_repaired(folder, tmp_path, tail):
    target, whole = tmp_path / "scores.csv", tmp_path / "whole.csv"
    paths = find_images([folder])
    run(Stub(), paths, whole)
    run(Stub(), paths[:3], target)
    with target.open("ab") as file:
        file.write(tail)
    second = Stub()
    run(second, paths, target)
    assert second.asked == ["3.png", "4.png"] and target.read_bytes() == whole.read_bytes()


def test_cut_anywhere_the_file_ends_up_whole(folder, tmp_path):
    whole = tmp_path / "whole.csv"
    paths = find_images([folder])
    run(Stub(), paths, whole)
    data = whole.read_bytes()
    target = tmp_path / "scores.csv"
    for cut in range(0, len(data), 7):
        settings_path(target).write_bytes(settings_path(whole).read_bytes())
        target.write_bytes(data[:cut])
        run(Stub(), paths, target)
        assert target.read_bytes() == data, cut


def test_other_settings_are_not_mixed_in(folder, tmp_path):
    target = tmp_path / "scores.csv"
    paths = find_images([folder])
    run(Stub(), paths[:2], target)
    before = target.read_bytes()
    with pytest.raises(UsageError, match="weights: w1 then, w2 now"):
        run(Stub("w2"), paths, target)
    with pytest.raises(UsageError, match="mode: think then, direct now"):
        list(score_files(Stub(), paths, csv_path=target, mode="direct"))
    assert target.read_bytes() == before
    lines = run(Stub("w2"), paths, target, overwrite=True)
    assert len(lines) == 5 and not any(line.resumed for line in lines) and len(read_scores(target)) == 5


def test_a_foreign_file_is_not_overwritten(folder, tmp_path):
    target = tmp_path / "notes.csv"
    target.write_text("name,mark\nx,1\n")
    with pytest.raises(UsageError, match="settings file is missing"):
        run(Stub(), find_images([folder]), target)
    assert target.read_text() == "name,mark\nx,1\n"


def test_failed_pictures_are_kept_or_retried(folder, tmp_path):
    target = tmp_path / "scores.csv"
    good = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(b"broken")
    run(Stub(), find_images([folder]), target)
    (folder / "1.png").write_bytes(good)
    again, retry = Stub(), Stub()
    run(again, find_images([folder]), target)
    assert again.asked == []
    run(retry, find_images([folder]), target, retry_failed=True)
    assert retry.asked == ["1.png"] and all(line.ok for line in read_scores(target))


def test_strange_file_names(folder, tmp_path):
    names = ["a,b.png", 'quo"te.png', "new\nline.png", "ünï.png", "back\\u0041.png", os.fsdecode(b"raw\xff.png")]
    for name in names:
        (folder / "0.png").rename(folder / name)
        Image.new("RGB", (8, 8)).save(folder / "0.png")
    target = tmp_path / "scores.csv"
    run(Stub(), find_images([folder]), target)
    again = Stub()
    lines = run(again, find_images([folder]), target)
    assert again.asked == [] and {Path(line.image).name for line in lines} >= set(names)


def test_read_scores_of_other_origin(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("image,score\nC:\\u0041\\a.png,3.5\nb.png,\n")
    first, second = read_scores(path)
    assert first.image == "C:\\u0041\\a.png" and first.ok and not second.ok
    path.write_text("image,score\na.png,good\nb.png,2\nc.png,?\n")
    with pytest.raises(DataError, match=r"row 2: .*row 4: "):
        read_scores(path)
    path.write_text("file,mark\n")
    with pytest.raises(DataError, match="`image` and `score`"):
        read_scores(path)


def test_predictions_are_matched_by_path_file_or_unique_name(tmp_path):
    records = [RatedImage(image=f"/data/{name}", mos=m, dataset="a") for name, m in (("x.png", 1), ("y.png", 2))]
    path = tmp_path / "scores.csv"
    path.write_text("image,score\nelsewhere/y.png,4\n/data/x.png,2\nother.png,9\n")
    result = evaluate_predictions(path, records, bootstrap=0)
    assert [entry["score"] for entry in result["predictions"]] == [2.0, 4.0]
    assert result["mean"]["srcc"] == pytest.approx(1.0)

    twins = [RatedImage(image=f"/data/{i}/x.png", mos=i, dataset="a") for i in range(2)]
    with pytest.raises(DataError, match="no score for 2 of 2"):
        evaluate_predictions(path, twins)
    path.write_text("image,score\n/data/x.png,2\n/data/x.png,3\n")
    with pytest.raises(DataError, match="two scores"):
        evaluate_predictions(path, records)


def test_missing_predictions_are_an_error_or_failures(tmp_path):
    records = [RatedImage(image=f"{i}.png", mos=i, dataset="a") for i in range(30)]
    path = tmp_path / "scores.csv"
    path.write_text("image,score\n" + "".join(f"{i}.png,{i}\n" for i in range(5)))
    with pytest.raises(DataError, match=r"25 of 30 pictures:(.|\n)*and 5 more(.|\n)*--allow-missing"):
        evaluate_predictions(path, records)
    result = evaluate_predictions(path, records, allow_missing=True, bootstrap=0)
    entry = result["datasets"]["a"]
    assert entry["n_failed"] == 25 and entry["srcc"] == pytest.approx(1.0) and entry["srcc_all"] < 0.5
