"""One optimiser for all runs, each with learning rates of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.lab.networks.network import Network
from equipoise.lab.problem import Problem
from equipoise.lab.runs.optimizer import optimizer_of, schedule_of


class StackedOptimizer:
    """SGD, Adam and AdamW as `torch.optim` has them, on parameters ``(K, P)``.

    Args:
        problems: The problem of each run; they differ in the learning rate alone.
        networks: The network of each run. Where the problem scales its heads, their parameters are scaled in place.
        steps: Steps of a run.
    """

    def __init__(self, problems: Sequence[Problem], networks: Sequence[Network], steps: int) -> None:
        optimizers = [optimizer_of(problem, network) for problem, network in zip(problems, networks, strict=True)]
        rates = [_rates(optimizer, network) for optimizer, network in zip(optimizers, networks, strict=True)]
        self._rates = torch.stack(rates) if len(optimizers[0].param_groups) > 1 else torch.stack([r[:1] for r in rates])
        self._problem, self._first = problems[0], optimizers[0]
        self._schedule = schedule_of(self._problem, self._first, steps)
        self._base = problems[0].learning_rate
        self._moments: tuple[Tensor, Tensor] | None = None
        self._steps = 0

    @torch.no_grad()
    def step(self, parameters: Tensor, gradient: Tensor) -> None:
        """Change the parameters in place; so it may do with the gradient.

        Shape:
            Both are ``(K, P)``.
        """
        problem = self._problem
        rates = self._rates
        if self._schedule is not None:
            rates = rates * (self._first.param_groups[0]["lr"] / self._base)
        if problem.weight_decay and problem.optimizer == "adamw":
            parameters.mul_(1 - rates * problem.weight_decay)
        elif problem.weight_decay:
            gradient.add_(parameters, alpha=problem.weight_decay)
        if self._moments is None:
            self._moments = torch.zeros_like(parameters), torch.zeros_like(parameters)
        mean, square = self._moments
        self._steps += 1
        if problem.optimizer == "sgd":
            change = mean.mul_(problem.momentum).add_(gradient) if problem.momentum else gradient
            parameters.sub_(rates * change)
        else:
            beta, beta_square = problem.betas
            mean.lerp_(gradient, 1 - beta)
            square.mul_(beta_square).addcmul_(gradient, gradient, value=1 - beta_square)
            root = square.sqrt().div_((1 - beta_square**self._steps) ** 0.5).add_(1e-8)
            parameters.addcdiv_(mean * (rates / (beta**self._steps - 1)), root)
        if self._schedule is not None:
            self._first.step()
            self._schedule.step()


def _rates(optimizer: torch.optim.Optimizer, network: Network) -> Tensor:
    """The learning rate of every parameter ``(P,)``."""
    by_parameter = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return torch.cat([torch.full((p.numel(),), by_parameter[id(p)]) for p in network.parameters()])
