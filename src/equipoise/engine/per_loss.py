"""One gradient per loss by autograd: for any graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from equipoise.arguments import described, sequence_of_names
from equipoise.engine.autograd_rule import RESHARDED, autograd, flat, is_sharded
from equipoise.engine.node import reaches_the_probe, rows_of
from equipoise.engine.parameters import refuse_parts, shared_parameters
from equipoise.engine.rules import squared_norm
from equipoise.engine.source import GradientSource

LEAST_BATCHED = 8
"""From this number of losses on they are differentiated in batches."""

CHUNK = 32
"""How many losses are differentiated in one batched pass."""


class PerLoss(GradientSource):
    r"""Measures without a fork: the gradient of every loss by its own first-order ``autograd.grad``.

    For losses that come from different forward passes (the terms of a physics-informed network), several losses on one
    output (codecs, variational autoencoders), losses that use derivatives of the network, and hundreds of losses on the
    columns of one output matrix. It costs one backward pass per task from the loss down to the parameters, where a fork costs
    none; they are taken together in batches where every operation on the way allows it (``is_grads_batched``), and run inside
    the one ``backward()`` that the caller calls on the total loss. With ``every=k`` a balancer measures at each k-th step.
    Hooks on gradients, and ``retain_grad`` on the way to W, see these passes too.

    A model that is compiled as a whole must allow more than one pass: set ``torch._functorch.config.donated_buffer = False``
    before it is compiled.

    Args:
        parameters: The last shared layer, with W as for a `Fork`; or W itself, as a parameter or a list of parameters.
        tasks: The names of the tasks.
        names: If ``parameters`` is a module: the names of its parameters that make up W.

    Raises:
        TypeError: ``parameters`` is none of these.
        ValueError: There is no parameter, one is frozen, or its name is unknown; there is no task, or a name is used twice.

    Differs from the paper:
        The paper differentiates a second time through these gradients; that derivative is known in closed form.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> source = PerLoss(layer, tasks=("residual", "boundary"))
        >>> list(source.shared_parameters)
        ['weight']

    References:
        Chen et al. 2018, GradNorm, Algorithm 1.
    """

    taps = True
    reads: ClassVar[str] = "the parameters measured"

    def __init__(
        self,
        parameters: nn.Module | Tensor | Iterable[Tensor],
        tasks: Sequence[str],
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(tasks)
        self._module, self._names = None, None
        self._listed: dict[str, Any] = {}
        if isinstance(parameters, nn.Module):
            self._module = parameters
            self._names = None if names is None else sequence_of_names("names", names)
            if self._names is not None:
                _ = self.shared_parameters
        else:
            if names is not None:
                raise TypeError("names go with a module; found parameters that are given by themselves")
            if isinstance(parameters, (str, Mapping)) or not isinstance(parameters, Iterable):
                raise TypeError(
                    f"parameters must be a module, a parameter or a list of parameters; found {described(parameters)}"
                )
            listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            for i, parameter in enumerate(listed):
                if not any(parameter is other for other in self._listed.values()):  # tied layers have it twice
                    self._listed[f"parameters[{i}]"] = _trained(i, parameter)
            if not listed:
                raise ValueError("parameters must hold at least one parameter; found none")

    @property
    def shared_parameters(self) -> dict[str, Tensor]:
        """W, by name."""
        if self._module is not None:
            return shared_parameters(self._module, self._names)
        refuse_parts(self._listed)
        for name, parameter in self._listed.items():
            if not parameter.requires_grad:
                raise ValueError(
                    f"{name} was frozen, so that no gradient reaches it: make PerLoss from those that are trained"
                )
        return self._listed

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether the module is in training mode; parameters given by themselves always are."""
        return self._module is None or self._module.training

    def tap(self, losses: Mapping[str, Tensor], values: Tensor) -> Tensor:
        """An alias of every loss. The gradient that arrives there has all that the total loss was multiplied with."""
        if not (values.requires_grad and self._measures()):
            return values
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "PerLoss measures from the original graph, which a compiled function does not have: compile the model, and "
                "call the balancer outside of compiled code"
            )
        self._place()
        here = [i for i, task in enumerate(self.tasks) if not losses or (task in losses and losses[task].requires_grad)]
        each = [losses[self.tasks[i]] for i in here] if losses else [*values.unbind()]
        call = LossCall(self, (*self.measured_parameters.values(),), (*here,), self.has_gradients)
        return _LossNode.apply(call, self._probes[0].leaf, values, *each)  # type: ignore[no-any-return]

    def why_not(self, task: str) -> str:
        """Why no gradient of a task may have arrived."""
        if any(map(is_sharded, self.measured_parameters.values())):
            return f"its loss does not depend on W: {RESHARDED}"
        return (
            "its loss does not depend on the parameters measured, which may have been replaced since, or lie in a checkpoint "
            "that needs use_reentrant=False"
        )


class LossCall(NamedTuple):
    """One measurement at the losses.

    Attributes:
        source: It counts the tasks whose losses depend on W.
        parameters: W.
        here: The numbers of the tasks that have a loss.
        gradients: Whether the probe gets the gradients at W, and not their squared norms.
    """

    source: PerLoss
    parameters: tuple[Tensor, ...]
    here: tuple[int, ...]
    gradients: bool


class _LossNode(torch.autograd.Function):
    """``(call, probe, losses (T,), *the losses that are here) -> losses (T,)``."""

    @staticmethod
    def forward(ctx: Any, call: LossCall, probe: Tensor, values: Tensor, *each: Tensor) -> Tensor:
        """Return a view of the losses."""
        ctx.save_for_backward(values, *each)
        ctx.call, ctx.columns, ctx.dtype = call, probe.shape[-1], probe.dtype
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """Differentiate each loss by W, times the gradient that arrives at it."""
        call, (values, *each) = ctx.call, ctx.saved_tensors
        nothing = (None,) * len(each)
        if call.source.paused or not call.here or not reaches_the_probe(ctx):
            return None, None, gradient, *nothing
        with torch.no_grad():
            scaled = gradient.detach().unbind()
            scales = [scaled[i] for i in call.here]  # a list as an index would be copied to the device, which waits
            rows = zip(call.here, _gradients(call, values, each, scales), strict=True)
            found = {i: row if call.gradients else squared_norm(row) for i, row in rows if row is not None}
            call.source.count_arrivals(0, [*found])
            numbers = rows_of(found, call.gradients, len(values), ctx.columns, ctx.dtype) if found else None
        return None, numbers, gradient, *nothing


def _gradients(call: LossCall, values: Tensor, each: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of every loss that is here, flat; None where the loss does not depend on W."""
    found: list[Tensor | None] = []
    if len(each) >= LEAST_BATCHED:
        try:
            for start in range(0, len(each), CHUNK):
                found += _batched(call, values, range(start, min(start + CHUNK, len(each))), scales)
        except RuntimeError:  # an operation on the way that cannot be batched
            found = []
    found = found or [None] * len(each)
    if values.device.type != "cpu" and found[0] is not None:
        return found
    # where nothing was found a loss may be constant at W, or not depend on it at all: asked one by one
    return [
        row if row is not None and row.any() else _one(call, loss, scale)
        for row, loss, scale in zip(found, each, scales, strict=True)
    ]


def _one(call: LossCall, loss: Tensor, scale: Tensor) -> Tensor | None:
    found = autograd([loss], call.parameters, [scale.to(loss.dtype)])
    return flat(call.parameters, found) if any(g is not None for g in found) else None


def _batched(call: LossCall, values: Tensor, rows: range, scales: Sequence[Tensor]) -> list[Tensor]:
    weights = values.new_zeros(len(rows), len(values))
    for row, i in enumerate(rows):
        weights[row, call.here[i]] = scales[i]
    found = torch.autograd.grad(
        values, call.parameters, weights, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    return [flat(call.parameters, [None if g is None else g[row] for g in found]) for row in range(len(rows))]


def _trained(i: int, parameter: object) -> Tensor:
    if not isinstance(parameter, Tensor):
        raise TypeError(f"parameters[{i}] must be a tensor; found {described(parameter)}")
    if not (parameter.requires_grad and parameter.is_leaf):
        raise ValueError(f"parameters[{i}] must be a leaf that is trained; found one that is frozen or computed")
    return parameter
