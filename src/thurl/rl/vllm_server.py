"""Generation by a vLLM server on other GPUs (TRL 1.16, `vllm_mode: server`): waiting for it, and losing it.

TRL waits in silence, and without end when something else answers on the port; a server that dies during the run ends
it with the traceback of an HTTP library after a minute of retries, or not at all when the weights are being broadcast.
Here the run says what it waits for, looks whether the server lives before each use, and ends with a message that says
how to continue. Private names used, guarded by `tests/rl/test_vllm_server.py`: `sync_weights`, `generate` and
`vllm_client` of TRL's `VLLMGeneration`.
"""

from __future__ import annotations

import logging
import shlex
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from thurl.errors import MissingRequirementError, ThurlError
from thurl.training.checkpoints import last_whole_checkpoint


__all__ = ["guard_server", "is_alive", "serve_command", "server_url", "wait_for_server"]

logger = logging.getLogger(__name__)

_REQUEST_SECONDS = 10.0
_RETRY_SECONDS = 2.0
_NEWS_SECONDS = 30.0
_ATTEMPTS = 3  # a busy server may miss one


def server_url(args: Any) -> str:
    """Base URL of the server of a `trl.GRPOConfig`, as TRL builds it."""
    if args.vllm_server_base_url is not None:
        return str(args.vllm_server_base_url).rstrip("/")
    return f"http://{args.vllm_server_host}:{args.vllm_server_port}"


def serve_command(model: str, url: str) -> str:
    """The command line that serves `model` at the port of `url` the way the trainer needs it (vLLM 0.31)."""
    port = urllib.parse.urlsplit(url).port or 8000
    return (
        f"VLLM_SERVER_DEV_MODE=1 vllm serve {shlex.quote(model)} --port {port} --enable-scale-out "
        """--weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1"""
    )


def is_alive(url: str) -> bool:
    """Whether `url`/health answers 200."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=_REQUEST_SECONDS) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def wait_for_server(url: str, seconds: float, command: str) -> None:
    """Wait until the server is up; says so at once and every half minute.

    Args:
        url: base URL.
        seconds: to wait at most.
        command: how to start it, for the message.

    Raises:
        MissingRequirementError: it is not up in time, or something else answers there.
    """
    if is_alive(url):
        return
    logger.info("Waiting up to %.0f s for the vLLM server at %s", seconds, url)
    began = told = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        time.sleep(min(_RETRY_SECONDS, max(0.0, seconds - passed)))
        if is_alive(url):
            logger.info("The vLLM server is up after %.0f s", time.monotonic() - began)
            return
        if time.monotonic() - told > _NEWS_SECONDS:
            told = time.monotonic()
            logger.info("Still waiting for %s: %.0f of %.0f s", url, told - began, seconds)
    raise MissingRequirementError(
        f"No vLLM server answered at {url} within {seconds:.0f} s (`vllm_server_timeout`). Start it on the generation "
        f"node and see that this machine reaches the port:\n  {command}\nOr give its address: "
        "`training.vllm_server_base_url=http://HOST:PORT`."
    )


def guard_server(generation: Any, url: str, output_dir: str, command: str) -> None:
    """Make the loss of the server a `ThurlError` that says how to continue, and forget pictures with each sync.

    Args:
        generation: TRL's `VLLMGeneration` in server mode.
        url, command: for the message.
        output_dir: where the checkpoints are.
    """
    sync, generate = generation.sync_weights, generation.generate
    # Only the main process talks to the server; it ends the others when it fails.
    talks = generation.accelerator.is_main_process

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if talks and not _lives(url):
                raise ThurlError(_lost(url, output_dir, command, "it does not answer any more"))
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not _of_the_server(error):
                    raise
                raise ThurlError(_lost(url, output_dir, command, f"{type(error).__name__}: {error}"[:500])) from error

        return run

    def sync_and_forget() -> None:
        sync()
        if talks:
            # TRL clears the cache of prompts only; a trained vision tower would not be used for pictures seen before.
            generation.vllm_client.session.post(f"{url}/reset_encoder_cache").raise_for_status()

    generation.sync_weights = guarded(sync_and_forget)
    generation.generate = guarded(generate)


def _lives(url: str) -> bool:
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_RETRY_SECONDS)
        if is_alive(url):
            return True
    return False


def _of_the_server(error: Exception) -> bool:
    # TRL raises a bare Exception for an answer other than 200.
    return type(error).__module__.split(".")[0] in ("requests", "urllib3") or (
        type(error) is Exception and str(error).startswith("Request failed")
    )


def _lost(url: str, output_dir: str, command: str, reason: str) -> str:
    checkpoint = last_whole_checkpoint(output_dir)
    if checkpoint is None:
        go_on = f"There is no whole checkpoint in {output_dir} yet (`save_steps`): start the run again."
    else:
        go_on = (
            f"The last whole checkpoint is {checkpoint}. Continue with the same command and "
            "`training.resume_from_checkpoint=auto`; the weights go to the new server before its first completion."
        )
    return f"The vLLM server at {url} is lost: {reason}. Start it again:\n  {command}\n{go_on}"
