"""When the weights move, when they do not, and their average over time."""

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
AB = ("a", "b")
FAMILY = [eq.GradNorm, eq.GradNormLogSpace, eq.GradNormClosedForm]


def buffers(balancer):
    return {name: value.clone() for name, value in balancer.named_buffers()}


@pytest.mark.parametrize("build", FAMILY)
def test_no_weight_moves_before_the_start(build):
    network, balancer = network_and(build, AB, start=3)
    logs = train(network, balancer, batches(6, AB))
    weights = torch.stack([log["weights"] for log in logs] + [balancer.weights])
    close(weights[:4], torch.ones(4, 2))  # the fourth step is the first to move them
    assert (weights[4:] != 1).all()
    close(balancer.initial_losses, logs[0]["losses"])
    assert "targets" not in logs[2]
    assert {"gradient_norms", "targets"} <= logs[3].keys()


@pytest.mark.parametrize("build", FAMILY)
def test_what_is_frozen_does_not_move_and_goes_on_where_it_stopped(build):
    network, balancer = network_and(build, AB)
    data = list(batches(9, AB))
    train(network, balancer, data[:3])
    before = buffers(balancer)
    balancer.freeze()
    logs = train(network, balancer, data[3:6])
    for name, value in buffers(balancer).items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(logs[0]["gradient_norms"], logs[2]["gradient_norms"])
    balancer.unfreeze()
    train(network, balancer, data[6:])
    assert (balancer.weights != before["weights"]).all()


def test_a_late_task_is_recorded_while_frozen():
    network, balancer = network_and(eq.GradNorm, AB)
    data = list(batches(2, AB))
    balancer(mse(network(data[0][0]), data[0][1]) | {"b": None}).backward()
    balancer.step()
    balancer.freeze()
    (log,) = train(network, balancer, data[1:])
    close(balancer.initial_losses[1], log["losses"][1])


def test_frozen_and_start_are_in_the_state_dict():
    network, balancer = network_and(eq.GradNorm, AB, start=2)
    data = list(batches(5, AB))
    train(network, balancer, data[:1])
    other, other_balancer = network_and(eq.GradNorm, AB, start=2)
    other_balancer.load_state_dict(balancer.state_dict())
    train(other, other_balancer, data[1:2])
    close(other_balancer.weights, torch.ones(2))
    train(other, other_balancer, data[2:3])
    assert (other_balancer.weights != 1).all()
    other_balancer.freeze()
    weights = other_balancer.weights.clone()
    third, third_balancer = network_and(eq.GradNorm, AB, start=2)
    third_balancer.load_state_dict(other_balancer.state_dict())
    train(third, third_balancer, data[3:])
    close(third_balancer.weights, weights)


@pytest.mark.parametrize("build", [*FAMILY, eq.InverseInitialLoss])
def test_the_average_is_that_of_the_weights_since_the_start(build):
    start = {} if build is eq.InverseInitialLoss else {"start": 2}
    network, balancer = network_and(build, AB, **start)
    assert balancer.averaged() == {"a": 1.0, "b": 1.0}
    logs = train(network, balancer, batches(10, AB, units=[1.0, 3.0]))[len(start) * 2 :]
    mean = torch.stack([log["weights"] for log in logs]).mean(0)
    assert list(balancer.averaged()) == ["a", "b"]
    close(torch.tensor(list(balancer.averaged().values())), mean)
    assert (mean - 1).abs().min() > 0.01
    close(eq.Static(AB, balancer.averaged()).weights, mean)


def test_the_average_is_over_the_measured_steps():
    network, balancer = network_and(eq.GradNorm, AB, every=4)
    logs = train(network, balancer, batches(9, AB, units=[1.0, 3.0]))  # the last one is measured
    mean = torch.stack([log["weights"] for log in logs[::4]]).mean(0)
    close(torch.tensor(list(balancer.averaged().values())), mean)
    assert len({tuple(log["weights"].tolist()) for log in logs}) == 3


def test_frozen_absent_and_unusable_steps_do_not_count_for_the_average():
    network, balancer = network_and(eq.GradNorm, AB)
    data = list(batches(8, AB))
    logs = train(network, balancer, data[:3])
    x, y = data[3]
    balancer(mse(network(x), y) | {"b": None}).backward()
    balancer.step()
    only_a = balancer.log()["weights"][0]
    losses = mse(network(x), y)
    balancer(losses | {"b": losses["b"] * float("nan")}).backward()
    balancer.step()
    balancer.freeze()
    network.zero_grad()
    train(network, balancer, data[4:])
    weights = torch.stack([log["weights"] for log in logs])
    close(
        torch.tensor(list(balancer.averaged().values())),
        torch.stack([torch.cat([weights[:, 0], only_a[None]]).mean(), weights[:, 1].mean()]),
    )


@pytest.mark.parametrize("start", [-1, 1.5, True])
def test_a_start_out_of_range_is_refused(start):
    with pytest.raises((TypeError, ValueError), match="start must be an integer.*; found"):
        network_and(eq.GradNorm, AB, start=start)
