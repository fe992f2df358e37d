"""The loop that every user writes."""

from __future__ import annotations

import torch

from helpers.networks import MLP, mse, targets_of


def batches(steps, tasks, size=16, units=None, seed=1):
    """Fresh batches of a regression, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(size, 6, generator=generator, dtype=torch.get_default_dtype())
        yield x, targets_of(x, tasks, units)


def train(network, balancer, data, lr=0.05, optimizer=None, scale=1.0):
    """Train; return the log of every step."""
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr)
    logs = []
    for x, y in data:
        optimizer.zero_grad()
        (scale * balancer(mse(network(x), y))).backward()
        for parameter in network.parameters():
            parameter.grad /= scale
        optimizer.step()
        balancer.step()
        logs.append(balancer.log())
    return logs


def network_and(build, tasks=("a", "b", "c"), seed=0, **kwargs):
    """A network from a seed, and its balancer."""
    torch.manual_seed(seed)
    network = MLP(tasks)
    return network, build(network.fork, **kwargs)
