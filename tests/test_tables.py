"""Tables in pages come from result files and code, and are up to date."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from thurl.errors import DataError
from thurl.training.results import write_results


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables():
    specification = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "tables.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def block(what):
    return f"before\n<!-- results/demo.json {what} -->\nold\n<!-- end results -->\nafter\n"


@pytest.fixture
def root(tmp_path):
    runs = [
        {"seed": 0, "srcc_after": 0.8, "srcc_control": None, "seconds": 100.4, "per_degradation": {"blur": 0.7}},
        {"seed": 1, "srcc_after": 0.9, "srcc_control": 0.1, "seconds": 120.0, "per_degradation": {"blur": 0.9}},
    ]
    write_results(tmp_path / "results" / "demo.json", recipe="recipes/demo.yaml", runs=runs, note="Synthetic.")
    return tmp_path


def test_runs_become_rows_with_mean_and_spread(tables, root):
    page = tables.filled(block("runs: seed, srcc_after, srcc_control, seconds"), root)
    assert "| seed | SRCC after | SRCC control | seconds |" in page
    assert "| 0 | 0.800 | undefined | 100 |" in page
    assert "| mean ± SD | 0.850 ± 0.071 | 0.100 | 110 ± 14 |" in page
    assert "old" not in page and page.startswith("before\n") and page.endswith("after\n")
    assert "`results/demo.json`; recipe `recipes/demo.yaml`; 2 runs" in page and "Synthetic." in page


def test_a_summary_has_one_row_per_entry(tables, root):
    page = tables.filled(block("summary: per_degradation"), root)
    assert "| degradation | value |" in page
    assert "| blur | 0.800 ± 0.141 |" in page


def test_nested_entries_become_columns(tables, root):
    runs = [{"seed": 0, "sets": {"a": {"srcc": 0.5, "plcc": 0.4}, "b": {"srcc": 0.6}}}]
    write_results(root / "results" / "demo.json", recipe="demo", runs=runs)
    page = tables.filled(block("summary: sets"), root)
    assert "| sets | SRCC | PLCC |" in page and "| a | 0.500 | 0.400 |" in page and "| b | 0.600 |  |" in page


def test_small_is_not_nothing(tables, root):
    write_results(root / "results" / "demo.json", recipe="demo", runs=[{"seed": 0, "parity": {"a": 3e-7, "b": 0.0}}])
    assert "| a | 3e-07 |\n| b | 0.000 |" in tables.filled(block("summary: parity"), root)


def test_a_count_is_no_measurement(tables, root):
    write_results(root / "results" / "demo.json", recipe="demo", runs=[{"seed": 0, "kinds": {"a": 12, "b": 12.0}}])
    assert "| a | 12 |\n| b | 12.000 |" in tables.filled(block("summary: kinds"), root)


def test_filling_twice_changes_nothing(tables, root):
    once = tables.filled(block("runs: seed, srcc_after"), root)
    assert tables.filled(once, root) == once


def test_a_missing_file_is_said_not_hidden(tables, tmp_path):
    assert "Not measured yet" in tables.filled(block("runs: seed"), tmp_path)


def test_a_broken_file_stops(tables, root):
    (root / "results" / "demo.json").write_text("{}")
    with pytest.raises(DataError):
        tables.filled(block("runs: seed"), root)


def test_keys_of_a_section_are_listed(tables, tmp_path):
    text = "<!-- fields thurl.recipe.sections:RewardSection -->\n<!-- end fields -->\n"
    page = tables.filled(text, tmp_path)
    assert "| `scope` | `global`, `device` | `global` |" in page
    assert "| `threshold` | number > 0 |  |" in page


def test_the_pages_are_up_to_date():
    command = [sys.executable, str(ROOT / "scripts" / "tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
