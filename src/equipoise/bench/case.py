"""One workload set up for one method: its own network, batch and optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from equipoise.bench.workloads import Workload

LEARNING_RATE = 1e-6
"""So small that every step does the same work: the network hardly moves."""


class CannotRunError(Exception):
    """A method is not made for a workload; the message says why."""


class Network(nn.Module):
    """Trunk, last shared layer (or a fork of it) and heads, one after the other."""

    def __init__(self, trunk: nn.Module, shared_layer: nn.Module, heads: nn.Module) -> None:
        super().__init__()
        self.trunk, self.shared_layer, self.heads = trunk, shared_layer, heads

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """The outputs of all tasks."""
        outputs: dict[str, Tensor] = self.heads(self.shared_layer(self.trunk(inputs)))
        return outputs


class Case:
    """A workload as a method meets it.

    The optimiser is plain SGD, the cheapest there is: with any other, all ratios are nearer to 1.

    Args:
        workload: The workload.
        device: Where it computes.
        rank: Which process this is; each has a batch of its own and the same network.

    Attributes:
        workload: The workload.
        tasks: The names of its tasks.
        network: The network, in training mode.
        measured: W: the weight of the last shared layer, or all parameters of a block.
        inputs, targets: The batch.
    """

    def __init__(self, workload: Workload, device: torch.device, rank: int = 0) -> None:
        self.workload, self.tasks, self._device = workload, workload.tasks, device
        torch.manual_seed(0)
        self.network = Network(*workload.parts()).to(device)
        layer = self.network.shared_layer
        self.measured = [layer.weight] if isinstance(layer, (nn.Linear, nn.Conv2d)) else list(layer.parameters())
        torch.manual_seed(rank)
        inputs, targets = workload.batch()
        self.inputs = inputs.to(device)
        self.targets = {name: target.to(device) for name, target in targets.items()}
        self._optimizer = torch.optim.SGD(self.network.parameters(), lr=LEARNING_RATE)

    def prepared(self, network: Network) -> nn.Module:
        """The network as the set-up of the workload runs it: as it is, compiled, or under DDP."""
        if self.workload.setup == "compiled":
            return cast(nn.Module, torch.compile(network, fullgraph=True))
        return DistributedDataParallel(network) if self.workload.setup == "ddp" else network

    def total(self, model: nn.Module) -> Tensor:
        """A forward pass, to the sum of the losses."""
        with self.precision():
            return self.workload.total(model(self.inputs), self.targets)

    def losses(self, model: nn.Module) -> Mapping[str, Tensor]:
        """A forward pass, to the loss of every task."""
        with self.precision():
            return self.workload.losses(model(self.inputs), self.targets)

    def balanced(self, model: nn.Module) -> Mapping[str, Tensor] | Tensor:
        """A forward pass, to the losses as a balancer takes them."""
        with self.precision():
            return self.workload.balanced(model(self.inputs), self.targets)

    def precision(self) -> AbstractContextManager[None]:
        """The precision of forward passes and losses."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.workload.bfloat16)

    def descend(self) -> None:
        """The end of every step: the parameters move, and their gradients are forgotten."""
        self._optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Throw the gradients of the parameters away."""
        self._optimizer.zero_grad()
