"""Training rates from losses that the user hands in."""

import pytest
import torch
from helpers import processes
from helpers.networks import mse
from helpers.reference import close
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
AB = ("a", "b")
FAMILY = [eq.GradNorm, eq.GradNormLogSpace, eq.GradNormClosedForm]


@pytest.mark.parametrize("build", FAMILY)
def test_the_rates_are_those_of_the_observed_losses_until_the_next_observation(build):
    network, balancer = network_and(build, AB, alpha=1.0)
    data = list(batches(9, AB))
    logs = train(network, balancer, data[:2])
    ratios = logs[1]["losses"] / logs[0]["losses"]
    close(logs[1]["training_rates"], ratios / ratios.mean())
    for observed, rates in (
        ({"a": 2.0, "b": 100.0}, [1.0, 1.0]),
        ({"a": torch.tensor(1.0), "b": 150}, [0.5, 1.5]),
        ({"a": None, "b": 50.0}, [1.0, 1.0]),
    ):
        balancer.observe(observed)
        for log in train(network, balancer, data[:2]):
            close(log["training_rates"], torch.tensor(rates))
            norms = log["gradient_norms"]
            close(log["targets"], norms.mean() * torch.tensor(rates))
    assert ratios[0] != ratios[1]


def test_a_task_never_observed_keeps_its_training_loss():
    network, balancer = network_and(eq.GradNorm, AB)
    data = list(batches(3, AB))
    train(network, balancer, data[:1])
    balancer.observe({"a": 4.0, "b": None})
    balancer.observe({"a": 1.0, "b": None})
    (log,) = train(network, balancer, data[1:2])
    ratios = torch.stack([torch.tensor(0.25), log["losses"][1] / balancer.initial_losses[1]])
    close(log["training_rates"], ratios / ratios.mean())


@pytest.mark.thorough
@pytest.mark.parametrize("build", FAMILY)
def test_a_task_that_overfits_counts_as_slow_where_validation_is_observed(build):
    """Both tasks fit 24 samples; the labels of "b" are noise, and its validation loss does not fall."""

    def last_rate(observes):
        network, balancer = network_and(build, AB, alpha=1.0)
        optimizer = torch.optim.Adam(network.parameters(), 0.02)
        data = [x for x, _ in [*batches(1, AB, 24, seed=1), *batches(1, AB, 64, seed=2)]]
        targets = [{"a": x[:, :2], "b": torch.randn(len(x), 2)} for x in data]
        (x, x_validation), (y, y_validation) = data, targets
        for _ in range(30):
            if observes:
                with torch.no_grad():
                    balancer.observe(mse(network(x_validation), y_validation))
            log = train(network, balancer, [(x, y)] * 5, optimizer=optimizer)[-1]
        return log["training_rates"][1]

    on, off = last_rate(True), last_rate(False)
    assert on > 1.5
    assert off < 0.8


def observe_on_each(rank, world):
    processes.connect()
    _, balancer = network_and(eq.GradNorm, AB)
    balancer.observe([{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": None}][rank])
    return balancer.observed_last


def test_several_processes_observe_their_mean():
    for observed in processes.run(observe_on_each, 2):
        close(observed, torch.tensor([2.0, 5.0]))


def test_observations_are_in_the_state_dict():
    network, balancer = network_and(eq.GradNorm, AB)
    train(network, balancer, batches(1, AB))
    balancer.observe({"a": 2.0, "b": 3.0})
    balancer.observe({"a": 1.0, "b": 3.0})
    other, other_balancer = network_and(eq.GradNorm, AB)
    other.load_state_dict(network.state_dict())
    other_balancer.load_state_dict(balancer.state_dict())
    ((x, y),) = batches(1, AB)
    (log,) = train(other, other_balancer, [(x, y)])
    close(log["training_rates"], torch.tensor([2 / 3, 4 / 3]))


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "observe: losses must be a dict by task name; found list"),
        ({"a": 1.0}, ValueError, "observe: losses: task 'b' is missing; hand in None"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, ValueError, "observe: losses: unknown task 'c'; the tasks are 'a', 'b'"),
        (
            {"a": "low", "b": 1.0},
            TypeError,
            "observe: losses: task 'a': its value must be a number; found 'low' of type str",
        ),
        ({"a": 1.0, "b": torch.ones(2)}, TypeError, r"observe: losses: task 'b'.*found a tensor of shape \(2,\)"),
        (
            {"a": 1.0, "b": -1.0},
            ValueError,
            "observe: losses: task 'b': its value must be at least 0 and finite in float32; found -1.0",
        ),
        (
            {"a": float("nan"), "b": 1.0},
            ValueError,
            "observe: losses: task 'a': its value must be at least 0 and finite.*found nan",
        ),
        ({"a": 1.0, "b": 0.0}, ValueError, "observe: losses: task 'b': its first loss must be positive"),
    ],
)
def test_what_cannot_be_observed_is_refused_by_name(losses, error, message):
    _, balancer = network_and(eq.GradNorm, AB)
    with pytest.raises(error, match=message):
        balancer.observe(losses)
    assert (balancer.observed_first == 0).all(), "nothing of a refused observation is kept"
