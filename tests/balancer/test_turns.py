"""Tasks that come in turns, one to a step: what every method does then, and GradNorm's rule across steps."""

import math

import pytest
import torch
from helpers.balancers import BALANCERS, NEEDS_ALL_TASKS, SUM_IS_T, TASKS, buffers, build, same
from helpers.networks import mse
from helpers.reference import close, task_gradients
from helpers.training import batches, network_and
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

SEVERAL = [name for name in BALANCERS if name not in NEEDS_ALL_TASKS]
"""Methods that take a step in which a task is absent."""

OWN = {"InverseInitialLoss", "Uncertainty", "Uncertainty, from the losses", "SI", "IMTLL", "STCH", "RLW"}
"""Methods whose weight of a task is made of that task's own losses, or drawn; RLW draws for all."""


def in_turns(network, balancer, steps, lr=1e-3, units=(1.0, 3.0, 10.0)):
    """Task after task; the log of every step, and the weights that it left."""
    optimizer = torch.optim.SGD(network.parameters(), lr)
    logs = []
    for step, (x, y) in enumerate(batches(steps, TASKS, units=list(units))):
        task = TASKS[step % 3]
        optimizer.zero_grad()
        balancer(dict.fromkeys(TASKS) | {task: mse(network(x), y)[task]}).backward()
        optimizer.step()
        balancer.step()
        logs.append(balancer.log() | {"after": balancer.weights.clone()})
    return logs


@pytest.mark.parametrize("name", SEVERAL)
def test_every_method_takes_tasks_in_turns(name):
    network, balancer = build(name)
    logs = in_turns(network, balancer, 12)
    assert balancer.skipped_steps == 0
    for step, log in enumerate(logs):
        assert torch.isfinite(log["after"]).all()
        assert (log["after"] > 0).all()
        if name in SUM_IS_T:
            close(log["after"].sum(), torch.tensor(3.0))
        if name == "GradNorm, every third step" and step >= 8:
            continue  # from step 8 on, when all have their L(0), it sees every third step only, and always the same task
        here = torch.tensor([step % 3 == i for i in range(3)])
        assert torch.equal(~log["losses"].isnan(), here)
        close(log["training_rates"][here], torch.ones(1))
    if "initial_steps=2" not in repr(balancer):
        close(balancer.initial_losses, torch.stack([logs[i]["losses"][i] for i in range(3)]))


@pytest.mark.parametrize("name", SEVERAL)
def test_a_method_that_compares_the_tasks_of_a_step_cannot_move_one_that_is_alone(name):
    """The page on labels names these methods."""
    network, balancer = build(name)
    start = balancer.weights.clone()
    moved = (in_turns(network, balancer, 12)[-1]["after"] - start).abs().max() > 1e-6
    assert moved == (name in OWN or "absent tasks compared" in name)


@pytest.mark.parametrize("name", BALANCERS)
def test_a_step_without_any_loss_changes_nothing(name):
    network, balancer = build(name)
    for steps in (0, 5):
        for x, y in batches(steps, TASKS):
            balancer(mse(network(x), y)).backward()
            balancer.step()
        before = buffers(balancer)
        total = balancer(dict.fromkeys(TASKS))
        total.backward()
        balancer.step()
        assert total == 0
        assert same(buffers(balancer), before)
        log = balancer.log()
        assert log["losses"].isnan().all() or ("every third" in name and steps)
        assert torch.equal(log["weights"], before["weights"])


# GradNorm's rule across steps


def closed_form(fork, **settings):
    return eq.GradNormClosedForm(fork, compare_absent=True, **settings)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_it_is_the_formula_over_all_tasks_seen(alpha):
    """In scalars: the running mean of a task is made of its own steps, and all tasks seen share T."""
    network, balancer = network_and(closed_form, TASKS, alpha=alpha, decay=0.8, priors={"a": 1.0, "b": 2.0, "c": 3.0})
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    priors, weights, initial, seen = {"a": 0.5, "b": 1.0, "c": 1.5}, dict.fromkeys(TASKS, 1.0), {}, {}
    for step, (x, y) in enumerate(batches(15, TASKS, units=[1.0, 5.0, 30.0])):
        present = [("a",), ("b",), ("a", "c")][step % 3] if step > 2 else ("a",)
        losses = mse(network(x), y)
        gradients = task_gradients([losses[t] for t in present], network.fork.shared_layer.weight)
        optimizer.zero_grad()
        balancer({t: losses[t] if t in present else None for t in TASKS}).backward()
        optimizer.step()
        balancer.step()
        for task, gradient in zip(present, gradients, strict=True):
            initial.setdefault(task, losses[task].item())
            ratio, norm = losses[task].item() / initial[task], gradient.square().sum().item() ** 0.5
            seen.setdefault(task, []).append(math.log(ratio**alpha / norm))
        wanted = {}
        for task, pulls in seen.items():
            shares = [0.8**age for age in range(len(pulls))]
            mean = sum(s * pull for s, pull in zip(shares, reversed(pulls), strict=True)) / sum(shares)
            wanted[task] = priors[task] * math.exp(mean)
        rest = 3 - sum(weights[t] for t in TASKS if t not in seen)
        weights |= {t: rest * v / sum(wanted.values()) for t, v in wanted.items()}
        close(balancer.weights, torch.tensor([weights[t] for t in TASKS]))


def spread_of_norms(name, **settings):
    """By what factor the norms of the weighted losses differ, each as of the task's last turn."""
    network, balancer = network_and(getattr(eq, name), TASKS, alpha=0.0, **settings)
    logs = in_turns(network, balancer, 90)[-3:]
    norms = [log["gradient_norms"][i] for i, log in enumerate(logs)]
    return (max(norms) / min(norms)).item()


@pytest.mark.thorough
def test_norms_are_balanced_across_steps():
    assert spread_of_norms("GradNormClosedForm", compare_absent=True, decay=0.9) < 3
    assert spread_of_norms("GradNormClosedForm", decay=0.9) > 8
    assert spread_of_norms("GradNorm") > 8


def test_the_state_of_an_absent_task_stays_and_its_weight_follows():
    network, balancer = network_and(closed_form, TASKS)
    in_turns(network, balancer, 3)
    before = {name: value.clone() for name, value in balancer.named_buffers()}
    in_turns(network, balancer, 1)  # "a" again
    for name, value in balancer.named_buffers():
        if value.shape == (3,) and name != "weights":
            assert torch.equal(value[1:], before[name][1:]), name
    assert (balancer.weights != before["weights"]).all()
    close(balancer.weights[1] / balancer.weights[2], before["weights"][1] / before["weights"][2])


def test_with_all_tasks_in_every_step_it_is_the_closed_form():
    found = []
    for compare_absent in (False, True):
        network, balancer = network_and(eq.GradNormClosedForm, TASKS, compare_absent=compare_absent)
        for x, y in batches(5, TASKS):
            network.zero_grad()
            balancer(mse(network(x), y)).backward()
            balancer.step()
        found.append(balancer.weights)
    assert torch.equal(*found)


def test_a_state_dict_continues():
    network, balancer = network_and(closed_form, TASKS)
    in_turns(network, balancer, 4)
    other, again = network_and(closed_form, TASKS)
    other.load_state_dict(network.state_dict())
    again.load_state_dict(balancer.state_dict())
    in_turns(network, balancer, 3)
    in_turns(other, again, 3)
    assert torch.equal(balancer.weights, again.weights)


def test_groups_may_come_in_turns():
    """The group of the data set at hand; weights among the groups across steps, and in the group as ever."""
    torch.manual_seed(0)
    shared, groups = nn.Linear(6, 6), {"near": ("n1", "n2"), "far": ("f1", "f2")}
    fork = eq.Fork(shared, tuple(groups))
    inner = {name: eq.Fork(None, tasks) for name, tasks in groups.items()}
    branches = {name: eq.GradNorm(fork, alpha=0.0) for name, fork in inner.items()}
    tree = eq.Hierarchy(closed_form(fork, alpha=0.0, decay=0.9), branches)
    scale = {"n1": 1.0, "n2": 2.0, "f1": 30.0, "f2": 60.0}
    norms = {}
    for step in range(40):
        group = ("near", "far")[step % 2]
        features = inner[group](fork(torch.randn(32, 6))[group])
        tree(
            {t: scale[t] * (features[t] - 1).square().mean() if t in features else None for t in tree.tasks}
        ).backward()
        tree.step()
        norms[group] = tree.log()["root/gradient_norms"][step % 2].item()
    assert max(norms.values()) / min(norms.values()) < 1.5
    weights = dict(zip(tree.tasks, tree.weights.tolist(), strict=True))
    assert weights["n1"] > 10 * weights["f1"]
    assert weights["n1"] > 1.2 * weights["n2"]
    assert all(balancer.skipped_steps == 0 for balancer in tree.balancers.values())
