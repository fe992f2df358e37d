"""One run whose batches are split over processes and micro-batches, and the same run in one process on whole batches."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re

import torch
from torch import nn

import equipoise as eq
from helpers import matrix
from helpers.entry_points import TASKS, UNITS, build, data, reference_norms

LR = 1e-3

COMPARED = ("norms", "weights", "network")
"""The figures of a run that must be those of one process."""


class Present(nn.Module):
    """The network, without the outputs that this batch has no labels for."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, tasks=TASKS):
        outputs = self.network(x)
        return {task: outputs[task] for task in tasks}


def none_missing(step, part):
    """The tasks that have no labels in this part of this step's batch."""
    return ()


def parts_of(steps, parts, missing=none_missing):
    """Every step's batch in so many parts of the same size, each without the labels that it has not."""
    for step, (x, y) in enumerate(data(steps)):
        rows = [slice(part, None, parts) for part in range(parts)]
        labels = [{task: y[task] for task in TASKS if task not in missing(step, part)} for part in range(parts)]
        yield [(x[row], {task: v[row] for task, v in y.items()}) for row, y in zip(rows, labels, strict=True)]


def one_pass(step, rank):
    """The number of backward passes of a step."""
    return 1


def share_of(rank, world, steps, passes=one_pass, missing=none_missing):
    """The part of every step's batch for one process, in micro-batches."""
    for step, parts in enumerate(parts_of(steps, world, missing)):
        x, y = parts[rank]
        number = passes(step, rank)
        pieces = {task: values.tensor_split(number) for task, values in y.items()}
        yield [(piece, {task: pieces[task][i] for task in y}) for i, piece in enumerate(x.tensor_split(number))]


def losses_of_labels(model, x, y):
    """Squared errors in different units, None where there are no labels."""
    outputs = model(x, tuple(y))
    errors = {task: (outputs[task] - y[task]).square().mean() for task in y}
    return {task: unit * errors[task] if task in y else None for task, unit in zip(TASKS, UNITS, strict=True)}


def train(model, source, steps, before=None, balancer=None, accumulate=False):
    """Train on the micro-batches of every step; the gradient norms and weights of every step, and the network in the end.

    ``before`` is called before every step with the weights and the micro-batches; ``accumulate``: whether there are several.
    """
    balancer = balancer or eq.GradNorm(source, accumulate=accumulate).double()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    norms, weights = [], []
    for micro_batches in steps:
        if before is not None:
            before(balancer.weights, micro_batches)
        optimizer.zero_grad()
        examples = sum(len(x) for x, _ in micro_batches)
        for x, y in micro_batches:
            last = x is micro_batches[-1][0]
            with contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
                (balancer(losses_of_labels(model, x, y)) * (len(x) / examples)).backward()
        optimizer.step()
        balancer.step()
        norms.append(balancer.log()["gradient_norms"])
        weights.append(balancer.weights.clone())
    audit = {"audit": balancer.log()["audit"], "repr": repr(balancer)}
    return {"norms": torch.stack(norms), "weights": torch.stack(weights), "network": flat(model)} | audit


@functools.cache
def alone(entry_point, steps, parts=1, missing=none_missing):
    """The same in one process: the whole batch, or part by part where labels are missing. The norms are the reference's."""
    network, source = build(entry_point)
    norms = []

    def reference(weights, micro_batches):
        x = torch.cat([x for x, _ in micro_batches])
        # an example without a label has no error, and its share of the mean is zero
        y = [network.eval()(x) | labels for x, labels in micro_batches]
        y = {task: torch.cat([part[task].detach() for part in y]) for task in TASKS}
        norms.append(weights * reference_norms(entry_point, network.train(), x, y))

    run = train(Present(network), source, parts_of(steps, parts, missing), reference, accumulate=parts > 1)
    run |= {"norms": torch.stack(norms)}
    return {name: run[name] for name in COMPARED}


def check(entry_point, setup, runs, expected, refused=None, precision="float64", left_out=None):
    """The verdict on a cell: every process's run is the same to the last bit, and that of one process; or is refused.

    ``left_out`` is a pattern for the reason why there was no audit; None: there was one.
    """
    for run in runs:
        error = run.get("error")
        assert bool(error) == bool(refused), f"{entry_point} x {setup}: {run.get('trace', 'should have been refused')}"
        assert not error or re.search(refused, error, re.DOTALL), f"{entry_point} x {setup}: {error}"
    if refused:
        return matrix.refused(entry_point, setup, error)
    for run in runs:
        assert bool(run["audit"].isfinite()) == (left_out is None), f"{entry_point} x {setup}: {run['repr']}"
        said = left_out is None or re.search(f"audit left out: .*{left_out}", run["repr"])
        assert said, f"{entry_point} x {setup}: {run['repr']}"
    for run, name in itertools.product(runs[1:], expected):
        assert torch.equal(run[name].nan_to_num(), runs[0][name].nan_to_num()), (
            f"{entry_point} x {setup}: {name} differ"
        )
    # a task that no process has labels for has no norm in the log, and a zero in the reference
    worst = max(matrix.deviation(runs[0][name].nan_to_num(), expected[name]) for name in expected)
    return matrix.exact(entry_point, setup, worst, precision)


def flat(model):
    """All parameters one after the other."""
    parameters = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([parameter.detach().flatten() for parameter in parameters])
