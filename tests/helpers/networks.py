"""Small networks with a fork, shared by the tests."""

from __future__ import annotations

import torch
from torch import nn

import equipoise as eq

LINEAR = {
    "linear": (lambda: nn.Linear(5, 4), (6, 5)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), (6, 5)),
    "linear on sequences": (lambda: nn.Linear(5, 4), (3, 2, 5)),
    "linear on one sample": (lambda: nn.Linear(5, 4), (5,)),
}


def _convolutions():
    grid = {}
    for d, conv in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        size = (5, 6, 7)[:d]
        settings = {
            "plain": {},
            "without bias": {"bias": False},
            "stride": {"stride": 2},
            "padding": {"padding": 1},
            "dilation": {"dilation": 2, "padding": 2},
            "groups": {"groups": 2},
            "depthwise": {"groups": 4},
            "same, even kernel": {"kernel_size": 2, "padding": "same"},
            "valid": {"padding": "valid"},
            "reflect": {"padding": 1, "padding_mode": "reflect"},
            "circular, same": {"padding": "same", "padding_mode": "circular"},
            "all at once": {"stride": 2, "padding": 2, "dilation": 2, "groups": 2, "bias": False},
        }
        for name, setting in settings.items():
            if d == 3 and name == "reflect" and not hasattr(nn, "ReflectionPad3d"):
                continue
            layer = lambda conv=conv, setting=setting: conv(4, 4, **({"kernel_size": 3} | setting))  # noqa: E731
            grid[f"conv{d}d {name}"] = (layer, (2, 4, *size))
        grid[f"conv{d}d on one sample"] = (lambda conv=conv: conv(4, 4, 3), (4, *size))
    return grid


LAYERS = LINEAR | _convolutions()
"""Name -> (the layer, the shape of its input)."""


class ForkedNetwork(nn.Module):
    """Trunk, last shared layer, one nonlinear head per task. The trunk keeps the shape of its input."""

    def __init__(self, layer, tasks=("a", "b", "c"), width=None):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.fork = eq.Fork(layer, tasks)
        self.gains = nn.ParameterDict({task: nn.Parameter(torch.tensor(0.5 + i)) for i, task in enumerate(tasks)})

    def forward(self, x):
        features = self.fork(torch.tanh(self.scale * x))
        return {task: torch.tanh(self.gains[task] * features[task]) for task in features}

    def losses(self, x, units=(1.0, 5.0, 30.0)):
        """Squared errors against different targets, in different units."""
        outputs = self(x)
        return {
            task: unit * (outputs[task] - 0.3 * (i + 1)).square().mean()
            for i, (task, unit) in enumerate(zip(outputs, units, strict=False))
        }


class MLP(nn.Module):
    """The loop of the README: a linear last shared layer and linear heads."""

    def __init__(self, tasks=("a", "b", "c"), width=8):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, width), nn.Tanh())
        self.fork = eq.Fork(nn.Linear(width, width), tasks)
        self.heads = nn.ModuleDict({task: nn.Sequential(nn.Tanh(), nn.Linear(width, 2)) for task in tasks})

    def forward(self, x):
        features = self.fork(self.trunk(x))
        return {task: self.heads[task](features[task]) for task in features}


def targets_of(x, tasks, units=None):
    """Smooth targets, one set per task."""
    units = units or [1.0] * len(tasks)
    return {
        task: unit * torch.stack([torch.sin((i + 1) * x.sum(-1)), torch.cos(x[..., i % x.shape[-1]])], -1)
        for i, (task, unit) in enumerate(zip(tasks, units, strict=True))
    }


def mse(outputs, targets):
    """Mean squared error by task."""
    return {task: (outputs[task] - targets[task]).square().mean() for task in outputs}
