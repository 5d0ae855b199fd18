"""Several short runs after one import: each run is a world of forked processes that form a group of their own.

Importing everything costs more than a run of a few steps, and a launcher pays it for every process of every run. The
processes get the variables that torchrun sets, with a port of their own per run. A test of the launcher itself uses
the launcher.

    python forked_worlds.py PROCESSES SCRIPT [ARGUMENT ...]

starts a script as torchrun does; `command` is that line.
"""

import os
import runpy
import signal
import socket
import sys
import time
import traceback
from pathlib import Path


HUNG = 124
"""Exit code of a process that went on waiting after another one of its world had died."""


def command(processes: int, script, *arguments) -> list[str]:
    """For `subprocess.run`: the script or executable recipe in so many processes of one world."""
    return [sys.executable, __file__, str(processes), str(script), *map(str, arguments)]


def run_world(run, settings, *, processes=1, limit=240.0, grace=60.0) -> list[int]:
    """Call `run(settings)` in as many processes and wait for all of them.

    Args:
        run: returns the exit code; called in a child, so nothing it does reaches this process.
        settings: its argument.
        processes: size of the world; 1: no process group.
        limit: seconds for all of it.
        grace: seconds that the others get once one has ended with another code than 0.

    Returns:
        exit codes by rank; negative: ended by that signal; `HUNG`: had to be ended from here.
    """
    port = _free_port()
    children = {}
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            _in_child(run, settings, rank, processes, port)
        children[child] = rank
    codes = [0] * processes
    until = time.monotonic() + limit
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            code = codes[children.pop(pid)] = os.waitstatus_to_exitcode(status)
            if code:
                until = min(until, time.monotonic() + grace)
        elif time.monotonic() > until:
            for child, rank in children.items():
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                codes[rank] = HUNG
            children = {}
        else:
            time.sleep(0.02)
    return codes


def _in_child(run, settings, rank, processes, port):
    if processes > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(processes),
            LOCAL_WORLD_SIZE=str(processes),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    code = 1
    try:
        code = run(settings)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run_script(words: list[str]) -> int:
    sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    import peft  # noqa: F401
    import transformers.trainer  # noqa: F401

    sys.exit(max(map(abs, run_world(_run_script, sys.argv[2:], processes=int(sys.argv[1])))))
