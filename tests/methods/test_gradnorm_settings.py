"""Every choice that the paper leaves open."""

import math
from itertools import pairwise

import pytest
import torch
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.training import batches, network_and, train
from torch import nn

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
    with pytest.raises(ValueError, match=r"task 'a': a loss must not be negative with alpha > 0.*found -1.*alpha=0"):
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
    before = {name: value.clone() for name, value in balancer.named_buffers()}
    losses = mse(network(data[3][0]), data[3][1])
    balancer({"a": bad * losses["a"], "b": losses["b"]}).backward()
    balancer.step()
    for name, value in before.items():
        expected = value + 1 if name == "skipped_steps" else value
        assert torch.equal(balancer.get_buffer(name), expected), name
    network.zero_grad()
    train(network, balancer, data[4:])
    assert balancer.skipped_steps == 1
    assert not torch.equal(balancer.weights, before["weights"])


@pytest.mark.thorough
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


@pytest.mark.parametrize(("every", "moved"), [(1, 9), (4, 2), (10, 2)])
def test_a_step_that_is_to_be_skipped_is_counted_and_left_out_of_the_mean(every, moved):
    """Also where nothing would have been measured in it."""
    network, balancer = network_and(eq.GradNorm, AB, every=every)
    for number, (x, y) in enumerate(batches(11, AB)):
        balancer(mse(network(x), y)).backward()
        balancer.step(skip=number in (4, 5))
    assert int(balancer.skipped_steps) == 2
    assert balancer.weight_counts.tolist() == [moved, moved]


@pytest.mark.parametrize("skip", [1, None, "yes"])
def test_skip_is_true_or_false(fork, skip):
    balancer = eq.GradNorm(fork)
    balancer(constant_losses(fork, X, a=1.0, b=1.0)).backward()
    with pytest.raises(TypeError, match="skip must be True or False; found"):
        balancer.step(skip=skip)


def test_micro_batches_make_one_large_batch():
    network, balancer = network_and(eq.GradNorm, AB, accumulate=True)
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


def test_a_second_backward_pass_in_a_step_must_be_announced():
    network, balancer = network_and(eq.GradNorm, AB)
    ((x, y),) = batches(1, AB)
    balancer(mse(network(x), y)).backward()
    second = balancer(mse(network(x), y))
    with pytest.raises(RuntimeError, match=r"GradNorm\(\.\.\., accumulate=True\) and step\(\) after the last of them"):
        second.backward()
    balancer.zero_grad()
    balancer(mse(network(x), y)).backward()
    balancer.step()
    balancer.accumulate = True
    for _ in range(2):
        balancer(mse(network(x), y)).backward()
    balancer.step()
    assert balancer.weight_counts.tolist() == [2, 2]
    with pytest.raises(TypeError, match="accumulate must be True or False; found 1 of type int"):
        balancer.accumulate = 1


def test_micro_batches_that_are_summed_or_averaged_make_no_difference():
    (averaged, one), (summed, other) = (network_and(eq.GradNorm, AB, accumulate=True) for _ in range(2))
    for x, y in batches(5, AB, size=12):
        for part in (slice(0, 6), slice(6, 12)):
            (one(mse(averaged(x[part]), {t: y[t][part] for t in AB})) / 2).backward()
            other(mse(summed(x[part]), {t: y[t][part] for t in AB})).backward()
        one.step()
        other.step()
    close(one.weights, other.weights)
    close(one.log()["gradient_norms"], other.log()["gradient_norms"])


def test_at_the_features_micro_batches_make_one_large_batch():
    def network(accumulate):
        torch.manual_seed(0)
        network = MLP(AB)
        network.trunk.append(network.fork.shared_layer)
        network.fork = eq.Fork(None, AB)
        return network, eq.GradNorm(network.fork, accumulate=accumulate)

    (whole, whole_balancer), (split, balancer) = network(False), network(True)
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
    before = {name: value.clone() for name, value in balancer.state_dict().items()}
    with torch.no_grad():
        total = balancer(mse(network(data[2][0]), data[2][1]))
    assert not total.requires_grad
    for name, value in before.items():
        assert torch.equal(value, balancer.state_dict()[name])
    train(network, balancer, data[3:])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"alpha": -1.0}, ValueError, "alpha must be at least 0 and finite in float32; found -1"),
        ({"alpha": math.nan}, ValueError, "alpha must be at least 0.*found nan"),
        ({"alpha": 1e39}, ValueError, r"alpha must be at least 0 and finite in float32; found 1e\+39"),
        ({"alpha": "1.5"}, TypeError, "alpha must be a number; found '1.5' of type str"),
        ({"alpha": True}, TypeError, "alpha must be a number; found True of type bool"),
        ({"every": 0}, ValueError, "every must be an integer of at least 1; found 0"),
        ({"every": 2.0}, TypeError, "every must be an integer; found 2.0 of type float"),
        ({"start": -1}, ValueError, "start must be an integer of at least 0; found -1"),
        ({"accumulate": 1}, TypeError, "accumulate must be True or False; found 1 of type int"),
        ({"lr": 0.0}, ValueError, "lr must be positive and finite in float32; found 0"),
        ({"lr": math.inf}, ValueError, "lr must be positive and finite in float32; found inf"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas must lie in \[0, 1\); found 1"),
        ({"betas": 0.9}, TypeError, "betas must be two numbers; found 0.9 of type float"),
        ({"betas": (0.9, math.nan)}, ValueError, r"betas must lie in \[0, 1\); found nan"),
        ({"floor": 0.0}, ValueError, r"floor must lie in \(0, 1\); found 0"),
        ({"cap": 1.0}, ValueError, r"cap must lie in \(1, inf\); found 1"),
        ({"cap": math.nan}, ValueError, r"cap must lie in \(1, inf\); found nan"),
        ({"initial_steps": 0}, ValueError, "initial_steps must be an integer of at least 1; found 0"),
        ({"initial_losses": {"a": 1.0}}, ValueError, "initial_losses: task 'b' is missing"),
        ({"initial_losses": {"a": 1.0, "b": 0.0}}, ValueError, "initial_losses: task 'b': its value must be positive"),
        ({"initial_losses": {"a": 1.0, "b": None}}, TypeError, "initial_losses: task 'b': its value must be a number"),
        ({"initial_losses": (1.0, 1.0)}, TypeError, "initial_losses must be a dict by task name; found tuple"),
        ({"priors": {"a": 1.0, "b": 1.0, "c": 1.0}}, ValueError, "priors: unknown task 'c'; the tasks are 'a', 'b'"),
        ({"priors": {"a": 1.0, "b": math.inf}}, ValueError, "priors: task 'b': its value must be positive and finite"),
        ({"initial_weights": {"a": 1.0}}, ValueError, "initial_weights: task 'b' is missing"),
        ({"initial_weights": {"a": 1.0, "b": -1.0}}, ValueError, "initial_weights: task 'b': its value must be posi"),
        ({"initial_weights": "even"}, ValueError, "initial_weights must be 'balanced'; found 'even' of type str"),
        ({"initial_weights": [1.0, 1.0]}, TypeError, "initial_weights must be a dict by task name; found list"),
    ],
)
def test_a_setting_out_of_range_is_refused(fork, settings, error, message):
    with pytest.raises(error, match=message):
        eq.GradNorm(fork, **settings)


def test_gradnorm_needs_a_fork():
    with pytest.raises(TypeError, match="needs a Fork.*found tuple"):
        eq.GradNorm(AB)


def test_the_loss_of_the_weights_is_summed_over_the_tasks_present():
    torch.manual_seed(0)
    fork = eq.Fork(nn.Linear(3, 2), ("a", "b", "c"))
    balancer = eq.GradNorm(fork)
    for absent in ((), ("b",)):
        features = fork(torch.ones(4, 3))
        losses = {t: (i + 1) * features[t].square().sum() for i, t in enumerate(fork.tasks)}
        balancer({t: None if t in absent else loss for t, loss in losses.items()}).backward()
        balancer.step()
    log = balancer.log()
    assert log["gradient_norms"].isnan().tolist() == [False, True, False]
    distances = (log["gradient_norms"] - log["targets"]).abs()
    torch.testing.assert_close(log["gradnorm_loss"], distances[[0, 2]].sum())


def test_the_unit_of_adams_epsilon_is_that_of_the_first_step(fork):
    balancer, units = eq.GradNorm(fork), []
    for scale in (1e-3, 2e-3):
        features = fork(X)
        log = do_step(balancer, {t: scale * features[t].square().sum() for t in AB})
        units.append(balancer.unit.clone())
        if scale == 1e-3:
            close(balancer.unit, (log["gradient_norms"] / log["weights"]).mean())
    assert 0 < units[0] < 1
    assert units[0] == units[1]


def test_a_weight_that_the_renormalisation_brings_below_the_floor_stops_there():
    fork = eq.Fork(nn.Linear(3, 2), ("a", "b", "c"))
    start = {"a": 0.1505, "b": 1.4247, "c": 1.4248}  # a falls to 0.1005 and the others rise, so that the sum is 3.05
    balancer = eq.GradNorm(fork, alpha=0.0, lr=0.05, floor=0.1, initial_weights=start)
    features = fork(X)
    log = do_step(balancer, {t: (1000 if t == "a" else 1) * features[t].square().sum() for t in fork.tasks})
    close(balancer.weights[0], torch.tensor(0.1))
    close(balancer.weights.sum(), torch.tensor(3.0))
    assert log["floor_hits"].tolist() == [1, 0, 0]


def test_a_rule_on_norms_must_measure_them_now_and_then(fork):
    with pytest.raises(ValueError, match="every must be a positive integer for GradNorm; found None"):
        eq.GradNorm(fork, every=None)
