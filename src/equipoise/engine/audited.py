"""The part of a source that is asked by the audit, and by the checks of a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from equipoise.engine.node import ForkCall
from equipoise.engine.norms import squared_norm
from equipoise.engine.probe import Probe


@dataclass
class AuditedCall:
    """A forward pass that is kept for the audit, until the next one after its backward pass.

    Attributes:
        call: The call of the fork.
        aliases: The aliases of each of its tasks, one after the other.
        features: The features.
        arrived: Whether a backward pass has come through.
    """

    call: ForkCall
    aliases: list[list[Tensor]]
    features: list[Tensor]
    arrived: bool = False


class Audited:
    """The part of a source that the audit and the checks of a step ask.

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
    at_features: bool
    has_gradients: Any
    measured_parameters: Any
    passes: Any
    plan: Any
    keep_gradients: bool
    auditing: bool
    copying: bool
    paused: bool
    last_node: list[int]
    alias_squares: dict[int, Tensor]
    _nodes: list[int]
    _arrived: dict[int, int]
    _audited: list[AuditedCall]
    _probes: list[Probe]
    _passes: list[int]
    _last_parameters: dict[str, Tensor]

    @staticmethod
    def _nothing_seen() -> dict[str, Any]:
        """The attributes of a source that has no probes and has measured nothing."""
        names = ("_probes", "_passes", "_nodes", "last_node", "_audited")
        seen: dict[str, Any] = {name: [] for name in names} | {
            "_last_parameters": {},
            "_arrived": {},
            "alias_squares": {},
        }
        return seen | {"auditing": False, "copying": False, "paused": False}

    def count_arrivals(self, probe: int, tasks: Sequence[int]) -> None:
        """A node of this probe has let the gradients of these tasks through."""
        self._nodes[probe] += 1
        for i in tasks:
            self._arrived[i] = self._arrived.get(i, 0) + 1

    def forget_aliases(self) -> None:
        """Let go of what was kept for an audit."""
        self._audited.clear()

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

    def each_arrived_once(self) -> bool:
        """Whether one gradient of every task has arrived."""
        return len(self._arrived) == len(self.tasks) and max(self._arrived.values()) == 1

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
            vars(self).update(self._nothing_seen(), owner=None, auditing=measure, copying=measure)
            self.plan(measure, gradients=self.keep_gradients)
            yield
        finally:
            vars(self).update(before)

    def _kept_for_audit(self, call: ForkCall, aliases: Sequence[Tensor], features: list[Tensor]) -> Sequence[Tensor]:
        """The aliases, each under the name of its task."""
        if self.paused:
            return aliases
        size, first, tasks = len(features), call.first, call.tasks
        hand_out = (lambda _, a: a.clone()) if self.copying else named
        aliases = [hand_out(self.tasks[first + i // size], a) if i < tasks * size else a for i, a in enumerate(aliases)]
        own = [list(aliases[i * size : (i + 1) * size]) for i in range(tasks)]
        self._audited[:] = [one for one in self._audited if not one.arrived]  # a warm-up's graphs must not pile up
        self._audited.append(AuditedCall(call, own, features))
        return aliases

    def _audit_arrival(self, call: ForkCall, tasks: Iterable[int], gradients: Sequence[Tensor | None]) -> None:
        """Add up the squared norms that arrive at the aliases."""
        size = len(gradients) // (call.tasks + call.others)
        for one in self._audited:
            one.arrived = one.arrived or one.call is call
        for i in tasks:
            squares = [squared_norm(g.detach()) for g in gradients[i * size : (i + 1) * size] if g is not None]
            square = torch.stack(squares).sum()
            before = self.alias_squares.get(call.first + i)
            self.alias_squares[call.first + i] = square if before is None else before + square


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
    function: type[torch.autograd.Function] = type(text, (NamedAlias,), {})
    return function.apply(alias)  # type: ignore[no-any-return]
