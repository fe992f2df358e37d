"""Methods that combine the task gradients inside the fork."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from equipoise.arguments import ByTask, described
from equipoise.balancer import Balancer, Log, Step
from equipoise.balancer.rng import generator
from equipoise.combine.combination import Combination, FeatureGradients
from equipoise.engine import Fork
from equipoise.engine.probe import Probe


class CombiningBalancer(Balancer, ABC):
    """The second kind of balancer: not weights on the losses, but another combination of their gradients at the fork.

    The weights of the losses are 1 and stay so: the total is the plain sum, and every head gets the gradient of its own
    plain loss. At the fork, in the same backward pass, the task gradients go on into the trunk combined as the method
    says; those of ``Fork(..., others=...)`` are added as they are. Each micro-batch is combined by itself.

    Over several processes the method combines the whole batch's gradients. They exchange numbers in the backward pass,
    so each must run as many as the others, one without labels with ``None`` for every task.

    Args:
        fork: Where the network splits into tasks: a `Fork`; else a TypeError.
        columns: The quantities that the method records of every task, by their names in the log, the gradient norm
            first.
        at_layer: Whether the method asks for the gradients at W.
    """

    _combination: Combination

    def __init__(self, fork: Fork, *, columns: tuple[str, ...] = ("gradient_norms",), at_layer: bool = False) -> None:
        if not isinstance(fork, Fork):
            raise TypeError(
                f"{type(self).__name__} needs a Fork, where all gradients arrive in one place; found {described(fork)}"
            )
        super().__init__(fork)
        self._columns, self._at_layer = columns, at_layer
        self._means: tuple[Tensor, ...] = ()
        parameter = next(fork.parameters(), None)
        if parameter is not None:
            self._make_state(torch.promote_types(parameter.dtype.to_real(), torch.float32), parameter.device)
        fork.owner = self._token

    def forward(self, losses: Mapping[str, Tensor | None] | Tensor, label_fractions: ByTask | None = None) -> Tensor:
        """The total loss, the plain sum of ``losses``. See `Balancer.forward`."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"{type(self).__name__} combines gradients in the backward pass, which a compiled function does not have: "
                "compile the model, and call the balancer outside of the compiled function"
            )
        total = super().forward(losses, label_fractions)
        combination, fork = self._combination, self._combination.fork
        if not (total.requires_grad and torch.is_grad_enabled() and self.training and fork.training):
            fork.forget_aliases()
            return total
        if fork.owner is not self._token:
            raise RuntimeError(
                f"{type(self).__name__}: another balancer was made from this fork later; a fork serves one balancer that "
                "combines or measures"
            )
        combination.collective.open(self._processes)
        total = combination.watch(total, self._now.present or (True,) * len(self.tasks))
        if combination.auditing:
            each = dict(zip(self.tasks, losses.unbind(), strict=True)) if isinstance(losses, Tensor) else losses
            new = {task: loss for task, loss in each.items() if loss is not None and task not in self._first.audited}
            try:
                combination.audit(self._first, new)
            finally:
                fork.forget_aliases()
            combination.auditing = self._first.pending(self.tasks)
        return total

    @torch.no_grad()
    def step(self, *, skip: bool = False) -> None:
        """End the step. See `Balancer.step`; a RuntimeError where no task gradients were combined since the last one."""
        record = self._combination.probe.numbers
        if record is None:
            raise RuntimeError(
                "no task gradients were combined since the last step: balancer.step() comes after backward() on the balancer's "
                "total loss, from a forward pass through the fork in training mode"
            )
        seen, *columns = record.detach().unbind(1)
        here = seen != 0
        self._means = tuple(torch.where(here, column / torch.where(here, seen, 1.0), 0.0) for column in columns)
        self._log |= {name: (mean, here) for name, mean in zip(self._columns, self._means, strict=True)}
        super().step(skip=skip)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the backward passes since the last step. See `Balancer.zero_grad`."""
        super().zero_grad(set_to_none)
        self._combination.clear()

    @abstractmethod
    def combine(self, arrived: FeatureGradients, rows: list[int]) -> tuple[Sequence[Tensor], Tensor]:
        """The method, for the tasks ``rows``, those present on any process. Writes to no buffer of its own.

        Returns:
            The gradient that goes on into the trunk at each of the features, for the samples that are here; and the
            record of each of these tasks, ``(len(rows), columns)``, the gradient norm first: the same on every process.
        """

    def update(self, step: Step, state: Any) -> tuple[Tensor, Any, Log]:
        """The weights stay; a norm that is not finite becomes one, by which the driver knows a step to skip."""
        norms = self._means[0].to(step.weights)
        return torch.where(norms.isfinite(), step.weights, norms), state, {}

    def _generator(self, seed: int) -> torch.Generator:
        """The random numbers of the backward pass at hand: the same on every process."""
        return generator(seed, self._now.steps, self._combination.passes)

    def _place(self) -> None:
        """Put the constants and the probes where the weights are, and have the fork combine, if it is this balancer's."""
        super()._place()
        probe = Probe((len(self.tasks), 1 + len(self._columns)), self.weights.dtype, self.weights.device)
        fork = cast(Fork, self._source)
        self._combination = Combination(fork, self._token, self.combine, probe, at_layer=self._at_layer)
        if fork.owner is self._token:
            fork.combine(self._combination)

    def __getstate__(self) -> dict[str, Any]:
        """The record belongs to the step at hand, and does not travel."""
        return {**super().__getstate__(), "_combination": None, "_means": ()}
