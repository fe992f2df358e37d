"""Uncertainty weighting against the published loss: where it settles, and where it starts."""

import math

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
AB = ("a", "b")


def losses_of(*values):
    return {
        task: None if value is None else torch.tensor(value, requires_grad=True)
        for task, value in zip(AB, values, strict=True)
    }


def do_step(balancer, *values):
    """One step; the weights that its losses had."""
    balancer(losses_of(*values)).backward()
    balancer.step()
    return balancer.log()["weights"]


@pytest.mark.parametrize("initial_weights", [None, {"a": 3.0, "b": 0.2}])
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_is_adam_on_the_published_loss(kind, initial_weights):
    """The literal way: sigma's logarithm is a parameter of the published loss, trained by torch's Adam."""
    network, balancer = network_and(eq.Uncertainty, AB, kinds=kind, initial_weights=initial_weights)
    twin, _ = network_and(eq.Equal, AB)
    half = 0.5 if kind == "regression" else 1.0
    start = [0.0, 0.0] if initial_weights is None else [math.log(half / w) for w in initial_weights.values()]
    log_variance = torch.tensor(start, requires_grad=True)
    network_optimizer = torch.optim.SGD(twin.parameters(), 0.01)
    optimizer = torch.optim.Adam([log_variance], 0.025)
    for x, y in batches(25, AB, units=[1.0, 5.0]):
        train(network, balancer, [(x, y)], lr=0.01)
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


def test_settles_where_the_weight_is_half_the_inverse_loss():
    balancer = eq.Uncertainty(AB, {"a": "regression", "b": "classification"}, lr=0.1)
    for _ in range(400):
        do_step(balancer, 4.0, 0.25)
    close(balancer.weights, torch.tensor([1 / 8, 2.0]), rtol=1e-3)
    close(balancer.log_variances, torch.tensor([math.log(4.0), math.log(0.5)]), atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("on", [True, False])
def test_finds_the_noise_of_every_task(on):
    """The claim of the paper: sigma is the noise of the task, and a noisy task weighs less."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.zeros(2, requires_grad=True)
    noise = torch.tensor([0.5, 4.0])
    balancer = eq.Uncertainty(AB, "regression") if on else eq.Equal(AB)
    optimizer = torch.optim.SGD([slope], 0.01)
    for _ in range(1500):
        x = torch.randn(256, generator=generator)
        y = torch.stack([2 * x, -x]).T + noise * torch.randn(256, 2, generator=generator)
        errors = (y - x[:, None] * slope).square().mean(0)
        optimizer.zero_grad()
        balancer(dict(zip(AB, errors, strict=True))).backward()
        optimizer.step()
        balancer.step()
    sigma = (1 / (2 * balancer.weights)).sqrt()
    assert torch.allclose(sigma, noise, rtol=0.05) == on


def test_starts_at_rest_where_it_starts_from_the_losses():
    kinds = {"a": "regression", "b": "classification"}
    balancer = eq.Uncertainty(AB, kinds, initial="losses")
    close(balancer.weights, torch.tensor([0.5, 1.0]))
    total = balancer(losses_of(100.0, 0.01))
    close(total.detach(), torch.tensor(1.0))  # L / (2 L), twice
    total.backward()
    balancer.step()
    close(balancer.log()["weights"], torch.tensor([0.005, 50.0]))
    close(balancer.weights, torch.tensor([0.005, 50.0]), rtol=1e-8)  # Adam takes a rounding error for a gradient
    do_step(balancer, 90.0, 0.02)
    close(balancer.weights, torch.tensor([0.005, 50.0]) * torch.tensor([0.025, -0.025]).exp(), rtol=0.01)


def test_starts_every_task_from_its_own_first_loss_after_start():
    balancer = eq.Uncertainty(AB, "regression", initial="losses", start=1)
    close(do_step(balancer, 3.0, 4.0), torch.tensor([0.5, 0.5]))
    close(do_step(balancer, 2.0, None)[0], torch.tensor(0.25))
    assert balancer.weights[1] == 0.5
    weights = do_step(balancer, 2.0, 8.0)
    close(weights, torch.tensor([0.25, 0.0625]))
    weights = do_step(balancer, 2.0, -8.0)
    close(weights, torch.tensor([0.25, 0.0625]))


def test_a_loss_that_has_no_place_of_rest_starts_at_zero():
    balancer = eq.Uncertainty(AB, "regression", initial="losses")
    close(do_step(balancer, -3.0, 0.0), torch.tensor([0.5, 0.5]))
    assert balancer.log_variances.isfinite().all()
    assert (balancer.weights > 0.5).all()


@pytest.mark.parametrize("initial", [None, "losses"])
def test_plateaus_until_its_weights_have_come_to_where_they_rest(initial):
    """Two tasks of one parameter, one of them in a unit that makes its loss ten thousand times larger."""
    small, large = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    balancer = eq.Uncertainty(AB, "regression", initial=initial)
    optimizer = torch.optim.SGD([small, large], 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        balancer({"a": 1e-4 * (0.1 + small.square()).sum(), "b": (0.1 + large.square()).sum()}).backward()
        optimizer.step()
        balancer.step()
    assert (small.item() < 0.7) == (initial == "losses")


def test_normalised_weights_sum_to_T():
    settings = {"initial_weights": {"a": 3.0, "b": 1.0}, "normalize": True}
    balancer = eq.Uncertainty(AB, {"a": "regression", "b": "classification"}, **settings)
    close(balancer.weights, torch.tensor([1.5, 0.5]))
    for losses in ((1.0, 9.0), (1.0, None), (2.0, 3.0)):
        do_step(balancer, *losses)
        close(balancer.weights.sum(), torch.tensor(2.0))
    balancer = eq.Uncertainty(AB, "regression", initial="losses", normalize=True)
    close(do_step(balancer, 2.0, 8.0), torch.tensor([1.6, 0.4]))


def test_can_start_from_balanced_weights():
    network, balancer = network_and(eq.Uncertainty, AB, kinds="regression", every=1, initial_weights="balanced")
    log = train(network, balancer, batches(1, AB, units=[1.0, 30.0]))[0]
    close(log["gradient_norms"][0], log["gradient_norms"][1])
    close(log["weights"].sum(), torch.tensor(2.0))
    close(balancer.weights / log["weights"], torch.tensor([1.0, 1.0]), rtol=0.03)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"kinds": {"a": "regression"}}, ValueError, "kinds: task 'b' must be .* found None"),
        ({"kinds": {"a": "regression", "b": "ranking"}}, ValueError, "kinds: task 'b' must be .* found 'ranking'"),
        ({"kinds": {**dict.fromkeys("abc", "regression")}}, ValueError, "kinds: unknown task 'c'"),
        ({"kinds": "ranking"}, ValueError, "kinds: task 'a' must be .* found 'ranking'"),
        ({"kinds": 1}, TypeError, "kinds must be a dict by task name; found 1"),
        ({"lr": 0.0}, ValueError, "lr must be positive and finite.*; found 0.0"),
        ({"lr": "0.1"}, TypeError, "lr must be a number; found '0.1'"),
        ({"initial": "loss"}, ValueError, "initial must be 'losses'; found 'loss'"),
        ({"normalize": 1}, TypeError, "normalize must be True or False; found 1"),
        ({"initial_weights": {"a": 1.0}}, ValueError, "initial_weights: task 'b' is missing"),
        ({"initial_weights": "balanced"}, ValueError, "initial_weights='balanced' needs gradients"),
        ({"initial": "losses", "initial_weights": {"a": 1.0, "b": 1.0}}, ValueError, "initial and initial_weights"),
    ],
)
def test_settings_are_checked_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        eq.Uncertainty(AB, **({"kinds": "regression"} | settings))
