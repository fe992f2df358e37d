"""Evaluation between the steps: it costs nothing, and leaves no trace in the measurement."""

import copy

import pytest
import torch
from helpers import matrix
from helpers.entry_points import ENTRY_POINTS, build, data, losses_of
from helpers.lockstep import assert_same_state, largest_deviation, ordinary

import equipoise as eq


def under_no_grad(network, balancer, x, y):
    """A validation step in training mode."""
    with torch.no_grad():
        return balancer(losses_of(network, x, y))


def under_inference_mode(network, balancer, x, y):
    """A validation step whose tensors no graph will ever hold."""
    with torch.inference_mode():
        return balancer(losses_of(network, x, y))


def in_eval(network, balancer, x, y):
    """The model is in eval(), and gradients are taken all the same (a saliency map)."""
    network.eval()
    total = balancer(losses_of(network, x, y))
    gradients = [p.grad for p in network.parameters()]
    total.backward()
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.grad = gradient
    network.train()
    return total


MODES = {"no_grad": under_no_grad, "inference_mode": under_inference_mode, "eval()": in_eval}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("mode", MODES)
def test_between_the_steps(entry_point, mode):
    """Before the forward pass, and between backward and step."""

    def backward(network, balancer, x, y):
        MODES[mode](network, balancer, 3 * x, y)
        ordinary(network, balancer, x, y)
        saved = [p.grad.clone() for p in network.parameters()]
        MODES[mode](network, balancer, 2 * x, y)
        for parameter, gradient in zip(network.parameters(), saved, strict=True):
            parameter.grad = gradient

    matrix.exact(entry_point, f"evaluation under {mode}", largest_deviation(entry_point, data(8), backward))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("mode", MODES)
def test_no_state_changes(entry_point, mode):
    network, source = build(entry_point)
    balancer = eq.GradNorm(source).double()
    before = copy.deepcopy([balancer.state_dict(), network.state_dict()])
    for x, y in data(2):
        total = MODES[mode](network, balancer, x, y)
        torch.testing.assert_close(total, sum(losses_of(network, x, y).values()))
    assert_same_state(before[0], balancer.state_dict())
    assert_same_state(before[1], network.state_dict())
    with pytest.raises(RuntimeError, match=r"in training mode; found no backward pass"):
        balancer.step()


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_no_cost(entry_point):
    """The graph of a pass in eval(), and of a pass that is not measured, is that of a model without a balancer."""
    (x, y) = next(data(1))
    alone, _ = build(entry_point)
    wanted = nodes(losses_of(alone, x, y))
    network, source = build(entry_point)
    balancer = eq.GradNorm(source, every=2).double()
    ordinary(network, balancer, x, y)
    assert ("ForkNodeBackward" in nodes(losses_of(network, x, y))) == (entry_point != "PerLoss")
    network.eval()
    assert nodes(losses_of(network, x, y)) == wanted
    network.train()
    balancer.step()
    assert nodes(losses_of(network, x, y)) == wanted
    total = balancer(losses_of(network, x, y))
    assert "ForkNodeBackward" not in nodes({"total": total})


def nodes(losses):
    """The names of all nodes of the graph, in order."""
    stack, seen = [loss.grad_fn for loss in losses.values()], {}
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen[node] = node.name()
            stack.extend(below for below, _ in node.next_functions)
    return sorted(seen.values())


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_a_balancer_in_eval_is_a_weighted_sum(entry_point):
    network, source = build(entry_point)
    balancer = eq.GradNorm(source).double()
    x, y = next(data(1))
    balancer.eval()
    total = balancer(losses_of(network, x, y))
    torch.testing.assert_close(total, sum(losses_of(network, x, y).values()))
    total.backward()
    assert balancer.initial_losses.isnan().all()
    balancer.train()
    balancer.zero_grad()
    ordinary(network, balancer, x, y)
    balancer.step()
    assert balancer.initial_losses.isfinite().all()
