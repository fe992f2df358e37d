"""Models that are split over the processes: fully_shard (FSDP2) and tensor parallelism."""

import warnings
from functools import partial

import pytest
import torch
from helpers import matrix, processes
from helpers.entry_points import ENTRY_POINTS, Forked, build
from helpers.reference import close
from helpers.shards import Present, alone, check, parts_of, share_of, train
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

STEPS = 5


def layer_of(network):
    return network.fork.shared_layer if isinstance(network, Forked) else network.shared


def path_of(network):
    return "fork.shared_layer" if isinstance(network, Forked) else "shared"


def shard(network, mesh, layer=None, **settings):
    """Trunk and heads are sharded by themselves, the last shared layer if there are settings for it, and the rest together."""
    for module in (network.trunk, *network.heads.values()):
        fully_shard(module, mesh=mesh, **settings)
    if layer is not None:
        fully_shard(layer_of(network), mesh=mesh, **settings, **layer)
    fully_shard(network, mesh=mesh, **settings)


SHARDED = {
    "FSDP2": shard,
    "FSDP2, last shared layer by itself": partial(shard, layer={}),
    "FSDP2, last shared layer by itself, not resharded": partial(shard, layer={"reshard_after_forward": False}),
    "FSDP2, bfloat16": partial(
        shard, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    ),
}


def whole_outputs(network, mesh):
    """Every process sees all inputs and outputs of the layer that is split."""
    if isinstance(network, Forked) and not isinstance(layer_of(network), nn.Linear):
        return within(network, mesh)
    return parallelize_module(network, mesh, {path_of(network): ColwiseParallel(output_layouts=Replicate())})


def within(network, mesh):
    """A block, or a trunk, that is split within itself."""
    block = layer_of(network)
    if block is None:
        return parallelize_module(network.trunk, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return parallelize_module(block, mesh, {"inner": ColwiseParallel(), "outer": RowwiseParallel()})


def column_wise(network, mesh):
    """Every process sees a part of the features, and its heads are split accordingly."""
    heads = {f"heads.{task}.1": RowwiseParallel() for task in network.heads}
    return parallelize_module(network, mesh, {path_of(network): ColwiseParallel()} | heads)


def row_wise(network, mesh):
    """Every process sees a part of the inputs of the last shared layer, as the trunk hands them out."""
    return parallelize_module(network, mesh, {"trunk.2": ColwiseParallel(), path_of(network): RowwiseParallel()})


SPLIT = {
    "tensor parallel, whole inputs and outputs": whole_outputs,
    "tensor parallel, column-wise": column_wise,
    "tensor parallel, row-wise": row_wise,
}

RESHARDED, PART = (
    "fully_shard has sharded it again: use reshard_after_forward=False",
    r"parameters=\('weight',\), so that it is measured from the graph",
)

REFUSED = {
    ("FSDP2, last shared layer by itself", "Fork, a block"): RESHARDED,
    ("FSDP2, last shared layer by itself", "attach"): RESHARDED,
    ("FSDP2, last shared layer by itself", "PerLoss"): RESHARDED,
    ("tensor parallel, column-wise", "Fork, by rule"): PART,
    ("tensor parallel, row-wise", "Fork, by rule"): PART,
}

NOT_APPLICABLE = {
    (setup, "Fork, features"): "there is no layer"
    for setup in (*list(SHARDED)[1:3], "tensor parallel, column-wise", "tensor parallel, row-wise")
} | {
    (setup, "Fork, a block"): "a block is split within itself"
    for setup in ("tensor parallel, column-wise", "tensor parallel, row-wise")
}


def sharded(rank, world, mesh, entry_point, name):
    network, source = build(entry_point, dtype=torch.float32 if name.endswith("bfloat16") else torch.float64)
    SHARDED[name](network, mesh)
    return train(Present(network), source, share_of(rank, world, STEPS))


def split(mesh, network, source, wrap):
    """Every process works on the whole batch."""
    wrap(network, mesh)
    balancer = eq.GradNorm(source).double()
    if not source.shared_parameters:
        # squares at the features add up over the parts of the batch, and here every process has all of it
        balancer.process_group = distributed.new_group([mesh.get_local_rank()], use_local_synchronization=True)
    return train(Present(network), source, parts_of(STEPS, 1), balancer=balancer)


def named():
    """The remedy where a process sees a part of the inputs or outputs only."""
    network, _ = build("Fork, by rule")
    network.fork = eq.Fork(layer_of(network), network.fork.tasks, parameters=("weight",))
    return network, network.fork


def worker(rank, world):
    warnings.filterwarnings("ignore", "DTensor random operators may not", UserWarning)  # PyTorch 2.6, and none is used
    processes.connect()
    mesh = init_device_mesh("cpu", (world,))
    found = {}
    for entry_point in ENTRY_POINTS:
        for name in SHARDED:
            if (name, entry_point) not in NOT_APPLICABLE:
                found[name, entry_point] = processes.caught(sharded, rank, world, mesh, entry_point, name)
        for name, wrap in SPLIT.items():
            if (name, entry_point) not in NOT_APPLICABLE:
                found[name, entry_point] = processes.caught(split, mesh, *build(entry_point), wrap)
    remedy = [split(mesh, *named(), wrap) for wrap in (column_wise, row_wise)]
    return found, remedy


NEEDS_GPU = torch.__version__ < "2.7" and torch.version.cuda is not None and not torch.cuda.is_available()


@pytest.mark.skipif(
    NEEDS_GPU, reason="fully_shard of a PyTorch 2.6 that is built for CUDA asks the GPU for its streams"
)
def test_equal_to_one_process():
    ranks = processes.run(worker, 2)
    for (name, entry_point), runs in processes.by_cell([found for found, _ in ranks]):
        precision = "half" if name.endswith("bfloat16") else "float64"
        expected, refused = alone(entry_point, STEPS), REFUSED.get((name, entry_point))
        left_out = "fully_shard takes" if name in SHARDED or entry_point != "Fork, features" else None
        check(entry_point, name, runs, expected, refused, precision, left_out)
    for (name, entry_point), reason in NOT_APPLICABLE.items():
        matrix.not_applicable(entry_point, name, reason)
    expected = alone("Fork, by rule", STEPS)
    for _, remedy in ranks:
        for run in remedy:
            for name, values in expected.items():
                close(run[name], values)
