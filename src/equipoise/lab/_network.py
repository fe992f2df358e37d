"""The network of a problem: trunk, last shared layer, one head per task."""

from __future__ import annotations

from torch import Tensor, nn

from equipoise.engine import Fork
from equipoise.lab._problem import Problem


class Network(nn.Module):
    """The parts of a problem, put together.

    Args:
        problem: Its trunk, last shared layer and heads are built in this order, from PyTorch's global random state.

    Shape:
        ``forward(inputs)`` takes a batch ``(B, *)`` of the problem's inputs and returns each head's output by task name.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.trunk = problem.trunk()
        self.fork = Fork(problem.shared_layer(), [task.name for task in problem.tasks])
        self.heads = nn.ModuleList(problem.head(task) for task in problem.tasks)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Compute the outputs of every task."""
        features = self.fork(self.trunk(inputs))
        return {task: head(features[task]) for task, head in zip(self.fork.tasks, self.heads, strict=True)}
