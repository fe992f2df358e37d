"""A head that reads the wrong alias, or bypasses the fork, is detected by name."""

import pytest
import torch
from helpers.networks import mse
from torch import nn
from helpers.training import batches, network_and

import equipoise as eq

TASKS = ("a", "b")


@pytest.fixture(name="parts")
def _parts():
    network, balancer = network_and(eq.GradNorm, TASKS)
    ((x, y),) = batches(1, TASKS)
    hidden = network.trunk(x)
    features = network.fork(hidden)
    return network, balancer, hidden, features, y


def losses_from(network, y, a, b):
    return mse({"a": network.heads["a"](a), "b": network.heads["b"](b)}, y)


def test_swapped_aliases(parts):
    network, balancer, _, features, y = parts
    with pytest.raises(ValueError, match=r"task 'a': its loss must depend on features\['a'\] alone.*features\['b'\]"):
        balancer(losses_from(network, y, features["b"], features["a"]))


def test_one_alias_read_by_two_heads(parts):
    network, balancer, _, features, y = parts
    with pytest.raises(ValueError, match=r"task 'b'.*reads features\['a'\]"):
        balancer(losses_from(network, y, features["a"], features["a"]))


def test_a_loss_that_mixes_two_heads(parts):
    network, balancer, _, features, y = parts
    losses = losses_from(network, y, features["a"], features["b"])
    with pytest.raises(ValueError, match="task 'b'.*every head must read its own"):
        balancer({"a": losses["a"], "b": losses["b"] + losses["a"]})


def test_a_head_that_bypasses_the_fork(parts):
    network, balancer, hidden, features, y = parts
    past = network.fork.shared_layer(hidden)
    with pytest.raises(ValueError, match=r"task 'b'.*also reaches its parameter '(weight|bias)' past the fork"):
        balancer(losses_from(network, y, features["a"], past))


def test_a_head_that_reads_the_trunk_only(parts):
    network, balancer, hidden, features, y = parts
    with pytest.raises(ValueError, match="task 'b'.*does not reach the fork"):
        balancer(losses_from(network, y, features["a"], hidden))


def test_a_loss_that_depends_on_nothing(parts):
    network, balancer, _, features, y = parts
    losses = losses_from(network, y, features["a"], features["b"])
    with pytest.raises(ValueError, match="task 'a'.*does not reach the fork"):
        balancer({"a": losses["a"].detach(), "b": losses["b"]})


def test_a_skip_connection_from_below_the_last_shared_layer_is_fine(parts):
    network, balancer, hidden, features, y = parts
    balancer(losses_from(network, y, features["a"], features["b"] + hidden)).backward()
    balancer.step()


def test_a_penalty_on_the_last_shared_layer_inside_a_loss_is_not(parts):
    network, balancer, _, features, y = parts
    losses = losses_from(network, y, features["a"], features["b"])
    with pytest.raises(ValueError, match="task 'a'.*'weight' past the fork"):
        balancer({"a": losses["a"] + network.fork.shared_layer.weight.square().sum(), "b": losses["b"]})


def test_another_fork_is_not_mistaken_for_this_one():
    torch.manual_seed(0)
    network, balancer = network_and(eq.GradNorm, TASKS)
    other = eq.Fork(nn.Linear(6, 8), TASKS)
    other.measure(True)
    ((x, y),) = batches(1, TASKS)
    with pytest.raises(ValueError, match="task 'a'.*does not reach the fork"):
        balancer(losses_from(network, y, **other(x)))
