"""Random loss weighting: the distribution, and where its random numbers come from."""

import pytest
import torch
from helpers.reference import close
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")


def weights_seen(balancer, steps):
    rows = []
    for _ in range(steps):
        balancer({t: torch.ones((), requires_grad=True) for t in balancer.tasks}).backward()
        balancer.step()
        rows.append(balancer.log()["weights"])
    return torch.stack(rows)


def test_the_weights_of_every_step_are_T_times_the_softmax_of_the_next_normal_numbers():
    network, _ = network_and(eq.Equal, TASKS)
    balancer = eq.RLW(network.fork, seed=5)
    generator = torch.Generator().manual_seed(5)
    for log in train(network, balancer, batches(25, TASKS)):
        z = torch.randn(3, generator=generator).exp()
        close(log["weights"], 3 * z / z.sum())


@pytest.mark.parametrize("on", [True, False])
def test_every_task_has_the_weight_of_equal_weighting_on_average_and_never_twice_the_same(on):
    rows = weights_seen(eq.RLW(TASKS) if on else eq.Equal(TASKS), 2000)
    close(rows.mean(0), torch.ones(3), rtol=0, atol=0.06)  # standard deviation 0.7, over the root of 2000: 4 sigma
    assert (rows.std(0) > 0.5).all() == on
    assert (rows[1:] != rows[:-1]).all() == on


def test_nothing_else_that_draws_random_numbers_changes_them():
    expected = weights_seen(eq.RLW(TASKS), 5)
    torch.manual_seed(99)
    close(weights_seen(eq.RLW(TASKS), 5), expected)
    before = torch.get_rng_state()
    weights_seen(eq.RLW(TASKS), 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(weights_seen(eq.RLW(TASKS, seed=1), 5), expected)


def test_the_precision_changes_the_weights_by_rounding_only():
    double = weights_seen(eq.RLW(TASKS), 5)
    close(weights_seen(eq.RLW(TASKS).float(), 5).double(), double, rtol=1e-6, atol=0)


def test_a_seed_that_is_no_integer_is_refused():
    with pytest.raises(ValueError, match="seed must be an integer; found 1.5"):
        eq.RLW(TASKS, seed=1.5)
