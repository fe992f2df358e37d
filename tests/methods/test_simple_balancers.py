"""Equal, Static, InverseInitialLoss and Uncertainty against their formulas."""

import math

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
AB = ("a", "b")


def losses_of(a, b):
    return {"a": torch.tensor(a, requires_grad=True), "b": None if b is None else torch.tensor(b, requires_grad=True)}


def do_step(balancer, losses):
    balancer(losses).backward()
    balancer.step()


def test_static_weights_are_scaled_to_sum_to_T():
    balancer = eq.Static(AB, {"b": 1.0, "a": 4.0})
    close(balancer.weights, torch.tensor([1.6, 0.4]))
    do_step(balancer, losses_of(1.0, 2.0))
    close(balancer.weights, torch.tensor([1.6, 0.4]))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0}, "weights: task 'b' is missing"),
        ({"a": 1.0, "b": -1.0}, "weights: task 'b' must have a positive, finite number; found -1.0"),
        ({"a": 1.0, "b": 1.0, "z": 1.0}, "weights: unknown task 'z'"),
    ],
)
def test_static_weights_are_checked_by_name(weights, message):
    with pytest.raises(ValueError, match=message):
        eq.Static(AB, weights)


def test_inverse_initial_loss():
    balancer = eq.InverseInitialLoss(AB)
    do_step(balancer, losses_of(2.0, 8.0))
    close(balancer.weights, torch.tensor([1.6, 0.4]))
    do_step(balancer, losses_of(1.0, 1.0))
    close(balancer.weights, torch.tensor([1.6, 0.4]))


def test_inverse_initial_loss_of_a_late_task():
    balancer = eq.InverseInitialLoss(AB)
    do_step(balancer, losses_of(2.0, None))
    close(balancer.weights, torch.ones(2))
    do_step(balancer, losses_of(1.0, 8.0))
    close(balancer.weights, torch.tensor([1.6, 0.4]))


def test_inverse_initial_loss_of_zero_is_refused_by_name():
    with pytest.raises(ValueError, match="task 'b': its initial loss"):
        eq.InverseInitialLoss(AB)(losses_of(1.0, 0.0))


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_uncertainty_is_adam_on_the_published_loss(kind):
    """The literal way: sigma's logarithm is a parameter of the published loss, trained by torch's Adam."""
    network, balancer = network_and(eq.Uncertainty, AB, kinds=kind)
    twin, _ = network_and(eq.Equal, AB)
    log_variance = torch.zeros(2, requires_grad=True)
    network_optimizer = torch.optim.SGD(twin.parameters(), 0.05)
    optimizer = torch.optim.Adam([log_variance], 0.025)
    for x, y in batches(25, AB, units=[1.0, 5.0]):
        train(network, balancer, [(x, y)])
        losses = torch.stack([*mse(twin(x), y).values()])
        sigma = (log_variance / 2).exp()
        published = losses / (2 * sigma**2) if kind == "regression" else losses / sigma**2
        for o in (network_optimizer, optimizer):
            o.zero_grad()
        (published + sigma.log()).sum().backward()
        for o in (network_optimizer, optimizer):
            o.step()
        close(balancer.log_variances, log_variance.detach())
        for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            close(mine.detach(), theirs.detach())


def test_uncertainty_settles_where_the_weight_is_half_the_inverse_loss():
    balancer = eq.Uncertainty(AB, {"a": "regression", "b": "classification"}, lr=0.1)
    for _ in range(400):
        do_step(balancer, losses_of(4.0, 0.25))
    close(balancer.weights, torch.tensor([1 / 8, 2.0]), rtol=1e-3)
    close(balancer.log_variances, torch.tensor([math.log(4.0), math.log(0.5)]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"a": "regression"}, "kinds: task 'b' must be .* found None"),
        ({"a": "regression", "b": "ranking"}, "kinds: task 'b' must be .* found 'ranking'"),
        ({"a": "regression", "b": "regression", "c": "regression"}, "kinds: unknown task 'c'"),
    ],
)
def test_kinds_are_checked_by_name(kinds, message):
    with pytest.raises(ValueError, match=message):
        eq.Uncertainty(AB, kinds)


def test_gradient_norms_can_be_logged_for_any_balancer():
    network, balancer = network_and(eq.Equal, AB, every=2)
    logs = train(network, balancer, batches(4, AB))
    assert torch.equal(logs[0]["gradient_norms"], logs[1]["gradient_norms"]), "of the last step that measured them"
    assert not torch.equal(logs[1]["gradient_norms"], logs[2]["gradient_norms"])
