"""The weights of all runs, by the methods' own rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.balancer import Balancer, Step
from equipoise.balancer.first_step import check_first_loss
from equipoise.balancer.state import initial_losses_after
from equipoise.lab.runs.single_task import SingleTask
from equipoise.methods import GradNorm


class StackedBalancers:
    """The balancers of some runs that differ in nothing but their weights at the start.

    Args:
        balancers: One for each run; they are read, and the first gives the rule.

    Attributes:
        weights: The weights of the next step ``(K, T)``.
        skipped: How many steps changed nothing because something was not finite ``(K,)``.
        needs_norms: Whether the rule asks for gradient norms.
        balances: Whether `balance` comes before the first step.
        rates: The training rates of the last step ``(K, T)``.
        targets: The norms that the rule aimed at in the last step ``(K, T)``; None for a rule without.
    """

    def __init__(self, balancers: Sequence[Balancer]) -> None:
        self._balancers, self._rule = balancers, balancers[0]
        self.needs_norms, self.balances = self._rule.needs_norms, self._rule._first.balances
        self.weights, self._state = self._start()
        number, tasks = self.weights.shape
        self._uniform = torch.full((tasks,), 1 / tasks)
        self._initial = torch.stack([balancer.initial_losses for balancer in balancers])
        self._seen = torch.stack([balancer.initial_seen for balancer in balancers])
        self.skipped = torch.zeros(number, dtype=torch.int64)
        self.targets: Tensor | None = None
        self.rates = torch.ones(number, tasks)
        self._aims = False
        self._steps = 0

    def balance(self, norms: Tensor) -> None:
        """Weights in inverse proportion to the norms of the first batch ``(K, T)``."""
        for balancer, own in zip(self._balancers, norms, strict=True):
            inverse = torch.ones_like(own) * balancer.priors / own
            balancer._set_state(*balancer.init_state(inverse * (len(own) / inverse.sum())))
        self.weights, self._state = self._start()

    def weigh(self, losses: Tensor) -> Tensor:
        """The weights of this step ``(K, T)``, whose losses these are ``(K, T)``."""
        if self._steps == 0:
            for balancer, own in zip(self._balancers, losses.tolist(), strict=True):
                for task, loss in zip(balancer.tasks, own, strict=True):
                    check_first_loss(balancer, task, loss)
        if isinstance(self._rule, SingleTask):
            return torch.stack([_alone(balancer) for balancer in self._balancers])
        if not self._rule.weighs:
            return self.weights
        found: Tensor = torch.vmap(self._weighed)(losses, self.weights, self._initial_with(losses), self._state)
        return found

    def step(self, losses: Tensor, weights: Tensor, norms: Tensor | None) -> None:
        """Move the weights, in those runs where all is finite.

        Args:
            losses: The unweighted losses ``(K, T)``.
            weights: The weights that they were weighted with ``(K, T)``.
            norms: The norms of the gradients of the unweighted losses ``(K, T)``, if the rule asks for them.
        """
        initial = self._initial_with(losses)
        number = self._steps
        self._steps += 1

        def moved(*given: Any) -> Any:
            losses, weights, initial, norms, state = given
            step = Step(losses, weights, self._uniform, 1.0, initial, norms, number, False)
            weights, state, log = self._rule.update(step, state)
            self._aims = "targets" in log
            shown = [log.get(name, losses) for name in ("targets", "training_rates")]
            if "training_rates" not in log:
                shown[1] = step.training_rates()
            return weights, state, [value() if callable(value) else value for value in shown]

        rows = (0, 0, 0, None if norms is None else 0, 0)
        new, state, (targets, self.rates) = torch.vmap(moved, in_dims=rows)(
            losses, weights, initial, norms, self._state
        )
        needed = [losses, new, *(value for value in state if value.is_floating_point())]
        needed += [] if norms is None else [norms]
        usable = torch.stack([value.reshape(len(value), -1).isfinite().all(1) for value in needed]).all(0)
        self.skipped += ~usable
        self.weights = _where(usable, new, self.weights)
        self._state = type(state)(*(_where(usable, a, b) for a, b in zip(state, self._state, strict=True)))
        self._initial = _where(usable, initial, self._initial)
        self._seen = _where(usable, self._seen + 1, self._seen)
        self.targets = targets if self._aims else None

    def observe(self, losses: Tensor) -> None:
        """Take the training rates from these losses ``(K, T)`` from now on; those that are not finite change nothing."""
        first, last = self._state.observed_first, self._state.observed_last
        given = losses.isfinite()
        first = torch.where(given & (first == 0), losses, first)
        self._state = self._state._replace(observed_first=first, observed_last=torch.where(given, losses, last))
        assert isinstance(self._rule, GradNorm)
        self._rule._observing = True

    def hits(self, name: str) -> Tensor | None:
        """At how many steps each weight was held at the floor or the cap ``(K, T)``; None for a rule without."""
        return getattr(self._state, name, None)

    def _start(self) -> tuple[Tensor, Any]:
        """The weights and the state of all balancers."""
        states = [balancer.state for balancer in self._balancers]
        state = type(states[0])(*map(torch.stack, zip(*states, strict=True)))
        return torch.stack([balancer.weights for balancer in self._balancers]), state

    def _initial_with(self, losses: Tensor) -> Tensor:
        return initial_losses_after(self._initial, self._seen, losses, self._rule._initial_steps)

    def _weighed(self, losses: Tensor, weights: Tensor, initial: Tensor, state: Any) -> Tensor:
        return self._rule.weigh(Step(losses, weights, self._uniform, 1.0, initial, None, 0, False), state)


def _alone(balancer: Balancer) -> Tensor:
    assert isinstance(balancer, SingleTask)
    return torch.tensor([float(task == balancer._task) for task in balancer.tasks])


def _where(usable: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(usable.view(-1, *[1] * (new.dim() - 1)), new, old)
