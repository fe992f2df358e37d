"""Dynamic task prioritization, which is told how well the tasks do."""

import copy
import math

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close
from helpers.training import batches, network_and

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")


def test_dtp_is_the_focal_loss_of_the_running_indicators():
    network, balancer = network_and(eq.DTP, TASKS, alpha=0.3, gamma=1.7)
    optimizer = torch.optim.SGD(network.parameters(), 0.02)
    running = [None, None, None]
    for x, y in batches(25, TASKS):
        optimizer.zero_grad()
        losses = mse(network(x), y)
        balancer(losses).backward()
        optimizer.step()
        balancer.step()
        kappa = {task: math.exp(-loss.item()) for task, loss in losses.items()}
        balancer.observe(kappa)
        running = [k if r is None else 0.3 * k + 0.7 * r for k, r in zip(kappa.values(), running, strict=True)]
        close(balancer.weights, torch.tensor([-((1 - k) ** 1.7) * math.log(k) for k in running]))


@pytest.mark.parametrize("on", [True, False])
def test_dtp_the_task_that_does_worst_comes_first(on):
    """Two tasks that one number cannot both serve: the one that does badly is served by the method."""
    x = torch.tensor(0.9, requires_grad=True)
    optimizer = torch.optim.SGD([x], 0.01)
    balancer = eq.DTP(("easy", "hard"), alpha=1.0) if on else eq.Equal(("easy", "hard"))
    for _ in range(500):
        losses = {"easy": 3 * (x - 1) ** 2, "hard": (x + 1) ** 2}
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        balancer.step()
        if on:
            balancer.observe({task: torch.exp(-loss.detach()) for task, loss in losses.items()})
    worst = max(loss.item() for loss in losses.values())
    assert (worst < 1.8) == on


def test_dtp_is_finite_and_positive_at_the_ends():
    balancer = eq.DTP(("a", "b"), floor=0.01, gamma=1.0)
    balancer.observe({"a": 0.0, "b": 1.0})
    close(balancer.weights, torch.tensor([-0.99 * math.log(0.01), -0.01 * math.log(0.99)]))


def test_dtp_a_task_without_an_indicator_keeps_its_weight_and_its_state():
    balancer = eq.DTP(TASKS)
    balancer.observe({"a": 0.2, "b": None, "c": 0.5})
    assert balancer.weights[1] == 1
    before = copy.deepcopy(balancer.state_dict())
    balancer.observe({"a": 0.3, "b": 0.4, "c": None})
    for key in ("weights", "indicators"):
        assert balancer.state_dict()[key][2] == before[key][2]
        assert (balancer.state_dict()[key][:2] != before[key][:2]).all()


def test_dtp_takes_nothing_in_while_it_is_frozen():
    balancer = eq.DTP(TASKS)
    balancer.freeze()
    balancer.observe({"a": 0.2, "b": 0.3, "c": 0.5})
    assert balancer.weights.tolist() == [1.0, 1.0, 1.0]
    assert balancer.indicators.tolist() == [-1.0, -1.0, -1.0]
    balancer.unfreeze()
    balancer.observe({"a": 0.2, "b": 0.3, "c": 0.5})
    assert (balancer.weights != 1).all()


def test_dtp_takes_indicators_before_start_and_moves_the_weights_from_then_on():
    balancer = eq.DTP(("a", "b"), start=1, gamma=1.0)
    balancer.observe({"a": 0.2, "b": 0.8})
    assert balancer.weights.tolist() == [1.0, 1.0]
    for _ in range(2):
        balancer(torch.ones(2, requires_grad=True)).backward()
        balancer.step()
    close(balancer.weights, torch.tensor([-0.8 * math.log(0.2), -0.2 * math.log(0.8)]))


def test_dtp_the_log_of_a_step_has_the_weights_of_its_losses():
    balancer = eq.DTP(("a", "b"))
    losses = torch.ones(2, requires_grad=True)
    balancer(losses).backward()
    balancer.observe({"a": 0.2, "b": 0.8})
    balancer.step()
    close(balancer.log()["weights"], losses.grad)
    assert balancer.averaged() == {"a": 1.0, "b": 1.0}
    assert balancer.weights[0] > 1 > balancer.weights[1]


def test_dtp_the_running_indicators_are_restored():
    balancer, other = eq.DTP(("a", "b")), eq.DTP(("a", "b"))
    balancer.observe({"a": 0.2, "b": None})
    other.load_state_dict(balancer.state_dict())
    for each in (balancer, other):
        each.observe({"a": torch.tensor(0.6), "b": 1})
    assert balancer.weights.tolist() == other.weights.tolist()
    close(balancer.indicators, torch.tensor([0.4, 1.0]))


@pytest.mark.parametrize(
    ("indicators", "error", "message"),
    [
        ([0.5, 0.5], TypeError, "observe: indicators must be a dict by task name; found list"),
        ({"a": 0.5}, ValueError, "indicators: task 'b' is missing"),
        ({"a": 0.5, "b": "x"}, TypeError, "indicators: task 'b': its value must be a number; found 'x'"),
        (
            {"a": 0.5, "b": torch.ones(2)},
            TypeError,
            r"task 'b': its value must be a number; found a tensor of shape \(2,\)",
        ),
        ({"a": 0.5, "b": 1.5}, ValueError, r"indicators: task 'b': its value must lie in \[0, 1\]; found 1.5"),
        ({"a": 0.5, "b": math.nan}, ValueError, r"indicators: task 'b': its value must lie in \[0, 1\]; found nan"),
        ({"a": 0.5, "b": 0.5, "z": 0.5}, ValueError, "indicators: unknown task 'z'"),
    ],
)
def test_dtp_checks_what_it_observes(indicators, error, message):
    balancer = eq.DTP(("a", "b"))
    with pytest.raises(error, match=message):
        balancer.observe(indicators)
    assert balancer.indicators.tolist() == [-1.0, -1.0]


def test_dtp_an_indicator_too_small_for_float32_is_zero():
    balancer = eq.DTP(("a", "b"))
    balancer.observe({"a": math.exp(-100), "b": torch.tensor(math.exp(-100))})
    assert balancer.indicators.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"alpha": 0.0}, ValueError, r"alpha must lie in \(0, 1\]; found 0.0"),
        ({"alpha": None}, TypeError, "alpha must be a number; found None"),
        ({"gamma": -1.0}, ValueError, "gamma must be at least 0 and finite in float32; found -1.0"),
        ({"gamma": 1e39}, ValueError, "gamma must be at least 0 and finite in float32; found 1e.39"),
        ({"gamma": math.nan}, ValueError, "gamma must be at least 0 and finite in float32; found nan"),
        ({"floor": 0.5}, ValueError, r"floor must lie in \(0, 0.5\); found 0.5"),
        ({"floor": "0.1"}, TypeError, "floor must be a number; found '0.1'"),
    ],
)
def test_dtp_refuses(settings, error, message):
    with pytest.raises(error, match=message):
        eq.DTP(TASKS, **settings)
