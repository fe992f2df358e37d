"""Methods on the losses over two processes: identical on both, and equal to one process with both batches."""

import os

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close
from torch import distributed, multiprocessing
from helpers.training import batches, network_and

import equipoise as eq

TASKS = ("a", "b")
METHODS = {
    "SI": lambda fork: eq.SI(fork),
    "GLS": lambda fork: eq.GLS(fork),
    "UWSO": lambda fork: eq.UWSO(fork),
    "STCH": lambda fork: eq.STCH(fork),
    "FAMO": lambda fork: eq.FAMO(fork),
    "ReLoBRaLo": lambda fork: eq.ReLoBRaLo(fork, alpha=0.5, rho=0.5),
    "RLW": lambda fork: eq.RLW(fork),
    "DWA": lambda fork: eq.DWA(fork, epoch_steps=2),
    "CoV": lambda fork: eq.CoV(fork),
    "InverseLossVariance": lambda fork: eq.InverseLossVariance(fork),
    "SoftAdapt": lambda fork: eq.SoftAdapt(fork),
    "IMTLL": lambda fork: eq.IMTLL(fork),
    "DTP": lambda fork: eq.DTP(fork),
}


def weights_seen(name, rank, world):
    """The weights of eight steps on this process's share of the batches."""
    network, balancer = network_and(METHODS[name], TASKS)
    rows = []
    for t, (x, y) in enumerate(batches(8, TASKS, units=[1.0, 5.0])):
        share = slice(rank, None, world)
        losses = mse(network(x[share]), {task: v[share] for task, v in y.items()})
        network.zero_grad()
        balancer(losses).backward()
        for parameter in network.parameters():
            if distributed.is_initialized():
                distributed.all_reduce(parameter.grad)
                parameter.grad /= world
            parameter.data -= 0.02 * parameter.grad
        if name == "FAMO" and t % 2:
            balancer.observe(mse(network(x[share]), {task: v[share] for task, v in y.items()}))
        if name == "DTP":
            balancer.observe({task: 1 / (2 + rank + t + i) for i, task in enumerate(TASKS)})
        balancer.step()
        rows.append(balancer.log()["weights"])
    return torch.stack(rows)


def worker(rank, world, folder):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save({name: weights_seen(name, rank, world) for name in METHODS}, os.path.join(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


@pytest.mark.usefixtures("double")
def test_two_processes_are_identical_and_equal_to_one(tmp_path):
    multiprocessing.spawn(worker, (2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in METHODS:
        assert torch.equal(first[name], second[name]), name
        if name != "DTP":  # there the processes report different indicators
            close(first[name], weights_seen(name, 0, 1))
