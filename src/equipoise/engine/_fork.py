"""The fork: where the network splits into tasks, and where their gradients are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.engine._alias import named_alias
from equipoise.engine._combination import Combination
from equipoise.engine._features import split
from equipoise.engine._module_source import ModuleSource
from equipoise.engine._node import ForkNode, Passage
from equipoise.engine._passages import Numbers, Statistic, squares_measured
from equipoise.engine._reach import check_reach
from equipoise.engine._rules import at_the_features, direct
from equipoise.engine._source import chosen, named_parameters


class Fork(ModuleSource):
    r"""The last shared layer, and the fork behind it: one alias of its output for every task.

    In the backward pass of the total loss :math:`\sum_i w_i L_i` the gradients of the T weighted losses arrive at the fork
    one by one, and the gradient of each at the weight W of the last shared layer is taken there. The network's own gradients
    are those of the plain total loss. While no balancer measures, or in ``eval()``, the fork is nothing.

    For Linear, Conv, ConvTranspose, Embedding and LayerNorm, W is the layer's weight and its gradient is computed from the
    layer's inputs. For any other module (a normalisation, a residual stage, a transformer block, a recurrent layer), W is all
    its trained parameters together, and their gradients come from the original graph, which is not run again. So are those
    of parameters that are named, which is the choice where a hook changes what the layer takes or gives.

    All heads read the same memory, so none may begin with an operation in place, as ``nn.ReLU(inplace=True)`` or ``x += 1``.
    While the fork is measured, and in the first training pass in any case, that is an error of PyTorch's, with the name of
    the task in it up to the end of the first step. In ``eval()`` the features are one tensor, as in any PyTorch code.

    Args:
        shared_layer: The last shared layer. ``None``: the input of the fork is taken for the features, and gradients are
            measured at the features.
        tasks: The names of the tasks, in the order of every tensor ``(T,)``.
        parameters: Names of the parameters of ``shared_layer`` that make up W, where it is to be another choice.
        subset: For many tasks: how many of them a step measures, one subset after the other. The norms of the others are
            those of their last turn, divided by the weights of that step and multiplied by the present ones. ``None``: all.

    Raises:
        TypeError: ``shared_layer`` is not a module, or a name is not a string.
        ValueError: There is no task, or a name is used twice; a parameter is unknown or frozen, or none is trained;
            ``subset`` is not between 1 and the number of tasks.

    Shape:
        T tasks. ``forward`` takes what the layer takes, and returns a dict of T features, each what the layer returns: a
        tensor, or a tuple, list, dict or dataclass of tensors.

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

    def __init__(
        self,
        shared_layer: nn.Module | None,
        tasks: Sequence[str],
        *,
        parameters: Sequence[str] | None = None,
        subset: int | None = None,
    ) -> None:
        super().__init__(tasks, subset=subset)
        if shared_layer is not None and not isinstance(shared_layer, nn.Module):
            raise TypeError(f"shared_layer must be a module or None; found {type(shared_layer).__name__}")
        if shared_layer is None and parameters is not None:
            raise ValueError("parameters: there is no shared_layer whose they could be")
        self.shared_layer = shared_layer
        self._names = chosen("parameters", parameters)
        self._rule = None if shared_layer is None or parameters is not None else direct(shared_layer)
        self._handed_out = False
        _ = self.parameters_measured  # refuses what cannot be measured
        self._place_probes()

    @property
    def parameters_measured(self) -> dict[str, Tensor]:  # type: ignore[override]
        """W, by name; empty where gradients are taken at the features."""
        if self.shared_layer is None:
            return {}
        if self._rule is not None:
            return {"weight": self.shared_layer.get_parameter("weight")}
        return named_parameters(self.shared_layer, self._names)

    def forward(self, *inputs: Any, **keywords: Any) -> dict[str, Any]:
        """Apply the last shared layer and fan its output out to the tasks.

        Args:
            inputs: What the last shared layer takes.
            keywords: What it takes by name.

        Returns:
            The features, once per task, by name. Every head must read its own.
        """
        given = [*inputs, *keywords.values(), None][0]
        features = given if self.shared_layer is None else self.shared_layer(*inputs, **keywords)
        if not self._measures():
            return self._shared(features)
        tensors, put = split(features)
        if not tensors:
            raise TypeError(
                "the features must be a floating-point tensor, or a tuple, list, dict or dataclass with one in it; "
                f"found {type(features).__name__}"
            )
        if self.shared_layer is None:
            self._place_probes(tensors[0].device)
        numbers, size = self._numbers(), len(tensors)
        if self._combination is not None:
            aliases = self._combination.fan_out((self._id, 0), *self._statistic(given, tensors), tensors)
        else:
            passage, kept = self._passage(given, tensors, numbers)
            aliases = ForkNode.apply(passage, (self._id, 0), len(numbers), len(kept), self._probes[0], *kept, *tensors)
        if not (torch.compiler.is_compiling() or self._checked):
            aliases = [self._guarded(self.tasks[i // size], alias) for i, alias in enumerate(aliases)]
        each = [put(aliases[i : i + size]) for i in range(0, len(aliases), size)]
        if len(each) == len(self.tasks):
            return dict(zip(self.tasks, each, strict=True))
        return dict.fromkeys(self.tasks, each[-1]) | {
            self.tasks[i]: alias for i, alias in zip(numbers, each, strict=True) if i is not None
        }

    def combine(self, combination: Combination) -> None:
        """Have the task gradients combined in this way, from the next forward pass to the next call of `measure`."""
        self._measuring, self._combination = False, combination

    def check_reach(self, losses: Mapping[str, Tensor]) -> None:
        """Check that each of ``losses`` reaches the last shared layer, through its own alias only.

        Raises:
            ValueError: One does not; the message names the task and what was found.
        """
        by_rule = self._rule is not None and not self._at_the_features()
        check_reach(losses, self.tasks, self._id, self.parameters_measured, by_rule=by_rule, reads="features[{}]")
        self._checked |= losses.keys()

    def extra_repr(self) -> str:
        """Name the tasks."""
        return f"tasks={self.tasks}"

    def _shared(self, features: Any) -> dict[str, Any]:
        """The features as they are, for all tasks; the first time in training under names, as no head may write on them."""
        if torch.compiler.is_compiling() or self._handed_out or not (self.training and torch.is_grad_enabled()):
            return dict.fromkeys(self.tasks, features)
        self._handed_out = True
        tensors, put = split(features)
        return {task: put([named_alias(task, tensor) for tensor in tensors]) for task in self.tasks}

    def _numbers(self) -> Numbers:
        """The task that each alias is measured for. The tasks of another turn share one alias, once they are checked."""
        every = range(len(self.tasks))
        if self._chosen is None or torch.compiler.is_compiling():
            return every
        if len(self._checked) < len(self.tasks) or len(self._chosen) == len(self.tasks):
            return [i if i in self._chosen else None for i in every]
        return [*sorted(self._chosen), None]

    def _passage(self, given: Any, features: list[Tensor], numbers: Numbers) -> tuple[Passage, list[Tensor]]:
        """How the tasks are measured, and what must be kept for it."""
        if self.shared_layer is None:
            return squares_measured(at_the_features, numbers, len(self.tasks)), []
        if self._rule is not None:
            return self._measured(*self._rule, numbers=numbers), [given]
        return self._measured(self._from_the_graph(features), numbers=numbers), features

    def _statistic(self, given: Any, features: list[Tensor]) -> tuple[Statistic | None, list[Tensor]]:
        """How the gradients at W are had where gradients are combined; None: they are combined at the features."""
        if self._at_the_features():
            return None, []
        if self._rule is not None:
            return self._rule.statistic, [given]
        return self._from_the_graph(features), features

    def _at_the_features(self) -> bool:
        """Whether gradients are combined, as they are at the features."""
        return self._combination is not None and not self._combination.at_layer

    def _gradient_shape(self) -> tuple[int, ...]:
        return tuple(self.parameters_measured["weight"].shape) if self._rule is not None else super()._gradient_shape()
