"""The paper's Algorithm 1 read literally, as it is commonly written."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from equipoise.bench.case import Case


def paper(case: Case, *, through_everything: bool, alpha: float = 1.5, lr: float = 0.025) -> Callable[[], Tensor]:
    r"""GradNorm by T calls of ``autograd.grad`` with ``create_graph=True``.

    Args:
        case: The network, its batch and its losses.
        through_everything: Whether the gradient of :math:`L_\mathrm{grad}` is taken by ``backward()``, which goes down to
            every parameter, whose gradients are then thrown away. Otherwise by ``autograd.grad`` with respect to the weights
            alone, which is all that the algorithm asks for.
        alpha: The strength of the restoring force.
        lr: The learning rate of the weights.

    Returns:
        A training step, which returns the weights ``(T,)`` that the next one uses.

    References:
        Chen et al. 2018, GradNorm, Equations 1 and 2 and Algorithm 1.
    """
    num_tasks = len(case.tasks)
    weights = torch.ones(num_tasks, device=case.inputs.device, dtype=case.measured[0].dtype, requires_grad=True)
    weights_optimizer = torch.optim.Adam([weights], lr=lr)
    initial: list[Tensor] = []

    def step() -> Tensor:
        losses = list(case.losses(case.network).values())
        values = torch.stack(losses).detach()
        if not initial:
            initial.append(values)
        weighted = [weight * loss for weight, loss in zip(weights.unbind(), losses, strict=True)]
        gradients = [torch.autograd.grad(loss, case.measured, create_graph=True) for loss in weighted]
        norms = torch.stack([torch.cat([part.flatten() for part in gradient]).norm() for gradient in gradients])
        ratios = values / initial[0]
        targets = norms.mean().detach() * (ratios / ratios.mean()) ** alpha  # Equation 1
        gradnorm_loss = (norms - targets).abs().sum()  # Equation 2
        if through_everything:
            weights.grad = None
            gradnorm_loss.backward(retain_graph=True)
            weights_gradient, weights.grad = weights.grad, None
            case.forget()
        else:
            (weights_gradient,) = torch.autograd.grad(gradnorm_loss, weights, retain_graph=True)
        torch.stack(weighted).sum().backward()
        weights.grad = weights_gradient
        weights_optimizer.step()
        case.descend()
        with torch.no_grad():
            weights.mul_(num_tasks / weights.sum())
        return weights.detach().clone()

    return step
