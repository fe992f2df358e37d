"""One shared layer, two heads, and what measures between them, for situations from the field."""

from __future__ import annotations

import torch
from torch import nn

import equipoise as eq
from helpers.reference import close

TASKS = ("a", "b")
SCALES = {"a": 1.0, "b": 10.0}


class Situation(nn.Module):
    """``shared`` takes 5 numbers and gives 6; every head gives one.

    Args:
        entry_point: ``"fork"``, ``"features"`` (a fork without layer), ``"attach"`` or ``"per loss"``.
        layer: The shared layer.
        others: Names of aliases for terms that are no task.
    """

    def __init__(self, entry_point="fork", layer=None, others=(), **settings):
        super().__init__()
        layer = nn.Linear(5, 6) if layer is None else layer
        self.entry_point = entry_point
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in (*TASKS, *others)})
        if entry_point == "fork":
            self.source = eq.Fork(layer, TASKS, others=others, **settings)
        else:
            self.layer = layer
        if entry_point == "features":
            self.source = eq.Fork(None, TASKS, others=others)
        elif entry_point == "attach":
            heads = {task: f"heads.{task}" for task in TASKS}
            object.__setattr__(self, "source", eq.attach(self, "layer", heads, **settings))
        elif entry_point == "per loss":
            object.__setattr__(self, "source", eq.PerLoss(layer, TASKS, **settings))

    @property
    def shared(self):
        """The shared layer as it is now."""
        return self.source.shared_layer if self.entry_point == "fork" else self.layer

    def replace_shared(self, layer):
        """Put another layer in its place."""
        owner, name = (self.source, "shared_layer") if self.entry_point == "fork" else (self, "layer")
        setattr(owner, name, layer)

    def features(self, x):
        """What every head reads, by name."""
        if self.entry_point == "fork":
            return self.source(x)
        features = self.layer(x)
        return self.source(features) if self.entry_point == "features" else dict.fromkeys(self.heads, features)

    def forward(self, x):
        """The outputs by name."""
        return {name: self.heads[name](own) for name, own in self.features(x).items()}

    def losses(self, x):
        """The losses of the tasks, in different units."""
        outputs = self(x)
        return {task: SCALES[task] * outputs[task].square().mean() for task in TASKS}


def batch(n=8):
    """Inputs of the default precision."""
    return torch.randn(n, 5)


def norms(losses, parameters):
    """The norm of each loss's gradient at ``parameters``, by one call of autograd per loss; zero where there is none."""
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    return torch.stack([gradient(loss, parameters).norm() for loss in losses.values()])


def gradient(loss, parameters):
    """The gradient of a loss as one real vector."""
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    parts = [torch.view_as_real(part.resolve_conj()) if part.is_complex() else part for part in parts]
    return torch.cat([part.reshape(-1).to(torch.get_default_dtype()) for part in parts])


def one_step(balancer, losses, also=0.0):
    """One step, unchecked."""
    (balancer(losses) + also).backward()
    balancer.step()


def two_steps(balancer, losses, net):
    """Two steps on fresh batches, of losses by a function of the network and a batch."""
    for _ in range(2):
        one_step(balancer, losses(net, batch()))


def step_exactly(balancer, losses, parameters, also=None, **tolerance):
    """One step, after which the log must have the norms of one ``autograd.grad`` per task, times the weights.

    Args:
        balancer: The balancer.
        losses: The losses of the batch.
        parameters: W.
        also: A term that is added to the total loss.
    """
    expected = balancer.weights.clone() * norms(losses, parameters)
    total = balancer(losses)
    (total if also is None else total + also).backward()
    balancer.step()
    close(balancer.log()["gradient_norms"], expected.to(balancer.weights), **tolerance)
    assert balancer.skipped_steps == 0
