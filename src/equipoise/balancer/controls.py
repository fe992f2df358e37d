"""The switches of a balancer, which its user and its trainer set between two steps, and its step called by others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed
from torch.utils.hooks import RemovableHandle

from equipoise.arguments import described, flag
from equipoise.balancer.driver import Driver
from equipoise.engine.processes import Processes


class Handle:
    """Several hooks, of one optimiser or of all balancers of a tree."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Take them off again."""
        for handle in self._handles:
            handle.remove()


class Controls(Driver):
    """The part of a balancer that is set between two steps.

    Under ``torch.distributed.algorithms.Join([model, balancer])`` a process that has run out of batches goes on to step the
    balancer, without losses of its own, as long as another has some.
    """

    step: Callable[..., None]
    _join_config: Any = None

    @property
    def process_group(self) -> Any:
        """The processes that share out every batch; None, as long as nothing else is set: all.

        To be set where some processes train another model; and, for gradients taken at the features, where some hold parts of
        one model and see the same batch (on a mesh: its data-parallel group). It stays out of ``state_dict``.
        """
        return self._processes.group

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._processes = Processes(group)
        self._plan_next_step()

    @property
    def accumulate(self) -> bool:
        """Whether a measured step is made of several backward passes; to be set between two steps."""
        return self._accumulate

    @accumulate.setter
    def accumulate(self, value: bool) -> None:
        self._accumulate = flag("accumulate", value)
        self._plan_next_step()

    def step_after(self, optimizer: Any) -> Any:
        """Step after every step of ``optimizer``, so that the loop has no line for it: right in any trainer.

        The optimiser's own hook calls `step`, in accumulation once for all micro-batches, with a loss scaler only where the
        optimiser has stepped, and in a closure that is evaluated several times once. A step of the optimiser without a backward
        pass through the total loss is none.

        Args:
            optimizer: A ``torch.optim.Optimizer``, or a trainer's wrapper of one, which holds it as ``.optimizer``.

        Returns:
            A handle; ``handle.remove()`` ends it.

        Raises:
            TypeError: ``optimizer`` is neither.
        """
        inner = _innermost(optimizer)
        if inner is None:
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, or hold one as .optimizer; found {described(optimizer)}"
            )

        def before(*_: Any) -> None:
            self._in_closure = True

        def after(*_: Any) -> None:
            self._in_closure = False
            if self._now.passes or self._now.weighed:
                self.step()

        hooked = RemovableHandle(self._hooked)
        self._hooked[hooked.id] = inner
        return Handle([hooked, inner.register_step_pre_hook(before), inner.register_step_post_hook(after)])

    def join_hook(self, **kwargs: Any) -> Any:
        """Step along with the processes that still have batches."""
        from torch.distributed.algorithms.join import JoinHook

        hook = JoinHook()
        hook.main_hook = self.step  # type: ignore[method-assign]
        return hook

    @property
    def join_device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.device

    @property
    def join_process_group(self) -> Any:
        """The processes that share out every batch."""
        return self.process_group or distributed.group.WORLD

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the backward passes since the last step, as an optimiser's ``zero_grad`` does.

        A step that is thrown away needs it, and a closure that is evaluated several times before one step.
        """
        self._probe.clear()
        self._now.begin()
        source = self._source
        if source is not None and self._plan.measure and source.owner is self._token:
            source.clear()

    def freeze(self) -> None:
        """Hold the weights and the state of the method where they are, until `unfreeze`.

        Losses, and gradient norms at each ``every``-th step, go on into the log, and a task that is seen for the first time
        has its ``L_i(0)`` recorded.
        """
        self._frozen = True
        self._plan_next_step()

    def unfreeze(self) -> None:
        """Let the method go on where `freeze` stopped it."""
        self._frozen = False
        self._plan_next_step()

    def _skip_missed_step(self) -> None:
        """Before losses are weighed: end a step whose hook was not called, as a loss scaler has skipped the optimiser's.

        Gradients have been set to zero then, unlike between two micro-batches.
        """
        if torch.compiler.is_compiling() or self._in_closure or not self._plan.measure:
            return
        groups = [group for optimizer in self._hooked.values() for group in optimizer.param_groups]
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        if not (gradients if self._accumulate else any(bool(g.any()) for g in gradients)):
            self.step(skip=True)


def _innermost(optimizer: Any) -> torch.optim.Optimizer | None:
    """The optimiser that a wrapper holds, itself an Optimizer or not, perhaps without an Optimizer's hooks."""
    held = getattr(optimizer, "optimizer", None)
    inner = None if held is None or held is optimizer else _innermost(held)
    return optimizer if inner is None and isinstance(optimizer, torch.optim.Optimizer) else inner
