"""Models trained in threads of one process do not disturb each other."""

import threading

import pytest
import torch
from helpers import matrix
from helpers.entry_points import ENTRY_POINTS, build, data
from helpers.lockstep import assert_same_state, ordinary

import equipoise as eq

SEEDS = (0, 1, 2)


def train(network, balancer, seed, meet):
    """Train. All threads meet before every backward pass and before every step, so that they are in them together."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    for x, y in data(20, seed=seed):
        optimizer.zero_grad()
        meet()
        ordinary(network, balancer, x, y)
        meet()
        balancer.step()
        optimizer.step()


def parts(entry_point, seed):
    """A network of its own, and a balancer with settings of its own."""
    network, source = build(entry_point, seed)
    return network, eq.GradNorm(source, every=1 + seed % 2).double()


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_threads(entry_point):
    alone, together = ([parts(entry_point, seed) for seed in SEEDS] for _ in range(2))
    for seed, (network, balancer) in zip(SEEDS, alone, strict=True):
        train(network, balancer, seed, lambda: None)
    barrier = threading.Barrier(len(SEEDS))
    threads = [
        threading.Thread(target=train, args=(*each, seed, lambda: barrier.wait(timeout=600)), daemon=True)
        for seed, each in zip(SEEDS, together, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)
        assert not thread.is_alive()
    for (network, balancer), (other_network, other_balancer) in zip(alone, together, strict=True):
        assert balancer.weights.std() > 0.05
        assert_same_state(network.state_dict(), other_network.state_dict())
        assert_same_state(balancer.state_dict(), other_balancer.state_dict())
    worst = max(matrix.deviation(b.weights, a.weights) for (_, a), (_, b) in zip(alone, together, strict=True))
    matrix.exact(entry_point, "three models in three threads", worst)
