"""One small network behind every entry point to the engine, and the slow reference of the norms measured there."""

from __future__ import annotations

import torch
from torch import nn

import equipoise as eq
from helpers.networks import mse, targets_of

TASKS = ("a", "b", "c")
UNITS = (1.0, 5.0, 30.0)
WIDTH = 8


class Forked(nn.Module):
    """Trunk, fork, heads. ``layer`` is the last shared layer, or None to measure at the features."""

    def __init__(self, layer):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.fork = eq.Fork(layer, TASKS)
        self.heads = nn.ModuleDict({task: nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, 2)) for task in TASKS})

    def forward(self, x):
        features = self.fork(self.trunk(x))
        return {task: self.heads[task](features[task]) for task in self.heads}


class Plain(nn.Module):
    """The same network without a fork: code that is not changed."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.heads = nn.ModuleDict({task: nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, 2)) for task in TASKS})

    def forward(self, x):
        features = self.shared(self.trunk(x))
        return {task: self.heads[task](features) for task in self.heads}


class Block(nn.Module):
    """A residual block without statistics over the batch, so that micro-batches add up."""

    def __init__(self):
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x):
        return x + self.outer(nn.functional.gelu(self.inner(self.norm(x))))


def fork_by_rule():
    """A fork behind a layer that has a rule of its own."""
    network = Forked(nn.Linear(WIDTH, WIDTH))
    return network, network.fork


def fork_of_a_block():
    """A fork behind a block, measured from the original graph."""
    network = Forked(Block())
    return network, network.fork


def fork_at_the_features():
    """A fork that measures at the features."""
    network = Forked(None)
    return network, network.fork


def attached():
    """Hooks on a model whose code is not changed."""
    network = Plain()
    source = eq.attach(network, shared_layer="shared", heads={task: f"heads.{task}" for task in TASKS})
    return network, source


def per_loss():
    """One autograd.grad per loss."""
    network = Plain()
    return network, eq.PerLoss(network.shared, TASKS)


ENTRY_POINTS = {
    "Fork, by rule": fork_by_rule,
    "Fork, a block": fork_of_a_block,
    "Fork, features": fork_at_the_features,
    "attach": attached,
    "PerLoss": per_loss,
}
"""Entry point -> builder of the network and its source."""


def build(entry_point, seed=0, dtype=torch.float64):
    """The network behind an entry point, the same for the same seed."""
    torch.manual_seed(seed)
    network, source = ENTRY_POINTS[entry_point]()
    network.to(dtype)
    return network, source


def measured_parameters(entry_point, network):
    """The parameters that make up W in ``network``; None for the features."""
    if entry_point == "Fork, features":
        return None
    layer = network.shared if isinstance(network, Plain) else network.fork.shared_layer
    return list(layer.parameters()) if entry_point == "Fork, a block" else [layer.weight]


def losses_of(network, x, y):
    """Squared errors in different units."""
    return {task: unit * loss for (task, loss), unit in zip(mse(network(x), y).items(), UNITS, strict=True)}


def data(steps, size=12, seed=1, dtype=torch.float64):
    """Batches, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(size, 6, generator=generator, dtype=dtype)
        yield x, {task: value.to(dtype) for task, value in targets_of(x, TASKS).items()}


def reference_norms(entry_point, network, x, y):
    """``norm(g_i)`` of the unweighted losses on one large eager batch, by one ``autograd.grad`` per task, without us."""
    seen = {}
    if (parameters := measured_parameters(entry_point, network)) is None:
        handle = network.trunk.register_forward_hook(lambda module, inputs, output: seen.update(features=output))
    was_training = network.training
    network.eval()  # where nothing is measured; no layer of the network computes anything else then
    losses = losses_of(network, x, y)
    wanted = parameters if parameters is not None else [seen["features"]]
    norms = []
    for loss in losses.values():
        gradients = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        norms.append(torch.cat([g.reshape(-1).double() for g in gradients if g is not None]).norm())
    network.train(was_training)
    if parameters is None:
        handle.remove()
    return torch.stack(norms)
