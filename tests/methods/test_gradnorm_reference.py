"""GradNorm against the paper's Algorithm 1, word for word."""

import copy

import pytest
import torch
from helpers.networks import LAYERS, ForkedNetwork
from helpers.reference import Algorithm1, close

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

QUICK = ("linear", "linear on sequences", "conv1d plain", "conv2d all at once")
"""One layer of each rule; the norms of all of them are tested step by step in tests/engine/test_fork.py."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in LAYERS]
)
@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_norms_weights_and_network_are_those_of_algorithm_1(name, alpha):
    layer, shape = LAYERS[name]
    ours = ForkedNetwork(layer())
    theirs = copy.deepcopy(ours)
    reference = Algorithm1(
        theirs, theirs.fork.shared_layer.weight, 3, alpha, 0.025, torch.optim.SGD(theirs.parameters(), 0.05)
    )
    balancer = eq.GradNorm(ours.fork, alpha=alpha)
    optimizer = torch.optim.SGD(ours.parameters(), 0.05)
    batches = torch.randn(25, *shape)
    for x in batches:
        optimizer.zero_grad()
        balancer(ours.losses(x)).backward()
        optimizer.step()
        balancer.step()
        norms, targets, rates = reference.step(lambda network, x=x: list(network.losses(x).values()))
        log = balancer.log()
        close(log["gradient_norms"], norms)
        close(log["targets"], targets)
        close(log["training_rates"], rates)
        close(balancer.weights, reference.w.detach())
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(mine.detach(), other.detach())
    assert (balancer.weights - 1).abs().max() > 0.1, "the weights have hardly moved: the comparison says nothing"
