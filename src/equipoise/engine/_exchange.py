"""What several processes have measured, as one process would have measured it on all their batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed


class Processes:
    """The processes that share out every batch: all that there are, or a group of them.

    Raises:
        ValueError: This process is not in the group.
    """

    def __init__(self, group: Any = None) -> None:
        if group is not None and distributed.get_rank(group) < 0:
            raise ValueError("process_group must be a group that this process is in; found one of others")
        self.group = group

    @property
    def number(self) -> int:
        """How many they are."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return 1
        return distributed.get_world_size(self.group)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of what each of them holds; ``values`` stays as it is. Each of them must call it."""
        if self.number == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total, group=self.group)
        return total / self.number

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        """The same: a copy of a balancer is in the same group."""
        return self


class Exchange:
    """The sum over the processes of what each of them accumulates in its backward passes, once a step.

    `finish`, once a step, is the one place where the processes wait for each other: whatever one of them does alone between
    two steps (an evaluation, a copy of the model, no backward pass at all) holds nobody up, and all sends pair up. The sum may
    be under way before, while the backward pass goes on: `start` sends what has accumulated. Where more accumulates after
    that, on any process, all send again in `finish`, and from then on only there.

    The process groups are its own, as the order of these sends must not depend on that of anybody else's. They are made in
    the first `finish`, because the processes must make them together.
    """

    def __init__(self) -> None:
        self._members: tuple[Any, Any] = None, None
        self._group: Any = None
        self._agreement: Any = None
        self._flight: tuple[Tensor, Any] | None = None
        self._early = True
        self._stale = False

    def start(self, accumulated: Callable[[], Tensor]) -> None:
        """Send what has accumulated, where nothing was sent in this step and no more is to be expected."""
        if self._flight is not None:
            self._stale = True
        elif self._early and self._group is not None and self._members[0] is distributed.group.WORLD:
            self._send(accumulated())

    def finish(self, accumulated: Callable[[], Tensor], processes: Processes) -> Tensor:
        """The sum over ``processes``. Each of them must call it, once a step."""
        if self._members != (distributed.group.WORLD, processes.group):
            self._open(processes.group)
        if self._flight is None:
            self._send(accumulated())
        if self._early and self._anywhere(self._stale):
            self._early = False
            self._receive()
            self._send(accumulated())
        return self._receive()

    def discard(self) -> None:
        """What has accumulated is thrown away."""
        self._stale = self._flight is not None

    def _open(self, group: Any) -> None:
        self._members = distributed.group.WORLD, group
        self._group = self._agreement = _own_group(group)
        if distributed.get_backend(self._group) != "gloo":  # on the host, so that no accelerator is waited for
            self._agreement = _own_group(group, backend="gloo")
        self._flight, self._early, self._stale = None, True, False

    def _anywhere(self, condition: bool) -> bool:
        flag = torch.tensor(condition, dtype=torch.int32)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._agreement)
        return bool(flag)

    def _send(self, values: Tensor) -> None:
        total = values.clone()  # more may accumulate while it is under way
        self._flight = total, distributed.all_reduce(total, group=self._group, async_op=True)

    def _receive(self) -> Tensor:
        assert self._flight is not None
        total, work = self._flight
        work.wait()
        self._flight, self._stale = None, False
        return total

    def __reduce__(self) -> tuple[type[Exchange], tuple[()]]:
        """A copy begins anew: process groups cannot be copied, and a copy on one process alone must wait for nobody."""
        return Exchange, ()


class Meeting:
    """The processes that combine something together in the middle of their backward passes.

    Every one of them must come to every exchange, in the same order. The process group is its own, so that the wrappers' sends,
    which are under way at that time, cannot get between. It is made by `open`, before the backward pass, as the processes must
    make it together.
    """

    def __init__(self) -> None:
        self._members: tuple[Any, Any] | None = None
        self._group: Any = None
        self.number = 1

    def open(self, processes: Processes) -> None:
        """Meet these processes from now on. Each of them must call it."""
        self.number = processes.number
        if self.number > 1 and self._members != (distributed.group.WORLD, processes.group):
            self._members = distributed.group.WORLD, processes.group
            self._group = _own_group(processes.group)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of what each of several processes holds."""
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=self._group)
        return total

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


def _own_group(group: Any, **settings: Any) -> Any:
    """A new process group of the processes of ``group``; None: of all."""
    if group is not None:  # the others need not come
        settings |= {"ranks": distributed.get_process_group_ranks(group), "use_local_synchronization": True}
    return distributed.new_group(**settings)
