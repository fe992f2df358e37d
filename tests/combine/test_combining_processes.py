"""Combination over two processes: what one process with the whole batch gives, the same on both."""

import pytest
import torch
from helpers import processes
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.training import batches
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torchjd import aggregation

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

TASKS = ("a", "b", "c")
UNITS = (1.0, 5.0, 30.0)
STEPS = 6

METHODS = {
    "from the Gramian": lambda fork: eq.Aggregated(fork, aggregation.UPGrad()),
    "from the Gramian, with a memory": lambda fork: eq.Aggregated(fork, aggregation.GradVac()),
    "from the matrix": lambda fork: eq.Aggregated(fork, aggregation.Random()),
    "from the matrix, with a memory": lambda fork: eq.Aggregated(fork, aggregation.ExcessMTL()),
    "no weighted sum": lambda fork: eq.Aggregated(fork, aggregation.ConFIG()),
    "drawn for each number": lambda fork: eq.Aggregated(fork, aggregation.GradDrop()),
    "at the shared layer": lambda fork: eq.Aggregated(fork, aggregation.UPGrad(), at="shared_layer"),
    "at the shared layer, from the matrix": lambda fork: eq.Aggregated(fork, aggregation.Random(), at="shared_layer"),
    "EnCodec": lambda fork: eq.EnCodec(fork, decay=0.9),
    "GradDrop": lambda fork: eq.GradDrop(fork),
}
WITH_DDP = ("from the Gramian", "from the matrix", "at the shared layer", "EnCodec", "GradDrop")
SPECIAL = {
    "GradDrop": "refuses a process without labels",
    "EnCodec": "takes the mean over the samples that have the task, which is not the mean of two halves",
    "from the matrix, with a memory": "remembers every column, and a process without labels has none",
    "drawn for each number": "draws for every column",
}
"""Not compared with one process where a task is absent on one of two."""


def losses_of(model, x, y, missing=()):
    losses = {task: unit * loss for (task, loss), unit in zip(mse(model(x), y).items(), UNITS, strict=True)}
    return losses | dict.fromkeys(missing)


def part_of(rank, world, values):
    return values.chunk(world)[rank]


def trained(method, rank, world, wrap=lambda network: network, average=True, missing=lambda step, rank: ()):
    """All gradients and logs; a process's rows of every batch, and ``missing`` tasks."""
    torch.manual_seed(0)
    network = MLP(TASKS)
    model, balancer = wrap(network), METHODS[method](network.fork)
    found = {}
    for step, (x, y) in enumerate(batches(STEPS, TASKS)):
        network.zero_grad()
        absent = missing(step, rank)
        x, y = part_of(rank, world, x), {task: part_of(rank, world, v) for task, v in y.items()}
        losses = dict.fromkeys(TASKS) if set(absent) == set(TASKS) else losses_of(model, x, y, absent)
        (2.0 * balancer(losses)).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
        if world > 1 and average:
            for gradient in gradients:
                distributed.all_reduce(gradient)
                gradient /= world
        balancer.step()
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= 0.01 * gradient
        log = balancer.log()
        found[f"gradient {step}"] = torch.cat([g.flatten() for g in gradients])
        found |= {f"{key} {step}": value for key, value in log.items() if key not in ("losses", "training_rates")}
    return found | {key: v for key, v in balancer.state_dict().items() if isinstance(v, torch.Tensor)}


def whole(method):
    found = trained(method, 0, 1)
    return {key: value for key, value in found.items() if "losses" not in key}


def some(step, rank):
    """In some steps a process lacks a task, in one it has no labels at all, in one both lack the same task."""
    table = {1: (("b",), ()), 2: (TASKS, ()), 3: (("a",), ("a",)), 4: (("a", "b"), ("c",))}
    return table.get(step, ((), ()))[rank]


def worker(rank, world):
    processes.connect()
    by_hand = {method: trained(method, rank, world) for method in METHODS}
    ddp = {
        method: trained(method, rank, world, lambda n: DistributedDataParallel(n, bucket_cap_mb=0.001), average=False)
        for method in WITH_DDP
    }
    absent = {method: trained(method, rank, world, missing=some) for method in METHODS if method != "GradDrop"}
    return by_hand, ddp, absent


@pytest.fixture(scope="module", name="both")
def _both():
    return processes.run(worker, 2, seconds=150)


def test_two_processes_are_identical_and_equal_to_one(both):
    (by_hand, ddp, _), (other, _, _) = both
    for method in METHODS:
        for key, expected in whole(method).items():
            at = f"{method}, {key}"
            assert torch.equal(by_hand[method][key], other[method][key]) or expected.isnan().any(), at
            for found in [by_hand, ddp][: 1 + (method in WITH_DDP)]:
                close(found[method][key], expected, equal_nan=True, msg=lambda text, at=at: f"{at}: {text}")


def alone(method):
    """Both processes' halves on one process: a task that is missing in a half adds nothing to the mean over both."""
    torch.manual_seed(0)
    network = MLP(TASKS)
    balancer = METHODS[method](network.fork)
    found = {}
    for step, (x, y) in enumerate(batches(STEPS, TASKS)):
        network.zero_grad()
        outputs = network(x)
        losses = {}
        for i, task in enumerate(TASKS):
            halves = [r for r in range(2) if task not in some(step, r)]
            errors = (outputs[task] - y[task]).square().chunk(2)
            losses[task] = UNITS[i] * sum(errors[r].mean() for r in halves) / 2 if halves else None
        (2.0 * balancer(losses)).backward()
        balancer.step()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
        found[f"gradient_norms {step}"] = balancer.log()["gradient_norms"]
        found[f"gradient {step}"] = torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in network.parameters()]
        )
    return found


def test_tasks_absent_on_one_process_and_a_process_without_labels(both):
    (_, _, first), (_, _, second) = both
    for method in first:
        for key, expected in (first[method] if method in SPECIAL else alone(method)).items():
            at = f"{method}, {key}"
            close(first[method][key], second[method][key], equal_nan=True, rtol=0, atol=0)
            close(first[method][key], expected, equal_nan=True, msg=lambda text, at=at: f"{at}: {text}")


def idle(rank, world):
    processes.connect()
    trained("GradDrop", rank, world, missing=lambda step, rank: TASKS if rank else ())


def test_a_process_without_labels_is_refused_where_all_draw_for_the_same_features():
    ends = processes.outcomes(idle, 2, seconds=150)
    assert "over several processes each must have labels for one task at least" in ends[1][1]
