"""FAMO against its algorithm, written with autograd and torch's Adam."""

import math

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close
from helpers.training import batches, network_and

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")


def stacked(losses):
    return torch.stack([*losses.values()])


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.01])
def test_famo_is_algorithm_1(observed, gamma):
    network, balancer = network_and(eq.FAMO, TASKS, lr=0.05, gamma=gamma)
    twin, _ = network_and(eq.Equal, TASKS)
    optimizers = [torch.optim.SGD(n.parameters(), 0.02) for n in (network, twin)]
    xi = torch.zeros(3, requires_grad=True)
    xi_optimizer = torch.optim.Adam([xi], 0.05, weight_decay=gamma)
    before = None
    for x, y in batches(25, TASKS, units=[1.0, 3.0, 10.0]):
        optimizers[0].zero_grad()
        balancer(mse(network(x), y)).backward()
        optimizers[0].step()
        if observed:
            balancer.observe(mse(network(x), y))
        balancer.step()

        losses = stacked(mse(twin(x), y))
        z = xi.softmax(0)
        c = 1 / (z / losses).sum()
        optimizers[1].zero_grad()
        (3 * c.detach() * (z.detach() * losses.log()).sum()).backward()
        optimizers[1].step()
        if observed:
            delta = losses.log() - stacked(mse(twin(x), y)).log()
        else:
            delta = None if before is None else before - losses.log()
            before = losses.detach().log()
        if delta is not None:
            (xi.grad,) = torch.autograd.grad(z, xi, grad_outputs=delta.detach())
            xi_optimizer.step()
        close(balancer.logits, xi.detach())
        for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            close(mine.detach(), theirs.detach())
    assert balancer.logits.std() > 0.1


def falls(balancer, observe=False, steps=150):
    """By how much the logarithms of two losses fall, one of them a hundred times steeper."""
    x = torch.ones(2, requires_grad=True)
    steepness = torch.tensor([1.0, 100.0])
    optimizer = torch.optim.SGD([x], 1e-3)

    def losses():
        return dict(zip("ab", steepness * x.square(), strict=True))

    for _ in range(steps):
        optimizer.zero_grad()
        balancer(losses()).backward()
        optimizer.step()
        if observe:
            balancer.observe(losses())
        balancer.step()
    return (steepness.log() - stacked(losses()).detach().log()).tolist()


@pytest.mark.parametrize("observe", [True, False])
def test_famo_all_losses_fall_at_the_same_rate(observe):
    shallow, steep = falls(eq.FAMO(("a", "b"), lr=0.1), observe)
    assert shallow == pytest.approx(steep, rel=0.05)
    shallow, steep = falls(eq.Equal(("a", "b")))
    assert steep > 20 * shallow


def test_famo_compares_no_step_twice():
    balancer = eq.FAMO(("a", "b"))
    counts = []
    for a, after in ((1.0, 0.5), (0.5, None), (0.5, None)):
        balancer({"a": torch.tensor(a, requires_grad=True), "b": torch.tensor(1.0)}).backward()
        if after is not None:
            balancer.observe({"a": torch.tensor(after), "b": torch.tensor(1.0)})
        balancer.step()
        counts.append(balancer.adam_count.tolist())
    assert counts == [[1, 1], [1, 1], [2, 2]], "what was observed in the first step is not compared again in the second"


def test_famo_an_observation_that_is_not_finite_changes_nothing_and_is_counted():
    balancer = eq.FAMO(("a", "b"))
    balancer({"a": torch.tensor(1.0, requires_grad=True), "b": torch.tensor(1.0)}).backward()
    balancer.observe({"a": torch.tensor(math.nan), "b": torch.tensor(1.0)})
    balancer.step()
    assert balancer.logits.tolist() == [0.0, 0.0]
    assert balancer.skipped_steps == 1


def test_famo_checks_what_it_observes():
    with pytest.raises(ValueError, match="task 'b': its loss is missing"):
        eq.FAMO(("a", "b")).observe({"a": torch.tensor(1.0)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be positive and finite; found 0.0"),
        ({"gamma": -0.1}, "gamma must be at least 0 and finite; found -0.1"),
    ],
)
def test_famo_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        eq.FAMO(TASKS, **settings)
