"""Every choice that the paper leaves open."""

import math
from itertools import pairwise

import pytest
import torch
from helpers.networks import MLP, mse
from helpers.reference import close
from torch import nn
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
AB = ("a", "b")


def constant_losses(fork, x, **values):
    """Losses of given value, each with a gradient."""
    features = fork(x)
    return {t: None if v is None else v + features[t].sum() - features[t].sum().detach() for t, v in values.items()}


def do_step(balancer, losses):
    balancer(losses).backward()
    balancer.step()
    return balancer.log()


@pytest.fixture(name="fork")
def _fork():
    return eq.Fork(nn.Linear(3, 2), AB)


X = torch.ones(4, 3, dtype=torch.float64)


def test_initial_losses_can_be_the_mean_of_the_first_steps(fork):
    balancer = eq.GradNorm(fork, initial_steps=3)
    for a, mean in ((3.0, 3.0), (5.0, 4.0), (1.0, 3.0), (99.0, 3.0)):
        do_step(balancer, constant_losses(fork, X, a=a, b=1.0))
        close(balancer.initial_losses[0], torch.tensor(mean))


def test_initial_losses_can_be_given(fork):
    balancer = eq.GradNorm(fork, alpha=1.0, initial_losses={"a": math.log(10), "b": 1.0})
    log = do_step(balancer, constant_losses(fork, X, a=math.log(10), b=0.5))
    close(log["training_rates"], torch.tensor([4 / 3, 2 / 3]))
    close(balancer.initial_losses, torch.tensor([math.log(10), 1.0]))


def test_with_given_initial_losses_a_first_loss_of_zero_is_fine(fork):
    balancer = eq.GradNorm(fork, initial_losses={"a": 1.0, "b": 1.0})
    assert do_step(balancer, constant_losses(fork, X, a=0.0, b=0.5))["training_rates"][0] == 0


def test_a_task_that_starts_late_starts_from_its_own_first_loss(fork):
    balancer = eq.GradNorm(fork)
    do_step(balancer, constant_losses(fork, X, a=2.0, b=None))
    assert balancer.initial_losses[1].isnan()
    do_step(balancer, constant_losses(fork, X, a=1.0, b=None))
    close(balancer.weights, torch.ones(2))
    do_step(balancer, constant_losses(fork, X, a=1.0, b=7.0))
    close(balancer.initial_losses, torch.tensor([2.0, 7.0]))
    close(balancer.log()["training_rates"], torch.tensor([2 / 3, 4 / 3]))


def test_a_late_task_is_checked_when_it_first_appears(fork):
    balancer = eq.GradNorm(fork)
    do_step(balancer, constant_losses(fork, X, a=2.0, b=None))
    with pytest.raises(ValueError, match="task 'b': its initial loss"):
        balancer(constant_losses(fork, X, a=1.0, b=0.0))


def test_tasks_may_take_turns(fork):
    balancer = eq.GradNorm(fork)
    for i in range(6):
        do_step(balancer, constant_losses(fork, X, a=None if i % 2 else 1.0, b=2.0 if i % 2 else None))
        close(balancer.weights, torch.ones(2))  # one task alone has the norm that it should have
    assert balancer.adam_count.tolist() == [3, 3]


def test_negative_losses_need_alpha_0(fork):
    balancer = eq.GradNorm(fork, alpha=0.0)
    do_step(balancer, constant_losses(fork, X, a=-1.0, b=2.0))
    do_step(balancer, constant_losses(fork, X, a=0.0, b=-2.0))
    assert balancer.skipped_steps == 0
    with pytest.raises(ValueError, match=r"task 'a': its initial loss.*positive.*found -1"):
        eq.GradNorm(fork, alpha=0.5)(constant_losses(fork, X, a=-1.0, b=2.0))
    balancer = eq.GradNorm(fork, alpha=0.5)
    do_step(balancer, constant_losses(fork, X, a=1.0, b=2.0))
    with pytest.raises(ValueError, match=r"task 'b': a loss must not be negative with alpha > 0.*found -0\.5"):
        balancer(constant_losses(fork, X, a=1.0, b=-0.5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(bad):
    network, balancer = network_and(eq.GradNorm, AB)
    data = list(batches(6, AB))
    train(network, balancer, data[:3])
    before = {k: v.clone() for k, v in balancer.state_dict().items() if isinstance(v, torch.Tensor)}
    losses = mse(network(data[3][0]), data[3][1])
    balancer({"a": bad * losses["a"], "b": losses["b"]}).backward()
    balancer.step()
    for name, value in before.items():
        expected = value + 1 if name == "skipped_steps" else value
        assert torch.equal(balancer.state_dict()[name], expected), name
    network.zero_grad()
    train(network, balancer, data[4:])
    assert balancer.skipped_steps == 1
    assert not torch.equal(balancer.weights, before["weights"])


def test_priors_multiply_the_targets():
    network, balancer = network_and(eq.GradNorm, AB, alpha=0.0, lr=0.01, priors={"a": 30.0, "b": 10.0})
    logs = train(network, balancer, batches(400, AB, size=128), lr=1e-3)
    close(logs[0]["targets"][0] / logs[0]["targets"][1], torch.tensor(3.0))
    norms = torch.stack([log["gradient_norms"] for log in logs[-50:]]).mean(0)
    close(norms[0] / norms[1], torch.tensor(3.0), rtol=0.1)  # the chatter of the weights


def test_the_floor_and_the_cap_hold_and_are_reported(fork):
    balancer = eq.GradNorm(fork, alpha=0.0, lr=0.1, floor=0.3, cap=1.6)
    for _ in range(30):
        features = fork(X)
        log = do_step(balancer, {"a": features["a"].square().sum(), "b": 1e4 * features["b"].square().sum()})
        assert ((balancer.weights >= 0.3) & (balancer.weights <= 1.6)).all()
        close(balancer.weights.sum(), torch.tensor(2.0))
    assert log["floor_hits"].tolist() == [0, 0], "the cap of one is met before the floor of the other"
    assert log["cap_hits"][0] > 20
    close(balancer.weights, torch.tensor([1.6, 0.4]))


def test_a_stuck_task_is_held_by_the_cap_and_counted():
    tasks = ("learns", "stuck")
    network, balancer = network_and(eq.GradNorm, tasks, alpha=1.5, cap=1.5)
    for x, y in batches(150, tasks, size=64):
        losses = mse(network(x), dict.fromkeys(tasks, y["learns"]))
        losses["stuck"] = 5.0 + 0.001 * losses["stuck"]  # a loss that hardly falls, whatever its weight
        network.zero_grad()
        balancer(losses).backward()
        balancer.step()
    assert balancer.log()["cap_hits"][1] > 50
    assert balancer.weights[1] == 1.5


def test_only_every_kth_step_is_measured():
    network, balancer = network_and(eq.GradNorm, AB, every=3)
    measured, weights = [], [balancer.weights.clone()]
    for data in batches(7, AB):
        measured.append(network.fork.measuring)
        train(network, balancer, [data])
        weights.append(balancer.weights.clone())
    assert measured == [True, False, False, True, False, False, True]
    changed = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert changed == measured


@pytest.mark.parametrize("every", [1, 10])
def test_a_step_that_is_to_be_skipped_is_counted_and_left_out_of_the_mean(every):
    """Also where nothing would have been looked at in it."""
    network, balancer = network_and(eq.GradNorm, AB, every=every)
    steps = 0
    for number, (x, y) in enumerate(batches(11, AB)):
        skip = number in (4, 5)
        steps += not skip
        balancer(mse(network(x), y)).backward()
        balancer.step(skip=skip)
    assert int(balancer.skipped_steps) == 2
    assert balancer.mean_count.tolist() == [steps, steps]


def test_micro_batches_make_one_large_batch():
    network, balancer = network_and(eq.GradNorm, AB)
    whole, whole_balancer = network_and(eq.GradNorm, AB)
    for x, y in batches(5, AB, size=12):
        whole_balancer(mse(whole(x), y)).backward()
        whole_balancer.step()
        for part, share in ((slice(0, 2), 2 / 12), (slice(2, 7), 5 / 12), (slice(7, 12), 5 / 12)):
            loss = balancer(mse(network(x[part]), {t: y[t][part] for t in AB}))
            (share * loss).backward()
        balancer.step()
        for name in ("losses", "gradient_norms", "targets", "training_rates"):
            close(balancer.log()[name], whole_balancer.log()[name])
    close(balancer.weights, whole_balancer.weights)


def test_micro_batches_that_are_summed_or_averaged_make_no_difference():
    (averaged, one), (summed, other) = network_and(eq.GradNorm, AB), network_and(eq.GradNorm, AB)
    for x, y in batches(5, AB, size=12):
        for part in (slice(0, 6), slice(6, 12)):
            (one(mse(averaged(x[part]), {t: y[t][part] for t in AB})) / 2).backward()
            other(mse(summed(x[part]), {t: y[t][part] for t in AB})).backward()
        one.step()
        other.step()
    close(one.weights, other.weights)
    close(one.log()["gradient_norms"], other.log()["gradient_norms"])


def test_at_the_features_micro_batches_make_one_large_batch():
    def network():
        torch.manual_seed(0)
        network = MLP(AB)
        network.trunk.append(network.fork.shared_layer)
        network.fork = eq.Fork(None, AB)
        return network, eq.GradNorm(network.fork)

    (whole, whole_balancer), (split, balancer) = network(), network()
    for x, y in batches(5, AB, size=12):
        whole_balancer(mse(whole(x), y)).backward()
        whole_balancer.step()
        for part in (slice(0, 4), slice(4, 12)):
            share = (part.stop - part.start) / 12
            (share * balancer(mse(split(x[part]), {t: y[t][part] for t in AB}))).backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], whole_balancer.log()["gradient_norms"])
    close(balancer.weights, whole_balancer.weights)


def test_evaluation_leaves_no_trace():
    network, balancer = network_and(eq.GradNorm, AB)
    data = list(batches(4, AB))
    train(network, balancer, data[:2])
    before = {k: v for k, v in balancer.state_dict().items() if isinstance(v, torch.Tensor)}
    with torch.no_grad():
        total = balancer(mse(network(data[2][0]), data[2][1]))
    assert not total.requires_grad
    for name, value in before.items():
        assert torch.equal(value, balancer.state_dict()[name])
    train(network, balancer, data[3:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must be at least 0.*found -1"),
        ({"alpha": float("nan")}, "alpha"),
        ({"every": 0}, "every must be a positive integer; found 0"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"floor": 0.0}, "floor must lie between"),
        ({"cap": 1.0}, "cap must be more than 1"),
        ({"initial_steps": 0}, "initial_steps"),
        ({"initial_losses": {"a": 1.0}}, "initial_losses: task 'b' is missing"),
        ({"initial_losses": {"a": 1.0, "b": 0.0}}, "initial_losses: task 'b' must have a positive"),
        ({"priors": {"a": 1.0, "b": 1.0, "c": 1.0}}, "priors: unknown task 'c'"),
    ],
)
def test_a_setting_out_of_range_is_refused(fork, settings, message):
    with pytest.raises(ValueError, match=message):
        eq.GradNorm(fork, **settings)


def test_gradnorm_needs_a_fork():
    with pytest.raises(TypeError, match="needs a Fork.*found tuple"):
        eq.GradNorm(AB)
