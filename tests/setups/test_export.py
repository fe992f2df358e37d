"""`torch.export` of a model that is being trained: the network is deployed, and nothing else."""

import io
import sys

import pytest
import torch
from helpers import matrix
from helpers.entry_points import ENTRY_POINTS, build, data
from helpers.lockstep import ordinary

import equipoise as eq

# Dynamo makes an instance of every autograd.Function that it traces.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


MODES = [(True, False), (False, True), (False, False)]
"""In training mode or not, strict or not."""

if torch.__version__ >= "2.10":  # before, a strict export could not be told from torch.compile
    MODES.append((True, True))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_export(entry_point):
    """In eval() and in training mode, while the balancer measures: the graph of a network that never had one."""
    ((x, y),) = data(1)
    plain, _ = build(entry_point)
    wanted = {strict: graph(torch.export.export(plain, (x,), strict=strict)) for strict in (True, False)}
    network, source = build(entry_point)
    balancer = eq.GradNorm(source).double()
    ordinary(network, balancer, x, y)  # left in the middle of a step
    worst = 0.0
    for training, strict in MODES:
        network.train(training)
        program = torch.export.export(network, (x,), strict=strict)
        assert graph(program) == wanted[strict]
        assert program.state_dict.keys() == plain.state_dict().keys()
        assert not program.constants
        found, expected = program.module()(x), plain(x)
        worst = max([worst, *(matrix.deviation(found[t].detach(), expected[t].detach()) for t in expected)])
    balancer.step()
    assert balancer.log()["gradient_norms"].isfinite().all()
    matrix.exact(entry_point, "torch.export, in training mode and in eval()", worst)


def graph(program):
    """The operations of a program, in order."""
    return [(node.op, str(node.target)) for node in program.graph.nodes]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_an_exported_model_runs_where_the_library_is_not_installed(entry_point, monkeypatch):
    ((x, _),) = data(1)
    network, source = build(entry_point)
    eq.GradNorm(source)
    expected, file = network(x), io.BytesIO()
    torch.export.save(torch.export.export(network, (x,), strict=False), file)
    file.seek(0)
    for name in [name for name in sys.modules if name.partition(".")[0] == "equipoise"]:
        monkeypatch.setitem(sys.modules, name, None)
    found = torch.export.load(file).module()(x)
    for task in expected:
        torch.testing.assert_close(found[task], expected[task])
