"""Run a recipe: validate (exit 2), look for everything it needs (exit 3), then train.

Reached from `python recipe.yaml`, `accelerate launch recipe.yaml`, `torchrun ... recipe.yaml` and `thurl train`.
Nothing heavy is imported before validation and the cheap part of the preflight have passed.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from thurl.errors import MissingRequirementError, ThurlError, UsageError
from thurl.full_disk import full_disk_problem
from thurl.hub.secrets import hide_secrets, without_secrets


__all__ = ["Arguments", "launch", "parse_arguments", "run_recipe"]

_HELP = """usage: {program} [section.key=value ...] [--validate-only] [--debug]

  section.key=value   change one value of the recipe, e.g. training.learning_rate=2e-6 data.train.0.images=/data/kadid
  --validate-only     check the recipe and stop
  --debug             show tracebacks of errors and debug messages
"""

# Launchers end all processes as soon as one fails; the one that prints needs a moment to do so.
_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class Arguments:
    """Command line of a recipe."""

    overrides: tuple[str, ...] = ()
    debug: bool = False
    validate_only: bool = False
    help: bool = False


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Sort the words after the recipe into overrides and switches.

    Raises:
        UsageError: a word that is neither; all of them.
    """
    overrides, wrong = [], []
    for word in arguments:
        if word in ("--debug", "--validate-only", "--help", "-h"):
            continue
        if word.startswith(("--local_rank=", "--local-rank=")):
            continue  # older launchers add it; the environment says the same
        if not word.startswith("-") and "=" in word:
            overrides.append(word)
        else:
            wrong.append(f"argument `{word}` is neither `section.key=value` nor --debug, --validate-only, --help")
    if wrong:
        raise UsageError(wrong)
    return Arguments(
        tuple(overrides),
        debug="--debug" in arguments,
        validate_only="--validate-only" in arguments,
        help="--help" in arguments or "-h" in arguments,
    )


def launch(path: str) -> NoReturn:
    """Run the recipe at `path` with the overrides of `sys.argv[1:]`, then end the interpreter with its exit code."""
    sys.exit(run_recipe(path, sys.argv[1:]))


def run_recipe(path: str, arguments: Sequence[str] = ()) -> int:
    """Validate, check requirements and run.

    Args:
        path: recipe file.
        arguments: overrides and switches, see `parse_arguments`.

    Returns:
        exit code: 0 ok, 1 failure, 2 wrong recipe or argument, 3 something needed is missing, 130 interrupted,
            4 done but not pushed to the Hub, 143 stopped by SIGTERM after a checkpoint was written.
    """
    debug = "--debug" in arguments
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"  # one process of each machine
    try:
        parsed = parse_arguments(arguments)
        if parsed.help:
            if speaks:
                sys.stdout.write(_HELP.format(program=os.path.basename(path)))
            return 0
        _set_up_logging(debug, speaks)
        loaded = _prepare(path, parsed)
    except ThurlError as error:
        _report(error, path, debug) if speaks else time.sleep(_GRACE_SECONDS)
        return error.exit_code
    if parsed.validate_only:
        if speaks:
            sys.stdout.write(f"{path}: valid ({loaded.recipe.method})\n")
            sys.stderr.writelines(f"note: {line}\n" for line in loaded.missing)
        return 0
    return _run(loaded, path, parsed)


def _prepare(path: str, parsed: Arguments):  # noqa: ANN202 - the type would need the import this function delays
    from thurl.recipe.validate import load_recipe

    loaded = load_recipe(path, parsed.overrides)
    if not parsed.validate_only:
        from thurl.recipe.preflight import missing_requirements

        missing = missing_requirements(loaded)
        if missing:
            raise MissingRequirementError(missing)
    return loaded


def _run(loaded, path: str, parsed: Arguments) -> int:  # noqa: ANN001
    from thurl.recipe.hub import finish, without_push
    from thurl.recipe.methods import METHODS, load_attribute

    try:
        run = load_attribute(METHODS[loaded.recipe.method].run)
        run(without_push(loaded.recipe), recipe_path=path, overrides=list(parsed.overrides))
        _leave_process_group()  # the others need not wait for a push
        if os.environ.get("RANK", "0") == "0":
            finish(loaded.recipe)
    except ThurlError as error:  # may concern this process alone (its share of the pictures), so each one speaks
        _report(error, path, parsed.debug, rank=os.environ.get("RANK"))
        return error.exit_code
    except Exception as error:
        # The last of what the whole program writes may be the one for which there is no room, from any library.
        problem = full_disk_problem(error, str(loaded.recipe.training.get("output_dir", ".")))
        if problem is None:
            raise
        stopped = ThurlError(
            f"{problem}. Checkpoints are as they were. Make room and start the same command again, with "
            "`training.resume_from_checkpoint=auto` to go on from the last one."
        )
        stopped.__cause__ = error
        _report(stopped, path, parsed.debug, rank=os.environ.get("RANK"))
        return stopped.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def _leave_process_group() -> None:
    """A gloo group that is still there when the interpreter ends may abort a process whose run is complete."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _report(error: ThurlError, path: str, debug: bool, rank: str | None = None) -> None:
    if debug:
        sys.stderr.write(without_secrets("".join(traceback.format_exception(error))))
    problems = [without_secrets(line) for line in getattr(error, "problems", [str(error)])]
    kinds = {2: "cannot be used", 3: "lacks something", 4: "ran but was not pushed", 143: "was stopped"}
    kind = kinds.get(error.exit_code, "failed")
    who = f"[rank {rank}] " if rank else ""
    count = f" ({len(problems)} problems)" if len(problems) > 1 else ""
    sys.stderr.write(f"{who}{path} {kind}{count}:\n" + "".join(f"  {line}\n" for line in problems))
    sys.stderr.flush()


def _set_up_logging(debug: bool, speaks: bool) -> None:
    level = logging.DEBUG if debug else logging.INFO if speaks else logging.WARNING
    logging.basicConfig(level=logging.INFO if speaks else logging.WARNING, format="%(message)s")
    logging.getLogger("thurl").setLevel(level)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    hide_secrets()
