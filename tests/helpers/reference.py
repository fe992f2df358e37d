"""Slow, obvious, independent: the paper's Algorithm 1 word for word, and gradients by one call of autograd per task."""

from __future__ import annotations

import torch

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
"""The one tolerance, for float64."""


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **(TOLERANCE | tolerance))


class Algorithm1:
    """GradNorm as the paper prints it: T second-order calls, a learned leaf ``w``, an ordinary Adam for it.

    ``W`` is a parameter or a list of them; ``losses_of`` builds the unweighted losses of a batch from the network. Nothing here
    is shared with the library.
    """

    def __init__(self, network, W, num_tasks, alpha, lr, optimizer):
        self.network, self.alpha, self.optimizer = network, alpha, optimizer
        self.W = [W] if isinstance(W, torch.Tensor) else W
        self.w = torch.ones(num_tasks, dtype=self.W[0].dtype, requires_grad=True)
        self.lr, self.w_optimizer, self.L0 = lr, None, None

    def step(self, losses_of):
        T = len(self.w)
        L = losses_of(self.network)
        if self.L0 is None:
            self.L0 = [loss.item() for loss in L]
        total = sum(self.w[i] * L[i] for i in range(T))
        g = [torch.autograd.grad(self.w[i] * L[i], self.W, create_graph=True) for i in range(T)]
        G = [torch.cat([part.flatten() for part in g[i]]).norm() for i in range(T)]
        if self.w_optimizer is None:  # Adam's epsilon, in the unit of the gradients that it meets
            unit = sum(G[i].item() / self.w[i].item() for i in range(T)) / T
            self.w_optimizer = torch.optim.Adam([self.w], lr=self.lr, eps=1e-8 * unit)
        ratios = [L[i].item() / self.L0[i] for i in range(T)]
        r = [ratio / (sum(ratios) / T) for ratio in ratios]
        G_mean = sum(G) / T
        targets = [(G_mean * r[i] ** self.alpha).detach() for i in range(T)]
        L_grad = sum((G[i] - targets[i]).abs() for i in range(T))
        (w_gradient,) = torch.autograd.grad(L_grad, self.w, retain_graph=True)
        self.optimizer.zero_grad()
        total.backward(inputs=list(self.network.parameters()))
        self.w.grad = w_gradient
        self.w_optimizer.step()
        self.optimizer.step()
        with torch.no_grad():
            self.w *= T / self.w.sum()
        return torch.stack([g.detach() for g in G]), torch.stack(targets), torch.tensor(r, dtype=self.W[0].dtype)


def task_gradients(losses, parameter):
    """One call per task, the graph retained each time."""
    return torch.stack([torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses])
