"""Fast adaptive multitask optimization (Liu, Feng, Stone and Liu 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor

from equipoise.arguments import number
from equipoise.balancer import Balancer, Log, Step, Tasks
from equipoise.balancer.losses import parse
from equipoise.methods.adam import adam


class State(NamedTuple):
    r"""The logits :math:`\xi`, Adam's moments, and the losses that the next ones are compared with or 0; each ``(T,)``."""

    logits: Tensor
    adam_mean: Tensor
    adam_square: Tensor
    adam_count: Tensor
    last_losses: Tensor


@final
class FAMO(Balancer):
    r"""Weights that make all losses fall at the same relative rate, without task gradients.

    .. math:: w_i = T \frac{z_i / L_i}{\sum_j z_j / L_j}, \qquad z = \mathrm{softmax}(\xi), \qquad
        \xi \leftarrow \xi - \mathrm{lr}\left( \Big(\frac{\partial z}{\partial \xi}\Big)^{\!\top} \delta + \gamma \xi
        \right), \qquad \delta_i = \log L_i(t) - \log L_i(t + 1)

    where Adam takes the step. A task whose loss has just fallen by more than the others' loses weight.

    The losses :math:`L(t + 1)` are those after the network's step, in the paper on the same batch: hand them in with
    `observe`. Without, those of the next batch take their place: free, noisier, and the weights move one step later.

    When to use:
        Many tasks, where a gradient of each would cost too much, and all losses should fall at the same relative rate.

    Args:
        lr: Adam's learning rate for the logits.
        gamma: The decay of the logits towards equal weights.
        tasks, every, start, accumulate: See `Balancer`; each micro-batch is weighted by its own losses.

    Raises:
        ValueError: ``lr``, ``gamma`` or a loss is out of its range; see `GLS`.

    Differs from the paper:
        The weights sum to T instead of 1. Every loss has its minimum at 0 (the code lets it be given). The code clips
        the gradient of the shared parameters to norm 1; that is left to the loop. A task that was absent is compared
        with its last loss. The default of gamma is that of the authors' package; their experiments use 0 to 0.01.

    Example:
        >>> balancer = FAMO(("a", "b"))
        >>> balancer(torch.tensor([1.0, 3.0], requires_grad=True)).backward()
        >>> balancer.observe({"a": torch.tensor(0.5), "b": torch.tensor(3.0)})
        >>> balancer.step()
        >>> balancer.weights
        tensor([1.5000, 0.5000])
        >>> balancer.logits
        tensor([-0.0250,  0.0250])

    References:
        Liu, Feng, Stone, Liu 2023, FAMO: Fast adaptive multitask optimization, algorithm 1, and ``famo.py``.
    """

    state_type = State
    positive_losses = weighs = True
    logits: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        lr: float = 0.025,
        gamma: float = 0.01,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
    ) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate)
        self._lr, self._gamma = number("lr", lr, "(0, inf)"), number("gamma", gamma, "[0, inf)")
        self._observed: tuple[int, Tensor, Tensor] | None = None
        self.reset_parameters()

    @torch.no_grad()
    def observe(self, losses: Mapping[str, Tensor | None] | Tensor) -> None:
        """Hand in the losses of the step's batch after the network's step, before `step`.

        Over several processes, every process must call it; their losses are averaged.

        Args:
            losses: The unweighted losses, as in ``balancer(losses)``. No gradient of them is needed.

        Raises:
            TypeError, ValueError: As for ``balancer(losses)``.
            RuntimeError: There was no backward pass since the last step.
        """
        given = parse(losses, self.tasks, self.weights)
        if not self._now.passes and self._processes.number == 1:
            raise RuntimeError("FAMO.observe comes after backward() and before balancer.step(); found no backward pass")
        values, here = given.values.detach().to(self.weights.dtype), self._mask(given.present)[0]
        self._observed = self._now.steps, *self._processes.mean_where(values, here)

    def weigh(self, step: Step, state: State) -> Tensor:
        r"""In proportion to :math:`z_i / L_i`, the gradient of :math:`\sum_i z_i \log L_i`."""
        return step.in_proportion(step.softmax(state.logits) / step.losses)

    def update(self, step: Step, state: State) -> tuple[Tensor, State, Log]:
        """One step of Adam on the logits of the tasks whose loss has one to be compared with (Algorithm 1)."""
        if self._observed is not None and self._observed[0] == step.number:
            _, after, known = self._observed
            before, after = step.losses, torch.where(known, after, step.losses)
            last_losses = torch.where(known, 0.0, step.losses)  # no fall is counted twice
        else:
            known = state.last_losses > 0
            before, after = torch.where(known, state.last_losses, step.losses), step.losses
            last_losses = step.losses
        fall, z = before.log() - after.log(), step.among(known).softmax(state.logits)
        gradient = z * (fall - torch.dot(z, fall))
        change, moved = adam(gradient + self._gamma * state.logits, state, lr=self._lr)
        moved = moved._replace(logits=state.logits + change)
        kept = State(*(torch.where(known, new, old) for new, old in zip(moved, state, strict=True)))
        return step.weights, kept._replace(last_losses=last_losses), {}
