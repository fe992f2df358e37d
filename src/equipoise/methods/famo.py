"""Fast adaptive multitask optimization (Liu, Feng, Stone and Liu 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import final

import torch
from torch import Tensor

from equipoise.balancers._adam import Moments, adam, check_adam
from equipoise.balancers._balancer import Step
from equipoise.balancers._current_losses import CurrentLossBalancer
from equipoise.balancers._given import losses_by_task, stacked
from equipoise.balancers._over_processes import over_processes
from equipoise.balancers._shares import in_proportion, softmax
from equipoise.engine import Source


def famo_shares(losses: Tensor, logits: Tensor, present: Tensor) -> Tensor:
    r""":math:`c\,z_i / L_i` with :math:`z = \mathrm{softmax}(\xi)`: the gradient of :math:`c \sum_i z_i \log L_i`.

    Up to c, which gives the shares their sum.
    """
    return softmax(logits, present) / losses


def famo_gradient(logits: Tensor, fall: Tensor, present: Tensor) -> Tensor:
    r""":math:`(\partial z / \partial \xi)^\top \delta`, with the fall of the log losses :math:`\delta`."""
    z = softmax(logits, present)
    return z * (fall - (z * torch.where(present, fall, 0.0)).sum())


@final
class FAMO(CurrentLossBalancer):
    r"""Weights that make all losses fall at the same relative rate, without task gradients.

    .. math:: w_i = T \frac{z_i / L_i}{\sum_j z_j / L_j}, \qquad z = \mathrm{softmax}(\xi), \qquad
        \xi \leftarrow \xi - \mathrm{lr}\left( \Big(\frac{\partial z}{\partial \xi}\Big)^{\!\top} \delta + \gamma \xi \right),
        \qquad \delta_i = \log L_i(t) - \log L_i(t + 1)

    where Adam takes the step. A task whose loss has just fallen by more than the others' loses weight.

    The losses :math:`L(t + 1)` are those after the network's step. The paper computes them on the same batch, with a second
    forward pass: hand them in with `observe` to have that. Without, the losses of the next batch take their place, which
    costs nothing, carries the noise of the batches, and moves the weights one step later.

    When to use:
        Many tasks, where gradients of each would cost too much, and all shall come down at the same relative rate.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        lr: Adam's learning rate for the logits.
        gamma: The decay of the logits towards equal weights.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the weights begin to move.

    Raises:
        ValueError: ``lr`` is not positive and finite, or ``gamma`` negative or not finite; or a loss is not positive, and the
            message names the task. On an accelerator only a task's first loss is looked at, and later such a step is skipped
            and counted.

    Differs from the paper:
        The weights sum to T instead of 1, which keeps the network's effective learning rate that of equal weights. Every
        loss has its minimum at 0 (the code lets it be given), and no small constant is added to it. The code clips the
        gradient of the shared parameters to norm 1; that is left to the loop. A task that was absent is compared with its
        last loss. The default of gamma is that of the authors' package; their experiments use 0 to 0.01.

    Example:
        >>> import torch
        >>> balancer = FAMO(("a", "b"))
        >>> balancer({"a": torch.tensor(1.0, requires_grad=True), "b": torch.tensor(3.0)}).backward()
        >>> balancer.observe({"a": torch.tensor(0.5), "b": torch.tensor(3.0)})
        >>> balancer.step()
        >>> balancer.weights
        tensor([1.5000, 0.5000])
        >>> balancer.logits
        tensor([-0.0250,  0.0250])

    References:
        Liu, Feng, Stone, Liu 2023, FAMO: Fast adaptive multitask optimization, algorithm 1, and the authors' ``famo.py``.
    """

    logits: Tensor
    last_logs: Tensor
    comparable: Tensor

    def __init__(
        self,
        tasks: Source | Sequence[str],
        *,
        lr: float = 0.025,
        gamma: float = 0.01,
        every: int | None = None,
        start: int = 0,
    ) -> None:
        super().__init__(tasks, every=every, start=start)
        check_adam(lr)
        if not (gamma >= 0 and isfinite(gamma)):
            raise ValueError(f"gamma must be at least 0 and finite; found {gamma}")
        self._lr, self._gamma = lr, gamma
        self._observed: tuple[Tensor, Tensor] | None = None
        for name in ("logits", "last_logs"):
            self.register_buffer(name, torch.zeros_like(self.weights))
        self.register_buffer("comparable", torch.zeros_like(self.weights, dtype=torch.bool))
        Moments.register(self, self.weights)

    @torch.no_grad()
    def observe(self, losses: Mapping[str, Tensor | None]) -> None:
        """Hand in the losses of the step's batch after the network's step, before `step`.

        Args:
            losses: The unweighted loss of every task by name, as in ``balancer(losses)``. No gradient of them is needed.

        Raises:
            TypeError: A loss is not a tensor.
            ValueError: A task is unknown or missing, or a loss is not a scalar or lies on another device than the weights.
        """
        given = losses_by_task(losses, self.tasks, self.weights.device)
        values = stacked(given, self.weights)
        present = torch.tensor([loss is not None for loss in given.values()], device=values.device)
        self._observed = over_processes(self._processes, values.detach(), present)

    def step(self, *, skip: bool = False) -> None:
        """Move the weights. See `Balancer.step`."""
        super().step(skip=skip)
        self._observed = None

    def _weights_of(self, losses: Tensor, present: Tensor) -> Tensor:
        return in_proportion(famo_shares(losses, self.logits, present), present, self.weights)

    def _usable(self, step: Step) -> Tensor:
        usable = super()._usable(step)
        if self._observed is not None:
            losses, present = self._observed
            usable = usable & ((torch.isfinite(losses) & (losses > 0)) | ~present).all()
        return usable

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        state, log = super()._update(step)
        logs = step.losses.log()
        if self._observed is None:
            fall, compared, comparable = self.last_logs - logs, step.present & self.comparable, step.present
        else:
            after, present = self._observed
            fall, compared = logs - after.log(), step.present & present
            comparable = step.present & ~present
        change, moments = adam(
            famo_gradient(self.logits, fall, compared) + self._gamma * self.logits,
            Moments.of(self),
            compared,
            lr=self._lr,
        )
        state |= {
            "logits": self.logits + change,
            "last_logs": torch.where(step.present, logs, self.last_logs),
            "comparable": torch.where(step.present, comparable, self.comparable),
            **moments.state(),
        }
        return state, log
