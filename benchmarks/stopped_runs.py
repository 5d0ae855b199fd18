"""Recipes run in a folder with limited room, stopped from outside, and what they leave; for `reliability_stops.py`.

Runs of one rank are forked from the process of the campaign, which has done the imports: two thirds of their time.
What is run is `thurl.recipe.launch.run_recipe`, as `python recipe.yaml` does it. Two ranks are started by torchrun.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import Trainer

from thurl.recipe.launch import run_recipe
from thurl.recipe.methods import METHODS, load_attribute
from thurl.recipe.shipped import find_recipe
from thurl.training.checkpoints import checkpoint_problems


ROOM = 4 * 2**30
"""Bytes of a place with room enough; a tmpfs takes memory only for what is in it."""


class Place:
    """A new folder that is a file system of `size` bytes (tmpfs); gone after the `with` block.

    Raises:
        CalledProcessError: it cannot be mounted, mostly for want of the rights of root.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = ROOM if size is None else max(size, 4096)

    def __enter__(self) -> Place:
        self._parent = tempfile.TemporaryDirectory()
        self.path = Path(self._parent.name) / "disk"
        self.path.mkdir()
        options = f"size={self.size},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.path)], check=True)
        self._parent.cleanup()

    def enlarge(self) -> None:
        """Room enough for what comes."""
        subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(self.path)], check=True)

    def used(self) -> int:
        """Bytes in use."""
        state = os.statvfs(self.path)
        return (state.f_blocks - state.f_bfree) * state.f_frsize


def preload() -> None:
    """Import what the recipes will."""
    for method in METHODS.values():
        load_attribute(method.run)


def poison(step: int) -> None:
    """Multiply every loss of optimizer step `step` (1: the first) by NaN, in each trainer of this process.

    The library has no switch for this: the loss is spoilt from outside, in transformers' own training step.
    """
    whole = Trainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 != step:
            return whole(self, *args, **kwargs)
        compute = self.compute_loss
        self.compute_loss = lambda *a, **k: compute(*a, **k) * float("nan")
        try:
            return whole(self, *args, **kwargs)
        finally:
            del self.compute_loss

    Trainer.training_step = training_step


class Run:
    """A recipe that runs with `changes` in `folder`.

    Args:
        recipe: name of a tiny one.
        folder: `training.output_dir`, also of results and page.
        changes: overrides.
        ranks: 2: under torchrun.
        spoilt: the step whose loss is NaN (`poison`); one rank only.
    """

    def __init__(
        self, recipe: str, folder: Path, changes: Sequence[str], *, ranks: int = 1, spoilt: int | None = None
    ) -> None:
        self.folder, self._words = folder, tempfile.TemporaryDirectory()
        path, logs = str(find_recipe(f"tiny/{recipe}")), Path(self._words.name)
        files = (f"report.results={folder}/results.json", f"report.html={folder}/report.html")
        arguments = [f"training.output_dir={folder}", *files, *changes]
        self.process: multiprocessing.process.BaseProcess | subprocess.Popen[bytes]
        if ranks == 1:
            context = multiprocessing.get_context("fork")
            self.process = context.Process(target=_run, args=(path, arguments, logs, spoilt))
            self.process.start()
            return
        # Each rank writes files of its own, apart from what torchrun says of them.
        launcher = ("--standalone", "--nproc-per-node", str(ranks), "--redirects", "3", "--log-dir", str(logs))
        with open(logs / "torchrun.txt", "w") as words:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *launcher, path, *arguments],
                stdout=words,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ENVIRONMENT},
            )

    @property
    def code(self) -> int | None:
        """Exit code, below 0 for a signal; None while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def wait(self, seconds: float) -> int | None:
        """Exit code; None, and all of it killed, if it takes longer."""
        end = time.monotonic() + seconds
        while self.code is None and time.monotonic() < end:
            time.sleep(0.01)
        code = self.code
        if code is None:
            for pid in [*self._children(), self.process.pid]:
                os.kill(pid, signal.SIGKILL)
        self.process.wait() if isinstance(self.process, subprocess.Popen) else self.process.join()
        return code

    def wait_for_step(self, step: int, seconds: float) -> bool:
        """Until `step` optimizer steps are in the logs of the folder; False: it ended or took longer."""
        end = time.monotonic() + seconds
        while logged_steps(self.folder) < step:
            if self.code is not None:
                return False
            if time.monotonic() > end:
                self.wait(0)
                return False
            time.sleep(0.005)
        return True

    def terminate(self) -> None:
        """SIGTERM to the process; with several ranks to torchrun, as a scheduler does it."""
        self.process.terminate()

    def kill_rank(self, rank: int) -> None:
        """SIGKILL to one rank."""
        for pid in self._children():
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                return
        raise RuntimeError(f"there is no process of rank {rank}")

    def _children(self) -> list[int]:
        try:
            pid = self.process.pid
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def words(self) -> str:
        """What it printed; with several ranks what they printed, without torchrun's own words."""
        files = sorted(Path(self._words.name).rglob("std*.log"))
        return "".join(path.read_text(errors="replace") for path in files)


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _run(path: str, arguments: list[str], logs: Path, spoilt: int | None) -> None:
    """The forked process; an exception that gets here is printed by multiprocessing, and the code is 1."""
    with open(logs / "stdout.log", "w") as words:
        os.dup2(words.fileno(), 1)
        os.dup2(words.fileno(), 2)
    os.environ.update(ENVIRONMENT)
    tempfile.tempdir = str(logs)  # not on the disk that is full
    if spoilt is not None:
        poison(spoilt)
    sys.exit(run_recipe(path, arguments))


def logged_steps(folder: Path) -> int:
    """Optimizer steps in all logs below `folder`, of all trainings."""
    count = 0
    for path in folder.rglob("log.jsonl"):
        for line in path.read_text().splitlines():
            try:
                count += "loss" in json.loads(line)
            except ValueError:
                pass  # the last line is being written, or the disk was full
    return count


def broken_checkpoints(folder: Path) -> list[str]:
    """Folders that are named like a checkpoint and are not whole, with what is wrong."""
    found = {str(path.relative_to(folder)): checkpoint_problems(path) for path in folder.rglob("checkpoint-*")}
    return [f"{name}: {'; '.join(problems[:2])}" for name, problems in sorted(found.items()) if problems]


def not_finite_files(folder: Path) -> list[str]:
    """Whole files of tensors that hold NaN or an infinity. A file that a full disk cut short is nobody's."""
    names = []
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            tensors = load_file(path)
        except Exception:  # noqa: S112 - safetensors has no public base class for all of them
            continue
        if not all(bool(value.isfinite().all()) for value in tensors.values() if value.is_floating_point()):
            names.append(str(path.relative_to(folder)))
    return names
