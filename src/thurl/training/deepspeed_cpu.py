"""DeepSpeed without a GPU, for trials and tests: gloo instead of NCCL, and nothing that has to be compiled.

Facts of DeepSpeed 0.19, each under test in tests/training/test_deepspeed_cpu.py:
- it computes on the CPU when `DS_ACCELERATOR=cpu` is set before its first import;
- it asks a wrapper of its own for the number of processes and believes there is one until the wrapper is set up;
- when the wrapper is set up on a CPU, it compiles an all-reduce over shared memory (a minute, and a compiler), which
  only inference calls. It leaves that out where the operation is not marked as compatible.

The optimizer is PyTorch's, which transformers passes on, as long as the DeepSpeed file has no `optimizer` and no
`offload_optimizer`; DeepSpeed's own CPU Adam would be compiled.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any


__all__ = ["prepare_deepspeed_on_cpu"]

_SHARED_MEMORY = "deepspeed_shm_comm"


def prepare_deepspeed_on_cpu(deepspeed: Any, use_cpu: bool, timeout: float = 1800.0) -> bool:
    """Form DeepSpeed's group of processes over gloo, if this is a DeepSpeed run on CPUs.

    Call it before the first `TrainingArguments`. Does nothing without DeepSpeed, on GPUs, or outside a launcher.

    Args:
        deepspeed: `TrainingArguments.deepspeed`: file, dict or None.
        use_cpu: `TrainingArguments.use_cpu`.
        timeout: seconds that a process waits for another one (`TrainingArguments.ddp_timeout`).

    Returns:
        whether the group is there.
    """
    if not deepspeed or not use_cpu or "RANK" not in os.environ:
        return False
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed as library

    if not library.comm.is_initialized():
        library.ops.__compatible_ops__[_SHARED_MEMORY] = False
        library.init_distributed("gloo", auto_mpi_discovery=False, verbose=False, timeout=timedelta(seconds=timeout))
    return True
