"""The settings that GradNorm and its variants share, and the rates that they compare."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from equipoise.arguments import ByTask, number, numbers_by_task, observed_by_task
from equipoise.balancer import Balancer, Step
from equipoise.engine import GradientSource


class GradNormFamily(Balancer, ABC):
    r"""A rule that brings the norms :math:`w_i \lVert g_i \rVert` into the ratios of :math:`p_i r_i^\alpha`.

    Its state has the fields ``observed_first`` and ``observed_last``, those handed to `observe`. For the arguments see
    `GradNorm`.
    """

    needs_norms: ClassVar[bool] = True
    observed_first: Tensor
    observed_last: Tensor

    def __init__(
        self,
        fork: GradientSource,
        alpha: float,
        priors: ByTask | None,
        every: int,
        start: int,
        accumulate: bool,
        initial_losses: ByTask | None,
        initial_steps: int,
        initial_weights: ByTask | str | None,
    ) -> None:
        super().__init__(
            fork,
            every=every,
            start=start,
            accumulate=accumulate,
            initial_losses=initial_losses,
            initial_steps=initial_steps,
            initial_weights=initial_weights,
        )
        self.alpha = number("alpha", alpha, "[0, inf)")
        self._priors = None if priors is None else numbers_by_task("priors", priors, self.tasks)
        self._observing = False
        self.divides_by_initial = self.compares_losses = self.alpha > 0

    @property
    def priors(self) -> Tensor | float:
        """How important each task is ``(T,)``, with a mean of 1; 1 where none is given."""
        if self._priors is None:
            return 1.0
        given = torch.tensor(self._priors, dtype=self.weights.dtype)
        return (given / given.mean()).to(self.weights.device, non_blocking=True)

    @torch.no_grad()
    def observe(self, losses: Mapping[str, float | Tensor | None]) -> None:
        r"""Take the training rates from these losses, say those of a validation set, until the next call.

        From then on :math:`\tilde L_i` is the last loss observed over the first, in place of :math:`L_i(t) / L_i(0)`: a
        task that overfits is one that does not learn. The first call sets all ratios to 1: call it before training for
        ratios that count from there. Every process must call it; their losses are averaged.

        Args:
            losses: The loss of every task by name. ``None``: not observed this time; a task never observed keeps its
                own.

        Raises:
            TypeError, ValueError: A task is unknown or missing; a loss is no number, negative, or the first and zero.
        """
        values = observed_by_task("observe: losses", losses, self.tasks, "[0, inf)")
        for task, value, first in zip(self.tasks, values, self.observed_first.tolist(), strict=True):
            if value == first == 0:
                raise ValueError(
                    f"observe: losses: task {task!r}: its first loss must be positive, to be divided by; found 0"
                )
        here = torch.tensor([value is not None for value in values], device=self.weights.device)
        last, given = self._processes.mean_where(self.weights.new_tensor([value or 0.0 for value in values]), here)
        self.observed_first.copy_(torch.where(given & (self.observed_first == 0), last, self.observed_first))
        self.observed_last.copy_(torch.where(given, last, self.observed_last))
        self._observing = True

    def ratios(self, step: Step, state: Any) -> Tensor:
        r""":math:`\tilde L_i` ``(T,)``: of the training losses, or of those observed."""
        ratios = step.losses / step.initial_losses
        if not self._observing:
            return ratios
        first, last = state.observed_first, state.observed_last
        observed = first > 0
        return torch.where(observed, last / torch.where(observed, first, 1.0), ratios)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        super().set_extra_state(state)
        self._observing = bool((self.observed_first > 0).any())
