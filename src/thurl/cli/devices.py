"""The device a command computes on."""

from __future__ import annotations

from thurl.errors import MissingRequirementError


__all__ = ["usable_device"]


def usable_device(device: str | None) -> str:
    """`device`, or the first GPU where there is one and else the CPU.

    Raises:
        MissingRequirementError: torch cannot use it.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MissingRequirementError(f"--device {device} cannot be used ({reason}): use cpu") from None
    return device
