"""Several processes: the norm is that of the averaged gradient, and all ranks hold identical weights."""

import os

import pytest
import torch
from networks import MLP, mse
from reference import close
from torch import distributed, multiprocessing
from training import batches, network_and

import equipoise as eq
from equipoise.balancers import _balancer
from equipoise.engine import Fork

TASKS = ("a", "b")
STEPS = 12


def plain_loop(build, shard, results, steps=STEPS):
    network, balancer = build()
    for x, y in batches(steps, TASKS, units=[1.0, 5.0]):
        network.zero_grad()
        balancer(mse(network(x[shard]), {t: v[shard] for t, v in y.items()})).backward()
        for parameter in network.parameters():
            if distributed.is_initialized():
                distributed.all_reduce(parameter.grad)
                parameter.grad /= distributed.get_world_size()
            parameter.data -= 0.05 * parameter.grad
        balancer.step()
        results.append((balancer.weights.clone(), balancer.log()["gradient_norms"], balancer.log()["losses"]))
    return results


def at_layer():
    return network_and(eq.GradNorm, TASKS)


def at_features():
    torch.manual_seed(0)
    network = MLP(TASKS)
    network.trunk.append(network.fork.shared_layer)
    network.fork = eq.Fork(None, TASKS)
    return network, eq.GradNorm(network.fork).double()


BUILD = {"at the layer": at_layer, "at the features": at_features}


def worker(rank, world, where, drift, folder):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    if drift:
        _balancer._mean_over_processes = lambda note: note
        Fork.reduce = lambda self: None
    results = plain_loop(BUILD[where], slice(rank, None, world), [])
    torch.save(results, os.path.join(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def run(where, drift, folder):
    multiprocessing.spawn(worker, (2, where, drift, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def ranks_hold_identical_weights(where, drift, folder):
    first, second = run(where, drift, folder)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a[0], b[0])
    return first


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("where", BUILD)
def test_two_processes_are_identical_and_equal_to_one(where, tmp_path):
    ranks = ranks_hold_identical_weights(where, False, tmp_path)
    for seen, alone in zip(ranks, plain_loop(BUILD[where], slice(None), []), strict=True):
        for a, b in zip(seen, alone, strict=True):
            close(a, b)


def test_ranks_that_drift_apart_would_be_noticed(tmp_path):
    with pytest.raises(AssertionError):
        ranks_hold_identical_weights("at the layer", True, tmp_path)
