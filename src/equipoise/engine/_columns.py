"""Many tasks that are the columns of one output matrix."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from equipoise.engine._module_source import ModuleSource
from equipoise.engine._passages import gradient_rows, square_rows, squared_norm
from equipoise.engine._reach import walk
from equipoise.engine._rules import gram_pays


class Columns(ModuleSource):
    r"""The end of a network whose tasks are the columns of one output matrix: W, an activation, the output layer.

    Hundreds of tasks need no heads of their own here, and no aliases: the network computes all outputs in one product, as it
    would anyway. In the backward pass the gradient at the outputs arrives as one matrix, and its column i belongs to task i
    alone. With :math:`\delta_i` that column, :math:`v_i` row i of the output layer's weight, M the derivative of the
    activation and X the inputs of W, the gradient of the weighted loss i at W is

    .. math:: g_i = \left( \delta_i v_i^\top \odot M \right)^\top X .

    Measuring one task costs about as much as for a `Fork`, so for hundreds of them ``subset`` is what keeps a step cheap.

    Args:
        shared_layer: The last shared layer; W is its weight.
        activation: What lies between it and the output layer, element by element (ReLU, GELU, Dropout, several of them in
            a row); None: nothing.
        output_layer: Its row i of weights gives the output of task i.
        tasks: The names of the tasks, in the order of the outputs.
        subset: How many tasks a step measures, one subset after the other; the norms of the others are those of their last
            turn. ``None``: all.

    Raises:
        TypeError: A layer is not ``nn.Linear``.
        ValueError: The numbers of features, outputs or tasks do not fit together, the weight of ``shared_layer`` is frozen,
            or ``subset`` is not between 1 and the number of tasks.

    Shape:
        T tasks, n any number of leading dimensions. ``forward`` takes ``(*n, shared_layer.in_features)`` and returns the
        outputs ``(*n, T)``. The loss of task i must be computed from column i alone; that is checked in the first step.

    Differs from the paper:
        W is the weight without its bias. With ``subset`` most norms of a step are a few steps old.

    Example:
        >>> end = Columns(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), tasks=("toxic", "soluble"))
        >>> end(torch.ones(3, 8)).shape
        torch.Size([3, 2])

    References:
        Chen et al. 2018, GradNorm, section 3.1.
    """

    def __init__(
        self,
        shared_layer: nn.Linear,
        activation: nn.Module | None,
        output_layer: nn.Linear,
        tasks: Sequence[str],
        *,
        subset: int | None = None,
    ) -> None:
        super().__init__(tasks, subset=subset)
        for name, layer in (("shared_layer", shared_layer), ("output_layer", output_layer)):
            if not isinstance(layer, nn.Linear):
                raise TypeError(f"{name} must be nn.Linear; found {type(layer).__name__}")
        if output_layer.in_features != shared_layer.out_features:
            raise ValueError(
                f"output_layer must take the {shared_layer.out_features} features of shared_layer; "
                f"found one that takes {output_layer.in_features}"
            )
        if output_layer.out_features != len(self.tasks):
            raise ValueError(
                f"output_layer must have an output for each of the {len(self.tasks)} tasks; "
                f"found {output_layer.out_features}"
            )
        if not shared_layer.weight.requires_grad:
            raise ValueError("shared_layer: its weight is frozen, so that no gradient reaches it")
        self.shared_layer, self.activation, self.output_layer = shared_layer, activation, output_layer
        self._place_probes()

    @property
    def parameters_measured(self) -> dict[str, Tensor]:  # type: ignore[override]
        """W, by name."""
        return {"weight": self.shared_layer.weight}

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of all tasks."""
        features = self.shared_layer(inputs)
        active = features if self.activation is None else self.activation(features)
        outputs: Tensor = self.output_layer(active)
        if not self._measures():
            return outputs
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "Columns takes the derivative of the activation from the original graph, which a compiled region does not "
                "have: compile the trunk below it instead"
            )
        self._calls[0] += 1
        measure = partial(_measured, chosen=self._chosen, kept=self._keeps_gradients)
        tensors = inputs, features, active, self.output_layer.weight, outputs
        return cast(Tensor, _ColumnsNode.apply(measure, (self._id, 0), self._probes[0], *tensors))

    def check_reach(self, losses: Mapping[str, Tensor]) -> None:
        """Check that each of ``losses`` is computed from its own column of the outputs.

        Raises:
            ValueError: One is not; the message names the task and what was found.
        """
        for task, loss in losses.items():
            nodes = walk([(loss.grad_fn, 0)], self._id, {}).forks
            if not nodes:
                raise ValueError(f"task {task!r}: its loss must depend on the outputs; found that it does not")
            for found in torch.autograd.grad(loss, [GradientEdge(node, 0) for node in nodes], retain_graph=True):
                reached = found.reshape(-1, len(self.tasks)).any(0)
                reached[self.tasks.index(task)] = False
                if reached.any():
                    other = self.tasks[int(reached.int().argmax())]
                    raise ValueError(
                        f"task {task!r}: its loss must be computed from its own column of the outputs; found that it depends "
                        f"on that of {other!r} too. PerLoss measures such a loss"
                    )

    def extra_repr(self) -> str:
        """Name the number of tasks."""
        return f"tasks={len(self.tasks)}, subset={self.subset}"

    def _gradient_shape(self) -> tuple[int, ...]:
        return tuple(self.shared_layer.weight.shape)


class _ColumnsNode(torch.autograd.Function):
    """``(measure, mark, probe, inputs, features, activation, output weight, outputs) -> alias of the outputs``.

    The ``mark`` is what it is at a `ForkNode`.
    """

    @staticmethod
    def forward(
        ctx: Any, measure: Callable[..., Tensor | None], mark: tuple[int, int], probe: Tensor, *tensors: Tensor
    ) -> Tensor:
        """Return a view of the outputs; keep what the measurement needs."""
        *kept, outputs = tensors
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        ctx.measure, ctx.mark, ctx.features = measure, mark, 1
        ctx.row, ctx.tasks = probe.detach()[0], len(probe)
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Any, ...]:
        """Pass the gradient on; give the probe the statistic of each column."""
        statistic = None
        if gradient is not None:
            inputs, features, active, weight = ctx.saved_tensors
            slope = None
            if active is not features:
                (slope,) = torch.autograd.grad(active, features, torch.ones_like(active), retain_graph=True)
            with torch.no_grad():
                statistic = ctx.measure(inputs, slope, weight, gradient, ctx.tasks, ctx.row)
        return None, None, statistic, None, None, None, None, gradient


def _measured(
    inputs: Tensor,
    slope: Tensor | None,
    weight: Tensor,
    gradient: Tensor,
    tasks: int,
    row: Tensor,
    *,
    chosen: Collection[int] | None,
    kept: bool,
) -> Tensor:
    """The probe's rows: gradients where they are ``kept``, squared norms otherwise."""
    numbers = range(tasks) if chosen is None else sorted(chosen)
    columns = gradient.reshape(-1, tasks).mT.contiguous()
    dtype = columns.dtype
    x, v = inputs.to(dtype).reshape(-1, inputs.shape[-1]), weight.to(dtype)
    slopes = None if slope is None else slope.to(dtype).reshape(len(x), -1)
    gradients = ((i, _at_features(columns[i], v[i], slopes).mT @ x) for i in numbers)
    if kept:
        return gradient_rows(gradients, tasks, row)
    if gram_pays(x, v, len(numbers)):
        gram = x @ x.mT
        squares = {i: _in_gram(gram, columns[i], v[i], slopes) for i in numbers}
    else:
        squares = {i: squared_norm(gradient) for i, gradient in gradients}
    return square_rows(squares, tasks, row)


def _in_gram(gram: Tensor, column: Tensor, weights: Tensor, slopes: Tensor | None) -> Tensor:
    """sum_nm delta_n K_nm (sum_o M_no v_o^2 M_mo) delta_m, with K the Gram matrix of the inputs of W."""
    squares = weights.square()
    within = squares.sum() if slopes is None else (slopes * squares) @ slopes.mT
    return torch.dot(column, (gram * within) @ column)


def _at_features(column: Tensor, weights: Tensor, slopes: Tensor | None) -> Tensor:
    """The gradient at the output of the shared layer, which comes from one column: a product, bent by the activation."""
    product = torch.outer(column, weights)
    return product if slopes is None else product.mul_(slopes)
