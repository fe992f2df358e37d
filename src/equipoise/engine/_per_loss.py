"""One ``autograd.grad`` per loss: the last resort, for any graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from equipoise.engine._rules import flat
from equipoise.engine._source import Source, named_parameters


class PerLoss(Source):
    r"""Measures where there is no fork: the gradient of every loss by a first-order ``autograd.grad`` of its own.

    For losses that come from different forward passes (the terms of a physics-informed network), several losses on one
    output (codecs, variational autoencoders), losses that use derivatives of the network. It costs one backward pass per
    task from the loss down to the parameters, where a fork costs none; the caller still calls ``backward()`` once, on the
    total loss.

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
            self._module, self._names = parameters, None if names is None else tuple(names)
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

    def note(self, losses: Mapping[str, Tensor], weights: Tensor) -> Tensor | None:
        """The gradients of the weighted losses, written into a zero that is added to the total loss.

        They leave it as the gradient of the probe, so that they accumulate and are scaled like everything else.
        """
        self._place_probes()
        probe = self._probes[0]
        absent = torch.zeros_like(probe[0])
        rows = [
            self._gradient(losses[task]).to(probe.dtype) * weight if task in losses else absent
            for task, weight in zip(self.tasks, weights, strict=True)
        ]
        return (probe * torch.stack(rows)).sum()

    def check_reach(self, losses: Mapping[str, Tensor]) -> None:
        """Check that each of ``losses`` depends on the parameters.

        Raises:
            ValueError: One does not; the message names the task.
        """
        for task, loss in losses.items():
            if not loss.requires_grad or all(g is None for g in self._found(loss)):
                raise ValueError(
                    f"task {task!r}: its loss must depend on the parameters measured; found that it does not"
                )

    def _found(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        parameters = list(self.parameters_measured.values())
        return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    def _gradient(self, loss: Tensor) -> Tensor:
        gradients = zip(self.parameters_measured.values(), self._found(loss), strict=True)
        return torch.cat([flat(parameter, gradient) for parameter, gradient in gradients])


def _trained(i: int, parameter: object) -> Tensor:
    if not isinstance(parameter, Tensor):
        raise TypeError(f"parameters[{i}] must be a tensor; found {type(parameter).__name__}")
    if not (parameter.requires_grad and parameter.is_leaf):
        raise ValueError(f"parameters[{i}] must be a leaf that is trained; found one that is frozen or computed")
    return parameter
