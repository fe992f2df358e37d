"""DistributedDataParallel: the norm is that of the averaged gradient, and all processes hold identical weights."""

from dataclasses import dataclass, field

import pytest
from helpers import processes
from helpers.entry_points import ENTRY_POINTS, build
from helpers.shards import Present, alone, check, none_missing, one_pass, share_of, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.usefixtures("double")


def some_missing(step, part):
    """In some steps the processes lack a task each, in some all of them lack the same one."""
    return {1: ("a",) if part else ("c",), 4: ("b",)}.get(step % 5, ())


@dataclass(frozen=True)
class Setup:
    """How the network is wrapped and fed."""

    steps: int = 8
    passes: object = one_pass
    missing: object = none_missing
    spare: bool = False
    settings: dict = field(default_factory=dict)


SETUPS = {
    "DDP, 2 processes": Setup(steps=50),
    "DDP, 4 processes": Setup(steps=50),
    "DDP, find_unused_parameters": Setup(spare=True, settings={"find_unused_parameters": True}),
    "DDP, static_graph": Setup(settings={"static_graph": True}),
    "DDP, a task absent on one process": Setup(missing=some_missing, settings={"find_unused_parameters": True}),
    "DDP, gradient accumulation with no_sync": Setup(passes=lambda step, rank: 3),
    "DDP, unequal numbers of micro-batches": Setup(passes=lambda step, rank: 1 + (step + rank) % 3),
}

REFUSED = {("DDP, static_graph", "PerLoss"): "task 'a': .* use static_graph=False, or a Fork inside the model"}

NO_AUDIT = {"DDP, static_graph": "takes the first pass for the backward pass"}


def ddp(rank, world, entry_point, setup):
    network, source = build(entry_point)
    model = Present(network)
    if setup.spare:
        model.spare = nn.Linear(2, 2)
    wrapped = DistributedDataParallel(model, **setup.settings)
    batches = share_of(rank, world, setup.steps, setup.passes, setup.missing)
    run = train(wrapped, source, batches, accumulate=setup.passes is not one_pass)
    return run | {"network": run["network"][: sum(p.numel() for p in network.parameters())]}


def worker(rank, world, names):
    processes.connect()
    return {
        (name, entry_point): processes.caught(ddp, rank, world, entry_point, SETUPS[name])
        for name in names
        for entry_point in ENTRY_POINTS
    }


@pytest.mark.parametrize(
    ("world", "names"),
    [(2, [name for name in SETUPS if name != "DDP, 4 processes"]), (4, ["DDP, 4 processes"])],
    ids=["2 processes", "4 processes"],
)
def test_equal_to_one_process(world, names):
    ranks = processes.run(worker, world, names)
    for (name, entry_point), runs in processes.by_cell(ranks):
        setup = SETUPS[name]
        parts = 1 if setup.missing is none_missing else world
        expected, refused = alone(entry_point, setup.steps, parts, setup.missing), REFUSED.get((name, entry_point))
        check(entry_point, name, runs, expected, refused, left_out=NO_AUDIT.get(name))
