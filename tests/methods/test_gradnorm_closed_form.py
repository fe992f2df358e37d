"""The weights at which GradNorm rests, without a rate."""

import math

import pytest
import torch
from helpers.networks import MLP, mse
from helpers.reference import close, task_gradients
from helpers.training import batches, network_and, train
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
AB, ABC = ("a", "b"), ("a", "b", "c")


def at_rest(build, factor, steps):
    """Two tasks, the second in a unit ``factor`` times larger, on a network that does not move; the log of every step."""
    torch.manual_seed(0)
    network = MLP(AB)
    ((x, y),) = batches(1, AB, size=64)
    first = mse(network(x), y)
    # "a" has come down to 0.9 of its first loss, "b" to 0.3
    initial = {"a": first["a"].item() / 0.9, "b": factor * first["b"].item() / 0.3}
    balancer = build(network.fork, alpha=1.0, initial_losses=initial)
    logs = []
    for _ in range(steps):
        losses = mse(network(x), y)
        balancer({"a": losses["a"], "b": factor * losses["b"]}).backward()
        balancer.step()
        logs.append(balancer.log())
    return logs


def misses(logs):
    """By which factor the ratio of the norms misses that of ``r^alpha``, here 3, at every step: 1 is at rest."""
    ratios = torch.stack([log["gradient_norms"][0] / log["gradient_norms"][1] for log in logs])
    return (ratios / 3).log().abs().exp()


def steps_to_rest(logs, within=1.1):
    """The first step from which on the weights stay within a tenth of where they rest."""
    inside = misses(logs) < within
    return len(inside) - int(inside.flip(0).long().cumprod(0).sum())


def gradnorm(fork, **settings):
    return eq.GradNorm(fork, floor=1e-9, **settings)


@pytest.mark.slow
def test_it_comes_to_rest_where_the_papers_rule_does_and_sooner():
    paper, log_space, closed = (at_rest(b, 4.0, 400) for b in (gradnorm, eq.GradNormLogSpace, eq.GradNormClosedForm))
    assert steps_to_rest(closed) == 1  # the first step is weighted with ones
    assert 20 < steps_to_rest(paper) < 200
    assert 20 < steps_to_rest(log_space) < 200
    weights = torch.stack([log["weights"] for log in paper[200:]]).mean(0)
    close(closed[-1]["weights"], weights, rtol=0.05)  # the chatter of the paper's rule


@pytest.mark.slow
def test_losses_a_million_apart_are_balanced_at_once():
    paper, log_space, closed = (at_rest(b, 1e6, 1000) for b in (gradnorm, eq.GradNormLogSpace, eq.GradNormClosedForm))
    assert steps_to_rest(closed) == 1
    close(misses(closed[1:]), torch.ones(999))
    assert 400 < steps_to_rest(log_space) < 700, "some log(10^6) / 0.025 steps, whatever the unit"
    # the rule as published moves all weights by 0.025: at rest one of them has to be 10^-6
    assert steps_to_rest(paper) == 1000
    assert misses(paper[500:]).median() > 10


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_norms_follow_the_rates_while_the_network_trains(decay):
    network, balancer = network_and(eq.GradNormClosedForm, AB, alpha=1.0, decay=decay)
    equal, equal_balancer = network_and(eq.Equal, AB, every=1)

    def miss(network, balancer):
        data = batches(400, AB, size=128, units=[1.0, 1e3])  # squared errors: 10^6 between the losses
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        logs = train(network, balancer, data, optimizer=optimizer)[200:]
        norms, rates = (torch.stack([log[k] for log in logs]) for k in ("gradient_norms", "training_rates"))
        shares = (norms / rates).log()
        return (shares[:, 0] - shares[:, 1]).mean().abs().exp()

    assert miss(network, balancer) < 1.1
    assert miss(equal, equal_balancer) > 1e3


@pytest.mark.parametrize("alpha", [0.0, 1.5])
@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_it_is_the_formula(alpha, decay):
    """One task after the other, in scalars; "b" is absent now and then, "c" starts late."""
    network, balancer = network_and(
        eq.GradNormClosedForm, ABC, alpha=alpha, decay=decay, priors={"a": 1.0, "b": 2.0, "c": 3.0}
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    priors = {"a": 0.5, "b": 1.0, "c": 1.5}
    weights, initial, seen = dict.fromkeys(ABC, 1.0), {}, {t: [] for t in ABC}
    for step, (x, y) in enumerate(batches(25, ABC, units=[1.0, 5.0, 30.0])):
        losses = mse(network(x), y)
        present = [t for t in ABC if not (t == "b" and step % 4 == 1) and not (t == "c" and step < 6)]
        gradients = task_gradients([losses[t] for t in present], network.fork.shared_layer.weight)
        optimizer.zero_grad()
        balancer({t: losses[t] if t in present else None for t in ABC}).backward()
        optimizer.step()
        balancer.step()
        wanted = {}
        for task, gradient in zip(present, gradients, strict=True):
            initial.setdefault(task, losses[task].item())
            ratio, norm = losses[task].item() / initial[task], gradient.square().sum().item() ** 0.5
            seen[task].append(math.log(ratio**alpha / norm))
            shares = [decay**age for age in range(len(seen[task]))]
            smooth = sum(s * v for s, v in zip(shares, reversed(seen[task]), strict=True)) / sum(shares)
            wanted[task] = priors[task] * math.exp(smooth)
        rest = 3 - sum(weights[t] for t in ABC if t not in present)
        weights |= {t: rest * v / sum(wanted.values()) for t, v in wanted.items()}
        close(balancer.weights, torch.tensor([weights[t] for t in ABC]))
    assert (balancer.weights - 1).abs().max() > 0.5


def test_a_task_without_gradient_is_left_out():
    torch.manual_seed(0)
    fork = eq.Fork(nn.Linear(3, 2), AB)
    balancer = eq.GradNormClosedForm(fork)

    def step(a):
        features = fork(torch.ones(4, 3))
        balancer({t: s * features[t].square().mean() for t, s in {"a": a, "b": 9.0}.items()}).backward()
        balancer.step()
        return balancer.weights.clone()

    before = step(1.0)
    close(before, torch.tensor([1.8, 0.2]))
    close(step(0.0), before)
    close(balancer.pull_count, torch.tensor([1.0, 2.0]))
    assert balancer.skipped_steps == 0
    assert torch.isfinite(step(1.0)).all()


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\); found"):
        eq.GradNormClosedForm(eq.Fork(nn.Linear(3, 2), AB), decay=decay)
