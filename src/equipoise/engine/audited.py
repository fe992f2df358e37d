"""The part of a source that keeps a forward pass for the audit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from equipoise.engine.node import ForkCall
from equipoise.engine.rules import squared_norm


@dataclass
class AuditedCall:
    """A forward pass that is kept for the audit, until the next one after its backward pass.

    Attributes:
        call: The call of the fork.
        aliases: The aliases of each of its tasks, by the task's number.
        features: The features.
        arrived: Whether a backward pass has come through.
    """

    call: ForkCall
    aliases: Mapping[int, Sequence[Tensor]]
    features: list[Tensor]
    arrived: bool = False


class Audited:
    """The part of a source that keeps forward passes for the audit, and lets its backward passes through.

    Attributes:
        auditing: Whether the aliases of a forward pass are kept for the audit.
        copying: Whether these aliases are copies then; see `examine`.
        paused: Whether backward passes are let through unmeasured.
        last_node: The number of autograd's last node before the last call of the fork; empty in compiled code.
        alias_squares: While auditing, the squared norm of all that has arrived at the aliases of a task, by its number.
    """

    reads: ClassVar[str] = "features[{!r}]"
    """How a message calls the tensor that the head of a task reads."""
    tasks: tuple[str, ...]

    def _begin_anew(self) -> None:
        """Have kept nothing."""
        self.auditing = self.copying = self.paused = False
        self.last_node: list[int] = []
        self.alias_squares: dict[int, Tensor] = {}
        self._audited: list[AuditedCall] = []
        self._arrived: dict[int, int] = {}
        self._nodes: list[int] = []

    def arrived(self, call: ForkCall, tasks: Iterable[int], gradients: Sequence[Tensor | None]) -> None:
        """Told by a node: the gradients of these of its tasks have arrived, among those of all its aliases."""
        self.count_arrivals(call.first, [call.first + i for i in tasks])
        if not self.auditing:
            return
        size = len(gradients) // (call.tasks + call.others)
        for one in self._audited:
            one.arrived = one.arrived or one.call is call
        for i in tasks:
            squares = [squared_norm(g.detach()) for g in gradients[i * size : (i + 1) * size] if g is not None]
            before = self.alias_squares.get(call.first + i, 0.0)
            self.alias_squares[call.first + i] = torch.stack(squares).sum() + before

    def count_arrivals(self, probe: int, tasks: Sequence[int]) -> None:
        """A node of this probe has let the gradients of these tasks through."""
        self._nodes[probe] += 1
        for i in tasks:
            self._arrived[i] = self._arrived.get(i, 0) + 1

    def why_not(self, task: str) -> str:
        """Why no gradient of a task may have arrived, for a message."""
        return (
            f"its loss does not depend on {self.reads.format(task)}, or something on the way is detached, in a checkpoint "
            "that needs use_reentrant=False, or computed in torch.func, where PerLoss measures; or the model was in "
            "eval(), or calls another fork than the one that this balancer measures at, as where one of the two is a copy"
        )

    def forget_aliases(self) -> None:
        """Let go of the forward passes kept for an audit."""
        self._audited.clear()

    @property
    def aliases(self) -> dict[int, list[Tensor]]:
        """While auditing, the aliases of each task, by its number."""
        found: dict[int, list[Tensor]] = {}
        for one in self._audited:
            for i, own in one.aliases.items():
                found.setdefault(i, []).extend(own)
        return found

    @property
    def features(self) -> list[Tensor]:
        """While auditing, the tensors that gradients are taken at where there is no W."""
        return [feature for one in self._audited for feature in one.features]

    @contextmanager
    def examine(self, measure: bool = True) -> Iterator[None]:
        """Measure the forward passes within as those of a task's first step, or none of them; then all is as it was.

        The aliases are copies, so that a head that works in place on its own does no harm, and shows in its version.
        """
        before = dict(vars(self))
        try:
            self._begin_anew()
            vars(self).update(owner=None, measuring=measure, auditing=measure, copying=measure, _processes=None)
            yield
        finally:
            vars(self).update(before)

    def _kept_for_audit(self, call: ForkCall, aliases: Sequence[Tensor], features: list[Tensor]) -> Sequence[Tensor]:
        """The aliases, each under the name of its task."""
        if self.paused:
            return aliases
        size, tasks = len(features), self.tasks[call.first : call.first + call.tasks]
        hand_out = (lambda _, a: a.clone()) if self.copying else named
        own = [hand_out(tasks[i // size], alias) for i, alias in enumerate(aliases[: len(tasks) * size])]
        by_number = {call.first + i: own[i * size : (i + 1) * size] for i in range(len(tasks))}
        self._audited[:] = [one for one in self._audited if not one.arrived]  # a warm-up's graphs must not pile up
        self._audited.append(AuditedCall(call, by_number, features))
        return [*own, *aliases[len(own) :]]


class NamedAlias(torch.autograd.Function):
    """An identity whose name PyTorch prints where a head works in place on its output."""

    @staticmethod
    def forward(ctx: Any, alias: Tensor) -> Tensor:
        """Return a view."""
        return alias.view_as(alias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Hand the gradient on."""
        return gradient


def named(task: str, alias: Tensor) -> Tensor:
    """The alias under a name that tells, in PyTorch's own error, which head works in place on it, and the remedy."""
    text = (
        f"[the features of task {task!r}; its head must not work in place on them: use inplace=False or clone() first]"
    )
    return type(text, (NamedAlias,), {}).apply(alias)  # type: ignore[attr-defined, no-any-return]
