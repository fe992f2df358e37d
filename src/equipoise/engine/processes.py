"""The processes that share out every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

_AVAILABLE = distributed.is_available()


class Processes:
    """The processes that share out every batch: all that there are, or a group of them.

    Raises:
        ValueError: This process is not in the group.
    """

    def __init__(self, group: Any = None) -> None:
        if group is not None and distributed.get_rank(group) < 0:
            raise ValueError("process_group must be a group that this process is in; found one of others")
        self.group = group
        self._agreed: tuple[Any, tuple[str, ...]] | None = None

    @property
    def number(self) -> int:
        """How many they are."""
        return distributed.get_world_size(self.group) if _AVAILABLE and distributed.is_initialized() else 1

    def mean(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The means of the values of all of them, by one collective; ``values`` stay as they are. Each of them must call it."""
        number = self.number
        if number == 1:
            return values
        dtype = values[0].dtype
        for value in values:
            dtype = torch.promote_types(dtype, value.dtype)
        total = torch.cat([value.reshape(-1).to(dtype) for value in values])
        distributed.all_reduce(total, group=self.group)
        parts = (total / number).split([value.numel() for value in values])
        return tuple(part.reshape(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True))

    def mean_where(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of ``values`` ``(T,)`` over the processes in which the task is present, and whether there is any."""
        total, share = self.mean(torch.where(present, values, 0.0), present.to(values.dtype))
        return total / torch.where(share != 0, share, 1.0), share != 0

    def agree(self, tasks: Sequence[str]) -> None:
        """Compare the names of the tasks, once for a group of processes. Each of them must call it.

        Raises:
            ValueError: A process has other tasks, or another order of them.
        """
        world = distributed.group.WORLD
        if self.number == 1 or self._agreed == (world, tuple(tasks)):
            return
        found: list[Any] = [None] * self.number
        distributed.all_gather_object(found, list(tasks), group=self.group)
        if any(other != list(tasks) for other in found):
            raise ValueError(f"tasks must be the same on every process, in one order; found {found}")
        self._agreed = world, tuple(tasks)

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        """The same: a copy of a balancer is in the same group."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A pickled balancer compares the names of its tasks anew, in the process that it comes to."""
        return {"group": self.group, "_agreed": None}


def ddp_joins() -> bool:
    """Whether this is the forward pass of a DistributedDataParallel under ``join``, whose other processes may have ended."""
    active = torch.nn.parallel.DistributedDataParallel._active_ddp_module
    return active is not None and bool(active._join_config.enable)


class BackwardCollective:
    """Sums and concatenations over several processes in the middle of their backward passes.

    Every one of them must come to every exchange, in the same order. The process group is its own, so that the wrappers' sends,
    which are under way at that time, cannot get between. It is made by `open`, before the backward pass, as the processes must
    make it together. Sums are sent in the precision ``dtype``, which all have.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._members: tuple[Any, Any] | None = None
        self._group: Any = None
        self.number = 1

    def open(self, processes: Processes) -> None:
        """Take these processes from now on. Each of them must call it."""
        self.number = processes.number
        if self.number > 1 and self._members != (distributed.group.WORLD, processes.group):
            self._members = distributed.group.WORLD, processes.group
            ranks = None if processes.group is None else distributed.get_process_group_ranks(processes.group)
            self._group = distributed.new_group(ranks, use_local_synchronization=ranks is not None)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the values of all processes, the same on each of them."""
        if self.number == 1:
            return values
        total = values.to(self._dtype).clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=self._group)
        return total.to(values.dtype)

    def columns(self, matrix: Tensor) -> tuple[Tensor, slice]:
        """The matrices of several processes side by side, and which columns are this process's own."""
        rank = distributed.get_rank(self._group)
        widths = [int(width) for width in self._gathered(torch.tensor([matrix.shape[1]], device=matrix.device))]
        padded = matrix.new_zeros(max(widths), matrix.shape[0])
        padded[: matrix.shape[1]] = matrix.mT
        parts = [part[:width] for part, width in zip(self._gathered(padded), widths, strict=True)]
        start = sum(widths[:rank])
        return torch.cat(parts).mT, slice(start, start + widths[rank])

    def _gathered(self, values: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(values) for _ in range(self.number)]
        distributed.all_gather(parts, values, group=self._group)
        return parts
