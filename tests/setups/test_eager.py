"""The floor: every door, eager, one process, one batch."""

import matrix
import pytest
import torch
from doors import DOORS, build, data, losses_of, reference_norms

import equipoise as eq

SETUP = "eager"


@pytest.mark.parametrize("door", DOORS)
def test_eager(door):
    network, source = build(door)
    balancer = eq.GradNorm(source).double()
    worst = 0.0
    for x, y in data(5):
        expected = balancer.weights * reference_norms(door, network, x, y)
        network.zero_grad()
        balancer(losses_of(network, x, y)).backward()
        balancer.step()
        worst = max(worst, matrix.deviation(balancer.log()["gradient_norms"], expected))
        torch.optim.SGD(network.parameters(), 1e-3).step()
    assert (balancer.weights - 1).abs().max() > 0.05
    matrix.exact(door, SETUP, worst)
