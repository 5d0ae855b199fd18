"""The report: self-contained, complete, safe against what a model may write."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from thurl.training.page import MAX_SIDE, MAX_TEXT
from thurl.training.report import Judgement, QualityRow, quality_table, write_quality_report


VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], "", []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def picture(side=8, height=None):
    pixels = np.random.default_rng(0).integers(0, 255, (height or side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def report(path, **changes):
    steps = list(range(60))
    arguments = {
        "title": "Title",
        "summary": "Summary.",
        "curves": {
            "Reward": {"trained": (steps, [s / 60 for s in steps]), "shuffled": (steps, [0.5] * 60)},
            "SRCC": {"trained": ([0, 10], [0.0, 0.8]), "shuffled": ([0, 10], [0.0, math.nan])},
        },
        "scatter": [Judgement(3.0, 2.0, "blur"), Judgement(2.0, 1.0, "noise"), Judgement(math.nan, 4.0, "noise")],
        "table_rows": [QualityRow("blur", 0.0, 0.8), QualityRow("overall", 0.0, 0.9, total=True)],
        "best": [Judgement(4.5, 5.0, "blur", "<answer> 4.5 </answer>", picture(), "a cup")],
        "worst": [Judgement(1.5, 1.0, "noise", "<answer> 1.5 </answer>", picture(), "a coin")],
        "notes": ["Synthetic data."],
    }
    write_quality_report(path, **(arguments | changes))
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def images_of(page):
    sources = [value for name, value in page.attributes if name == "src"]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


def test_everything_is_in_one_file(tmp_path):
    text, page = report(tmp_path / "deep" / "report.html")
    assert len(images_of(page)) == 4  # curves, scatter, best, worst
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[^'\"]*", "", text))
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    for part in ("Title", "Summary.", "a cup", "a coin", "Synthetic data.", "<answer> 4.5 </answer>", "0.900", "4.50"):
        assert part in page.text, part


def test_model_text_cannot_become_markup(tmp_path):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>' onload='x \u202egnp.exe \x1b[2J & \udc00"
    # Lone surrogates come out of broken byte-level decoding; the file must still be writable.
    bad = Judgement(1.0, 1.0, hostile, hostile, picture(), hostile)
    text, page = report(
        tmp_path / "report.html",
        title=hostile,
        summary=hostile,
        best=[bad],
        facts=[(hostile, hostile)],
        notes=[hostile],
        table_rows=[QualityRow(hostile, 0.1, 0.2)],
        scatter=[bad],
    )
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert len(images_of(page)) == 4
    assert "<script>alert(1)</script>" in page.text
    assert not any(character in text for character in "\u202e\x1b")


def test_long_answers_are_cut_visibly(tmp_path):
    _, page = report(tmp_path / "r.html", best=[Judgement(1.0, 1.0, text="x" * (MAX_TEXT + 500))])
    assert "x" * MAX_TEXT + " \N{HORIZONTAL ELLIPSIS}" in page.text
    assert "x" * (MAX_TEXT + 1) not in page.text


def test_pictures_are_lossless_and_large_ones_shrink_without_touching_the_callers(tmp_path):
    small, large = picture(9), picture(MAX_SIDE * 2, MAX_SIDE)
    _, page = report(
        tmp_path / "r.html",
        scatter=[],
        curves={},
        best=[Judgement(1, 1, image=small)],
        worst=[Judgement(1, 1, image=large)],
    )
    shown_small, shown_large = images_of(page)
    assert np.array_equal(np.asarray(shown_small), np.asarray(small))
    assert shown_large.size == (MAX_SIDE, MAX_SIDE // 2)
    assert large.size == (MAX_SIDE * 2, MAX_SIDE)


def test_points_without_a_score_are_counted_not_drawn(tmp_path):
    _, page = report(tmp_path / "r.html")
    assert "2 held-out pictures. Not drawn: 1" in page.text


def test_empty_parts_are_left_out(tmp_path):
    _, page = report(
        tmp_path / "r.html", curves={"Reward": {}}, scatter=[], table_rows=[], best=[], worst=[], notes=[]
    )
    assert images_of(page) == []
    assert "section" not in page.tags


@pytest.mark.parametrize("label", ["$x$ _under", "_hidden", r"$\frac{1}", ""])
def test_labels_are_not_read_as_mathematics(tmp_path, label):
    report(
        tmp_path / "r.html",
        curves={label: {label: ([0, 1], [0, 1]), "second" + label: ([0, 1], [1, 0])}},
        scatter=[Judgement(1.0, 1.0, label), Judgement(1.0, 1.0, "other")],
    )


def rendered(rows):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(quality_table(rows, title="Held-out"))
    return console.export_text()


def test_table_marks_undefined_values_and_drops_empty_columns():
    text = rendered([QualityRow("[red]blur", -0.0004, math.nan), QualityRow("overall", -0.25, None, total=True)])
    assert "[red]blur" in text
    assert "undefined" in text and "\N{MINUS SIGN}0.250" in text
    assert "\N{MINUS SIGN}0.000" not in text
    assert "PLCC" not in text and "control" not in text
