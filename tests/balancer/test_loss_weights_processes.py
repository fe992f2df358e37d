"""Methods over two processes where labels are missing on some, or all, of them, and where the caller hands in measures."""

import pytest
import torch
from helpers import processes
from helpers.balancers import BALANCERS, COMBINES, NEEDS_ALL_TASKS, TASKS, build
from helpers.networks import mse
from helpers.reference import close
from helpers.training import batches
from torch import distributed

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

STEPS = 8
PARTLY = [name for name in BALANCERS if name not in NEEDS_ALL_TASKS]


def absent_at(step, rank):
    """Step 2: one process lacks "b"; 3: both do; 4: one lacks all; 5: nobody has a label, but where gradients are combined."""
    missing = {2: ("b", ""), 3: ("b", "b"), 4: ("", "abc"), 5: ("abc", "abc"), 6: ("ab", "c")}
    return missing.get(step, ("", ""))[rank]


def with_missing_labels(name, rank):
    """The weights after every step of this process."""
    network, balancer = build(name)
    weights = []
    for step, (x, y) in enumerate(batches(STEPS, TASKS, units=[1.0, 5.0, 30.0])):
        rows, absent = slice(rank, None, 2), absent_at(step, rank)
        if name in COMBINES and len(absent) == 3:
            absent = "ab"  # GradDrop needs a task on every process
        losses = mse(network(x[rows]), {task: v[rows] for task, v in y.items()})
        network.zero_grad()
        balancer({task: None if task in absent else loss for task, loss in losses.items()}).backward()
        for parameter in network.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            distributed.all_reduce(gradient)
            parameter.data -= 1e-3 * gradient / 2
        balancer.step()
        weights.append(balancer.weights.clone())
    return torch.stack(weights)


def observed(name, rank, world):
    """The weights of a method that is told something between its steps."""
    network, balancer = build(name)
    weights = []
    for step, (x, y) in enumerate(batches(STEPS, TASKS, units=[1.0, 5.0, 30.0])):
        rows = slice(rank, None, world)
        losses = lambda: mse(network(x[rows]), {task: v[rows] for task, v in y.items()})  # noqa: B023, E731
        network.zero_grad()
        balancer(losses()).backward()
        for parameter in network.parameters():
            if distributed.is_initialized():
                distributed.all_reduce(parameter.grad)
                parameter.grad /= world
            parameter.data -= 1e-3 * parameter.grad
        if name == "FAMO" and step % 2:
            balancer.observe(losses())
        if name == "DTP":
            shares = [1 / (2 + r + step) for r in range(2)]
            here = shares[rank] if distributed.is_initialized() else sum(shares) / 2
            balancer.observe({"a": here, "b": here / 2, "c": None if step % 3 else 0.5})
        balancer.step()
        weights.append(balancer.weights.clone())
    return torch.stack(weights)


def two(rank, world):
    processes.connect()
    missing = {name: with_missing_labels(name, rank) for name in PARTLY}
    return missing, {name: observed(name, rank, world) for name in ("FAMO", "DTP")}


def test_two_processes_are_identical():
    (first, first_observed), (second, second_observed) = processes.run(two, 2)
    for name in PARTLY:
        assert torch.equal(first[name], second[name]), name
        assert torch.isfinite(first[name]).all(), name
    for name in first_observed:
        assert torch.equal(first_observed[name], second_observed[name]), name
        close(first_observed[name], observed(name, 0, 1), msg=lambda text, name=name: f"{name}: {text}")
    assert set(first_observed) <= {type(build(name)[1]).__name__ for name in BALANCERS} <= set(eq.__all__)
