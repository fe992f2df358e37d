"""One step as a method sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.engine import GradientSource

Tasks = GradientSource | Sequence[str]
"""Where gradients are measured, or the names of the tasks alone."""
Log = Mapping[str, Tensor | Callable[[], Tensor]]
"""Quantities for the log by name; a function is called when the log is read."""


class Step(NamedTuple):
    """Everything that a method gets to know of one step; immutable.

    The entries of absent tasks hold harmless numbers, and the driver restores their state afterwards, so that no formula of a
    method needs a mask: a mean over the tasks present is a product with `uniform`.

    Attributes:
        losses: The unweighted losses ``(T,)``, those of the whole batch; 1 for an absent task.
        weights: The weights that the losses were weighted with ``(T,)``.
        uniform: The uniform distribution over the k tasks present ``(T,)``: 1/k for each of them, 0 for an absent task.
        mean_weight: The mean of the weights of the tasks present that makes all weights sum to T: 1 where no task is absent.
        initial_losses: ``L_i(0)``, this step included ``(T,)``.
        norms: ``norm(g_i)``, the norms of the gradients of the unweighted losses at W ``(T,)``, 1 for an absent task; None
            where this step was not measured.
        number: The number of steps before this one; 0 where losses are weighed.
        on_host: Whether values can be read without waiting for a device.
    """

    losses: Tensor
    weights: Tensor
    uniform: Tensor
    mean_weight: Tensor | float
    initial_losses: Tensor
    norms: Tensor | None
    number: int
    on_host: bool

    def mean(self, values: Tensor) -> Tensor:
        """The mean of ``values`` ``(T,)`` over the tasks present."""
        return torch.dot(values, self.uniform)

    def relative(self, values: Tensor) -> Tensor:
        """``values`` ``(T,)`` over their mean over the tasks present."""
        return values / self.mean(values)

    def training_rates(self) -> Tensor:
        r"""The relative inverse training rates ``(T,)``, :math:`r_i = \tilde L_i / \mathrm{mean}_j \tilde L_j`.

        :math:`\tilde L_i = L_i(t) / L_i(0)`; ``r_i > 1`` means that task i is slow. The mean runs over the tasks present.

        References:
            Chen et al. 2018, GradNorm, section 3.1.
        """
        return self.relative(self.losses / self.initial_losses)

    def among(self, known: Tensor) -> Step:
        """The same step among the tasks that are present and ``known`` ``(T,)``, bool: the others keep their weights."""
        return self.as_if_present(known & (self.uniform > 0))

    def as_if_present(self, tasks: Tensor) -> Step:
        """The same step as if these ``tasks`` ``(T,)``, bool, were those present."""
        here = tasks.to(self.weights.dtype)
        number = here.sum()
        kept = torch.dot(self.weights, 1 - here)
        return self._replace(uniform=here / number, mean_weight=(len(here) - kept) / number)

    def in_proportion(self, values: Tensor) -> Tensor:
        """Weights ``(T,)`` in proportion to ``values``, which are not negative, such that all weights sum to T."""
        return values * (self.mean_weight / self.mean(values))

    def softmax(self, scores: Tensor) -> Tensor:
        """The softmax of ``scores`` ``(T,)`` over the tasks present; 0 for an absent task."""
        return (scores + self.uniform.log()).softmax(0)
