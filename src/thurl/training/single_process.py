"""A piece of work that one process of several does by itself, with a trainer of its own.

accelerate keeps what it knows of a process in objects that all of its users share, and makes them from the variables
that `accelerate launch` sets: a `transformers.Trainer` made inside a launched program would wait for the others at
every step, and it resets what the program itself had asked for. Inside `single_process` neither is to be seen; after
it everything is as before. The other processes take no part and may do something else, or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


__all__ = ["process_device", "single_process"]

_LAUNCHED = (
    "ACCELERATE_",
    "FSDP_",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_",
    "MPI_LOCALNRANKS",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_",
    "OMPI_COMM_WORLD_",
    "PARALLELISM_CONFIG_",
    "PMI_",
    "RANK",
    "WORLD_SIZE",
)
"""How the names begin of what a launcher sets and accelerate 1.15 reads."""


def process_device() -> torch.device:
    """The device of this process: accelerate's where it has been asked, or what a launcher has said it will be, or the
    GPU of the local rank, or the CPU."""
    from accelerate import PartialState

    known = PartialState._shared_state.get("device")
    if known is not None:
        return torch.device("cpu") if known.type == "cpu" else known  # accelerate numbers CPUs by process
    if "ACCELERATE_TORCH_DEVICE" in os.environ:
        return torch.device(os.environ["ACCELERATE_TORCH_DEVICE"])
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in ("true", "1", "yes"):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


@contextmanager
def single_process() -> Iterator[torch.device]:
    """Inside the block accelerate knows this process alone, on the device that it has; gives that device.

    Uses `_shared_state` of accelerate, which is not documented as public.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    device = process_device()
    states = (PartialState, AcceleratorState, GradientState)
    kept = [dict(state._shared_state) for state in states]
    hidden = {name: value for name, value in os.environ.items() if name.startswith(_LAUNCHED)}
    for name in hidden:
        del os.environ[name]
    for state in states:
        state._shared_state.clear()
    try:
        PartialState(cpu=device.type == "cpu").device = device
        yield device
    finally:
        for state, values in zip(states, kept, strict=True):
            state._shared_state.clear()
            state._shared_state.update(values)
        for name in [name for name in os.environ if name.startswith(_LAUNCHED)]:
            del os.environ[name]
        os.environ.update(hidden)
