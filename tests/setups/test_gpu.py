"""On a GPU, where there is one: the same figures, no waiting for the device, and a step in a CUDA graph."""

import contextlib
import warnings

import pytest
import torch
from helpers import matrix
from helpers.entry_points import ENTRY_POINTS, build, data, losses_of, reference_norms

import equipoise as eq

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@contextlib.contextmanager
def waiting_is_an_error():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def moved(batches):
    for x, y in batches:
        yield x.cuda(), {task: value.cuda() for task, value in y.items()}


AUDITED = 5
"""The first steps, most of which are audited, which waits for the device; the next one is the eighth."""


def started(entry_point):
    """A network on the GPU that has taken its first steps."""
    network, source = build(entry_point)
    network.cuda()
    balancer = eq.GradNorm(source).double().cuda()
    for x, y in moved(data(AUDITED)):
        network.zero_grad()
        balancer(losses_of(network, x, y)).backward()
        balancer.step()
    return network, balancer


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_norms_are_exact_and_no_step_waits_for_the_device(entry_point):
    network, balancer = started(entry_point)
    for x, y in list(moved(data(3, seed=2))):
        expected = balancer.weights * reference_norms(entry_point, network, x, y)
        network.zero_grad()
        with waiting_is_an_error():
            balancer(losses_of(network, x, y)).backward()
            balancer.step()
        assert matrix.deviation(balancer.log()["gradient_norms"], expected) <= matrix.TOLERANCE["float64"]
    assert (balancer.weights - 1).abs().max() > 0.05


@pytest.mark.parametrize("entry_point", ["Fork, by rule", "Fork, features"])
def test_a_cuda_graph_captures_a_step(entry_point):
    network, balancer = started(entry_point)
    eager, eager_balancer = started(entry_point)
    batches = list(moved(data(6, seed=2)))
    still = (batches[0][0].clone(), {task: value.clone() for task, value in batches[0][1].items()})

    def step():
        balancer(losses_of(network, *still)).backward()
        balancer.step()
        network.zero_grad()

    before = {name: value.clone() for name, value in balancer.named_buffers()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for name, value in before.items():
        balancer.get_buffer(name).copy_(value)
    for x, y in batches:
        still[0].copy_(x)
        for task, value in y.items():
            still[1][task].copy_(value)
        graph.replay()
        eager.zero_grad()
        eager_balancer(losses_of(eager, x, y)).backward()
        eager_balancer.step()
        assert matrix.deviation(balancer.weights, eager_balancer.weights) <= matrix.TOLERANCE["float64"]
