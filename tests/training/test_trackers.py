"""Trackers of `report_to`, each where its package is: what they show is what the log file holds."""

import json
from pathlib import Path

import pytest

from thurl.training.log_file import LOG_FILE

from .method_runs import rows, trainer_for
from .tracker_places import trackers_in


def logged(folder):
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def train(folder, **fields):
    trainer = trainer_for(folder, "weights", data=rows(), **fields)
    trainer.train()
    return trainer


def test_the_log_file_is_written_without_any_tracker(tmp_path):
    trainer = train(tmp_path)
    assert logged(tmp_path) == trainer.state.log_history
    assert {"step", "loss", "terms/rank", "terms/kind"} <= set(logged(tmp_path)[0])


def test_tensorboard_shows_the_log(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers_in(tmp_path, monkeypatch)
    train(tmp_path, report_to=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    shown = {event.step: event.value for event in events.Scalars("train/terms/rank")}
    assert shown == pytest.approx(
        {entry["step"]: entry["terms/rank"] for entry in logged(tmp_path) if "loss" in entry}
    )


def test_wandb_works_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    trackers_in(tmp_path, monkeypatch)
    train(tmp_path, report_to=["wandb"])
    shown, written = dict(wandb.run.summary), Path(wandb.run.settings.sync_file)
    offline = wandb.run.settings.mode == "offline"
    wandb.finish()
    assert offline and written.is_file()
    last = [entry for entry in logged(tmp_path) if "loss" in entry][-1]
    assert shown["train/terms/rank"] == pytest.approx(last["terms/rank"])


def test_trackio_keeps_the_log_on_this_machine(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    trackers_in(tmp_path, monkeypatch)
    train(tmp_path, report_to=["trackio"])
    assert any(path.is_file() and path.stat().st_size for path in (tmp_path / "trackio").rglob("*.db"))
