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


def step(balancer, losses, after=None):
    """One step with these losses, and those after it."""
    tensors = {t: None if v is None else torch.tensor(v, requires_grad=True) for t, v in losses.items()}
    balancer(tensors).backward()
    if after is not None:
        balancer.observe({t: None if v is None else torch.tensor(v) for t, v in after.items()})
    balancer.step()


def test_famo_compares_no_step_twice():
    balancer = eq.FAMO(("a", "b"))
    counts = []
    for a, after in ((1.0, {"a": 0.5, "b": 1.0}), (0.5, None), (0.5, None)):
        step(balancer, {"a": a, "b": 1.0}, after)
        counts.append(balancer.adam_count.tolist())
    assert counts == [[1, 1], [1, 1], [2, 2]], "what was observed in the first step is not compared again in the second"


def test_famo_an_observation_belongs_to_its_step_even_where_the_method_does_not_move():
    balancer = eq.FAMO(("a", "b"))
    balancer.freeze()
    step(balancer, {"a": 1.0, "b": 1.0}, after={"a": 0.5, "b": 1.0})
    balancer.unfreeze()
    step(balancer, {"a": 1.0, "b": 1.0})
    assert balancer.logits.tolist() == [0.0, 0.0]


def test_famo_a_task_that_was_absent_is_compared_with_its_last_loss():
    balancer = eq.FAMO(TASKS, gamma=0.0, lr=0.1)
    step(balancer, {"a": 1.0, "b": 2.0, "c": 3.0})
    step(balancer, {"a": 0.5, "b": None, "c": 3.0})
    assert balancer.adam_count.tolist() == [1, 0, 1]
    assert balancer.logits[1] == 0
    close(balancer.logits[[0, 2]], torch.tensor([-0.1, 0.1]), rtol=1e-6)  # Adam's epsilon
    before = balancer.logits.clone()
    step(balancer, {"a": None, "b": 0.2, "c": 3.0})
    assert balancer.adam_count.tolist() == [1, 1, 2]
    assert balancer.logits[1] < before[1], "its loss has fallen by more than that of c"


def test_famo_a_task_in_its_first_step_is_not_compared_with_the_others():
    balancer = eq.FAMO(TASKS, gamma=0.0, lr=0.1)
    step(balancer, {"a": 1.0, "b": 1.0, "c": None})
    step(balancer, {"a": 1 / 2, "b": 1 / 3, "c": 1.0})
    close(balancer.logits, torch.tensor([0.1, -0.1, 0.0]), rtol=1e-6)  # Adam's epsilon


def test_famo_a_task_that_was_not_observed_waits_for_its_next_loss():
    balancer = eq.FAMO(("a", "b"))
    step(balancer, {"a": 1.0, "b": 1.0}, after={"a": 0.5, "b": None})
    assert balancer.adam_count.tolist() == [1, 0]
    step(balancer, {"a": 1.0, "b": 0.5})
    assert balancer.adam_count.tolist() == [1, 1]


@pytest.mark.parametrize("loss", [math.nan, 0.0, -1.0, math.inf])
def test_famo_an_observation_without_a_logarithm_changes_nothing_and_is_counted(loss):
    balancer = eq.FAMO(("a", "b"))
    step(balancer, {"a": 1.0, "b": 1.0}, after={"a": loss, "b": 1.0})
    assert balancer.logits.tolist() == [0.0, 0.0]
    assert balancer.skipped_steps == 1


def test_famo_checks_what_it_observes():
    balancer = eq.FAMO(("a", "b"))
    with pytest.raises(ValueError, match="task 'b': its loss is missing"):
        balancer.observe({"a": torch.tensor(1.0)})
    with pytest.raises(TypeError, match="task 'a': a loss must be a tensor or None; found float"):
        balancer.observe({"a": 1.0, "b": 1.0})
    step(balancer, {"a": 1.0, "b": 1.0})
    with pytest.raises(RuntimeError, match=r"observe comes after backward\(\) and before balancer.step\(\)"):
        balancer.observe(torch.ones(2))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": 0.0}, ValueError, "lr must be positive and finite in float32; found 0.0"),
        ({"lr": 1e39}, ValueError, "lr must be positive and finite in float32; found 1e.39"),
        ({"gamma": -0.1}, ValueError, "gamma must be at least 0 and finite in float32; found -0.1"),
        ({"gamma": math.inf}, ValueError, "gamma must be at least 0 and finite in float32; found inf"),
        ({"gamma": "0"}, TypeError, "gamma must be a number; found '0'"),
        ({"accumulate": None}, TypeError, "accumulate must be True or False; found None"),
    ],
)
def test_famo_refuses(settings, error, message):
    with pytest.raises(error, match=message):
        eq.FAMO(TASKS, **settings)
