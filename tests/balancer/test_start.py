"""``start``: until then the weights stay, and from then on the method is the method begun there."""

import inspect

import pytest
import torch
from helpers.balancers import CLASSES, TASKS, build
from helpers.reference import close
from helpers.training import batches, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
WITHOUT = {"Equal", "Static", "InverseInitialLoss", "RLW", "Aggregated", "EnCodec", "GradDrop"}
"""Their weights do not adapt; RLW's are drawn, not learnt, and those that combine gradients have weights of 1."""
STARTING = [name for name, cls in CLASSES.items() if "start" in inspect.signature(cls).parameters]


def test_every_method_that_adapts_can_start_late():
    assert {cls.__name__ for cls in CLASSES.values()} - {CLASSES[name].__name__ for name in STARTING} == WITHOUT


@pytest.mark.parametrize("name", [name for name in STARTING if name != "DTP"])
def test_weights_move_from_the_start_on(name):
    network, balancer = build(name, start=4, **{"initial_weights": None} if "balanced" in name else {})
    data = list(batches(12, TASKS, units=[1.0, 3.0, 10.0]))
    before = balancer.weights.clone()
    for log in train(network, balancer, data[:4], lr=1e-3):
        close(log["weights"], before)
    close(balancer.weights, before)
    train(network, balancer, data[4:], lr=1e-3)
    assert (balancer.weights - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", STARTING)
def test_a_start_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match="start must be an integer of at least 0; found -1"):
        build(name, start=-1)


def test_what_dtp_observes_before_the_start_moves_nothing():
    network, balancer = build("DTP", start=2)
    for step, (batch, moved) in enumerate(zip(batches(4, TASKS), (False, False, True, True), strict=True)):
        balancer.observe(dict.fromkeys(TASKS, 0.2))
        assert bool((balancer.weights != 1).any()) == moved, step
        train(network, balancer, [batch])


def test_weights_are_balanced_in_the_first_step_and_move_from_the_start_on():
    network, balancer = build("GradNormClosedForm", start=3, initial_weights="balanced")
    logs = train(network, balancer, batches(5, TASKS, units=[1.0, 3.0, 10.0]), lr=1e-3)
    close(logs[0]["gradient_norms"], logs[0]["gradient_norms"].mean().expand(3))
    for log in logs[1:4]:
        assert torch.equal(log["weights"], logs[0]["weights"])
    assert (logs[4]["weights"] != logs[0]["weights"]).all()
    assert eq.GradNormClosedForm is type(balancer)
