"""Hundreds of steps leave nothing behind, and no step keeps its graph."""

import gc
import resource
import sys
import weakref
from itertools import pairwise

import pytest
import torch
from helpers.entry_points import ENTRY_POINTS, build, data
from helpers.lockstep import ordinary

import equipoise as eq


@pytest.fixture(name="parts", params=ENTRY_POINTS)
def _parts(request):
    network, source = build(request.param, dtype=torch.float32)
    return network, eq.GradNorm(source, every=2), torch.optim.SGD(network.parameters(), 1e-3)


def train(parts, steps):
    network, balancer, optimizer = parts
    for x, y in data(steps, dtype=torch.float32):
        optimizer.zero_grad()
        ordinary(network, balancer, x, y)
        balancer.step()
        optimizer.step()


def living():
    """Tensors that are alive, blocks of memory in Python's hands, and the most that the process ever held, in MB."""
    gc.collect()
    tensors = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts bytes, Linux kilobytes
    return tensors, sys.getallocatedblocks(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def test_hundreds_of_steps_leave_no_growth(parts):
    train(parts, 150)  # the memory that Python keeps for reuse has grown to its size by then
    seen = [living()]
    for _ in range(3):
        train(parts, 150)
        seen.append(living())
    tensors, blocks, most = zip(*seen, strict=True)
    # What a step leaves behind grows in every part; a cache that is filled meanwhile, in one of them.
    assert min(after - before for before, after in pairwise(tensors)) <= 0
    assert min(after - before for before, after in pairwise(blocks)) < 150
    assert most[-1] - most[0] < 8


def test_no_step_keeps_its_graph(parts):
    """The tensors that a graph has saved are gone as soon as the loss is, without the help of the garbage collector."""
    network, balancer, _ = parts
    saved = []
    network.trunk[2].register_forward_pre_hook(lambda module, inputs: saved.append(weakref.ref(inputs[0])))
    gc.collect()
    gc.disable()
    try:
        for x, y in data(4, dtype=torch.float32):
            ordinary(network, balancer, x, y)
            balancer.step()
            assert saved.pop()() is None
        total = balancer({task: output.square().mean() for task, output in network(x).items()})
        assert saved[0]() is not None
        del total  # without a backward pass
        assert saved.pop()() is None
    finally:
        gc.enable()
