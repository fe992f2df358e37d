"""A head that reads the wrong alias, or bypasses the fork, is refused by name; outputs may be joined."""

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close, task_gradients
from helpers.training import batches, network_and
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

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


def refused(balancer, losses, error, message):
    """In the first step, and nothing has moved."""
    before = {name: value.clone() for name, value in balancer.named_buffers()}
    with pytest.raises(error, match=message):
        do_step(balancer, losses)
    for name, value in balancer.named_buffers():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)), name


def do_step(balancer, losses):
    balancer(losses).backward()
    balancer.step()


def test_swapped_aliases(parts):
    network, balancer, _, features, y = parts
    message = r"task 'a': its loss must depend on features\['a'\] alone; found that it reads features\['b'\]"
    refused(balancer, losses_from(network, y, features["b"], features["a"]), ValueError, message)


def test_one_alias_read_by_two_heads(parts):
    network, balancer, _, features, y = parts
    losses = losses_from(network, y, features["a"], features["a"])
    refused(balancer, losses, RuntimeError, r"task 'b': no gradient.*does not depend on features\['b'\]")


def test_a_loss_that_mixes_two_heads(parts):
    network, balancer, _, features, y = parts
    losses = losses_from(network, y, features["a"], features["b"])
    losses["b"] = losses["b"] + losses["a"]
    refused(balancer, losses, ValueError, r"features\['a'\] is for its loss alone; found that 'b' reads it: every head")


def test_a_loss_that_reads_another_head_a_little(parts):
    network, balancer, _, features, y = parts
    losses = losses_from(network, y, features["a"], features["b"] + 0.01 * features["a"])
    refused(balancer, losses, ValueError, r"task '(a|b)': .*every head must read its own")


def test_a_head_that_bypasses_the_fork(parts):
    network, balancer, hidden, features, y = parts
    past = network.fork.shared_layer(hidden)
    losses = losses_from(network, y, features["a"], past)
    refused(balancer, losses, RuntimeError, r"task 'b': no gradient.*does not depend on features\['b'\]")


def test_a_head_that_also_bypasses_the_fork(parts):
    network, balancer, hidden, features, y = parts
    losses = losses_from(network, y, features["a"], features["b"] + network.fork.shared_layer(hidden))
    refused(balancer, losses, ValueError, r"task 'b': .*through features\['b'\] alone; found that it also reaches")


def test_a_head_that_reads_the_trunk_only(parts):
    network, balancer, hidden, features, y = parts
    losses = losses_from(network, y, features["a"], hidden)
    refused(balancer, losses, RuntimeError, "task 'b': no gradient of its loss has arrived")


def test_a_loss_that_depends_on_nothing(parts):
    network, balancer, _, features, y = parts
    losses = losses_from(network, y, features["a"], features["b"])
    refused(balancer, losses | {"a": losses["a"].detach()}, ValueError, "task 'a': its loss must carry a gradient")


def test_a_loss_that_depends_on_its_head_alone(parts):
    network, balancer, _, features, y = parts
    losses = losses_from(network, y, features["a"].detach(), features["b"])
    refused(balancer, losses, RuntimeError, "task 'a': no gradient.*or something on the way is detached")


def test_a_skip_connection_from_below_the_last_shared_layer_is_fine(parts):
    network, balancer, hidden, features, y = parts
    do_step(balancer, losses_from(network, y, features["a"], features["b"] + hidden))
    assert balancer.log()["audit"] < 1e-12


def test_a_penalty_on_the_last_shared_layer_inside_a_loss_is_not(parts):
    network, balancer, _, features, y = parts
    losses = losses_from(network, y, features["a"], features["b"])
    losses["a"] = losses["a"] + network.fork.shared_layer.weight.square().sum()
    refused(balancer, losses, ValueError, "task 'a': .*also reaches it past the fork")


@pytest.mark.parametrize("join", [torch.cat, torch.stack, lambda outputs, dim: sum_of_slots(outputs)])
def test_outputs_that_are_joined_and_taken_apart_again_are_fine(parts, join):
    network, balancer, _, features, y = parts
    joined = join([network.heads[task](features[task]) for task in TASKS], 0).reshape(2, 16, 2)
    losses = mse(dict(zip(TASKS, joined, strict=True)), y)
    expected = task_gradients(losses.values(), network.fork.shared_layer.weight).flatten(1).norm(dim=1)
    do_step(balancer, losses)
    close(balancer.log()["gradient_norms"], expected)


def sum_of_slots(outputs):
    """Written into one tensor by index."""
    slots = torch.zeros(len(outputs), *outputs[0].shape)
    for i, output in enumerate(outputs):
        slots[i] = output
    return slots


def test_another_fork_is_not_mistaken_for_this_one():
    network, balancer = network_and(eq.GradNorm, TASKS)
    other = eq.Fork(nn.Linear(6, 8), TASKS)
    eq.GradNorm(other)
    ((x, y),) = batches(1, TASKS)
    refused(
        balancer, losses_from(network, y, **other(x)), RuntimeError, "task 'a': no gradient of its loss has arrived"
    )


def test_one_fork_serves_one_balancer_that_measures():
    network, balancer = network_and(eq.GradNorm, TASKS)
    watching = eq.Uncertainty(network.fork, "regression")
    ((x, y),) = batches(1, TASKS)
    do_step(balancer, mse(network(x), y))
    do_step(watching, mse(network(x), y))  # which measures nothing
    do_step(balancer, mse(network(x), y))
    later = eq.GradNorm(network.fork)
    with pytest.raises(RuntimeError, match="GradNorm: another balancer, made from this fork later, measures at it"):
        balancer(mse(network(x), y))
    do_step(later, mse(network(x), y))
