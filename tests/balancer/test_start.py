"""``start``: until then the weights stay, and from then on the method is the method begun there."""

import inspect

import pytest
import torch
from helpers.reference import close
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")
NEEDED = {
    "DWA": {"epoch_steps": 1},
    "InverseGradientNorm": {"every": 1},
    "LRAnnealing": {"residual": "a"},
    "Scalarized": {"scalarizer": torch.linalg.vector_norm},
    "Uncertainty": {"kinds": "regression"},
}
WITHOUT = {"Equal", "Static", "InverseInitialLoss", "InverseTargetVariance", "RLW", "Aggregated", "EnCodec", "GradDrop"}
"""Their weights do not adapt; RLW's are drawn, not learnt, and those that combine gradients have weights of 1."""
METHODS = {
    name: cls
    for name, cls in vars(eq).items()
    if isinstance(cls, type) and issubclass(cls, eq.Balancer) and "start" in inspect.signature(cls).parameters
}
del METHODS["Balancer"]


def test_every_method_that_adapts_can_start_late():
    public = {n for n, c in vars(eq).items() if isinstance(c, type) and issubclass(c, eq.Balancer)} - {"Balancer"}
    assert public - METHODS.keys() == WITHOUT


@pytest.mark.parametrize("name", [name for name in METHODS if name != "DTP"])
def test_weights_move_from_the_start_on(name):
    settings = NEEDED.get(name, {})
    network, balancer = network_and(METHODS[name], TASKS, start=4, **settings)
    data = list(batches(12, TASKS, units=[1.0, 3.0, 10.0]))
    before = balancer.weights.clone()
    for log in train(network, balancer, data[:4], lr=1e-3):
        close(log["weights"], before)
    close(balancer.weights, before)
    train(network, balancer, data[4:], lr=1e-3)
    assert (balancer.weights - before).abs().max() > 1e-3
    with pytest.raises(ValueError, match="start must be an integer of at least 0; found -1"):
        network_and(METHODS[name], TASKS, start=-1, **settings)


def test_what_dtp_observes_before_the_start_moves_nothing():
    network, balancer = network_and(eq.DTP, TASKS, start=2)
    for step, (batch, moved) in enumerate(zip(batches(4, TASKS), (False, False, True, True), strict=True)):
        balancer.observe(dict.fromkeys(TASKS, 0.2))
        assert bool((balancer.weights != 1).any()) == moved, step
        train(network, balancer, [batch])
