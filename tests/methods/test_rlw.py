"""Random loss weighting, and the random numbers of all methods that draw some: where they come from."""

import copy

import pytest
import torch
from helpers.networks import MLP
from helpers.reference import close
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")
DRAW = {
    "RLW": lambda tasks=TASKS, seed=0: eq.RLW(tasks, seed=seed),
    "ReLoBRaLo": lambda tasks=TASKS, seed=0: eq.ReLoBRaLo(tasks, alpha=0.5, rho=0.5, seed=seed),
}


@pytest.fixture(params=DRAW, name="name")
def _name(request):
    return request.param


def one_step(balancer, t):
    losses = {task: 1.0 + 0.3 * ((t * (i + 2)) % 5) for i, task in enumerate(TASKS)}
    balancer({t: torch.tensor(losses[t], requires_grad=True) for t in balancer.tasks}).backward()
    balancer.step()
    return balancer.log()["weights"]


def weights_seen(balancer, steps, first=0):
    return torch.stack([one_step(balancer, t) for t in range(first, first + steps)])


@pytest.mark.slow
def test_rlw_the_weights_are_T_times_a_softmax_of_normal_numbers():
    network, balancer = network_and(eq.RLW, TASKS, seed=5)
    logs = train(network, balancer, batches(25, TASKS))
    rows = torch.stack([log["weights"] for log in logs])
    close(rows.sum(1), torch.full((25,), 3.0))
    assert (rows > 0).all()
    # log-weights are z_i minus what is common to a step, so that differences of two have a variance of 2
    z = weights_seen(eq.RLW(TASKS), 4000).log()
    differences = torch.stack([z[:, 0] - z[:, 1], z[:, 1] - z[:, 2]])
    close(differences.mean(1), torch.zeros(2), rtol=0, atol=4 * (2 / 4000) ** 0.5)
    close(differences.var(1), torch.full((2,), 2.0), rtol=0, atol=4 * 2 * (2 / 4000) ** 0.5)
    inside = (differences.abs() < 2**0.5).double().mean(1)
    close(inside, torch.full((2,), 0.6827), rtol=0, atol=4 * (0.6827 * 0.3173 / 4000) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("on", [True, False])
def test_rlw_every_task_has_the_weight_of_equal_weighting_on_average_and_never_twice_the_same(on):
    """So the gradient is that of equal weighting on average, and scatters around it: the claim of the paper."""
    rows = weights_seen(eq.RLW(TASKS) if on else eq.Equal(TASKS), 2000)
    close(rows.mean(0), torch.ones(3), rtol=0, atol=0.06)  # standard deviation 0.7, over the root of 2000: 4 sigma
    assert (rows.std(0) > 0.5).all() == on
    assert (rows[1:] != rows[:-1]).all() == on


def test_rlw_weights_are_drawn_for_absent_tasks_too():
    balancer, other = eq.RLW(TASKS), eq.RLW(TASKS)
    balancer({"a": torch.tensor(1.0, requires_grad=True), "b": None, "c": None}).backward()
    balancer.step()
    one_step(other, 0)
    assert torch.equal(balancer.weights, other.weights)


def test_relobralo_looks_back_in_as_many_steps_as_rho_says():
    balancer = eq.ReLoBRaLo(TASKS, rho=0.8)
    remembered = []
    for t in range(500):
        remembered.append(balancer.remembers.item())
        one_step(balancer, t)
    assert abs(sum(remembered) / 500 - 0.8) < 4 * (0.8 * 0.2 / 500) ** 0.5


def test_nothing_else_that_draws_random_numbers_changes_them(name):
    expected = weights_seen(DRAW[name](), 9)
    torch.manual_seed(99)
    assert torch.equal(weights_seen(DRAW[name](), 9), expected)
    before = torch.get_rng_state()
    weights_seen(DRAW[name](), 9)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(weights_seen(DRAW[name](seed=1), 9), expected)


def test_they_follow_from_the_seed_and_the_number_of_the_step_alone(name):
    """So a restart needs no generator: the state holds tensors and the number of steps, whenever it was saved."""
    balancer = DRAW[name]()
    rows = weights_seen(balancer, 12)
    again = DRAW[name]()
    weights_seen(again, 5)
    restarted = DRAW[name]()
    restarted.load_state_dict(copy.deepcopy(again.state_dict()))
    assert torch.equal(weights_seen(restarted, 7, first=5), rows[5:])
    again.reset_parameters()
    assert torch.equal(weights_seen(again, 12), rows)
    assert all(isinstance(value, torch.Tensor) for value in balancer.state_dict().values())


def test_the_order_of_the_tasks_does_not_matter(name):
    rows = weights_seen(DRAW[name](), 9)
    permuted = weights_seen(DRAW[name](("c", "a", "b")), 9)
    close(permuted, rows[:, [2, 0, 1]])


def test_the_precision_changes_the_weights_by_rounding_only(name):
    double = weights_seen(DRAW[name](), 9)
    close(weights_seen(DRAW[name]().float(), 9).double(), double, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [eq.RLW, eq.ReLoBRaLo])
@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (1.5, TypeError, "seed must be an integer; found 1.5"),
        (True, TypeError, "seed must be an integer; found True"),
        (None, TypeError, "seed must be an integer; found None"),
        (-1, ValueError, "seed must be an integer of at least 0; found -1"),
    ],
)
def test_a_bad_seed_is_refused(method, seed, error, message):
    with pytest.raises(error, match=message):
        method(TASKS, seed=seed)


def test_micro_batches_of_a_measured_step_are_accumulated():
    network = MLP(TASKS)
    balancer = eq.RLW(network.fork, every=1, accumulate=True)
    for x, _ in batches(2, TASKS):
        losses = {task: value.square().mean() for task, value in network(x).items()}
        (balancer(losses) / 2).backward()
    balancer.step()
    assert (balancer.log()["gradient_norms"] > 0).all()
