"""Several processes: the norm is that of the averaged gradient, and all of them hold identical weights."""

import copy
import pickle

import pytest
import torch
from helpers import processes
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.training import batches, network_and, train
from torch import distributed
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import equipoise as eq
from equipoise.engine.processes import Processes

pytestmark = pytest.mark.usefixtures("double")

TASKS = ("a", "b")
STEPS = 12


def plain_loop(build, parts, group=None, seed=1):
    """Gradients averaged by hand. ``parts`` are the rows of the batch here, step by step; None: no labels for them."""
    network, balancer = build()
    balancer.process_group = group
    results = []
    for step, (x, y) in enumerate(batches(STEPS, TASKS, units=[1.0, 5.0], seed=seed)):
        network.zero_grad()
        for rows in parts(step):
            losses = mse(network(x[rows or ...]), {t: v[rows or ...] for t, v in y.items()})
            if rows is None:  # and what was done before that was known is thrown away
                balancer(losses).backward()
                network.zero_grad()
                balancer.zero_grad()
                losses = dict.fromkeys(TASKS)
            (balancer(losses) / len(parts(step))).backward()
        for parameter in network.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if distributed.is_initialized():
                distributed.all_reduce(gradient, group=group)
                gradient /= distributed.get_world_size(group)
            parameter.data -= 0.05 * gradient
        balancer.step()
        if step % 2 == 0:  # with every=2 one process looks at nothing in between
            results.append((balancer.weights.clone(), balancer.log()["gradient_norms"], balancer.log()["losses"]))
    return results


def whole(step):
    return [slice(None)]


def half(rank):
    return lambda step: [slice(rank, None, 2)]


def idle(step):
    """The first half has no labels at all in some steps."""
    return [None if step in (3, 4) else slice(0, None, 2), slice(1, None, 2)]


def at_layer(**settings):
    return network_and(eq.GradNorm, TASKS, **settings)


def in_parts():
    return at_layer(accumulate=True)


def balanced_first():
    return network_and(eq.GradNormClosedForm, TASKS, initial_weights="balanced")


def at_features():
    torch.manual_seed(0)
    network = MLP(TASKS)
    network.trunk.append(network.fork.shared_layer)
    network.fork = eq.Fork(None, TASKS)
    return network, eq.GradNorm(network.fork, every=2)


BUILD = {"at the layer": at_layer, "at the features": at_features, "balanced first": balanced_first}


def two(rank, world):
    processes.connect()
    found = {where: plain_loop(build, half(rank)) for where, build in BUILD.items()}
    found["idle"] = plain_loop(at_layer, lambda step: [idle(step)[rank]])
    found["micro-batches"] = plain_loop(in_parts, lambda step: [slice(rank, None, 4), slice(rank + 2, None, 4)])
    Processes.mean = lambda self, *values: values
    found["drifting"] = plain_loop(at_layer, half(rank))
    return found


def same(first, second):
    return all(
        torch.equal(a, b) for ours, theirs in zip(first, second, strict=True) for a, b in zip(ours, theirs, strict=True)
    )


def all_close(seen, expected):
    for ours, theirs in zip(seen, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            close(a, b)


def test_two_processes_are_identical_and_equal_to_one():
    first, second = processes.run(two, 2)
    for where, build in BUILD.items():
        assert same(first[where], second[where])
        all_close(first[where], plain_loop(build, whole))
    assert same(first["idle"], second["idle"])
    all_close(first["idle"], plain_loop(in_parts, idle))
    assert same(first["micro-batches"], second["micro-batches"])
    all_close(first["micro-batches"], plain_loop(at_layer, whole))
    assert not same(first["drifting"], second["drifting"])  # it would be noticed


def apart(rank, world):
    """Two trainings at once, by two processes and by one."""
    processes.connect()
    groups = [distributed.new_group([0, 1]), distributed.new_group([2])]
    group, other = groups if rank < 2 else groups[::-1]
    rows = half(rank) if rank < 2 else whole
    _, balancer = at_layer()
    with pytest.raises(ValueError, match="process_group must be a group that this process is in; found one of others"):
        balancer.process_group = other
    balancer.process_group = group
    assert copy.deepcopy(balancer).process_group is group
    return {where: plain_loop(build, rows, group, seed=rank // 2) for where, build in BUILD.items()}


def test_process_groups_train_apart():
    ranks = processes.run(apart, 3)
    for rank, found in enumerate(ranks):
        for where, build in BUILD.items():
            all_close(found[where], plain_loop(build, whole, seed=rank // 2))
    assert not same(ranks[0]["at the layer"], ranks[2]["at the layer"])


def other_tasks(rank, world):
    processes.connect()
    network, balancer = network_and(eq.GradNorm, (TASKS, TASKS[::-1])[rank])
    ((x, y),) = batches(1, TASKS)
    balancer(mse(network(x), y)).backward()
    return processes.caught(balancer.step)


def test_tasks_in_another_order_are_refused_on_every_process():
    for found in processes.run(other_tasks, 2):
        assert "tasks must be the same on every process, in one order; found [['a', 'b'], ['b', 'a']]" in found["error"]


def copied(rank, world):
    """A checkpoint of the whole object, and of the state, in the middle of training."""
    processes.connect()
    network, balancer = network_and(eq.GradNorm, TASKS)
    data = [(x[rank::2], {t: v[rank::2] for t, v in y.items()}) for x, y in batches(6, TASKS)]
    train(network, balancer, data[:3], lr=0.0)
    again = pickle.loads(pickle.dumps((network, balancer)))
    train(network, balancer, data[3:], lr=0.0)
    train(*again, data[3:], lr=0.0)
    return balancer.weights, again[1].weights


def test_a_balancer_can_be_pickled_while_processes_train():
    for weights, again in processes.run(copied, 2):
        assert torch.equal(weights, again)


def numbers_of_batches(rank, world):
    """The first process has three batches, the second five."""
    processes.connect()
    network, balancer = at_layer()
    model = DistributedDataParallel(network)
    with Join([model, balancer]):
        for x, y in list(batches(5, TASKS, units=[1.0, 5.0]))[: 3 + 2 * rank]:
            balancer(mse(model(x[rank::2]), {t: v[rank::2] for t, v in y.items()})).backward()
            balancer.step()
    return balancer.weights, balancer.adam_count


def test_processes_with_different_numbers_of_batches_join():
    found = processes.run(numbers_of_batches, 2)
    network, balancer = at_layer()
    for step, (x, y) in enumerate(batches(5, TASKS, units=[1.0, 5.0])):
        rows = slice(None) if step < 3 else slice(1, None, 2)
        balancer(mse(network(x[rows]), {t: v[rows] for t, v in y.items()})).backward()
        balancer.step()
    for weights, count in found:
        close(weights, balancer.weights)
        assert count.tolist() == [5, 5]
