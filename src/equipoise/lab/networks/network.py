"""The network of a problem: trunk, last shared layer, one head per task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from equipoise.engine import Fork, PerLoss


class Network(nn.Module):
    """A trunk, a last shared layer and one head per task.

    Args:
        trunk: The shared layers below the last shared layer.
        shared_layer: The last shared layer, W.
        heads: The layers of each task by its name; they read the output of ``shared_layer``.

    Attributes:
        source: Where gradient norms are taken: what a balancer is built with.

    Shape:
        ``forward(inputs)`` takes a batch ``(B, *)`` of the problem's inputs and returns each head's output by task name.
    """

    source: Fork | PerLoss

    def __init__(self, trunk: nn.Module, shared_layer: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.fork = self.source = Fork(shared_layer, list(heads))
        self.heads = nn.ModuleList(heads.values())  # by number: a task's name may hold a dot

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Compute the outputs of every task."""
        features = self.fork(self.trunk(inputs))
        return {task: head(features[task]) for task, head in zip(self.fork.tasks, self.heads, strict=True)}
