"""A network with a fork in a branch of a fork, and its tree of balancers."""

from __future__ import annotations

import torch
from torch import nn

import equipoise as eq
from helpers.balancers import buffers
from helpers.networks import mse
from helpers.training import batches

LEAVES = ("energy", "density", "heat", "axial", "inner", "outer")
UNITS = (1.0, 3.0, 1.0, 5.0, 1.0, 2.0)
FUEL, STRESS, HOOP = ("density", "heat"), ("axial", "inner", "outer"), ("inner", "outer")


class Tree(nn.Module):
    """A trunk, a fork into three branches, a fork in two of these, and another one in one of those."""

    def __init__(self, layer=None):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.root = eq.Fork(layer or nn.Linear(8, 8), ("energy", "fuel", "stress"))
        self.fuel = eq.Fork(nn.Linear(8, 7), FUEL)
        self.stress = eq.Fork(nn.Linear(8, 6), ("axial", "hoop"))
        self.hoop = eq.Fork(nn.Linear(6, 5), HOOP)
        widths = dict(zip(LEAVES, (8, 7, 7, 6, 5, 5), strict=True))
        self.heads = nn.ModuleDict({t: nn.Sequential(nn.Tanh(), nn.Linear(widths[t], 2)) for t in LEAVES})

    def forward(self, x):
        root = self.root(self.trunk(x))
        fuel = self.fuel(root["fuel"].tanh())
        stress = self.stress(root["stress"].tanh())
        hoop = self.hoop(stress["hoop"].tanh())
        features = {**root, **fuel, **stress, **hoop}  # PyTorch 2.6 does not compile | of two dicts
        return {task: self.heads[task](features[task]) for task in LEAVES}


def gradnorms(network, build=eq.GradNorm, **settings):
    """One method at every fork."""
    stress = eq.Hierarchy(build(network.stress, **settings), {"hoop": build(network.hoop, **settings)})
    return eq.Hierarchy(build(network.root, **settings), {"fuel": build(network.fuel, **settings), "stress": stress})


def built(build=gradnorms, seed=0, **settings):
    """A network from a seed, and its tree."""
    torch.manual_seed(seed)
    network = Tree()
    return network, build(network, **settings)


def data(steps, size=16, seed=1):
    """Batches, the same for the same seed."""
    return list(batches(steps, LEAVES, size=size, units=UNITS, seed=seed))


def losses_of(network, x, y, absent=()):
    """The losses of the leaves, None for those that are absent."""
    return {task: None if task in absent else loss for task, loss in mse(network(x), y).items()}


def buffers_of(tree):
    """A copy of the buffers of every balancer, by its path."""
    return {path: buffers(balancer) for path, balancer in tree.balancers.items()}
