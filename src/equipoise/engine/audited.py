"""The part of a source that is asked by the audit, and by the checks of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor

from equipoise.engine.node import AuditedCall
from equipoise.engine.probe import Probe


class Audited:
    """The part of a source that the audit and the checks of a step ask."""

    tasks: tuple[str, ...]
    reads: ClassVar[str]
    at_features: bool
    has_gradients: Any
    measured_parameters: Any
    passes: Any
    plan: Any
    clear: Any
    keep_gradients: bool
    owner: object
    auditing: bool
    copying: bool
    paused: bool
    _probes: list[Probe]
    _nodes: list[int]
    _arrived: Counter[int]

    def forget_aliases(self) -> None:
        """Let go of what was kept for an audit."""
        self._audited: list[AuditedCall] = []

    @property
    def aliases(self) -> dict[int, list[Tensor]]:
        """While auditing, the aliases of each task, by its number."""
        found: dict[int, list[Tensor]] = {}
        for one in self._audited:
            for i, own in enumerate(one.aliases):
                found.setdefault(one.call.first + i, []).extend(own)
        return found

    @property
    def features(self) -> list[Tensor]:
        """While auditing, the tensors that gradients are taken at where there is no W."""
        return [feature for one in self._audited for feature in one.features]

    def not_arrived(self, present: Sequence[bool]) -> list[str]:
        """The tasks that are present here and of which no gradient has arrived; none where compiled code does not tell."""
        if self.passes and not any(self._nodes):
            return []
        return [task for i, task in enumerate(self.tasks) if present[i] and i not in self._arrived]

    def has_gradient(self) -> bool:
        """Whether W has a gradient already, as after a micro-batch, and not as after an optimiser's ``zero_grad``."""
        found = [p.grad for p in self.measured_parameters.values() if p.is_leaf]
        return self.at_features or any(g is not None and bool(g.any()) for g in found)

    def repeated(self) -> list[str]:
        """The tasks whose squared norm cannot be had, as their gradient is the sum of those at several nodes."""
        if self.has_gradients or self.at_features:
            return []
        return [self.tasks[i] for i, nodes in self._arrived.items() if nodes > 1]

    def why_not(self, task: str) -> str:
        """Why no gradient of a task may have arrived, for a message."""
        return (
            f"its loss does not depend on {self.reads.format(task)}, or something on the way is detached, in a checkpoint "
            "that needs use_reentrant=False, or computed in torch.func, where PerLoss measures"
        )

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let backward passes through unmeasured."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    @contextmanager
    def examine(self, measure: bool = True) -> Iterator[None]:
        """Measure the forward passes within as those of a task's first step, or none of them; then all is as it was.

        The aliases are copies, so that a head that works in place on its own does no harm, and shows in its version.
        """
        before = dict(vars(self))
        try:
            self._probes, self.auditing, self.copying, self.owner = [], measure, measure, None
            self.forget_aliases()
            self.clear()
            self.plan(measure, gradients=self.keep_gradients)
            yield
        finally:
            vars(self).update(before)
