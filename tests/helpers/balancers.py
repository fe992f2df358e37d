"""Every public balancer in its variants, so that no promise is tested for some of them only."""

from __future__ import annotations

import functools

import torch
from torchjd import aggregation, scalarization

import equipoise as eq
from helpers.networks import MLP

TASKS = ("a", "b", "c")


def dtp(tasks, **settings):
    """Weights need indicators."""
    balancer = eq.DTP(tasks, **settings)
    balancer.observe(dict(zip(balancer.tasks, [0.1, 0.5, 0.8] * len(balancer.tasks), strict=False)))
    return balancer


def by_task(tasks):
    """1, 2, 3, ... by the alphabetical order of the tasks."""
    names = getattr(tasks, "tasks", tasks)
    return {task: 1.0 + sorted(names).index(task) for task in names}


def static(tasks, **settings):
    """Weights need values."""
    return eq.Static(tasks, **{"weights": by_task(tasks)} | settings)


def encodec(fork, **settings):
    """With a weight for every task."""
    return eq.EnCodec(fork, **{"lambdas": by_task(fork), "decay": 0.9} | settings)


def summed(matrix):
    """An aggregator that can be pickled."""
    return matrix.sum(0)


def logarithms(losses):
    """A scalarizer that can be pickled."""
    return losses.log1p().sum()


def variant(cls, **own):
    """The class with settings of its own."""
    return functools.partial(cls, **own)


BALANCERS = {
    "Equal": eq.Equal,
    "Static": static,
    "InverseInitialLoss": eq.InverseInitialLoss,
    "Uncertainty": variant(eq.Uncertainty, kinds="regression"),
    "Uncertainty, normalised": variant(eq.Uncertainty, kinds="classification", normalize=True),
    "Uncertainty, from the losses": variant(eq.Uncertainty, kinds="regression", initial="losses"),
    "SI": eq.SI,
    "DWA": variant(eq.DWA, epoch_steps=2),
    "RLW": eq.RLW,
    "GLS": eq.GLS,
    "InverseLossVariance": eq.InverseLossVariance,
    "CoV": eq.CoV,
    "IMTLL": eq.IMTLL,
    "UWSO": eq.UWSO,
    "STCH": variant(eq.STCH, initial_steps=2),
    "FAMO": eq.FAMO,
    "SoftAdapt": variant(eq.SoftAdapt, epoch_steps=2),
    "SoftAdapt, loss-weighted": variant(eq.SoftAdapt, loss_weighted=True),
    "ReLoBRaLo": variant(eq.ReLoBRaLo, alpha=0.9, rho=0.5),
    "DTP": dtp,
    "GradNorm": eq.GradNorm,
    "GradNorm, every third step": variant(eq.GradNorm, every=3, initial_steps=2),
    "GradNormLogSpace": eq.GradNormLogSpace,
    "GradNormClosedForm": eq.GradNormClosedForm,
    "GradNormClosedForm, balanced first": variant(eq.GradNormClosedForm, initial_weights="balanced"),
    "GradNormClosedForm, absent tasks compared": variant(eq.GradNormClosedForm, compare_absent=True),
    "InverseGradientNorm": variant(eq.InverseGradientNorm, every=1),
    "Scalarized": variant(eq.Scalarized, scalarizer=logarithms),
    "Scalarized, STCH": variant(eq.Scalarized, scalarizer=scalarization.STCH(100.0)),
    "Aggregated, weights from the Gramian": variant(eq.Aggregated, aggregator=aggregation.IMTLG()),
    "Aggregated, weights from the matrix": variant(eq.Aggregated, aggregator=aggregation.Random()),
    "Aggregated, at the shared layer": variant(eq.Aggregated, aggregator=aggregation.MGDA(), at="shared_layer"),
    "Aggregated, a function": variant(eq.Aggregated, aggregator=summed),
    "EnCodec": encodec,
    "GradDrop": eq.GradDrop,
}
"""Name -> a function of the fork (or the names of the tasks, where no gradient is needed) and of further settings."""

CLASSES = {name: getattr(eq, name.split(", ")[0]) for name in BALANCERS}

WEIGHT_OF_ITS_OWN = (
    "Uncertainty",
    "Uncertainty, from the losses",
    "SI",
    "GLS",
    "IMTLL",
    "STCH",
    "DTP",
    "InverseGradientNorm",
)
SUM_IS_T = [name for name in BALANCERS if name not in WEIGHT_OF_ITS_OWN and not name.startswith("Scalarized")]
COMBINES = [name for name in BALANCERS if name.startswith(("Aggregated", "EnCodec", "GradDrop"))]
FAMILY = [name for name in BALANCERS if name.startswith("GradNorm")]
NEEDS_NO_GRADIENTS = [name for name in BALANCERS if name not in (*FAMILY, *COMBINES, "InverseGradientNorm")]
NEEDS_ALL_TASKS = [name for name in BALANCERS if name.startswith("Scalarized")]


def build(name, tasks=TASKS, network_seed=0, **settings):
    """A network from a seed, and its balancer."""
    torch.manual_seed(network_seed)
    network = MLP(tasks)
    return network, BALANCERS[name](network.fork, **settings)


def buffers(balancer):
    """A copy of all buffers."""
    return {name: value.clone() for name, value in balancer.named_buffers()}


def same(first, second):
    """Whether two tensors, or dicts of tensors, are equal to the bit; a NaN is like another one."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    return first.dtype == second.dtype and torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0))
