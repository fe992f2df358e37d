"""The fork: where the network splits into tasks, and where their gradients are measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from equipoise.engine._node import ForkNode
from equipoise.engine._reach import check_reach
from equipoise.engine._rules import weight_gradient

_identities = itertools.count()


class Fork(nn.Module):
    r"""The last shared layer, and the fork behind it: one alias of its output for every task.

    In the backward pass of the total loss :math:`\sum_i w_i L_i` the gradients of the T weighted losses arrive at the fork
    one by one, and the gradient of each at the weight W of the last shared layer is taken there, from the layer's inputs.
    The network's own gradients are those of the plain total loss. While no balancer measures, the fork is nothing.

    Args:
        shared_layer: The last shared layer: ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``. ``None``: the
            input of the fork is taken for the features, and gradients are measured at the features.
        tasks: The names of the tasks, in the order of every tensor ``(T,)``.

    Raises:
        TypeError: There is no rule for this layer, or a task's name is not a string.
        ValueError: There is no task, or a name is used twice.

    Shape:
        T tasks, W the weight of the layer. ``forward(inputs)`` takes what the layer takes, and returns a dict of T
        features, each of the shape of the layer's output.

    Differs from the paper:
        W is the weight tensor of the layer without its bias; the paper says "weights". With ``shared_layer=None`` the
        gradients are those at the features, which is a different quantity: cheaper, and not the paper's.

    Example:
        >>> fork = Fork(nn.Linear(8, 4), tasks=("price", "risk"))
        >>> features = fork(torch.ones(2, 8))
        >>> list(features), features["risk"].shape
        (['price', 'risk'], torch.Size([2, 4]))

    References:
        Chen et al. 2018, GradNorm, section 3.1: W, "the subset of the full network weights where we actually apply
        GradNorm", generally the last shared layer.
    """

    shared_layer: nn.Module | None
    tasks: tuple[str, ...]

    def __init__(self, shared_layer: nn.Module | None, tasks: Sequence[str]) -> None:
        super().__init__()
        if shared_layer is not None and not isinstance(shared_layer, nn.Module):
            raise TypeError(f"shared_layer must be a module or None; found {type(shared_layer).__name__}")
        self._statistic = _squared_norm if shared_layer is None else weight_gradient(shared_layer)
        self.shared_layer = shared_layer
        self.tasks = task_names(tasks)
        self._id = next(_identities)
        self._measuring = False
        self._probe = self._new_probe(torch.device("cpu"))

    @property
    def weight(self) -> Tensor | None:
        """W, where gradients are taken; None where they are taken at the features."""
        return None if self.shared_layer is None else self.shared_layer.get_parameter("weight")

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Apply the last shared layer and fan its output out to the tasks.

        Args:
            inputs: What the last shared layer takes.

        Returns:
            The features, once per task, by name. Every head must read its own.
        """
        features = inputs if self.shared_layer is None else self.shared_layer(inputs)
        if not (self._measuring and torch.is_grad_enabled()):
            return dict.fromkeys(self.tasks, features)
        if self.shared_layer is None and self._probe.device != features.device:
            self._probe = self._new_probe(features.device)
        aliases = ForkNode.apply(features, inputs, self._probe, self._statistic, self._id)
        return dict(zip(self.tasks, aliases, strict=True))

    def measure(self, on: bool) -> None:
        """Switch measuring on or off, from the next forward pass. A balancer does this; see its ``every``."""
        self._measuring = on

    @property
    def measuring(self) -> bool:
        """Whether the next forward pass is measured."""
        return self._measuring

    @property
    def measured(self) -> bool:
        """Whether a backward pass has gone through the fork, measured, since the last reset."""
        return self._probe.grad is not None

    def task_gradients(self) -> Tensor:
        """The gradient at W of every weighted loss, summed over the backward passes since the last reset.

        Returns:
            Task i's gradient of ``scale * w_i * L_i`` in row i, where ``scale`` is what the total loss was multiplied with
            before ``backward``; zeros for a task of which nothing arrived.

        Raises:
            RuntimeError: Nothing was measured, or gradients are measured at the features, where only norms are kept.

        Shape:
            ``(T, *W.shape)``.
        """
        if self.shared_layer is None:
            raise RuntimeError("task_gradients: with shared_layer=None only the norms at the features are kept")
        return self._measurement()

    def gradient_norms(self) -> Tensor:
        """The Euclidean norm of every task's gradient, as `task_gradients` gives it.

        Raises:
            RuntimeError: Nothing was measured.

        Shape:
            ``(T,)``.

        Units:
            Loss per unit of W (of the features, where ``shared_layer`` is None), times the scale of the total loss.
        """
        measurement = self._measurement()
        return measurement.sqrt() if self.shared_layer is None else measurement.flatten(1).norm(dim=1)

    def reduce(self) -> None:
        """Combine what every process has measured to what one process would have on all their batches.

        Every process must call it. The gradient of the mean loss is the mean of the processes' gradients, and its norm is
        taken after that. At the features, where every sample has its own, squares are added instead.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        if self._probe.grad is None:
            self._probe.grad = torch.zeros(self._probe.shape, dtype=self._probe.dtype, device=self._probe.device)
        distributed.all_reduce(self._probe.grad)
        processes = distributed.get_world_size()
        self._probe.grad /= processes if self.shared_layer is not None else processes**2

    def reset(self) -> None:
        """Forget what was measured."""
        self._probe.grad = None

    def check_reach(self, losses: dict[str, Tensor]) -> None:
        """Check that each of ``losses`` reaches the last shared layer, through its own alias only.

        Raises:
            ValueError: One does not; the message names the task and what was found.
        """
        check_reach(losses, self.tasks, self._id, self.shared_layer)

    def extra_repr(self) -> str:
        """Name the tasks."""
        return f"tasks={self.tasks}"

    def _measurement(self) -> Tensor:
        if self._probe.grad is None:
            raise RuntimeError(
                "the fork has measured nothing since the last step: call backward() on the balancer's total loss, computed "
                "from features of a forward pass in training, before balancer.step()"
            )
        return self._probe.grad

    def _new_probe(self, device: torch.device) -> Tensor:
        """A zero for every number of the statistic, expanded, so that it takes no memory."""
        weight = self.weight
        if weight is None:  # squares of scaled half-precision gradients overflow in anything smaller
            shape: tuple[int, ...] = ()
            dtype = torch.float32 if device.type == "mps" else torch.float64
        else:
            shape, device = tuple(weight.shape), weight.device
            dtype = torch.promote_types(weight.dtype, torch.float32)
        zero = torch.zeros((), dtype=dtype, device=device)
        return zero.expand(len(self.tasks), *shape).requires_grad_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fork:
        """Follow the layer to another device or precision."""
        super()._apply(fn, recurse)
        self._probe = self._new_probe(fn(torch.empty(0)).device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What is measured belongs to the step at hand, and does not travel."""
        return {**self.__dict__, "_probe": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the fork with an identity of its own: a copy's graph is not the original's."""
        super().__setstate__(state)
        self._id = next(_identities)
        self._probe = self._new_probe(torch.device("cpu"))


def _squared_norm(inputs: Tensor, gradient: Tensor) -> Tensor:
    """The squared norm at the features: it adds up over the parts of a batch, as samples are different features."""
    return gradient.double().square().sum() if gradient.device.type != "mps" else gradient.float().square().sum()


def task_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple, checked.

    Raises:
        TypeError: ``tasks`` is a string, or a name is not one.
        ValueError: There is no task, or a name is used twice.
    """
    if isinstance(tasks, str):
        raise TypeError(f"tasks must be a sequence of names; found the string {tasks!r}")
    names = tuple(tasks)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a task's name must be a string; found {name!r}")
    if not names:
        raise ValueError("tasks must name at least one task; found none")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"every task must have a name of its own; found {', '.join(map(repr, twice))} more than once")
    return names
