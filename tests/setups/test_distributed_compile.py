"""torch.compile and DistributedDataParallel, either around the other."""

import warnings

import pytest
import torch
from helpers import processes
from helpers.entry_points import ENTRY_POINTS, TASKS, build
from helpers.reference import close
from helpers.shards import COMPARED, Present, alone, check, parts_of, share_of, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

STEPS = 5


def around(model):
    return torch.compile(DistributedDataParallel(model), backend="aot_eager")


def within(model):
    return DistributedDataParallel(torch.compile(model, backend="aot_eager", fullgraph=True))


def trunk_only(model):
    model.network.trunk = torch.compile(model.network.trunk, backend="aot_eager", fullgraph=True)
    return DistributedDataParallel(model)


SETUPS = {
    "torch.compile around DDP": around,
    "DDP around torch.compile, fullgraph": within,
    "DDP, torch.compile of the trunk": trunk_only,
}

FROM_THE_GRAPH = "measured from the original graph" if torch.__version__ >= "2.7" else "Observed exception"

REFUSED = {
    ("DDP around torch.compile, fullgraph", "Fork, a block"): FROM_THE_GRAPH,
    ("DDP around torch.compile, fullgraph", "attach"): FROM_THE_GRAPH,
}


NO_AUDIT = {(name, "Fork, features"): "compiled as a whole, and there is no W" for name in list(SETUPS)[:2]}


class Wide(nn.Module):
    """More than fits into the first of the buckets in which gradients are averaged: compiled in several parts."""

    def __init__(self, width=400):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.fork = eq.Fork(nn.Linear(width, width), TASKS)
        self.heads = nn.ModuleDict(
            {task: nn.Sequential(nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)) for task in TASKS}
        )

    def forward(self, x):
        features = self.fork(self.trunk(x))
        return {task: self.heads[task](features[task]) for task in TASKS}


def wide():
    torch.manual_seed(0)
    network = Wide()
    return Present(network), network.fork


def compiled(rank, world, entry_point, wrap):
    torch.compiler.reset()
    network, source = build(entry_point)
    return train(wrap(Present(network)), source, share_of(rank, world, STEPS))


def worker(rank, world):
    # PyTorch warns of its own code while it compiles
    warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
    network, source = build("Fork, by rule")
    network, early = Present(network), eq.GradNorm(source).double()  # before there are other processes
    processes.connect()
    found = {
        (name, entry_point): processes.caught(compiled, rank, world, entry_point, wrap)
        for name, wrap in SETUPS.items()
        for entry_point in ENTRY_POINTS
    }
    torch.compiler.reset()
    late = processes.caught(
        train, torch.compile(network, backend="aot_eager"), source, share_of(rank, world, 1), None, early
    )
    torch.compiler.reset()
    parts = []

    def backend(part, inputs):
        parts.append(part)
        return torch._dynamo.lookup_backend("aot_eager")(part, inputs)

    model, source = wide()
    model = torch.compile(DistributedDataParallel(model, bucket_cap_mb=1), backend=backend)
    return found, late, train(model, source, share_of(rank, world, STEPS)) | {"parts": len(parts)}


def test_equal_to_one_process():
    ranks = processes.run(worker, 2)
    for (name, entry_point), runs in processes.by_cell([found for found, _, _ in ranks]):
        expected, refused = alone(entry_point, STEPS), REFUSED.get((name, entry_point))
        check(entry_point, name, runs, expected, refused, left_out=NO_AUDIT.get((name, entry_point)))
    model, source = wide()
    expected = train(model, source, parts_of(STEPS, 1))
    for _, late, run in ranks:
        assert "was initialised after this step of GradNorm was planned" in late["error"]
        assert run["parts"] > 3
        for name in COMPARED:
            close(run[name], expected[name])
