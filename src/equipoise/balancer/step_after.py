"""The balancer's step, called by the hooks of an optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.hooks import RemovableHandle

from equipoise.arguments import described

if TYPE_CHECKING:
    from equipoise.balancer.balancer import Balancer


class Handle:
    """Several hooks, of one optimiser or of all balancers of a tree."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Take them off again."""
        for handle in self._handles:
            handle.remove()


def step_after(balancer: Balancer, optimizer: Any) -> Handle:
    """See `Balancer.step_after`."""
    inner = _innermost(optimizer)
    if inner is None:
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, or hold one as .optimizer; found {described(optimizer)}"
        )

    def before(*_: Any) -> None:
        balancer._in_closure = True

    def after(*_: Any) -> None:
        balancer._in_closure = False
        if balancer._now.passes or balancer._now.weighed:
            balancer.step()

    hooked = RemovableHandle(balancer._hooked)
    balancer._hooked[hooked.id] = inner
    return Handle([hooked, inner.register_step_pre_hook(before), inner.register_step_post_hook(after)])


def skip_missed_step(balancer: Balancer) -> None:
    """Before losses are weighed: end a step whose hook was not called, as a loss scaler has skipped the optimiser's.

    Gradients have been set to zero then, unlike between two micro-batches.
    """
    if torch.compiler.is_compiling() or balancer._in_closure or not balancer._plan.measure:
        return
    groups = [group for optimizer in balancer._hooked.values() for group in optimizer.param_groups]
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    if not (gradients if balancer._accumulate else any(bool(g.any()) for g in gradients)):
        balancer.step(skip=True)


def _innermost(optimizer: Any) -> torch.optim.Optimizer | None:
    """The optimiser that a wrapper holds, itself an Optimizer or not, perhaps without an Optimizer's hooks."""
    held = getattr(optimizer, "optimizer", None)
    inner = None if held is None or held is optimizer else _innermost(held)
    return optimizer if inner is None and isinstance(optimizer, torch.optim.Optimizer) else inner
