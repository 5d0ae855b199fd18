"""The report of a run that went wrong must still be written: undefined is a word there, not a crash."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from thurl.data.records import RatedImage
from thurl.recipe.validate import load_recipe
from thurl.recipe.visualquality_r1_data import Study
from thurl.recipe.visualquality_r1_report import TrainedRun, write_report
from thurl.rl.decoding import failed_score
from thurl.rl.evaluation import summarise_scores

from .run_reports import check_run_report


RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "visualquality_r1.yaml"


@pytest.mark.parametrize("evaluated_before", [True, False])
def test_a_run_without_a_single_readable_answer(tmp_path, capsys, evaluated_before):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    records = [
        RatedImage(str(tmp_path / "a.png"), float(mos), dataset="d", extra={"kind": "blur", "level": "1"})
        for mos in range(4)
    ]
    failed = summarise_scores([failed_score("no answer")] * 4, records, settings={"mode": "think"}, bootstrap=0)
    run = TrainedRun(
        log=[{"step": 1, "reward": 0.0}],
        validation=[{"step": 1, "eval_srcc": math.nan}],
        before=failed if evaluated_before else None,
        after=failed,
        seconds={"training": 1.0, "total": 2.0},
        timing={"steps": 4, "seconds": {"update": 3.0, "other": 1.0}, "seconds_per_step": {"update": 0.75}},
    )
    results, page = tmp_path / "results.json", tmp_path / "report.html"
    recipe = load_recipe(str(RECIPE), [f"report.results={results}", f"report.html={page}"]).recipe
    record = write_report(recipe, 3, Study(records, [], records), run, run, "recipe.yaml")
    assert record["srcc_after"] is None and record["srcc_control"] is None
    assert json.loads(results.read_text())["runs"][0]["seed"] == 3
    assert record["seconds_per_step"] == {"update": 0.75}
    check_run_report(results, page)
    assert "undefined" in page.read_text()
    assert "<td>update</td><td>75.0%</td><td>0.750</td>" in page.read_text()
    assert "undefined after" in capsys.readouterr().out
