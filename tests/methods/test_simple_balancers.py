"""Equal, Static and InverseInitialLoss against their formulas, and the settings that the simple methods share."""

import math

import pytest
import torch
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
AB = ("a", "b")
TASKS = ("a", "b", "c")


def losses_of(*values, tasks=AB):
    return {
        task: None if value is None else torch.tensor(value, requires_grad=True)
        for task, value in zip(tasks, values, strict=True)
    }


def do_step(balancer, *values):
    """One step; the weights that its losses had."""
    balancer(losses_of(*values, tasks=balancer.tasks)).backward()
    balancer.step()
    return balancer.log()["weights"]


# Equal and Static


def test_equal_trains_on_the_plain_sum():
    network, balancer = network_and(eq.Equal, AB)
    twin, _ = network_and(eq.Equal, AB)
    optimizer = torch.optim.SGD(twin.parameters(), 0.05)
    for x, y in batches(5, AB):
        train(network, balancer, [(x, y)])
        optimizer.zero_grad()
        sum(mse(twin(x), y).values()).backward()
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), twin.parameters(), strict=True))


def test_gradient_norms_can_be_logged_for_any_balancer():
    network, balancer = network_and(eq.Equal, AB, every=2)
    logs = train(network, balancer, batches(4, AB))
    assert torch.equal(logs[0]["gradient_norms"], logs[1]["gradient_norms"]), "of the last step that measured them"
    assert not torch.equal(logs[1]["gradient_norms"], logs[2]["gradient_norms"])


BUILD = {
    "Equal": lambda tasks, **settings: eq.Equal(tasks, **settings),
    "Static": lambda tasks, **settings: eq.Static(tasks, {"a": 1.0, "b": 2.0}, **settings),
    "InverseInitialLoss": lambda tasks, **settings: eq.InverseInitialLoss(tasks, **settings),
    "InverseLossVariance": lambda tasks, **settings: eq.InverseLossVariance(tasks, **settings),
    "RLW": lambda tasks, **settings: eq.RLW(tasks, **settings),
    "ReLoBRaLo": lambda tasks, **settings: eq.ReLoBRaLo(tasks, **settings),
    "Scalarized": lambda tasks, **settings: eq.Scalarized(tasks, torch.Tensor.norm, **settings),
    "Uncertainty": lambda tasks, **settings: eq.Uncertainty(tasks, "regression", initial="losses", **settings),
}


@pytest.mark.parametrize("name", BUILD)
def test_micro_batches_are_measured_where_accumulation_is_said_and_refused_where_it_is_not(name):
    x, y = next(batches(1, AB))
    norms = []
    for parts in ([slice(None)], [slice(0, None, 2), slice(1, None, 2)]):
        torch.manual_seed(0)
        network = MLP(AB)
        balancer = BUILD[name](network.fork, every=1, accumulate=True)
        for rows in parts:
            (balancer(mse(network(x[rows]), {t: v[rows] for t, v in y.items()})) / len(parts)).backward()
        balancer.step()
        log = balancer.log()
        norms.append(log["gradient_norms"] / log["weights"])
    if name not in ("InverseInitialLoss", "Scalarized", "Uncertainty"):  # where each micro-batch has weights of its own
        close(*norms)
    balancer = BUILD[name](network.fork, every=1)
    balancer(mse(network(x), y)).backward()
    with pytest.raises(RuntimeError, match="accumulate=True"):
        balancer(mse(network(x), y)).backward()
    with pytest.raises(TypeError, match="accumulate must be True or False; found 1"):
        BUILD[name](network.fork, accumulate=1)
    with pytest.raises(ValueError, match="every must be an integer of at least 1; found 0"):
        BUILD[name](network.fork, every=0)


def test_static_weights_are_scaled_to_sum_to_T_and_stay():
    balancer = eq.Static(AB, {"b": 1.0, "a": 4.0})
    for losses in ((1.0, 2.0), (None, 7.0), (3.0, 0.1)):
        do_step(balancer, *losses)
        close(balancer.weights, torch.tensor([1.6, 0.4]))
    balancer.reset_parameters()
    close(balancer.weights, torch.tensor([1.6, 0.4]))


@pytest.mark.parametrize("on", [True, False])
def test_static_weights_of_one_over_the_variance_are_those_of_standardised_targets(on):
    """In place of a method of its own: squared errors over the variance of the targets are those in units of one."""
    network, balancer = network_and(eq.Equal, AB)
    scaled = MLP(AB)
    scaled.load_state_dict(network.state_dict())
    unit, T = 30.0, 2
    weights = {"a": 1.0, "b": 1 / unit**2} if on else {"a": 1.0, "b": 1.0}
    scaled_balancer = eq.Static(scaled.fork, weights)
    total = 1 + 1 / unit**2
    with torch.no_grad():  # a head whose outputs are in the other unit, as are the targets
        for parameter in scaled.heads["b"][1].parameters():
            parameter *= unit
    x, y = next(batches(1, AB))
    balancer(mse(network(x), y)).backward()
    scaled_balancer(mse(scaled(x), {"a": y["a"], "b": unit * y["b"]})).backward()
    found = [p.grad * (total / T) for p in scaled.trunk.parameters()]
    expected = [p.grad for p in network.trunk.parameters()]
    assert all(torch.allclose(f, e, rtol=1e-10) for f, e in zip(found, expected, strict=True)) == on


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"a": 1.0}, ValueError, "weights: task 'b' is missing"),
        ({"a": 1.0, "b": -1.0}, ValueError, "weights: task 'b': its value must be positive and finite.*; found -1.0"),
        ({"a": 1.0, "b": math.nan}, ValueError, "weights: task 'b': its value must be positive.*; found nan"),
        ({"a": 1.0, "b": 1e39}, ValueError, "weights: task 'b': its value must be positive.*; found 1e.39"),
        ({"a": 1.0, "b": "1"}, TypeError, "weights: task 'b': its value must be a number; found '1'"),
        ({"a": 1.0, "b": 1.0, "z": 1.0}, ValueError, "weights: unknown task 'z'"),
        ([1.0, 1.0], TypeError, "weights must be a dict by task name; found list"),
    ],
)
def test_static_weights_are_checked_by_name(weights, error, message):
    with pytest.raises(error, match=message):
        eq.Static(AB, weights)


# InverseInitialLoss


def test_inverse_initial_loss_weighs_the_first_step_already():
    balancer = eq.InverseInitialLoss(AB)
    total = balancer(losses_of(2.0, 8.0))
    close(total.detach(), torch.tensor(1.6 * 2 + 0.4 * 8))
    total.backward()
    balancer.step()
    close(balancer.log()["weights"], torch.tensor([1.6, 0.4]))
    close(do_step(balancer, 1.0, 1.0), torch.tensor([1.6, 0.4]))
    close(balancer.weights, torch.tensor([1.6, 0.4]))


def test_inverse_initial_loss_of_the_mean_of_the_first_losses():
    balancer = eq.InverseInitialLoss(AB, initial_steps=2)
    close(do_step(balancer, 2.0, 2.0), torch.ones(2))
    close(do_step(balancer, 2.0, 14.0), torch.tensor([1.6, 0.4]))
    close(do_step(balancer, 5.0, 1.0), torch.tensor([1.6, 0.4]))


def test_inverse_initial_loss_of_micro_batches_is_that_of_the_whole_batch_from_the_second_step_on():
    balancer = eq.InverseInitialLoss(AB)
    for losses in ((1.0, 8.0), (3.0, 8.0)):
        (balancer(losses_of(*losses)) / 2).backward()
    balancer.step()
    close(balancer.weights, torch.tensor([1.6, 0.4]))


def test_inverse_initial_loss_of_a_late_task():
    balancer = eq.InverseInitialLoss(AB)
    do_step(balancer, 2.0, None)
    close(balancer.weights, torch.ones(2))
    close(do_step(balancer, 1.0, 8.0), torch.tensor([1.6, 0.4]))
    do_step(balancer, None, 3.0)
    close(balancer.weights, torch.tensor([1.6, 0.4]))


def test_inverse_initial_loss_of_tasks_that_come_one_at_a_time():
    balancer = eq.InverseInitialLoss(TASKS)
    for losses in ((1.0, None, None), (None, 2.0, None), (None, None, 2.0)):
        do_step(balancer, *losses)
    close(balancer.weights, torch.tensor([1.5, 0.75, 0.75]))
    close(do_step(balancer, 9.0, None, None)[0], torch.tensor(1.5))


def test_inverse_initial_loss_that_is_given_is_not_measured():
    balancer = eq.InverseInitialLoss(AB, initial_losses={"a": 1.0, "b": 3.0})
    close(balancer.weights, torch.tensor([1.5, 0.5]))
    close(do_step(balancer, 7.0, 0.0), torch.tensor([1.5, 0.5]))


@pytest.mark.parametrize("on", [True, False])
def test_inverse_initial_loss_makes_the_unit_of_a_loss_irrelevant_from_the_first_step_on(on):
    directions = []
    for unit in (1.0, 1e6):
        network, balancer = network_and(eq.InverseInitialLoss if on else eq.Equal, AB)
        x, y = next(batches(1, AB))
        losses = mse(network(x), y)
        balancer({"a": losses["a"], "b": unit * losses["b"]}).backward()
        gradient = network.trunk[0].weight.grad
        directions.append(gradient / gradient.norm())
    assert torch.allclose(*directions, rtol=1e-10) == on


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_initial_loss_is_finite_for_the_smallest_losses(dtype):
    balancer = eq.InverseInitialLoss(AB).to(dtype)
    losses = {t: torch.tensor(v, dtype=dtype, requires_grad=True) for t, v in {"a": 1e-39, "b": 4e-39}.items()}
    total = balancer(losses)
    assert total.isfinite()
    total.backward()
    balancer.step()
    close(balancer.weights.double(), torch.tensor([1.6, 0.4]), rtol=1e-5)


def test_inverse_initial_loss_of_zero_is_refused_by_name():
    for loss in (0.0, -1.0):
        with pytest.raises(ValueError, match="task 'b': its initial loss"):
            eq.InverseInitialLoss(AB)(losses_of(1.0, loss))
    with pytest.raises(ValueError, match="initial_losses: task 'b'.*found 0.0"):
        eq.InverseInitialLoss(AB, initial_losses={"a": 1.0, "b": 0.0})


# InverseLossVariance and ReLoBRaLo, beside their equations in test_loss_histories.py


@pytest.mark.parametrize("build", [eq.InverseLossVariance, eq.ReLoBRaLo])
def test_the_initial_weights_hold_until_enough_losses_are_known(build):
    balancer = build(AB, initial_weights={"a": 3.0, "b": 1.0}, start=2)
    for losses in ((1.0, 2.0), (2.0, 3.0), (1.5, 7.0)):
        close(do_step(balancer, *losses), torch.tensor([1.5, 0.5]))
    do_step(balancer, 2.0, 1.0)
    assert (do_step(balancer, 2.0, 1.0) - torch.tensor([1.5, 0.5])).abs().max() > 0.01


@pytest.mark.parametrize(("scale", "expected"), [(1e-21, [1.0, 1.0]), (1e-18, [1.6, 0.4]), (1e18, [1.6, 0.4])])
def test_inverse_loss_variance_stays_finite_in_single_precision(scale, expected):
    balancer = eq.InverseLossVariance(AB).float()
    for t in range(6):
        losses = {"a": scale * (2 + (-1) ** t), "b": scale * (4 + 2 * (-1) ** t)}
        balancer({k: torch.tensor(v, dtype=torch.float32, requires_grad=True) for k, v in losses.items()}).backward()
        balancer.step()
    assert balancer.skipped_steps == 0
    close(balancer.weights.double(), torch.tensor(expected), rtol=1e-4)


def test_relobralo_weights_are_finite_where_a_loss_has_grown_beyond_all_bounds():
    balancer = eq.ReLoBRaLo(AB).float()
    for a, b in ((1e-37, 1.0), (1e30, 1.0), (1.0, 1.0)):
        losses = {"a": torch.tensor(a, dtype=torch.float32), "b": torch.tensor(b, dtype=torch.float32)}
        total = balancer({k: v.requires_grad_() for k, v in losses.items()})
        assert total.isfinite()
        total.backward()
        balancer.step()
    assert balancer.skipped_steps == 0
