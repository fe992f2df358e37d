"""The floor: every entry_point, eager, one process, one batch."""

import pytest
import torch
from helpers import matrix
from helpers.entry_points import ENTRY_POINTS, build, data, losses_of, reference_norms

import equipoise as eq

SETUP = "eager"


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_eager(entry_point):
    network, source = build(entry_point)
    balancer = eq.GradNorm(source).double()
    worst = 0.0
    for x, y in data(5):
        expected = balancer.weights * reference_norms(entry_point, network, x, y)
        network.zero_grad()
        balancer(losses_of(network, x, y)).backward()
        balancer.step()
        worst = max(worst, matrix.deviation(balancer.log()["gradient_norms"], expected))
        torch.optim.SGD(network.parameters(), 1e-3).step()
    assert (balancer.weights - 1).abs().max() > 0.05
    matrix.exact(entry_point, SETUP, worst)
