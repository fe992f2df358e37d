"""One ``autograd.grad`` per loss: the last resort, for any graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from equipoise.engine._node import ForkNode
from equipoise.engine._reach import check_depends
from equipoise.engine._rules import general
from equipoise.engine._source import Source, chosen, named_parameters


class PerLoss(Source):
    r"""Measures where there is no fork: the gradient of every loss by a first-order ``autograd.grad`` of its own.

    For losses that come from different forward passes (the terms of a physics-informed network), several losses on one
    output (codecs, variational autoencoders), losses that use derivatives of the network. It costs one backward pass per
    task from the loss down to the parameters, where a fork costs none. They run inside the one ``backward()`` that the caller
    calls on the total loss.

    A model that is compiled as a whole must allow more than one pass: set ``torch._functorch.config.donated_buffer = False``
    before it is compiled.

    Args:
        parameters: W: a module (all its trained parameters), a parameter, or a list of parameters.
        tasks: The names of the tasks.
        names: Where ``parameters`` is a module: the names of those of its parameters that make up W.

    Raises:
        TypeError: ``parameters`` is none of these.
        ValueError: There is no parameter, one is frozen, or its name is unknown; there is no task, or a name is used twice.

    Differs from the paper:
        The paper differentiates a second time through these gradients; that derivative is known in closed form.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> source = PerLoss(layer, tasks=("residual", "boundary"))
        >>> list(source.parameters_measured)
        ['weight', 'bias']

    References:
        Chen et al. 2018, GradNorm, Algorithm 1.
    """

    taps = True

    def __init__(
        self,
        parameters: nn.Module | Tensor | Iterable[Tensor],
        tasks: Sequence[str],
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(tasks)
        self._module, self._names, self._listed = None, None, {}
        if isinstance(parameters, nn.Module):
            self._module, self._names = parameters, chosen("names", names)
        else:
            if names is not None:
                raise TypeError("names go with a module; found parameters that are given by themselves")
            listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            self._listed = {f"parameters[{i}]": _trained(i, p) for i, p in enumerate(listed)}
            if not listed:
                raise ValueError("parameters must hold at least one parameter; found none")
        self._place_probes()

    @property
    def parameters_measured(self) -> dict[str, Tensor]:  # type: ignore[override]
        """W, by name."""
        return self._listed if self._module is None else named_parameters(self._module, self._names)

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether the module is in training mode; parameters given by themselves always are."""
        return self._module is None or self._module.training

    def tap(self, losses: Mapping[str, Tensor | None]) -> Mapping[str, Tensor | None]:
        """An alias of every loss. The gradient that arrives there has all that the total loss was multiplied with."""
        if not self._measures():
            return losses
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "PerLoss measures from the original graph, which a compiled function does not have: compile the model, and "
                "call the balancer outside of what is compiled"
            )
        self._place_probes()
        statistic = general(list(self.parameters_measured.values()))
        aliases: dict[str, Tensor | None] = dict(losses)
        for i, task in enumerate(self.tasks):
            loss = losses[task]
            if loss is not None and loss.requires_grad:
                passage = self._measured(statistic, probe=i)
                (aliases[task],) = ForkNode.apply(passage, (self._id, i), 1, 1, self._probes[i], loss, loss)
        return aliases

    def check_reach(self, losses: Mapping[str, Tensor]) -> None:
        """Check that each of ``losses`` depends on the parameters.

        Raises:
            ValueError: One does not, or not as it can be measured; the message names the task.
        """
        for task, loss in losses.items():
            check_depends(task, loss, self.parameters_measured)

    def _rows(self) -> list[int]:
        return [1] * len(self.tasks)


def _trained(i: int, parameter: object) -> Tensor:
    if not isinstance(parameter, Tensor):
        raise TypeError(f"parameters[{i}] must be a tensor; found {type(parameter).__name__}")
    if not (parameter.requires_grad and parameter.is_leaf):
        raise ValueError(f"parameters[{i}] must be a leaf that is trained; found one that is frozen or computed")
    return parameter
