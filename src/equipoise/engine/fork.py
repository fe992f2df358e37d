"""The fork: where the network splits into tasks, and where their gradients are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.arguments import described, sequence_of_names, task_names
from equipoise.engine.layers import FeaturesRule, rule_of
from equipoise.engine.parameters import shared_parameters
from equipoise.engine.processes import Processes
from equipoise.engine.rules import LayerRule
from equipoise.engine.source import GradientSource
from equipoise.engine.structure import split


class Fork(nn.Module, GradientSource):
    r"""The last shared layer, and the fork behind it: one alias of its output for every task.

    In the backward pass of the total loss :math:`\sum_i w_i L_i` the gradients of the T weighted losses arrive at the fork one
    by one, and the gradient of each at W is taken there. The network's own gradients are those of the plain total loss. While
    no balancer measures, and in ``eval()``, every task is handed the layer's output unchanged.

    W is the layer's own parameter named ``weight`` if it has one that is trained, otherwise all its trained parameters.
    For a plain Linear, Conv, ConvTranspose, Embedding or LayerNorm the gradient at the weight is computed from the layer's
    inputs. In all other cases (a block, a frozen weight, an adapter, a hook that changes the layer's output, parameters given
    by name) it comes from the original graph, which is not run again. This is decided anew in every forward pass.

    All heads read the same memory, so no head may begin with an in-place operation, as ``nn.ReLU(inplace=True)`` or ``x += 1``.
    While the fork is measured, PyTorch then raises an error, which names the task in the first step.

    Args:
        shared_layer: The last shared layer. ``None``: the input of the fork is used as the features, and gradients are
            measured at the features.
        tasks: The names of the tasks, in the order of every tensor ``(T,)``.
        parameters: Names of the parameters of ``shared_layer`` that make up W, if not the default.
        others: Names of further aliases, for terms of the total loss that are not tasks, such as a penalty of a fixed weight.
            Their gradients go on into the trunk and are not measured.

    Raises:
        TypeError: ``shared_layer`` is not a module, or names are no sequence of strings; in a forward pass, the features
            hold no dense floating-point tensor.
        ValueError: There is no task, or a name is used twice; a parameter is unknown, or frozen when it is measured.

    Shape:
        T tasks. ``forward`` takes the layer's arguments, and returns a dict of T features (and those of ``others``), each of
        the form of the layer's output: a tensor, or a tuple, list, dict or dataclass of tensors.

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
        others: Sequence[str] = (),
    ) -> None:
        nn.Module.__init__(self)
        if shared_layer is not None and not isinstance(shared_layer, nn.Module):
            raise TypeError(f"shared_layer must be a module or None; found {described(shared_layer)}")
        if shared_layer is None and parameters is not None:
            raise ValueError("parameters: there is no shared_layer whose they could be")
        self.shared_layer = shared_layer
        self.at_features = shared_layer is None
        self._names = None if parameters is None else sequence_of_names("parameters", parameters)
        self.others = sequence_of_names("others", others)
        GradientSource.__init__(self, tasks)
        self._names_of_aliases = task_names([*self.tasks, *self.others])
        self._combination: Any = None
        if shared_layer is not None and self._names is not None:
            _ = self.shared_parameters  # refuses names that are wrong

    @property
    def shared_parameters(self) -> dict[str, Tensor]:
        """W, by name; empty where gradients are taken at the features."""
        return {} if self.shared_layer is None else shared_parameters(self.shared_layer, self._names)

    def plan(self, measure: bool, *, gradients: bool, processes: Processes | None = None) -> None:
        """Switch measuring on or off, with the probes that compiled code cannot make."""
        super().plan(measure, gradients=gradients, processes=processes)
        if measure and not self._probes:
            self._place()

    def forward(self, *inputs: Any, **keywords: Any) -> dict[str, Any]:
        """Apply the last shared layer and fan its output out to the tasks.

        Args:
            inputs: The arguments of the last shared layer.
            keywords: Its keyword arguments.

        Returns:
            The features, once per task, by name. Every head must read those of its own task.
        """
        given = [*inputs, *keywords.values(), None][0]
        if self.shared_layer is None and len(inputs) + len(keywords) > 1:
            raise TypeError("a Fork without shared_layer takes one argument; found several: hand in a tuple of them")
        features = given if self.shared_layer is None else self.shared_layer(*inputs, **keywords)
        names, combination = self._names_of_aliases, self._combination
        combines = combination is not None and combination.owner is self.owner and not self.measuring and self._trains()
        if not (combines or self._measures()):
            return dict.fromkeys(names, features)
        tensors, put = split(features)
        if self.shared_layer is None and not any(tensor.requires_grad for tensor in tensors):
            return dict.fromkeys(names, features)
        if combines:
            aliases = combination.fan_out(given, tensors)
        else:
            rule = self.rule_for(given, tensors)
            aliases = self._fan_out(rule, given, tensors, tasks=len(self.tasks), others=len(self.others))
        size = len(tensors)
        return {name: put(aliases[i * size : (i + 1) * size]) for i, name in enumerate(names)}

    def combine(self, combination: Any) -> None:
        """Have the task gradients combined in this way, from the next forward pass on, for as long as it is the owner's."""
        self._combination = combination
        self.plan(False, gradients=False)

    def extra_repr(self) -> str:
        """Name the tasks."""
        return f"tasks={self.tasks}" + (f", others={self.others}" if self.others else "")

    def rule_for(self, given: Any, features: list[Tensor]) -> LayerRule:
        """How the gradient at W follows from that at ``features``, in this forward pass on the input ``given``."""
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self._place(features[0].device)
        if self.shared_layer is None:
            return FeaturesRule()
        parameters = self.shared_parameters if compiling else self.measured_parameters
        return rule_of(self.shared_layer, parameters, self._names is not None, given, features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fork:
        """Follow the parameters to another device or precision."""
        super()._apply(fn, recurse)
        if self.measuring:
            self._place(fn(torch.empty(0)).device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The measurement belongs to the step at hand, and does not travel."""
        return {**GradientSource.__getstate__(self), "_combination": None}
