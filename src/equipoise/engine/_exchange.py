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
        members: dict[str, Any] = {}
        if group is not None:  # the others need not come
            members = {"ranks": distributed.get_process_group_ranks(group), "use_local_synchronization": True}
        self._members = distributed.group.WORLD, group
        self._group = self._agreement = distributed.new_group(**members)
        if distributed.get_backend(self._group) != "gloo":  # on the host, so that no accelerator is waited for
            self._agreement = distributed.new_group(backend="gloo", **members)
        self._flight, self._early, self._stale = None, True, False

    def _anywhere(self, condition: bool) -> bool:
        flag = torch.tensor(condition, dtype=torch.int32)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._agreement)
        return bool(flag)

    def _send(self, values: Tensor) -> None:
        self._flight = values, distributed.all_reduce(values, group=self._group, async_op=True)

    def _receive(self) -> Tensor:
        assert self._flight is not None
        total, work = self._flight
        work.wait()
        self._flight, self._stale = None, False
        return total

    def __reduce__(self) -> tuple[type[Exchange], tuple[()]]:
        """A copy begins anew: process groups cannot be copied, and a copy on one process alone must wait for nobody."""
        return Exchange, ()
