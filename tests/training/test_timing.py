import logging

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from thurl.errors import UsageError
from thurl.training import timing
from thurl.training.timed_trainer import TimedTrainer
from thurl.training.timing import HostClock, PhaseTimer, phase, phase_rows, phase_shares, timed


class Fake:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def go(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Fake()


def make(clock, *names, **options):
    return PhaseTimer(names or ("data", "update", "save"), HostClock(clock), **options)


def test_each_moment_belongs_to_the_innermost_phase(clock):
    timer = make(clock)
    with timer.running():
        clock.go(1)
        with timer.phase("update"):
            clock.go(2)
            with timer.phase("data"):
                clock.go(4)
            clock.go(8)
        clock.go(16)
        timer.step()
        assert timer.window() == {"data": 4, "update": 10, "save": 0, "other": 17, "step": 31}
    assert timer.totals() == {"data": 4, "update": 10, "save": 0, "other": 17}


def test_windows_are_per_step_and_leave_no_gap(clock):
    timer = make(clock)
    with timer.running():
        for _ in range(2):
            with timer.phase("update"):
                clock.go(3)
            timer.step()
        assert timer.window() == {"data": 0, "update": 3, "save": 0, "other": 0, "step": 3}
        with timer.phase("save"):
            clock.go(5)
        assert timer.window() == {}, "no step: the time waits for the next window"
        with timer.phase("update"):
            clock.go(1)
            timer.step()
            # A window may be closed inside a phase, as by a log entry in the middle.
            assert timer.window() == {"data": 0, "update": 1, "save": 5, "other": 0, "step": 6}
            clock.go(7)
    assert timer.totals() == {"data": 0, "update": 14, "save": 5, "other": 0} and timer.steps == 3
    assert sum(timer.totals().values()) == clock.now - 100


def test_a_whole_phase_keeps_what_is_inside_it(clock):
    timer = make(clock, "data", "rollout", "evaluation", whole=("evaluation",))
    with timer.running():
        with timer.phase("evaluation"):
            clock.go(1)
            with timer.phase("rollout"), timer.phase("data"):
                clock.go(2)
            clock.go(4)
        with timer.phase("rollout"):
            clock.go(8)
    assert timer.totals() == {"data": 0, "rollout": 8, "evaluation": 7, "other": 0}


def test_errors_close_phases(clock):
    timer = make(clock)
    with timer.running():
        with pytest.raises(KeyError), timer.phase("update"):
            timer.begin("data")  # never ended
            clock.go(1)
            raise KeyError
        clock.go(2)
        timer.end("save")  # never begun
    assert timer.totals() == {"data": 1, "update": 0, "save": 0, "other": 2}


def test_a_run_begins_anew_and_may_restart(clock):
    timer = make(clock)
    for seconds in (3, 5):
        with timer.running():
            clock.go(100)  # preparation
            timer.restart()
            with timer.phase("data"):
                clock.go(seconds)
            timer.step()
        clock.go(1000)
        assert timer.totals() == {"data": seconds, "update": 0, "save": 0, "other": 0} and timer.steps == 1


def test_marks_are_read_before_they_are_too_many(clock, monkeypatch):
    monkeypatch.setattr(timing, "MANY", 10)
    timer = make(clock)
    with timer.running():
        for _ in range(1000):
            with timer.phase("data"):
                clock.go(1)
            clock.go(2)
            assert len(timer._marks) <= 10
    assert timer.totals() == {"data": 1000, "update": 0, "save": 0, "other": 2000}


def test_phase_charges_the_running_timer_only(clock):
    outer, inner = make(clock), make(clock, "data")

    @timed("data")
    def read(value, *, more):
        """Reads."""
        clock.go(1)
        return value + more

    assert read(1, more=2) == 3 and read.__doc__ == "Reads."  # nobody counts
    with outer.running():
        read(1, more=1)
        with phase("unknown here"):
            clock.go(2)
        with inner.running():
            read(1, more=1)
        read(1, more=1)
    read(1, more=1)
    assert outer.totals() == {"data": 2, "update": 0, "save": 0, "other": 3}
    assert inner.totals() == {"data": 1, "other": 0}


@pytest.mark.parametrize("names", [("data", "data"), ("other",), ("step",)])
def test_names_are_checked(clock, names):
    with pytest.raises(UsageError, match="each name once"):
        make(clock, *names)
    with pytest.raises(UsageError, match="each name once"):
        make(clock, "data", whole=("save",))
    with pytest.raises(UsageError, match="`dta` is no phase"):
        make(clock).begin("dta")


def test_shares_and_rows():
    seconds = {"data": 2.0, "other": 5.0, "update": 3.0, "weight_sync": 0.0, "step": 10.0}
    assert phase_shares(seconds) == {"update": 0.3, "data": 0.2, "other": 0.5}
    assert phase_rows(seconds, 4) == [
        ("phase", "share", "seconds per step"),
        ("update", "30.0%", "0.750"),
        ("data", "20.0%", "0.500"),
        ("other", "50.0%", "1.250"),
        ("whole step", "100.0%", "2.500"),
    ]
    assert phase_shares({"data": 0.0}) == {}


def test_the_clock_of_cuda_reads_once():
    """With events that stand in for those of the device: neighbours are compared, and only the last is waited for."""

    class Event:
        waited = []

        def __init__(self, at):
            self.at = at

        def synchronize(self):
            self.waited.append(self.at)

        def elapsed_time(self, after):
            return after.at - self.at

    assert timing.CudaClock().read([Event(0), Event(500), Event(2500)]) == [0.5, 2.0]
    assert Event.waited == [2500]


@pytest.mark.gpu
def test_the_clock_of_cuda_sees_queued_work():
    timer = PhaseTimer(("work", "after"), timing.CudaClock())
    matrix = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    with timer.running():
        with timer.phase("work"):
            for _ in range(20):
                matrix = matrix @ matrix.softmax(1)
        with timer.phase("after"):
            float(matrix.sum())  # the host waits here
        timer.step()
        window = timer.window()
    assert window["work"] > 10 * window["after"]


# -- in a trainer --------------------------------------------------------------------------------------------------


class Line(torch.nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.layer, self.clock = torch.nn.Linear(1, 1), clock

    def forward(self, x, labels):
        self.clock.go(1)
        return {"loss": ((self.layer(x).squeeze(1) - labels) ** 2).mean(), "logits": self.layer(x)}


class Rows(torch.utils.data.Dataset):
    def __init__(self, clock):
        self.clock = clock

    def __len__(self):
        return 64

    def __getitem__(self, index):
        self.clock.go(0.25)
        return {"x": torch.tensor([float(index)]), "labels": torch.tensor(1.0)}


class Slow(TrainerCallback):
    """Takes its time where a callback of an evaluation or of a tracker would."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.go(64)

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.go(32)

    def on_save(self, args, state, control, **kwargs):
        self.clock.go(1024)


class Saving(TimedTrainer):
    def _save(self, *args, **kwargs):
        super()._save(*args, **kwargs)
        self.args.clock.go(128)


@pytest.fixture
def run(tmp_path, clock):
    arguments = TrainingArguments(
        str(tmp_path),
        **{"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 2},
        **{"save_steps": 3, "eval_strategy": "steps", "eval_steps": 4, "per_device_eval_batch_size": 32},
        **{"use_cpu": True, "report_to": [], "disable_tqdm": True, "learning_rate": 0.0},
    )
    arguments.clock = clock
    trainer = Saving(
        Line(clock), arguments, train_dataset=Rows(clock), eval_dataset=Rows(clock), callbacks=[Slow(clock)]
    )
    trainer.timer.clock = HostClock(clock)
    return trainer


def test_a_trainer_logs_its_phases(run, clock, caplog):
    with caplog.at_level(logging.INFO, logger="thurl"):
        run.train()
    first, second = [
        {name.removeprefix("timing/"): value for name, value in entry.items() if name.startswith("timing/")}
        for entry in run.state.log_history
        if "loss" in entry
    ]
    # Two forward passes of two rows each in a step; the loader reads one batch ahead.
    assert first["update"] == second["update"] == 2
    assert first["data"] == (4 + 1) * 0.5 / 2 and second["data"] in (4 * 0.5 / 2, (4 - 1) * 0.5 / 2)
    assert first["save"] == 0 and second["save"] == 128 / 2
    assert first["other"] == (64 + 2 * 32) / 2 and second["other"] == (1024 + 2 * 32) / 2
    assert first["evaluation"] == second["evaluation"] == 0
    for entry in (first, second):
        assert entry["step"] == sum(value for name, value in entry.items() if name != "step")
    # Saving and evaluation after the last entry are in the run's sums: 2 batches of 32 rows.
    assert run.timing["steps"] == 4
    assert run.timing["seconds"]["evaluation"] == 64 * 0.25 + 2
    per_step = run.timing["seconds_per_step"]
    assert per_step["step"] == sum(run.timing["seconds"].values()) / 4
    assert [record.getMessage().split() for record in caplog.records if "update" in record.getMessage()] == [
        ["update", f"{8 / sum(run.timing['seconds'].values()):.1%}", "2.000"]
    ]


def test_entries_of_others_are_not_timed(run):
    run.log({"eval_loss": 1.0})
    assert not any(name.startswith("timing/") for name in run.state.log_history[-1])
    assert run.timing is None
