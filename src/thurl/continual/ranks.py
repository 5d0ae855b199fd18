"""Work divided over the processes of `accelerate launch` or `torchrun`. All of them run the same search; each does a
part of what there is to train, whole jobs at a time, and all learn all results.
"""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from thurl.errors import ThurlError, UsageError


__all__ = ["Ranks", "divided"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# Training may take longer than the usual half an hour; a process that died closes its connection at once.
_WAIT = datetime.timedelta(days=14)


class Ranks:
    """Processes that work together.

    Args:
        rank: number of this one, from 0.
        size: of all.
        group: of torch.distributed, for objects on the CPU; not needed for one process.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._group = group

    @classmethod
    def of_launch(cls) -> Ranks:
        """All processes of this launch; one where torch.distributed was not set up."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        world = dist.group.WORLD
        if _groups.get("world") is not world:
            # Of its own: that of the trainer may be NCCL's, which would send objects through the GPUs.
            _groups.update(world=world, objects=dist.new_group(backend="gloo", timeout=_WAIT))
        return cls(dist.get_rank(), dist.get_world_size(), _groups["objects"])

    def share(
        self, items: Sequence[Item], do: Callable[[Item], Result], seconds: Sequence[float] | None = None
    ) -> list[Result]:
        """`do` of every item, each done by one process; all results on every process, in the order of the items.

        Args:
            items: the same on every process.
            do: gives something that can be pickled.
            seconds: how long each item may take, the same on every process; only the division depends on it.

        Raises:
            ThurlError: on every process that of the first item that failed, in the order of the items.
        """
        if self.size == 1:
            return [do(item) for item in items]
        if not items:
            return []
        mine = divided(seconds or [1.0] * len(items), self.size)[self.rank]
        done: dict[int, Result] = {}
        failed: tuple[int, ThurlError] | None = None
        cause: Exception | None = None
        for place in mine:
            try:
                done[place] = do(items[place])
            except Exception as error:
                failed, cause = (place, _named(error)), error
                break
        digest = hashlib.sha256(repr(items).encode()).hexdigest()
        gathered = self._gather((digest, done, failed))
        if len({entry[0] for entry in gathered}) > 1:
            raise ThurlError(
                "the processes of this launch do not work on the same search; give all of them the same recipe, data "
                "and versions"
            )
        failures = [entry[2] for entry in gathered if entry[2] is not None]
        if failures:
            place, error = min(failures, key=lambda failure: failure[0])
            raise error from (cause if failed is not None and failed[0] == place else None)
        results = {place: result for entry in gathered for place, result in entry[1].items()}
        return [results[place] for place in range(len(items))]

    def agree(self, make: Callable[[], Result]) -> Result:
        """What the first process makes, on every process: a last bit that differs must not part them.

        Raises:
            ThurlError: on every process, where making it failed.
        """
        if self.size == 1:
            return make()
        answer: list[Any] = [None, None]
        cause: Exception | None = None
        if self.rank == 0:
            try:
                answer[0] = make()
            except Exception as error:
                answer[1], cause = _named(error), error
        dist.broadcast_object_list(answer, src=0, group=self._group)
        if answer[1] is not None:
            raise answer[1] from cause
        return answer[0]

    def first_alone(self, do: Callable[[], Result]) -> Result:
        """`do` on every process, on the first one before the others: what it leaves in files they find there.

        Raises:
            ThurlError: on every process, where the first one failed.
        """
        if self.size == 1:
            return do()
        kept: list[Result] = []
        self.agree(lambda: kept.append(do()))
        return kept[0] if kept else do()

    def check_shared(self, folder: Path) -> None:
        """Whether all processes see the same folder.

        Raises:
            UsageError: one does not.
        """
        if self.size == 1:
            return

        def leave() -> Path:
            folder.mkdir(parents=True, exist_ok=True)
            left = folder / f".seen-{uuid.uuid4().hex}"
            left.touch()
            return left

        left = self.agree(leave)
        seen = self._gather((folder / left.name).exists())
        if self.rank == 0:
            left.unlink()
        blind = [rank for rank, sees in enumerate(seen) if not sees]
        if blind:
            raise UsageError(
                f"process {', '.join(map(str, blind))} does not see what process 0 writes into {folder}; states are "
                "handed over there: give a folder that all machines share"
            )

    def _gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self._group)
        return gathered


_groups: dict[str, Any] = {}


def divided(seconds: Sequence[float], parts: int) -> list[list[int]]:
    """Numbers of the items of each part, ascending: the longest items first, each to the part with least to do."""
    found: list[list[int]] = [[] for _ in range(parts)]
    loads = [0.0] * parts
    for place in sorted(range(len(seconds)), key=lambda place: (-seconds[place], place)):
        least = loads.index(min(loads))
        loads[least] += seconds[place]
        found[least].append(place)
    return [sorted(part) for part in found]


def _named(error: Exception) -> ThurlError:
    """An error that other processes can be told."""
    return error if isinstance(error, ThurlError) else ThurlError(f"{type(error).__name__}: {error}")
