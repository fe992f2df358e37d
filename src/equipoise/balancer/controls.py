"""The switches of a balancer, which its user and its trainer set between two steps."""

from __future__ import annotations

from typing import Any

from equipoise.arguments import flag
from equipoise.balancer.driver import Driver
from equipoise.balancer.step_after import step_after
from equipoise.engine.processes import Processes


class Controls(Driver):
    """The part of a balancer that is set between two steps."""

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
        return step_after(self._method, optimizer)

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
